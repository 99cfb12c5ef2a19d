"""What evaluate and merge would refuse is refused, or said, before the start: by their own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from runner.common.errors import SpecError
from runner.data.prepare import prepare
from runner.engines.load import load_job
from runner.engines.sft.facts import gather
from runner.engines.sft.inside.evaluate import foresee
from runner.engines.sft.inside.evaluate.foresee import foresee_evaluation, foresee_merge
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))


def plan_for(folder: Path, rows: list[dict[str, Any]], data: Any = None, **more: Any) -> SftPlan:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {
        "model": "a/b",
        "data": {"train": str(folder / "rows.jsonl"), "split": {"eval": 0.5}, **(data or {})},
        "launch": {"device": "cpu"},
        **more,
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    loaded = load_job(str(folder / "job.yaml"))
    return make_plan(loaded, gather(loaded))


def asked(number: int, answer: str) -> dict[str, Any]:
    return {"instruction": f"Question {number}?", "output": answer}


def seen(plan: SftPlan) -> list[str]:
    def quiet(_: str) -> None: ...

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>")),
        eos_token="<eos>",
        chat_template="{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
    )
    return foresee_evaluation(plan, tokenizer, prepare(plan, say=quiet), quiet)


@pytest.mark.parametrize(
    ("answer", "evaluation", "message"),
    [
        ("not json", {"task": "json"}, "the row's answer is not JSON"),
        ("b", {"task": "multiple_choice"}, "the question names no choices"),
        (
            "b",
            {"task": "multiple_choice", "answer_pattern": "answer ([0-9])"},
            "the row's answer is none of its choices",
        ),
    ],
)
def test_rows_that_the_task_can_not_judge(
    answer: str, evaluation: dict[str, Any], message: str, tmp_path: Path
) -> None:
    plan = plan_for(tmp_path, [asked(n, answer) for n in range(8)], evaluation=evaluation)
    with pytest.raises(SpecError, match=message) as caught:
        seen(plan)
    assert caught.value.problems[0].where.startswith(str(tmp_path / "rows.jsonl"))


def test_labels_that_can_not_be_told_apart(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(20)]
    labels = {"labels": {"0": "Yes", "1": "yes "}}
    with pytest.raises(SpecError, match=r"data\.labels"):
        seen(plan_for(tmp_path, rows, labels))


def test_rows_that_can_be_judged_pass(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(20)]
    assert seen(plan_for(tmp_path, rows, {"labels": {"0": "no", "1": "yes"}})) == []
    assert seen(plan_for(tmp_path, [asked(n, '{"a": 1}') for n in range(8)],
                         evaluation={"task": "json"})) == []  # fmt: skip


def test_what_an_evaluation_will_lack_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(tmp_path, [asked(n, "x") for n in range(4)], {"split": None})
    assert "--data FILE: no rows are held out" in seen(plan)[0]
    monkeypatch.setattr(foresee, "package_version", lambda name: None)
    assert "scikit-learn, scipy, matplotlib" in seen(plan)[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "prefix"}, "trains a prefix, which can't be merged"),
        ({"method": "full"}, "its model is whole already"),
        ({"trains": ["projector"]}, "trains a projector and no adapter"),
        ({"method": "lora"}, None),
        ({"method": "qlora"}, None),
    ],
)
def test_what_merge_would_refuse_is_said(
    tmp_path: Path, changes: dict[str, Any], said: str | None
) -> None:
    from runner.common.errors import RefusedError
    from runner.launch.merge import require_mergeable
    from runner.runs.folder import RunFolder

    plan = plan_for(tmp_path, [asked(0, "x")], {"split": None}).model_copy(update=changes)
    lines = foresee_merge(plan)
    if said is None:
        assert lines == []
        require_mergeable(plan, RunFolder(tmp_path))
        return
    assert said in lines[0]
    with pytest.raises(RefusedError, match=said.replace("trains", "trained")):
        require_mergeable(plan, RunFolder(tmp_path))
