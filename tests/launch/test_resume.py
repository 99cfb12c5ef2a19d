"""Which earlier run of a plan the same command goes on with."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import RefusedError
from runner.common.output import Output
from runner.common.process_times import start_ticks
from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.sft.facts import gather
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.launch.resume import choose, latest_of
from runner.runs import checkpoints
from runner.runs.create import create_run
from runner.runs.folder import RunFolder


@pytest.fixture
def plan(tmp_path: Path) -> SftPlan:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "job name.yaml").write_text("model: a/b\ndata: {train: rows.jsonl}\n")
    loaded = load_job(str(tmp_path / "job name.yaml"))
    return make_plan(loaded, gather(loaded))


def run_of(plan: SftPlan, root: Path, second: int, **end: Any) -> RunFolder:
    """A run that started at `second`, with a verdict where `end` has a reason."""
    now = 1_700_000_000.0 + second
    folder = create_run(root, plan.job, plan.short_hash, plan.variant, render(plan), now)
    if "reason" in end:
        folder.termination.write_text(json.dumps(end))
    return folder


def save(folder: RunFolder, step: int) -> None:
    checkpoint = folder.checkpoints / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "adapter_model.safetensors").write_bytes(b"weights")
    checkpoints.seal(checkpoint)


def test_the_latest_unfinished_run_goes_on_from_its_checkpoint(
    plan: SftPlan, tmp_path: Path
) -> None:
    older, newer = run_of(plan, tmp_path, 1, reason="stopped"), run_of(plan, tmp_path, 2)
    for folder in (older, newer):
        save(folder, 3)
    newer.supervisor.write_text(json.dumps({"pid": 1, "start_ticks": -1}))  # killed: lost
    out = Output(as_json=True)
    assert choose(plan, tmp_path, None, out) == newer
    assert choose(plan, tmp_path, "resume", out) == newer
    assert choose(plan, tmp_path, "fresh", out) is None


def test_a_run_of_another_plan_is_left_alone(plan: SftPlan, tmp_path: Path) -> None:
    save(run_of(plan, tmp_path, 1, reason="stopped"), 3)
    longer = plan.model_copy(
        update={"training": plan.training.model_copy(update={"max_steps": 99})}
    )
    assert latest_of(longer, tmp_path) is None
    assert choose(longer, tmp_path, None, Output(as_json=True)) is None
    with pytest.raises(RefusedError, match="no run of this plan"):
        choose(longer, tmp_path, "resume", Output(as_json=True))


def test_smokes_and_dry_runs_are_nothing_to_go_on_with(plan: SftPlan, tmp_path: Path) -> None:
    for second, variant in enumerate(("smoke", "dry_run")):
        other = plan.model_copy(update={"variant": variant})
        save(run_of(other, tmp_path, second, reason="stopped"), 3)
    assert latest_of(plan, tmp_path) is None


def test_a_completed_run_is_never_gone_on_with(plan: SftPlan, tmp_path: Path) -> None:
    save(run_of(plan, tmp_path, 1, reason="completed"), 3)
    assert choose(plan, tmp_path, None, Output(as_json=True)) is None
    with pytest.raises(RefusedError, match="completed"):
        choose(plan, tmp_path, "resume", Output(as_json=True))


def test_two_at_once_are_refused(plan: SftPlan, tmp_path: Path) -> None:
    folder = run_of(plan, tmp_path, 1)
    own = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}
    folder.supervisor.write_text(json.dumps(own))
    for wanted in (None, "resume"):
        with pytest.raises(RefusedError, match="trains at this moment"):
            choose(plan, tmp_path, wanted, Output(as_json=True))  # type: ignore[arg-type]
    assert choose(plan, tmp_path, "fresh", Output(as_json=True)) is None


def test_a_damaged_checkpoint_is_no_place_to_go_on_from(
    plan: SftPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(plan, tmp_path, 1, reason="failed")
    save(folder, 3)
    (folder.checkpoints / "checkpoint-3" / "adapter_model.safetensors").write_bytes(b"other")
    assert choose(plan, tmp_path, None, Output(as_json=False)) is None
    assert "left no checkpoint; this is a new run" in capsys.readouterr().err
    with pytest.raises(RefusedError, match="no whole checkpoint"):
        choose(plan, tmp_path, "resume", Output(as_json=True))


def test_a_loss_that_was_not_finite_is_not_repeated_unasked(plan: SftPlan, tmp_path: Path) -> None:
    folder = run_of(plan, tmp_path, 1, reason="non_finite_loss")
    save(folder, 3)
    assert choose(plan, tmp_path, None, Output(as_json=True)) is None
    assert choose(plan, tmp_path, "resume", Output(as_json=True)) == folder


def test_an_edited_plan_is_another_plan(plan: SftPlan, tmp_path: Path) -> None:
    folder = run_of(plan, tmp_path, 1, reason="stopped")
    save(folder, 3)
    folder.plan.write_text(folder.plan.read_text().replace("max_length: 1024", "max_length: 512"))
    assert latest_of(plan, tmp_path) is None


@pytest.mark.parametrize(
    ("answer", "goes_on"), [("\n", True), ("y\n", True), ("n\n", False), ("", None)]
)
def test_at_a_terminal_it_is_asked_first(
    answer: str,
    goes_on: bool | None,
    plan: SftPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a real pseudo-terminal; one that went away decides nothing for its user."""
    folder = run_of(plan, tmp_path, 1, reason="stopped")
    save(folder, 3)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r+b", buffering=0) as raw, os.fdopen(ours, "r+b", buffering=0) as user:
        user.write(answer.encode() or b"\x04")  # Ctrl-D
        terminal = io.TextIOWrapper(raw, line_buffering=True)
        monkeypatch.setattr("sys.stdin", terminal)
        monkeypatch.setattr("sys.stderr", terminal)
        if goes_on is None:
            with pytest.raises(RefusedError, match="no answer"):
                choose(plan, tmp_path, None, Output(as_json=False))
        else:
            found = choose(plan, tmp_path, None, Output(as_json=False))
            assert found == (folder if goes_on else None)
        monkeypatch.undo()
        terminal.detach()
