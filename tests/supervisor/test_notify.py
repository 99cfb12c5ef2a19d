"""on_end: the command that is told how a run ended, on real processes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from runner.supervisor.notify import run_command


def test_it_is_given_the_text_in_the_folder(tmp_path: Path) -> None:
    assert run_command("cat > got; pwd > where", '{"reason": "completed"}', tmp_path) is None
    assert json.loads((tmp_path / "got").read_text()) == {"reason": "completed"}
    assert (tmp_path / "where").read_text().strip() == str(tmp_path)


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("exit 7", "ended with exit code 7"),
        ("no-such-program-here", "ended with exit code 127"),
        ("kill -9 $$", "was ended by signal 9"),
        ("true \0", "could not be started: embedded null byte"),
    ],
)
def test_what_went_wrong_is_said(command: str, wrong: str, tmp_path: Path) -> None:
    assert run_command(command, "{}", tmp_path) == wrong


def test_one_that_reads_nothing_of_a_long_text_is_no_failure(tmp_path: Path) -> None:
    assert run_command("exec <&-; true", "x" * 1_000_000, tmp_path) is None


def test_one_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    command = "(sleep 3; touch late) & sleep 60"
    wrong = run_command(command, "{}", tmp_path, limit_seconds=0.5)
    assert wrong == "took over 0.5 s and was killed"
    assert time.monotonic() - began < 30  # it would have slept for 60
    time.sleep(3.2)
    assert not (tmp_path / "late").exists()
