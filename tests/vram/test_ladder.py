"""Ways down in memory: they keep the effective batch, come to an end, and say what they change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.common.yaml_text import to_yaml
from runner.engines.load import load_job
from runner.engines.sft.inside.memory.fit import Option, _merged, _worth_showing
from runner.engines.sft.memory.ladder import (
    SMALL_CHUNK,
    SMALLEST_RANK,
    Base,
    Choice,
    bases,
    batch_splits,
    current,
    overrides,
    step_down,
    with_base,
    with_choice,
)
from runner.engines.sft.plan import SftPlan
from tests.support.soaking import examples
from tests.vram.plans import gpu_plan

LAYERS = 12
METHODS = ("lora", "qlora", "full", "prefix")


@st.composite
def plans(draw: st.DrawFn) -> SftPlan:
    method = draw(st.sampled_from(METHODS))
    recompute = method != "prefix" and draw(st.booleans())
    training = {
        "per_device_train_batch_size": draw(st.integers(1, 64)),
        "gradient_accumulation_steps": draw(st.integers(1, 64)),
        "gradient_checkpointing": recompute,
        "gradient_checkpointing_layers": draw(st.none() | st.integers(1, 20))
        if recompute
        else None,
        "loss_chunk_tokens": draw(st.none() | st.integers(16, 9000)),
    }
    return gpu_plan(method=method, training=training)


def effective(training: Any) -> int:
    rows, more = training.per_device_train_batch_size, training.gradient_accumulation_steps
    return int(rows * more)


@given(plans())
def test_steps_down_keep_the_batch_never_go_up_and_end_soon(plan: SftPlan) -> None:
    seen = 0
    while (step := step_down(plan)) is not None:
        seen += 1
        assert seen <= 9, "it does not end"
        training, text = step
        before = plan.training
        assert effective(training) == effective(before)
        assert training.per_device_train_batch_size <= before.per_device_train_batch_size
        chunk = training.loss_chunk_tokens or 4096
        assert chunk <= (before.loss_chunk_tokens or max(4096, SMALL_CHUNK))
        if before.gradient_checkpointing:
            assert training.gradient_checkpointing
            assert (training.gradient_checkpointing_layers or 99) >= (
                before.gradient_checkpointing_layers or 99
            )
        assert training != before
        assert text
        plan = plan.model_copy(update={"training": training})
    last = plan.training
    assert last.per_device_train_batch_size == 1
    assert plan.method == "prefix" or last.gradient_checkpointing
    assert last.gradient_checkpointing_layers is None
    assert last.loss_chunk_tokens is not None
    assert last.loss_chunk_tokens <= SMALL_CHUNK


@given(plans())
def test_a_step_down_changes_nothing_else(plan: SftPlan) -> None:
    step = step_down(plan)
    if step is None:
        return
    allowed = {
        *("per_device_train_batch_size", "gradient_accumulation_steps", "loss_chunk_tokens"),
        *("gradient_checkpointing", "gradient_checkpointing_layers"),
    }
    before, after = plan.training.model_dump(), step[0].model_dump()
    assert {name for name in before if before[name] != after[name]} <= allowed


@given(st.integers(1, 4096))
def test_splits_are_the_divisors_largest_first(rows: int) -> None:
    found = batch_splits(rows)
    assert found[0] == rows
    assert found[-1] == 1
    assert found == sorted(set(found), reverse=True)
    assert all(rows % one == 0 for one in found)
    assert {rows // one for one in found} == set(found)


JOB = """model: HuggingFaceTB/SmolLM2-135M
data: {train: rows.jsonl}
training:
  per_device_train_batch_size: %(rows)d
  gradient_accumulation_steps: %(accumulation)d
