"""Files that outlive a process: whole or as before, on a full disk and under kill -9."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.common import durable

PAGE = 4096


@pytest.mark.parametrize("big", [8 * PAGE, 1000 * PAGE])
def test_a_full_disk_leaves_the_old_file_and_no_temporary(
    big: int, full_disk: Callable[[int], Path]
) -> None:
    disk = full_disk(8 * PAGE)
    record, text = disk / "record.json", disk / "text"
    durable.write_json(record, {"old": True})
    durable.write_text(text, "old")
    for write in (
        lambda: durable.write_bytes(text, b"x" * big),
        lambda: durable.write_text(text, "x" * big),
        lambda: durable.write_json(record, {"new": "x" * big}),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert json.loads(record.read_text()) == {"old": True}
    assert text.read_text() == "old"
    assert sorted(path.name for path in disk.iterdir()) == ["record.json", "text"]


def test_a_line_torn_by_a_full_disk_takes_no_other_with_it(
    full_disk: Callable[[int], Path],
) -> None:
    disk = full_disk(4 * PAGE)
    ballast, path = disk / "ballast", disk / "events.jsonl"
    ballast.write_bytes(b"x" * PAGE)
    writer = durable.JsonlWriter(path)
    written = 0
    with pytest.raises(OSError, match="No space left"):
        for written in range(1000):
            writer.write({"n": written, "text": "x" * 100})
    ballast.unlink()
    writer.write({"n": "after"})
    writer.close()
    numbers = [record["n"] for record in durable.read_jsonl(path)]
    assert numbers == [*range(written), "after"]
    assert durable.last_jsonl(path) == {"n": "after"}


def test_what_can_not_be_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    durable.write_json(path, {"old": True})
    for record in ({"loss": math.nan}, {"loss": math.inf}, {"when": object()}):
        with pytest.raises((ValueError, TypeError)):
            durable.write_json(path, record)
    assert durable.read_json(path) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_mode_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        durable.write_text(tmp_path / "launch.sh", "x", mode=0o755)
        durable.write_text(tmp_path / "plan.yaml", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "launch.sh").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "plan.yaml").stat().st_mode & 0o777 == 0o644


WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from runner.common import durable
lines = durable.JsonlWriter(Path(sys.argv[1]) / "lines.jsonl")
for n in itertools.count():
    durable.write_json(Path(sys.argv[1]) / "record.json", {"n": n, "text": str(n) * 3000})
    lines.write({"n": n, "text": str(n) * 3000})
"""


@pytest.mark.parametrize("attempt", range(4))
def test_a_kill_in_mid_write_leaves_a_whole_record(attempt: int, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)])
    record = tmp_path / "record.json"
    deadline = time.monotonic() + 300
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    for _ in range(20):  # readers never see half a record either
        found = json.loads(record.read_text())
        assert found["text"] == str(found["n"]) * 3000
    time.sleep(0.013 * attempt)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = json.loads(record.read_text())
    assert found["text"] == str(found["n"]) * 3000
    numbers = [line["n"] for line in durable.read_jsonl(tmp_path / "lines.jsonl")]
    assert numbers == list(range(len(numbers)))
    assert found["n"] - len(numbers) in (-1, 0)


RECORDS = st.lists(
    st.dictionaries(
        st.text(max_size=4),
        st.none() | st.integers(-9, 9) | st.text(max_size=6) | st.floats(allow_nan=False, width=16),
        max_size=3,
    ).filter(lambda record: math.inf not in map(_absolute, record.values())),
    max_size=5,
)


def _absolute(value: Any) -> float:
    return abs(value) if isinstance(value, float) else 0.0


@settings(max_examples=100, deadline=None)
@given(RECORDS, RECORDS, st.integers(0, 400))
def test_records_survive_a_torn_last_line_and_a_second_writer(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[dict[str, Any]],
    second: list[dict[str, Any]],
    torn: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.unlink(missing_ok=True)
    append(path, first)
    whole = path.read_bytes()
    os.truncate(path, max(0, len(whole) - torn))
    complete = path.read_bytes().count(b"\n")
    # a line that lost nothing but its line break is a whole record
    left = max(0, len(whole) - torn)
    cut_clean = left > 0 and whole[left : left + 1] == b"\n"
    kept = first[: complete + cut_clean]
    assert list(durable.read_jsonl(path)) == kept
    assert durable.last_jsonl(path) == (kept[-1] if kept else None)
    for records in (second, second):
        append(path, records)
    assert list(durable.read_jsonl(path)) == kept + second + second


def append(path: Path, records: list[dict[str, Any]]) -> None:
    writer = durable.JsonlWriter(path)
    for record in records:
        writer.write(record)
    writer.close()


@given(st.binary(max_size=80))
def test_any_bytes_are_read_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    durable.read_json(path)
    durable.last_jsonl(path)
    assert all(isinstance(record, dict) for record in durable.read_jsonl(path))


def test_files_that_are_not_there_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert durable.read_json(path) is None
    assert durable.last_jsonl(path) is None
    assert list(durable.read_jsonl(path)) == []


def test_the_last_record_with_a_key_is_found_behind_others(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"loss": 1}\n{"loss": 2}\n{"eval_loss": 3}\n')
    assert durable.last_jsonl(path) == {"eval_loss": 3}
    assert durable.last_jsonl(path, having="loss") == {"loss": 2}
    assert durable.last_jsonl(path, having="other") is None


def test_a_newer_record_is_told_from_one_that_can_be_read() -> None:
    assert durable.newer({"schema_version": 1}, 1) is None
    assert durable.newer({}, 1) is None
    assert durable.newer(["no record"], 1) is None
    told = "written by a newer runner (schema_version 2, this one reads 1)"
    assert durable.newer({"schema_version": 2}, 1) == told
