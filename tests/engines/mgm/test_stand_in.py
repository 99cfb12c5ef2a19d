"""The smoke without the toolkit has the job's own settings, and says what it has not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.engines.load import load_job
from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.mgm.smoke import smoke_plan, stand_in
from runner.engines.sft.plan import SftPlan
from tests.engines.mgm.cases import write_rows
from tests.engines.mgm.test_job import JOB


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def made(*sets: str, steps: int = 5) -> SftPlan:
    loaded = load_job(JOB, ["launch.device=cpu", *sets])
    plan, _, why = smoke_plan(loaded, steps)
    assert isinstance(plan, MgmPlan) and why is not None
    return stand_in(loaded, plan, why, steps, load_job)[0]


def test_lora_lengths_and_rates_are_the_jobs() -> None:
    plan = made(
        *("finetune.lora.r=8", "finetune.lora.lora_alpha=64", "finetune.lora.lora_dropout=0.2"),
        *("finetune.learning_rate=0.00003", "pretrain.model_max_length=512"),
        "smoke.gradient_accumulation_steps=2",
    )
    assert (plan.lora.r, plan.lora.lora_alpha, plan.lora.lora_dropout) == (8, 64, 0.2)
    first, second = (one.training for one in plan.trainings)
    assert (first.max_length, second.max_length) == (512, 1024)
    assert second.learning_rate == 0.00003
    assert first.gradient_accumulation_steps == 2
    assert plan.hash != made().hash


def test_the_budget_guards_it() -> None:
    plan = made("budget.host_memory=300MiB", "timeout_minutes=7")
    assert plan.budget.kind == "host"
    assert plan.budget.limit_bytes == 300 << 20
    assert plan.timeout_minutes == 7
    assert not any("no memory budget" in line for line in plan.substitutions)


def test_batches_and_all_else_that_is_not_the_jobs_are_said() -> None:
    said = "\n".join(
        made("finetune.bits=4", "finetune.lora.bias=all", "profile=24GiB").substitutions
    )
    for words in (
        "smoke: 5 steps of 2 and 1 samples instead of 256 and 128",
        "unquantized weights in place of finetune.bits 4",
        "no biases trained in place of finetune.lora.bias all",
        "image_size_aux 768",
        "mgm_pretrain_stage_1_10k.jsonl",
    ):
        assert words in said


def test_the_jobs_own_rows_are_taken_where_they_are(tmp_path: Path) -> None:
    samples = Path(__file__).parents[3] / "jobs/data/llava_sample"
    rows = json.loads((samples / "finetune.json").read_text())
    finetune = write_rows(tmp_path / "mine.json", rows)
    plan = made(
        *(f"pretrain.data_path={samples / 'pretrain.jsonl'}", f"pretrain.questions={finetune}"),
        *(f"finetune.data_path={finetune}", f"finetune.image_folder={samples}"),
    )
    paths = [one.rows.train.path for one in plan.trainings]
    assert paths == [str(samples / "pretrain.jsonl"), str(finetune)]
    assert plan.trainings[1].data.image_folder == str(samples)
    assert not any("sample rows" in line for line in plan.substitutions)


def test_one_step_has_no_warm_up_and_says_so() -> None:
    told = [line for line in made(steps=1).substitutions if "warm-up" in line]
    assert told == ["no warm-up in place of warmup_ratio 0.03: the only step would have rate 0"]
