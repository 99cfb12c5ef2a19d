"""Settings that can't be meant, told when the job is read: bounds, nulls, patterns, ways out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml

from runner.common.errors import SpecError
from runner.engines.load import load_job
from runner.engines.registry import ENGINES
from runner.jobs.fields import all_fields, annotation_at, example_of, possible_types

Cli = Callable[..., Any]
PLAIN = "model: a/b\ndata: {train: r.jsonl}\n"
STAGED = PLAIN + "training: {stages: [{max_steps: 75, learning_rate: 1e-4}]}\n"


def job(folder: Path, text: str = PLAIN) -> str:
    path = folder / "job.yaml"
    path.write_text(text)
    return str(path)


def problem(folder: Path, *sets: str, text: str = PLAIN) -> Any:
    with pytest.raises(SpecError) as caught:
        load_job(job(folder, text), sets)
    assert len(caught.value.problems) == 1, caught.value.lines()
    return caught.value.problems[0]


@pytest.mark.parametrize(
    "setting",
    [
        "training.max_steps=100000000000000000000000",
        "training.num_train_epochs=1e300",
        "training.per_device_train_batch_size=99999999999999999999",
        "training.gradient_accumulation_steps=99999999999999999999",
        "training.max_length=99999999999999",
        "training.learning_rate=1e30",
        "training.save_steps=99999999999999999999",
        "training.save_total_limit=99999999999999999999",
        "training.early_stopping_patience=99999999999999999999",
        "evaluation.max_new_tokens=99999999999999",
        "evaluation.max_rows=99999999999999999999",
        "data.max_rows=99999999999999999999",
        "lora.lora_alpha=1e300",
        "launch.threads_per_process=99999999999",
        "timeout_minutes=1e300",
    ],
)
def test_absurd_values_are_refused_by_their_bound(setting: str, tmp_path: Path) -> None:
    found = problem(tmp_path, setting)
    assert found.field == setting.partition("=")[0]
    assert found.problem == "is out of range" and found.expected.startswith("at most ")


def test_the_largest_step_count_is_still_taken(tmp_path: Path) -> None:
    loaded: Any = load_job(job(tmp_path), ["training.max_steps=99999999"])
    assert loaded.job.training.max_steps == 99_999_999


@pytest.mark.parametrize("field", ["training.stages", "fit.allow", "data.placeholders", "phases"])
def test_null_resets_a_field_that_may_be_empty(field: str, tmp_path: Path) -> None:
    loaded: Any = load_job(job(tmp_path, STAGED), [f"{field}=null"])
    assert loaded.sources[field] == f"--set {field}"
    value = loaded.job
    for part in field.split("."):
        value = getattr(value, part)
    assert value in ([], {})


def test_null_in_the_file_says_what_leaving_it_out_says(tmp_path: Path) -> None:
    text = "model: a/b\ndata: {train: r.jsonl, placeholders:}\ntraining: {stages: null}\nphases:\n"
    assert load_job(job(tmp_path, text)).job == load_job(job(tmp_path)).job


def test_null_in_a_phase_says_nothing_of_its_own(tmp_path: Path) -> None:
    text = (
        "model: a/b\ndata: {train: r.jsonl, placeholders: {name: Rue}}\n"
        "training: {learning_rate: 3e-4, eval_steps: 5}\n"
        "phases: [{name: one, trains: [adapter], training: {learning_rate: null, eval_steps: null},"
        " data: {placeholders: null}}]\n"
    )
    from runner.engines.sft.job import resolved_phases

    loaded: Any = load_job(job(tmp_path, text))
    (phase,) = resolved_phases(loaded.job)
    assert phase.training.learning_rate == 3e-4 and phase.training.eval_steps is None
    assert phase.data.placeholders == {"name": "Rue"}


def test_null_where_something_must_stand_is_refused(tmp_path: Path) -> None:
    assert problem(tmp_path, "tracking.report_to=null").expected == "a list, such as [tensorboard]"
    assert problem(tmp_path, "training.seed=null").expected == "a whole number"


def _lists() -> list[tuple[str, str]]:
    """(engine, field) of every list and mapping that a job has."""
    found = []
    for engine, root in ((name, each.job_type) for name, each in ENGINES.items()):
        for field in all_fields(root):
            kinds = {get_origin(part) for part in possible_types(tuple(field.split(".")), root)}
            if kinds & {list, dict}:
                found.append((engine, field))
    return found


@pytest.mark.parametrize(("engine", "field"), _lists())
def test_the_example_in_a_message_is_one_of_that_field(
    engine: str, field: str, tmp_path: Path
) -> None:
    root = ENGINES[engine].job_type
    key = tuple(field.split("."))
    example = example_of(key, root)
    assert example is not None and annotation_at(key, root) is not None
    texts = {
        "sft": PLAIN + ("vision: {model: c/d}\n" if field == "phases" else ""),
        "script": "engine: script\nscript: s.py\n",
        "mgm": "engine: mgm\n",
    }

    def problems(value: str) -> list[Any]:
        try:
            load_job(job(tmp_path, texts[engine]), [f"{field}={value}"])
        except SpecError as error:
            return [one for one in error.problems if one.field.startswith(field)]
        return []

    (wrong,) = problems("3")
    assert wrong.expected is not None and example in wrong.expected
    assert problems(example) == []
    assert yaml.safe_load(example)


def test_steps_beside_stages_name_the_way_out(tmp_path: Path) -> None:
    found = problem(tmp_path, "training.max_steps=12", text=STAGED)
    assert found.field == "training.max_steps" and found.value == "12"
    assert "75 steps" in found.problem and "--max-steps 12" in found.problem
    assert "--set training.stages=null" in found.problem
    loaded: Any = load_job(job(tmp_path, STAGED), ["training.max_steps=12", "training.stages=null"])
    assert loaded.job.training.max_steps == 12
    other = problem(tmp_path, "training.warmup_ratio=0.1", text=STAGED)
    assert other.problem.endswith("keep one")


@pytest.mark.parametrize("pattern", ["([", "*a", "(?P<x", "a{99999999999}", "(?<=a+)b"])
def test_a_pattern_that_evaluate_would_refuse_is_refused(pattern: str, tmp_path: Path) -> None:
    text = PLAIN + f"evaluation: {{answer_pattern: '{pattern}'}}\n"
    found = problem(tmp_path, text=text)
    assert found.where.endswith("job.yaml:3") and found.field == "evaluation.answer_pattern"
    assert "is not a regular expression" in found.problem and found.value == pattern


def test_check_says_it_too(cli: Cli, tmp_path: Path) -> None:
    done = cli("check", job(tmp_path), "--set", "evaluation.answer_pattern=([")
    assert done.code == 2 and "answer_pattern" in done.err


def test_plans_of_runs_with_such_settings_still_open(tmp_path: Path) -> None:
    """A pattern is judged in the job; a plan of before, which has it, is read as it is."""
    from runner.engines.sft.plan import SftPlan
    from tests.engines.sft.tiny import plan_of

    plan = plan_of()
    record = plan.model_dump()
    record["evaluation"]["answer_pattern"] = "(["
    assert SftPlan.model_validate(record).evaluation.answer_pattern == "(["
