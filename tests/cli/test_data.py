"""`runner data`: what a person is told of a job's rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import REPOSITORY

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

Command = Callable[..., Any]
JOB = """
model: builtin:smollm2-135m-instruct
data:
  train: reviews.jsonl
  sample: sample.jsonl
  labels: {0: bad, 1: good}
  clean: {conflicts: drop, ignore: [white_space, case]}
  split: {eval: 0.1, test: 0.1, stratify: label}
training: {max_steps: 3}
"""


def reviews(path: Path, count: int) -> None:
    rows = [{"text": f"text {n}", "label": int(n % 4 == 0)} for n in range(count)]
    rows += [rows[0], {"text": "TEXT 1", "label": 1}, {"text": "", "label": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    reviews(tmp_path / "reviews.jsonl", 100)
    reviews(tmp_path / "sample.jsonl", 20)
    (tmp_path / "reviews.yaml").write_text(JOB)
    return tmp_path / "reviews.yaml"


def test_a_table_of_what_became_of_the_rows(cli: Command, job: Path, tmp_path: Path) -> None:
    done = cli("data", str(job))
    assert done.code == 0, done.err
    header, row = done.out.splitlines()[:2]
    assert dict(zip(header.split(), row.split(), strict=True)) == {
        "ROWS": "reviews.jsonl",
        "FORMAT": "text_label",
        "READ": "103",
        "EMPTY": "1",
        "DUPLICATES": "1",
        "CONFLICTS": "2",
        "LEAKED": "0",
        "TRAIN": "79",
        "EVAL": "10",
        "TEST": "10",
    }
    assert "sides      79 train (79.8%), 10 eval (10.1%), 10 test (10.1%)" in done.out
    assert "1 rows that repeat an earlier one are left out: lines 101 (as 1)" in done.out
    told = (
        "2 rows with another answer to the same prompt are left out: lines 2 (as 102), 102 (as 2)"
    )
    assert told in done.out
    assert "none: no prompt is on two sides (white space and case apart)" in done.out
    (listed,) = (line for line in done.out.splitlines() if line.startswith("left out"))
    rows = [json.loads(row) for row in Path(listed.split(" in ")[1]).read_text().splitlines()]
    assert [(row["why"], row["line"], row["other_line"]) for row in rows] == [
        ("conflict", 2, 102),
        ("duplicate", 101, 1),
        ("conflict", 102, 2),
    ]
    assert str(tmp_path / "cache" / "prepared") in done.out
    again = cli("data", str(job))
    assert again.out == done.out


def test_the_same_as_json(cli: Command, job: Path) -> None:
    done = cli("data", str(job), "--json")
    record = json.loads(done.out)
    assert (done.code, record["ok"]) == (0, True)
    report = record["trainings"][0]["report"]
    assert report["sides"] == {"train": 79, "eval": 10, "test": 10}
    assert set(report["split"]["strata"]) == {"0", "1"}
    refused = cli("data", str(job), "--json", "--set", "data.split.stratify=lable")
    record = json.loads(refused.out)
    assert (refused.code, record["ok"], record["exit_code"]) == (2, False, 2)
    assert "label" in "\n".join(record["error"])


def test_how_a_table_is_read_is_said(cli: Command, job: Path) -> None:
    """One stray quote swallows no rows, and lines and rows stand side by side."""
    text = (
        'text\tlabel\n"Wow this was fun\t1\nA dull film\t0\nFine\t1\nI fell asleep"\t0\nGreat\t1\n'
    )
    job.with_name("rows.tsv").write_text(text)
    sets = ["--set", "data.train=rows.tsv", "--set", "data.split=null"]
    done = cli("data", str(job), *sets)
    assert done.code == 0, done.err
    assert "6 lines -> a header and 5 rows of 2 cells; tab-separated, quotes are plain" in done.out
    assert "taken for marks they would join 5 rows to 2" in done.out
    told = cli("data", str(job), "--json", *sets, "--set", "data.table.quote=double")
    source = json.loads(told.out)["trainings"][0]["report"]["sources"][0]
    assert (source["read"], source["table"]["lines"], source["table"]["rows"]) == (2, 6, 2)
    assert source["table"]["with_tabs"] == {"rows": 1, "first_lines": [2]}
    assert source["table"]["joined_lines"]["rows"] == 1
    refused = cli("data", str(job), *sets, "--set", "data.table.quote=dobule")
    assert (refused.code, "nearest   double" in refused.err) == (2, True)


def test_the_sides_are_written_and_never_overwritten(
    cli: Command, job: Path, tmp_path: Path
) -> None:
    done = cli("data", str(job), "--out", "sides")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "sides" / "test.jsonl").open()]
    assert len(rows) == 10
    assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant"]
    assert {row["label"] for row in rows} == {"0", "1"}
    (tmp_path / "sides" / "train.jsonl").write_text("mine")
    again = cli("data", str(job), "--out", "sides")
    assert again.code == 2
    assert "is not overwritten" in again.err
    assert (tmp_path / "sides" / "train.jsonl").read_text() == "mine"
    # what was written can be trained on
    trained = cli("data", str(job), "--set", "data.train=sides/eval.jsonl", "--set",
                  "data.split=null", "--json")  # fmt: skip
    assert json.loads(trained.out)["trainings"][0]["report"]["sides"]["train"] == 10


def test_sample_rows_are_taken_when_asked_and_said(cli: Command, job: Path) -> None:
    (job.parent / "reviews.jsonl").unlink()
    done = cli("data", str(job))
    assert done.code == 2
    assert "no such file on this machine" in done.err
    done = cli("data", str(job), "--sample")
    assert done.code == 0, done.err
    assert "SUBSTITUTE sample.jsonl in place of reviews.jsonl" in done.out
    done = cli("data", str(job), "--sample", "--set", "data.sample=null")
    assert done.code == 3
    assert "no sample rows" in done.err


def test_each_training_of_a_job_is_told(cli: Command, job: Path, tmp_path: Path) -> None:
    job.write_text(
        JOB.replace("training: {max_steps: 3}", "")
        + "vision: {model: some/tower}\nphases:\n"
        + "  - {name: one, trains: [projector], training: {max_steps: 1}}\n"
        + "  - {name: two, trains: [adapter], training: {max_steps: 1}, "
        + "data: {split: {eval: 0.5, test: 0.0}}}\n"
    )
    done = cli("data", str(job), "--out", "sides")
    assert done.code == 0, done.err
    assert "phase      one" in done.out
    assert (tmp_path / "sides" / "one" / "test.jsonl").is_file()
    assert len((tmp_path / "sides" / "two" / "eval.jsonl").read_text().splitlines()) == 50


def test_a_stop_leaves_nothing_half_made(job: Path, tmp_path: Path) -> None:
    reviews(tmp_path / "reviews.jsonl", 300_000)
    prepared = tmp_path / "cache" / "prepared"
    stopped = subprocess.Popen(
        [sys.executable, "-m", "runner", "data", str(job)],
        env={**os.environ, "RUNNER_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=REPOSITORY,
    )
    deadline = time.monotonic() + 1800
    while not list(prepared.glob(".*.staging/work/content-0.parquet")):
        assert time.monotonic() < deadline
        assert stopped.poll() is None
        time.sleep(0.05)
    os.killpg(stopped.pid, signal.SIGINT)
    told, _ = stopped.communicate()
    assert (stopped.returncode, told) == (130, "")
    assert [path.suffix for path in prepared.iterdir()] == [".lock"]
