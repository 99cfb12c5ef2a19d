from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runner.data.cache import MANIFEST, is_whole, make_once
from tests.support.command import REPOSITORY


def fill(folder: Path) -> None:
    (folder / "rows").write_text("some")


def test_a_folder_is_made_once_and_again_when_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "prepared" / "abc"
    assert make_once(folder, fill)
    assert not make_once(folder, lambda _: pytest.fail("it is there"))
    assert is_whole(folder)
    (folder / "rows").write_text("so")
    assert not is_whole(folder)
    assert make_once(folder, fill)
    (folder / MANIFEST).write_text("{")
    assert make_once(folder, fill)
    assert (folder / "rows").read_text() == "some"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        make_once(tmp_path / "abc", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".abc.lock"]


SLOW = """
import sys
from pathlib import Path
from runner.data.cache import make_once
def fill(folder):
    (folder / "rows").write_text("some")
    print("making", flush=True)
    sys.stdin.read()
print(make_once(Path(sys.argv[1]), fill), flush=True)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that has begun to make a folder, and goes on when its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "making\n"
    return process


def test_what_a_killed_process_left_is_made_anew(tmp_path: Path) -> None:
    killed = start(tmp_path / "abc")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(tmp_path.glob(".abc.*.staging"))
    assert make_once(tmp_path / "other", fill)  # another folder's making sweeps up
    assert not list(tmp_path.glob(".abc.*.staging"))
    assert make_once(tmp_path / "abc", fill)


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    one = start(tmp_path / "abc")
    made_here: list[Path] = []
    found: list[bool] = []
    other = threading.Thread(
        target=lambda: found.append(make_once(tmp_path / "abc", made_here.append))
    )
    other.start()
    other.join(0.3)
    assert other.is_alive()  # it waits for the one that makes it
    assert one.communicate()[0] == "True\n"
    other.join()
    assert (found, made_here) == ([False], [])
