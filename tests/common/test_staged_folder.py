"""A folder takes its place whole or not at all, whatever ends its maker, and wherever he is."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.common import file_systems, locks, staged_folder
from runner.common.staged_folder import Existing, Taken, put_back, replaced_of, staged, sweep

FILES = {"seal.json": "{}", "weights": "new", "inner/config": "new"}
STEPS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "open")
"""Audit events (PEP 578) before each of which a maker is killed."""


@pytest.fixture(params=["flock", "lease"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to make one in, on a disk whose flock is trusted, and one whose is not."""
    if request.param == "lease":
        monkeypatch.setattr(file_systems, "type_number", lambda _: 0x6969)
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def write(folder: Path, files: dict[str, str] | None = None) -> None:
    for name, text in (files or FILES).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_there_when_the_block_ends_and_not_before(place: Path) -> None:
    final = place / "new" / "model"
    with staged(final, existing="refuse") as folder:
        write(folder)
        assert not final.exists()
        assert folder.parent == final.parent
    assert content(final) == dict(sorted(FILES.items()))
    assert names(final.parent) == ["model"]
    umask = os.umask(0)
    os.umask(umask)
    assert final.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_what_fails_leaves_nothing(error: BaseException, place: Path) -> None:
    with pytest.raises(type(error)), staged(place / "a" / "b" / "model", existing="refuse") as out:
        write(out)
        raise error
    assert names(place) == []


def test_a_private_one_is_shut_while_it_is_filled(place: Path) -> None:
    with staged(place / "run", existing="refuse", private=True) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_what_is_there_is_refused_kept_or_replaced(place: Path) -> None:
    final = place / "model"
    write(final, {"weights": "old"})
    with pytest.raises(Taken), staged(final, existing="refuse") as folder:
        write(folder)
    with staged(final, existing="keep") as folder:
        write(folder)
    assert content(final) == {"weights": "old"}
    with staged(final, existing="replace") as folder:
        write(folder)
    assert content(final)["weights"] == "new"
    assert names(place) == ["model"]


def test_an_empty_folder_is_not_taken_for_nothing(place: Path) -> None:
    """A plain rename would replace it: somebody may be about to fill it."""
    (place / "model").mkdir()
    with pytest.raises(Taken), staged(place / "model", existing="refuse") as folder:
        write(folder)
    assert names(place / "model") == []


def test_where_the_file_system_has_no_such_rename_it_is_looked_at(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_folder, "_renameat2", lambda: None)
    write(place / "model", {"weights": "old"})
    with pytest.raises(Taken), staged(place / "model", existing="refuse") as folder:
        write(folder)
    with staged(place / "other", existing="refuse") as folder:
        write(folder)
    assert names(place) == ["model", "other"]


def test_what_a_killed_maker_left_goes_and_a_living_ones_stays(place: Path) -> None:
    with staged(place / "model", existing="refuse") as living:
        write(living)
        dead = place / f".model.{'0' * 16}.staging"
        other = place / f".other.{'0' * 16}.staging"
        for left in (dead, other, place / ".a-users.staging"):
            write(left)
        sweep(place, "model")
        assert not dead.exists() and other.is_dir()
        sweep(place)
        assert not other.exists() and content(living) and (place / ".a-users.staging").is_dir()
    assert "model" in names(place)


def test_no_link_is_swept(place: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside")
    (place / f".model.{'0' * 16}.staging").symlink_to(tmp_path / "outside")
    sweep(place)
    assert content(tmp_path / "outside")


def test_a_replacement_that_was_killed_half_way_is_put_back(place: Path) -> None:
    final = place / "model"
    write(replaced_of(final), {"weights": "old"})
    put_back(final)
    assert content(final) == {"weights": "old"}
    write(replaced_of(final), {"weights": "older"})
    put_back(final)
    assert content(final) == {"weights": "old"}
    assert names(place) == ["model"]


def _killed_at(number: int, final: Path, existing: Existing) -> int:
    """Make `final` in a child that is killed before its step `number`: the signal, else 0."""
    child = os.fork()
    if child == 0:
        try:
            left = [number]

            def step(event: str, arguments: tuple[Any, ...]) -> None:
                if event in STEPS and str(final.parent) in str(arguments[0]):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(step)
            with staged(final, existing=existing) as folder:
                write(folder)
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("existing", ["refuse", "keep", "replace"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_whole(
    existing: Existing, place: Path
) -> None:
    """And the next maker finds nothing in his way, and leaves nothing of it."""
    final, old, new = place / "model", {"weights": "old"}, dict(sorted(FILES.items()))
    steps = 0
    while True:
        steps += 1
        if existing == "replace":
            write(final, old)
        killed = _killed_at(steps, final, existing)
        found = content(final) if final.exists() else None
        aside = content(replaced_of(final)) if replaced_of(final).exists() else None
        if existing == "replace":
            assert found in (old, new) or (found is None and aside == old)
        else:
            assert found in (None, new) and aside is None
        if not killed:
            assert found == new
            break
        assert killed == signal.SIGKILL
        with staged(final, existing="replace") as folder:
            write(folder)
        assert content(final) == new
        assert [name for name in names(place) if not name.endswith(".lease")] == ["model"]
        shutil.rmtree(place)
        place.mkdir()
    assert steps > 8, "the hook saw no steps"


def _make(arguments: tuple[Path, int]) -> int:
    final, number = arguments
    with staged(final, existing="keep") as folder:
        write(folder, {"weights": str(number), "other": str(number)})
    return number


def test_of_two_at_once_one_is_whole(place: Path) -> None:
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            _make((place / "model", number))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    found = content(place / "model")
    assert found["weights"] == found["other"]
    assert names(place) == ["model"]


def test_on_a_real_network_disk_two_machines_do_not_meet(
    machines: tuple[Path, Path],
) -> None:
    here, there = machines
    with staged(here / "model", existing="refuse") as folder:
        write(folder)
        sweep(there)  # from the other machine: it is not a dead one's
        assert content(folder)
        with pytest.raises(Taken), staged(there / "other", existing="refuse") as other:
            write(other)
            (here / "other").mkdir()
    assert content(there / "model") == dict(sorted(FILES.items()))
    assert locks.is_locked(there / "model") is False
    assert names(here) == ["model", "other"]


@pytest.fixture(autouse=True)
def _own_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)
