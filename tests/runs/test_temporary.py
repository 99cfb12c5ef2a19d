"""A run's own TMPDIR: empty at each start, private, gone with the run, never another's folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from runner.runs import tmpdir as temporary


@pytest.fixture(autouse=True)
def everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "everybody's"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def test_it_is_made_anew_and_removed(everybodys: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    place = temporary.make(run)
    assert place.parent == everybodys and place.stat().st_mode & 0o777 == 0o700
    (place / "wandb-media").mkdir()
    (place / "wandb-media" / "left.bin").write_text("by a kill")
    assert temporary.make(run) == place and list(place.iterdir()) == []
    assert temporary.make(other) != place
    temporary.clear(run)
    temporary.clear(run)
    assert list(everybodys.iterdir()) == [temporary.temporary_of(other)]


def test_a_link_or_a_file_of_that_name_is_not_followed_nor_removed(
    everybodys: Path, tmp_path: Path
) -> None:
    run, precious = tmp_path / "run", tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    temporary.temporary_of(run).symlink_to(precious)
    for act in (temporary.make, temporary.clear):
        with pytest.raises(PermissionError, match="not this user's folder"):
            act(run)
    assert (precious / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder to somebody else")
def test_another_user_s_folder_of_that_name_is_left_alone(everybodys: Path, tmp_path: Path) -> None:
    place = temporary.temporary_of(tmp_path / "run")
    place.mkdir()
    (place / "file").write_text("theirs")
    os.chown(place, 12345, 12345)
    with pytest.raises(PermissionError, match="not this user's folder"):
        temporary.make(tmp_path / "run")
    assert (place / "file").read_text() == "theirs"