%(more)s"""


def write_job(folder: Path, rows: int, accumulation: int, more: dict[str, Any]) -> Path:
    lines = "".join(f"  {name}: {to_yaml(value)}\n" for name, value in more.items())
    (folder / "rows.jsonl").touch()
    path = folder / "job.yaml"
    path.write_text(JOB % {"rows": rows, "accumulation": accumulation, "more": lines})
    return path


def applied(path: Path, changes: dict[str, Any]) -> Any:
    """Training and launch of a job file with the overrides given by --set."""
    sets = [
        f"{name}={value if isinstance(value, str) else to_yaml(value)}"
        for name, value in changes.items()
    ]
    job: Any = load_job(str(path), sets).job
    return job.training, job.launch


@given(data=st.data())
@settings(
    max_examples=examples(25, 200),  # each reads two jobs
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
def test_overrides_by_set_give_the_plan_that_was_predicted(
    data: st.DataObject, tmp_path: Path
) -> None:
    more: dict[str, Any] = {}
    if data.draw(st.booleans()):
        more["gradient_checkpointing"] = True
        layers = data.draw(st.none() | st.integers(1, LAYERS - 1))
        if layers is not None:
            more["gradient_checkpointing_layers"] = layers
    if data.draw(st.booleans()):
        more["loss_chunk_tokens"] = data.draw(st.sampled_from([256, 512, 4096]))
    rows, accumulation = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    path = write_job(tmp_path, rows, accumulation, more)
    training, _ = applied(path, {})
    plan = gpu_plan(training=training.model_dump(), launch={"deepspeed": "zero2"})
    before = current(plan, LAYERS)
    new_rows = data.draw(st.sampled_from(batch_splits(rows * accumulation)))
    after = replace(
        before,
        rows=new_rows,
        accumulation=rows * accumulation // new_rows,
        recompute=data.draw(st.integers(0, LAYERS)),
        chunk=data.draw(st.sampled_from([before.chunk, SMALL_CHUNK, None])),
        optim=data.draw(st.sampled_from(["adamw_torch", "adamw_8bit"])),
    )
    changes = overrides(before, after)
    wanted = with_choice(plan, after)
    found, _ = applied(path, changes)
    assert found.model_dump() == wanted.training.model_dump()
    assert current(wanted, LAYERS).text == after.text
    assert overrides(before, before) == {}
    assert with_choice(plan, before).training == plan.training
    in_phase = overrides(before, after, "phases.1.")
    assert all(name.startswith("phases.1.training.") for name in in_phase)


@pytest.mark.parametrize("layers", [LAYERS, LAYERS + 5])
def test_a_job_that_counts_more_layers_than_there_are_can_have_none_recompute(
    layers: int, tmp_path: Path
) -> None:
    """Else the job that fit writes is refused: layers without recomputation."""
    more = {"gradient_checkpointing": True, "gradient_checkpointing_layers": layers}
    path = write_job(tmp_path, 2, 2, more)
    training, _ = applied(path, {})
    before = current(gpu_plan(training=training.model_dump()), LAYERS)
    assert before.recompute == LAYERS
    found, _ = applied(path, overrides(before, replace(before, recompute=0)))
    assert not found.gradient_checkpointing


def test_offloading_is_a_field_of_the_launch() -> None:
    before = Choice(rows=1, accumulation=1, recompute=0, layers=2)
    assert overrides(before, replace(before, offload="optimizer"), "phases.0.") == {
        "launch.offload": "optimizer"
    }


def test_choices_say_what_they_are() -> None:
    plain = Choice(rows=4, accumulation=4, recompute=0, layers=36)
    assert plain.text == "4 rows x 4, no recomputation"
    assert plain.changes == ""
    other = replace(plain, rows=1, accumulation=16, recompute=7, chunk=256, optim="adamw_8bit")
    assert other.text == (
        "1 row x 16, 7 of 36 layers recompute, loss in chunks of 256 tokens, adamw_8bit"
    )
    assert "8 bits" in other.changes
    assert "all layers" in replace(plain, recompute=36).text


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["8bit_base", "4bit_base", "fewer_modules", "smaller_rank", "smaller_rank"]),
        ({"method": "qlora"}, ["fewer_modules", "smaller_rank", "smaller_rank"]),
        (
            {"method": "qlora", "quantization": {"bits": 8}},
            ["4bit_base", "fewer_modules", "smaller_rank", "smaller_rank"],
        ),
        ({"lora": {"r": 4, "target_modules": ["q_proj"]}}, ["8bit_base", "4bit_base"]),
        ({"method": "full"}, []),
        ({"method": "prefix"}, []),
    ],
)
def test_each_method_has_its_own_bases(settings: dict[str, Any], names: list[str]) -> None:
    plan = gpu_plan(**settings)
    found = bases(plan, [])
    assert [base.name for base in found] == names
    assert all(base.changes and base.text for base in found)
    for base in found:
        changed = with_base(plan, base)
        assert changed != plan
        for field, value in base.overrides.items():
            at: Any = changed
            for part in field.split("."):
                at = getattr(at, part)
            assert at == value
        assert changed.lora.r >= SMALLEST_RANK
    assert [base.name for base in bases(plan, ["a/b", "c/d"])][len(names) :] == (
        ["smaller_model"] * 2
    )


def test_a_smaller_model_has_to_be_planned_anew() -> None:
    with pytest.raises(ValueError, match="model"):
        with_base(gpu_plan(), bases(gpu_plan(), ["a/b"])[-1])


def test_changes_add_up_and_what_is_beaten_is_not_shown() -> None:
    both = _merged([Base("x", "X", "one", {"a": 1}), Base("y", "Y", "two", {"a": 2, "b": 3})])
    assert (both.name, both.text, both.changes) == ("y", "X, Y", "one; two")
    assert both.overrides == {"a": 2, "b": 3}
    choice = Choice(rows=1, accumulation=1, recompute=0, layers=2)

    def rung(size: int, time: float) -> Option:
        return Option(Base("", "", "", {}), choice, size, time, True)

    good, cheap, bad = rung(10, 1.0), rung(5, 2.0), rung(11, 1.5)
    assert _worth_showing([good, bad, cheap]) == [good, cheap]
