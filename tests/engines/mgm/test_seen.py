"""A run of the toolkit seen from outside: which stage, how far, for how long, and how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.mgm.stages.records import tell_stage
from runner.engines.render import render
from runner.launch.follow import Progress
from runner.report.run import read_report
from runner.report.run_lines import report_lines
from runner.report.run_table import row, standing_of
from runner.report.stopping import stop_in_words
from runner.runs.create import create_run
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from runner.runs.trainings import trainings_of
from runner.supervisor.advice import advise
from runner.supervisor.event_log import EventLog, Peak
from runner.supervisor.guard import policy
from runner.supervisor.outcome import reach_verdict
from tests.engines.mgm.test_job import plan_of
from tests.support.command import Answer

NOW = 2_000_000_000.0


class Run:
    """A run folder as the toolkit's stages leave it."""

    def __init__(self, root: Path, *sets: str, variant: str = "train") -> None:
        self.plan: MgmPlan = plan_of(*sets, variant=variant)
        plan = self.plan
        self.folder: RunFolder = create_run(
            root, plan.job, plan.short_hash, plan.variant, render(plan)
        )

    def tell(self, **changes: Any) -> None:
        tell_stage(self.folder.path, **changes)

    def log(self, phase: str, *steps: tuple[int, float]) -> None:
        """Lines of metrics.jsonl, ten seconds a step."""
        with self.folder.metrics.open("a") as file:
            for step, loss in steps:
                line = {"step": step, "phase": phase, "loss": loss}
                file.write(json.dumps({**line, "time_unix_seconds": NOW + 10 * step}) + "\n")

    def verdict(self, exit_code: int = 1, cause: policy.Cause | None = None) -> Outcome:
        return reach_verdict(
            self.folder,
            self.plan,
            exit_code=exit_code,
            start_failure=None,
            cause=cause,
            interrupted=False,
            oom_kills=0,
            peak=Peak(),
            record=EventLog(self.folder),
        )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "runs")
    made.tell(stage="preflight", trainings={"pretrain": 39, "finetune": 93})
    return made


def line_of(run: Run) -> str:
    progress = Progress(run.folder, run.plan, since_unix_seconds=NOW)
    progress.update()
    return progress.line(300)


def test_the_live_view_counts_each_training_by_itself(run: Run) -> None:
    assert line_of(run).startswith("preflight")
    run.tell(stage="pretrain")
    run.log("pretrain", (1, 7.0), (2, 6.5), (3, 6.0))
    shown = line_of(run)
    assert "pretrain  step 3/39" in shown and "loss 6.000" in shown
    assert "6:00 left of pretrain  then finetune (93 steps)" in shown  # 36 steps of 10 s
    run.tell(stage="finetune")
    assert line_of(run).startswith("finetune") and "step" not in line_of(run)  # it loads
    run.log("finetune", (40, 4.0), (41, 3.9))
    shown = line_of(run)
    assert "finetune  step" in shown
    run.tell(stage="merge")
    assert line_of(run) == "merge"


def test_a_row_of_ps_says_stage_and_step(run: Run) -> None:
    run.tell(stage="finetune")
    run.log("pretrain", (1, 7.0), (39, 6.0))
    run.log("finetune", (41, 4.0))
    run.folder.write_json(run.folder.supervisor, {"schema_version": 1})
    one = standing_of(run.folder, time.time())
    assert one is not None
    assert (one.stage, one.stage_step, one.stage_max_steps) == ("finetune", 2, 93)
    if not one.over:
        assert row(one, time.time())[2] == "finetune 2/93"


def test_losses_and_steps_are_told_by_training() -> None:
    lines = [
        {"phase": "pretrain", "step": 1, "loss": 7.0},
        {"phase": "pretrain", "step": 39, "loss": 6.0},
        {"phase": "finetune", "step": 40, "loss": 4.0},
        {"phase": "finetune", "step": 42, "loss": None},
    ]
    first, second = trainings_of(lines, {"pretrain": 39, "finetune": 93})
    assert (first.count, first.first_loss, first.last_loss) == ("39/39", 7.0, 6.0)
    assert (second.count, second.first_loss, second.last_loss) == ("3/93", 4.0, None)
    assert trainings_of(lines, {}) == []


