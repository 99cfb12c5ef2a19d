"""What a plan decides: lengths of stages in a smoke, phases, samples, precision, warnings."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.common.errors import RefusedError
from runner.common.units import GIB
from runner.engines.load import load_job
from runner.engines.sft.facts import gather
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan, shrunk
from runner.jobs.load import LoadedJob
from runner.plans.facts import Gpu
from tests.support.command import REPOSITORY

OLD_CARD = Gpu(0, "GPU-0", "Tesla V100", 32 * GIB, 7.0)
NEW_CARD = Gpu(0, "GPU-0", "NVIDIA H200", 141 * GIB, 9.0)


def loaded(tmp_path: Path, text: str, *sets: str) -> LoadedJob:
    for name in ("rows.jsonl", "other.jsonl", "sample.jsonl"):
        (tmp_path / name).write_text(f'{{"name": "{name}"}}\n')
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load_job(str(path), list(sets))


def planned(job: LoadedJob, variant: Any = "train", **facts: Any) -> SftPlan:
    return make_plan(job, replace(gather(job), **facts), variant)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(1, 200))
def test_stages_shrink_in_proportion_and_keep_their_order(lengths: list[int], total: int) -> None:
    short = shrunk(lengths, total)
    assert sum(short) == total
    assert all(length >= 0 for length in short)
    if total >= len(lengths):
        assert all(length >= 1 for length in short)
        for (a, x), (b, y) in pairwise(zip(lengths, short, strict=True)):
            assert a >= b or x <= y + 1


def test_a_smoke_goes_through_every_stage() -> None:
    plan = planned(load_job(str(REPOSITORY / "jobs/commonsense-two-stage.yaml")), "smoke")
    assert [(s.max_steps, s.learning_rate, s.save) for s in plan.training.stages] == [
        (3, 1e-4, "never"),
        (2, 1e-5, "every_step"),
    ]
    assert plan.planned_steps == 5


def test_a_smoke_says_which_warm_up_it_is_too_short_for(tmp_path: Path) -> None:
    job = loaded(tmp_path, PHASES, "training.warmup_ratio=0.03", "phases.1.training.warmup_ratio=0")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        one = make_plan(job, gather(job), "smoke", 1)
        two = make_plan(job, gather(job), "smoke", 2)
    assert [part.training.warmup_ratio for part in one.trainings] == [0, 0]
    assert [line for line in one.substitutions if "warm-up" in line] == [
        "no warm-up in place of phases.0.training.warmup_ratio 0.03: the only step would have "
        "rate 0"
    ]
    assert not [line for line in two.substitutions if "warm-up" in line]


def test_a_smoke_says_which_stages_warm_up_it_is_too_short_for() -> None:
    place = str(REPOSITORY / "jobs/commonsense-two-stage.yaml")
    job = load_job(place, ["training.stages.0.warmup_steps=10", "training.stages.1.warmup_steps=1"])
    plan = make_plan(job, gather(job), "smoke", 5)
    assert [stage.warmup_steps for stage in plan.training.stages] == [2, 1]
    assert [line for line in plan.substitutions if "warm-up" in line] == [
        "a warm-up of 2 steps in place of training.stages.0.warmup_steps 10: the stage has 3 steps "
        "here"
    ]
    plan = make_plan(job, gather(job), "smoke", 2)
    assert [line for line in plan.substitutions if "warm-up" in line] == [
        "no warm-up in place of training.stages.0.warmup_steps 10: the stage has 1 step here",
        "no warm-up in place of training.stages.1.warmup_steps 1: the stage has 1 step here",
    ]


def test_a_training_with_stages_has_their_length_unless_cut() -> None:
    job = load_job(str(REPOSITORY / "jobs/commonsense-two-stage.yaml"))
    facts = gather(job)
    assert make_plan(job, facts).planned_steps == 125
    assert make_plan(job, facts, max_steps=80).planned_steps == 80
    assert make_plan(job, facts, max_steps=500).planned_steps == 125


PHASES = """
model: a/b
vision: {model: c/d}
data: {train: rows.jsonl, sample: sample.jsonl, split: {eval: 0.2}}
training: {max_steps: 7, learning_rate: 1.0e-3}
smoke: {model_type: gemma}
phases:
  - {name: first, trains: [projector]}
  - name: second
    trains: [adapter, projector]
    data: {train: other.jsonl}
    training: {learning_rate: 1.0e-5, max_steps: 9}
