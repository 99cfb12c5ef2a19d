"""Every record of a real run, damaged in every way: each command says so in words, and goes on.

Real runs of a script; records that a script does not leave are laid beside. Each damage meets some
of the commands, in turns, so that every command meets every record.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

import runner.cli
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from runner.supervisor.__main__ import main as supervisor_main
from tests.support.benches import make_bench
from tests.support.command import Answer, run_cli

LAID: dict[str, dict[str, Any]] = {
    "engine/rank-0.json": {
        "schema_version": 1,
        "pid": 1,
        "start_ticks": 5,
        "pid_namespace": None,
        "phase": "training",
        "planned_steps": 3,
        "handles": ["SIGUSR1"],
    },
    "engine/result.json": {
        "completed": True,
        "steps": 3,
        "max_steps": 3,
        "tokens": 5,
        "best": {"eval_loss": 1.0, "step": 2},
        "stopped_early": "words",
        "times": {"seconds_per_step_median": 1.0, "seconds_per_step_p95": 1.0},
    },
    "engine/failure.json": {"kind": "failed", "message": "words", "step": 1},
    "queue.json": {"schema_version": 1, "place": 1, "text": "words", "since_unix_seconds": 1.0},
    "container.json": {"schema_version": 1, "name": "n", "argv": ["/bin/false", "run"]},
    "data.json": {
        "rows_read": 1,
        "format": "words",
        "train_rows": 1,
        "eval_rows": 1,
        "train": {
            "supervised_share": 0.5,
            "longest": {"tokens": 5},
            "end_of_turn": {"text": "x", "trained": True},
        },
    },
    "checkpoints/best.json": {
        "schema_version": 1,
        "evaluations": [{"step": 2, "eval_loss": 1.0, "phase": ""}],
    },
}
VERDICT = "termination.json"
RECORDS = (
    *(VERDICT, "supervisor.json", "manifest.json", "plan.yaml", "sources.json", *LAID),
    *("checkpoints/checkpoint-2/seal.json", "metrics.jsonl", "memory.jsonl", "events.jsonl"),
    "logs/train.log",
)
WHOLE = (
    *(b"", b"{", b"nonsense", b"\x00\xff\xfebinary", b"[]", b"[1, 2]", b"null", b"7", b'"text"'),
    *(b"{}", b"[" * 100_000, b"9" * 6_000),
)
VALUES: tuple[Any, ...] = (
    *(None, "text", "\x1b[31m\n", -1, 0, 10**30, 1e300, float("nan"), 1.5, True),
    *([], [None], [[1]], {}, {"a": None}, {"": {}}),
)
EACH = 2
"""Commands that a damage meets."""


@dataclass(frozen=True)
class Place:
    """A runs folder with two runs, and the commands on them."""

    root: Path
    one: RunFolder
    other: RunFolder

    def commands(self) -> list[list[str]]:
        one, other = self.one.name, self.other.name
        return [
            ["ps", "--all"],
            ["report", one],
            ["attach", one],
            ["wait", one],
            ["verify", one, other],
            ["ps", "--json"],
            ["logs", "-f", one],
            ["report", one, "--json"],
            ["stop", one],
            ["prune", "--failed", "--keep-checkpoints", "1", "--dry-run"],
            ["diff", "--json", other, one],
            ["monitor", one, "--once"],
            ["attach", one, "--json"],
            ["reproduce", one],
            ["logs", one, "--json", "--supervisor"],
            ["rm", one],
        ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    bench = make_bench(tmp_path_factory.mktemp("damage"))
    one, other = (RunFolder(bench.train()) for _ in range(2))
    for name, record in LAID.items():
        (one.path / name).write_text(json.dumps(record))
    saved = one.checkpoints / "checkpoint-2"
    saved.mkdir()
    (saved / "weights").write_text("w")
    checkpoints.seal(saved)
    return Place(one.path.parents[1], one, other)


@pytest.fixture
def place(
    made: Place, cli: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """A copy of it in the current folder, where nothing is started and nobody waited for."""
    shutil.copytree(made.root, tmp_path / "runs")
    monkeypatch.setattr(runner.cli, "app", typer.main.get_command(runner.cli.app))
    reproduce = importlib.import_module("runner.launch.reproduce")
    monkeypatch.setattr(reproduce, "start_and_follow", lambda *_, **__: 0)
    monkeypatch.setattr("runner.launch.wait.START_SECONDS", 0.0)
    monkeypatch.setattr("runner.launch.wait.POLL_SECONDS", 0.01)
    runs = tmp_path / "runs"
    found = (RunFolder(runs / each.path.relative_to(made.root)) for each in (made.one, made.other))
    return Place(runs, *found)


def check(answer: Answer, command: list[str], damage: object) -> None:
    told = f"{command} after {damage!r:.60}: {answer.err}"
    assert "bug in runner" not in answer.err and "Traceback" not in answer.err, told
    assert answer.code in (0, 1, 2, 3), told


def damages(path: Path) -> Iterator[object]:
    """The file damaged, in one way after the other; then as it was."""
    content = path.read_bytes()
    end = b"\n" if path.suffix == ".jsonl" else b""
    for whole in (content[: len(content) // 2], *WHOLE):
        path.write_bytes(whole + end)
        yield whole
    path.unlink()
    yield "gone"
    path.mkdir()
    yield "a folder"
    path.rmdir()
    if path.suffix in (".json", ".jsonl"):
        record = json.loads(content.splitlines()[0] if end else content)
        for value in VALUES:
            path.write_text(json.dumps(dict.fromkeys(record, value)) + "\n")
            yield value
        for key, value in _pairs(record, path.name):
            path.write_text(json.dumps({**record, key: value}) + "\n")
            yield key, value
    path.write_bytes(content)


def _pairs(record: dict[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Of the records that every command reads, each value in turn."""
    if name == VERDICT:
        chosen = itertools.cycle(VALUES)
        for key in record:
            for _ in range(3):
                yield key, next(chosen)


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_told_in_words(name: str, place: Place) -> None:
    turn = itertools.cycle(place.commands())
    for ended in (True, False):
        if not ended and name in (VERDICT, "logs/train.log", "manifest.json"):
            return
        if not ended:
            place.one.termination.unlink()
        for damage in damages(place.one.path / name):
            for command in itertools.islice(turn, EACH if ended else 1):
                check(run_cli(*command), command, damage)
    assert run_cli("rm", place.one.name, "--yes").code == 0


