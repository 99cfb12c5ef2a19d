"""The reason of an end, read from a log: whatever wrote it, in one line fit for a verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.runs.outcome import Evidence, Reason, judge
from runner.supervisor.log_reason import LONGEST, log_reason, reason_of

TRACEBACK = """Loading
Traceback (most recent call last):
  File "train.py", line 3, in main
    load()
ValueError: bad row 7
"""
LAUNCHER = """Traceback (most recent call last):
  File "launch.py", line 9, in <module>
    raise CalledProcessError(returncode=1, cmd=command)
subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 1.
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TRACEBACK, "ValueError: bad row 7"),
        (TRACEBACK + LAUNCHER, "ValueError: bad row 7"),
        (
            "".join(f"[rank0]: {line}\n" for line in TRACEBACK.splitlines()),
            "ValueError: bad row 7",
        ),
        (
            TRACEBACK
            + "\nDuring handling of the above exception, another exception occurred:\n\n"
            + TRACEBACK.replace("ValueError: bad row 7", "torch.OutOfMemoryError: CUDA out of it"),
            "torch.OutOfMemoryError: CUDA out of it",
        ),
        (TRACEBACK.replace("ValueError: bad row 7", "AssertionError"), "AssertionError"),
        (TRACEBACK + "50%|███   | 1/2\r100%|██████| 2/2\nbye\n", "ValueError: bad row 7"),
        (
            "step 1\nlaunch.sh: line 12: python9: command not found\n",
            "launch.sh: line 12: python9: command not found",
        ),
        ("merge: error: shapes differ\ncleaning up\n", "merge: error: shapes differ"),
        ("step 1 loss 2.5\nstep 2 loss 2.4\n", None),
        ("", None),
        ("Traceback (most recent call last):\n", None),
    ],
)
def test_the_last_error_is_the_reason(text: str, reason: str | None) -> None:
    assert reason_of(text) == reason


def test_what_an_earlier_start_wrote_is_no_reason(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(TRACEBACK)
    start = log.stat().st_size
    assert log_reason(log, start) is None
    with log.open("a") as stream:
        stream.write("step 1\n")
    assert log_reason(log, start) is None
    assert log_reason(log) == "ValueError: bad row 7"
    assert log_reason(tmp_path / "absent.log") is None


def test_a_reason_is_one_clean_line_of_bounded_length(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(TRACEBACK.replace("bad row 7", "\x1b[31mred\x1b[0m " + "x" * 5000))
    found = log_reason(log)
    assert found is not None and len(found) == LONGEST
    assert "\x1b" not in found and "\\x1b[31mred" in found


@given(st.text(alphabet=st.sampled_from("Tracebk (mostrecn laid):\n\r :x[0]error"), max_size=300))
def test_any_text_has_a_line_or_none(text: str) -> None:
    found = reason_of(text)
    assert found is None or "\n" not in found


def test_the_verdict_says_it_for_every_engine() -> None:
    evidence = Evidence(
        exit_code=1,
        engine_failure=None,
        engine_completed=False,
        cause=None,
        engine_phase=None,
        checkpoint=None,
        host_oom_kills=0,
        dry_run=False,
        interrupted=False,
        by_exit_code=True,
        log_reason="ValueError: bad row 7",
    )
    assert judge(evidence) == (
        Reason.FAILED,
        1,
        "the trainer exited with code 1: ValueError: bad row 7; what it wrote stays in the run "
        "folder",
    )
