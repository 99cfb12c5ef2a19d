"""The soak's own running: two lanes, a table, an exit code. With parts of a moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import soak
from tests.support.command import REPOSITORY

GOOD = soak.Part("good", "prints", ("-c", "import os; print('soak', os.environ['RUNNER_SOAK'])"))
BAD = soak.Part("bad", "fails", ("-c", "print('why'); raise SystemExit(3)"))


def test_every_part_runs_and_one_failure_fails_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "LANES", ((BAD,), (GOOD,)))
    assert soak.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "| bad | fails | 0.0 | FAILED (3) | why |" in said
    assert "| good | prints | 0.0 | passed | soak 1 |" in said
    assert (tmp_path / "good.log").read_text() == "soak 1\n"
    assert soak.main(["--out", str(tmp_path), "good"]) == 0
    assert "bad" not in capsys.readouterr().out


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        soak.main(["kill"])
    assert refused.value.code == 2
    assert "no such part: kill; there are kills, kills-stub" in capsys.readouterr().err


def test_what_the_parts_name_is_there() -> None:
    for part in (part for lane in soak.LANES for part in lane):
        module = part.arguments[1]
        source = (REPOSITORY / module.replace(".", "/")).with_suffix(".py")
        assert module == "pytest" or source.is_file()
        for word in part.arguments:
            path = word.partition("=")[2] or word
            assert not path.startswith("tests/") or (REPOSITORY / path).exists(), path


def test_ctrl_c_ends_every_part(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.support import soak\n"
        "wait = ('-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(600)')\n"
        "soak.LANES = ((soak.Part('a', '', wait),), (soak.Part('b', '', wait),))\n"
        f"sys.exit(soak.main(['--out', {str(tmp_path)!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, start_new_session=True)
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    deadline = time.monotonic() + 120
    while not all(log.is_file() and log.read_text() for log in logs):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    for log in logs:
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text().split()[0]), 0)