def test_a_report_has_a_line_of_losses_for_each_training(run: Run) -> None:
    run.log("pretrain", (1, 7.0), (39, 6.0))
    run.log("finetune", (40, 4.0))
    outcome = run.verdict()
    assert (outcome.steps, outcome.max_steps) == (40, 132)
    run.folder.write_json(run.folder.termination, outcome.to_record())
    shown = "\n".join(report_lines(read_report(run.folder)))
    assert "pretrain, 39 of 39 steps: 7 → 6" in shown
    assert "finetune, 1 of 93 steps: 4 → 4" in shown
    assert "pretrain 39 of 39, loss 7 → 6 · finetune 1 of 93, loss 4 → 4" in shown
    assert "7 → 4" not in shown


def test_a_failure_behind_preflight_has_its_reason_in_the_verdict(run: Run) -> None:
    run.tell(stage="merge")
    run.folder.train_log.write_text(
        "stage merge: not run yet\nTraceback (most recent call last):\n"
        '  File "merge.py", line 1, in <module>\nRuntimeError: size mismatch\n'
    )
    message = run.verdict().message
    assert "exited with code 1: in stage merge: RuntimeError: size mismatch" in message
    run.folder.write_json(
        run.folder.engine_failure,
        {"kind": "failed", "message": "merge: every lora_B is 0: nothing was trained"},
    )
    assert run.verdict().message.startswith("merge: every lora_B is 0: nothing was trained; ")


def test_a_secret_in_the_log_is_not_in_the_verdict(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue")
    run.folder.train_log.write_text("error: no access with hf_verysecretvalue\n")
    message = run.verdict().message
    assert "hf_verysecretvalue" not in message and "[HF_TOKEN]" in message


def test_what_preflight_warned_of_is_in_the_verdict(run: Run) -> None:
    run.tell(warnings=["pretrain: 3 of 9 opened images are in CMYK"])
    assert "pretrain: 3 of 9 opened images are in CMYK" in run.verdict(0).warnings


@pytest.mark.parametrize(
    ("stage", "saves", "words"),
    [
        ("pretrain", False, "no checkpoint of pretrain is saved"),
        ("finetune", False, "no checkpoint of finetune is saved"),
        ("finetune", True, "finetune saves a checkpoint of its last whole step first"),
        ("merge", False, "stage merge ends and is run again"),
    ],
)
def test_a_stop_promises_what_the_stage_does(stage: str, saves: bool, words: str, run: Run) -> None:
    run.tell(stage=stage, saves=saves)
    assert words in stop_in_words(run.folder, run.plan)
    run.tell(stage="convert")  # a new stage does not save because the one before did
    assert "convert" in stop_in_words(run.folder, run.plan)


@pytest.mark.parametrize("command", [["chat"], ["evaluate"], ["merge"]])
def test_commands_on_the_model_name_the_merged_folder(
    command: list[str], cli: Callable[..., Answer], tmp_path: Path
) -> None:
    run = Run(tmp_path / "runs")
    merged = run.folder.path / "training_dirs/MGM-2B-Finetune-default-merged"
    answer = cli(*command, run.folder.name)
    assert answer.code == 2
    assert f"its merged model will be {merged}" in answer.err
    merged.mkdir(parents=True)
    answer = cli(*command, run.folder.name)
    assert f"its merged model is {merged}" in answer.err


def advice_for(run: Run, reason: Reason, peak: int | None = None) -> tuple[str, ...]:
    return advise(
        run.folder, run.plan, Outcome(reason, 76, "", peak_bytes=peak), EventLog(run.folder)
    )


def test_over_its_budget_a_run_is_advised(tmp_path: Path) -> None:
    run = Run(tmp_path, "launch.device=cpu", "budget.host_memory=2GiB")
    run.tell(stage="finetune")
    said = "\n".join(advice_for(run, Reason.OVER_BUDGET, 3 << 30))
    assert "--set finetune.dataloader_num_workers=0" in said
    assert "--set budget.host_memory=3840MiB" in said
    assert "pretrain" not in said


def test_on_a_card_rows_and_lengths_are_advised(tmp_path: Path) -> None:
    from runner.engines.mgm.advice import changes

    plan = plan_of("profile=24GiB").mgm
    said = list(changes(plan, "gpu", "pretrain", 24 << 30, None))
    assert "--set pretrain.per_device_train_batch_size=1" in said[0]
    assert "--set pretrain.gradient_accumulation_steps=256" in said[0]
    assert "5.86 GiB less for the logits" in said[0]  # 2,048 x 256,000 x 12 bytes
    said = list(changes(plan, "gpu", "finetune", 24 << 30, None))
    assert "finetune.model_max_length=1024" in said[0] and "finetune.bits=4" in said[1]
    assert advice_for(Run(tmp_path), Reason.FAILED) == ()