def test_what_is_damaged_is_named_and_no_rule_takes_it(place: Place) -> None:
    place.one.termination.write_bytes(b'{"schema_version": 1, "rea')
    told = run_cli("ps")
    assert f"{place.one.name}: termination.json is damaged" in told.out
    assert "lost" in told.out
    pruned = run_cli("prune", "--failed", "--older-than", "0m", "--dry-run")
    assert place.one.name not in pruned.out
    place.one.termination.write_text(json.dumps({"reason": "completed", "steps": "many"}))
    assert "termination.json is damaged: steps" in run_cli("ps", "--all").out
    assert "termination.json is damaged: steps" in run_cli("report", place.one.name).out
    assert place.one.name not in run_cli("prune", "--older-than", "0m", "--dry-run").out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("name", [VERDICT, "supervisor.json", "manifest.json", "plan.yaml"])
def test_a_record_that_may_not_be_read_is_told_in_words(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as there:
        Path(there).chmod(0o755)
        shutil.copytree(place.root, Path(there, "runs"))
        one = RunFolder(Path(there, "runs", *place.one.path.parts[-2:]))
        for command in place.commands():  # what is imported now need not be readable then
            run_cli(*command)
        (one.path / name).chmod(0)
        monkeypatch.chdir(there)
        monkeypatch.setenv("RUNNER_CACHE", "/nonexistent")
        os.seteuid(65534)
        try:
            answers = {tuple(command): run_cli(*command) for command in place.commands()}
        finally:
            os.seteuid(0)
        for command, answer in answers.items():
            check(answer, list(command), name)
        if name in (VERDICT, "supervisor.json"):
            assert f"{name} can't be read" in answers["ps", "--all"].out


# -- records of a newer runner


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [name for name in RECORDS if name != "logs/train.log"])
def test_a_newer_runners_record_is_told_and_never_changed(
    name: str, place: Place, made: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfinished, so that a resume would go on with it."""
    end = json.loads(place.one.termination.read_text())
    place.one.termination.write_text(json.dumps({**end, "reason": "stopped", "exit_code": 143}))
    path = place.one.path / name
    if name == "plan.yaml":
        path.write_text(path.read_text().replace("schema_version: 1", "schema_version: 9"))
    else:
        text = path.read_text()
        record = json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
        path.write_text(json.dumps({**record, "schema_version": 9, "why": [{"new": 1}]}) + "\n")
    before = contents(place.one.path)
    answers = {tuple(command): run_cli(*command) for command in place.commands()}
    for command, answer in answers.items():
        if answer.code != 143:  # of the run itself
            check(answer, list(command), name)
    says_so = {VERDICT: "ps", "plan.yaml": "report", "manifest.json": "verify"}.get(name)
    if says_so is not None:
        told = next(each for command, each in answers.items() if command[0] == says_so)
        assert "newer runner (schema_version 9" in told.out + told.err
    if name in (VERDICT, "supervisor.json", "manifest.json"):
        assert place.one.name not in run_cli("prune", "--older-than", "0m", "--dry-run").out
        shutil.rmtree(place.other.path)  # the latest of this plan
        job = str(made.root.parent / "job.yaml")
        refused = run_cli("train", job, "--resume")
        assert refused.code == 3 and "newer runner (schema_version 9" in refused.err, refused
        monkeypatch.setattr("sys.argv", ["supervise", str(place.one.path), "--resume"])
        assert supervisor_main() == 3
    if name == f"{place.one.checkpoints.name}/checkpoint-2/seal.json":
        assert "nothing here falls" in run_cli("prune", "--keep-checkpoints", "1", "--yes").out
    assert contents(place.one.path) == before