"""


def test_a_phase_says_only_what_differs(tmp_path: Path) -> None:
    plan = planned(loaded(tmp_path, PHASES))
    first, second = plan.trainings
    assert (first.phase, second.phase) == ("first", "second")
    assert (first.trains, second.trains) == (["projector"], ["adapter", "projector"])
    assert (first.training.learning_rate, second.training.learning_rate) == (1e-3, 1e-5)
    assert Path(str(first.rows.train.path)).name == "rows.jsonl"
    assert Path(str(second.rows.train.path)).name == "other.jsonl"
    assert first.data.split == second.data.split
    assert first.earlier == second.earlier == []
    assert plan.planned_steps == 16


def test_a_field_of_a_phase_can_be_set(tmp_path: Path) -> None:
    job = loaded(tmp_path, PHASES, "phases.1.data.train=rows.jsonl", "phases.0.name=warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        plan = planned(job)
    assert [part.phase for part in plan.trainings] == ["warm", "second"]
    assert Path(str(plan.rows.train.path)).name == "rows.jsonl"


def test_a_smoke_takes_the_samples_of_all_sources_or_of_none(tmp_path: Path) -> None:
    text = (
        "model: a/b\nsmoke: {model_type: llama}\ndata:\n  train: gone.jsonl\n"
        "  sample: sample.jsonl\n  split: {eval: 0.1}\n  mix:\n    ratio: 3\n    sources:\n"
        "    - {rows: other.jsonl, sample: rows.jsonl}\n"
    )
    plan = planned(loaded(tmp_path, text), "smoke")
    assert Path(str(plan.rows.train.path)).name == "sample.jsonl"
    assert [Path(str(rows.path)).name for rows in plan.rows.mixed] == ["rows.jsonl"]
    assert "sample.jsonl in place of gone.jsonl" in plan.substitutions
    assert "rows.jsonl in place of other.jsonl" in plan.substitutions


def test_samples_bring_their_own_evaluation_rows(tmp_path: Path) -> None:
    text = (
        "model: a/b\nsmoke: {model_type: llama}\n"
        "data: {train: gone.jsonl, eval: other.jsonl, sample: sample.jsonl}\n"
    )
    plan = planned(loaded(tmp_path, text), "smoke")
    assert plan.rows.eval is None
    assert plan.data.split is not None


@pytest.mark.parametrize(
    ("wanted", "card", "precision"),
    [
        ("auto", NEW_CARD, "bf16"),
        ("auto", OLD_CARD, "fp16"),
        ("bf16", OLD_CARD, "fp32"),
        ("fp16", NEW_CARD, "fp16"),
        ("fp32", NEW_CARD, "fp32"),
    ],
)
def test_the_precision_is_what_the_card_has(
    wanted: str, card: Gpu, precision: str, tmp_path: Path
) -> None:
    job = loaded(
        tmp_path, f"model: a/b\ndata: {{train: rows.jsonl}}\ntraining: {{precision: {wanted}}}\n"
    )
    cuda = {"gpus": (card,), "gpu_absence": "", "torch_version": "2.13.0+cu130"}
    plan = planned(job, **cuda)
    assert plan.precision == precision
    assert bool(plan.substitutions) == (wanted == "bf16" and card is OLD_CARD)
    overflows = planned(job, **cuda, model_type="qwen2")
    assert any("overflow" in line for line in overflows.warnings) == (precision == "fp16")
    assert overflows.hash == plan.hash  # a warning changes nothing


def test_an_event_that_never_comes_is_warned_of(tmp_path: Path) -> None:
    text = "model: a/b\ndata: {train: rows.jsonl}\ntraining: {max_steps: 93, save_steps: 100}\n"
    assert planned(loaded(tmp_path, text)).warnings == [
        "save_steps 100: of 93 steps only the last is saved"
    ]


def test_qlora_without_bitsandbytes_is_refused_or_replaced_as_the_job_says(tmp_path: Path) -> None:
    text = "model: a/b\nmethod: qlora\ndata: {train: rows.jsonl}\n"
    lacking = {"quantizes": "bitsandbytes is not installed"}
    with pytest.raises(RefusedError, match="bitsandbytes is not installed"):
        planned(loaded(tmp_path, text), **lacking)
    plan = planned(loaded(tmp_path, text + "quantization: {or_lora: true}\n"), **lacking)
    assert plan.method == "lora"
    assert plan.substitutions == ["plain LoRA in place of QLoRA: bitsandbytes is not installed"]
    assert planned(loaded(tmp_path, text)).method == "qlora"
