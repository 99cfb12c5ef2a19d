"""A survey is not asked for twice, and never given for what has changed since."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.common.caches import cache_folder
from runner.common.errors import RefusedError
from runner.common.output import Output
from runner.data.cache import seal
from runner.engines.sft.plan import SftPlan
from runner.launch import survey as asked
from runner.launch import survey_cache
from tests.engines.sft.in_process import make_rows, plan_of


class Case:
    """A plan in a folder of its own, and an engine that counts how often it is asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.packages = folder / "model", folder / "packages"
        self.model.mkdir()
        self.packages.mkdir()
        (self.model / "config.json").write_text('{"model_type": "llama"}')
        (self.model / "tokenizer.json").write_text("{}")
        (self.model / "model.safetensors").write_bytes(bytes(8))
        (self.packages / "stackware-1.0.dist-info").mkdir()
        self.rows = make_rows(folder / "rows.jsonl")
        self.prepared = cache_folder() / "prepared" / "rows"
        self.asked = 0
        self.told: dict[str, Any] = {}
        """What the engine says otherwise."""
        self.memory: Any = {"trainings": []}
        self.while_asked: Callable[[], None] = lambda: None
        monkeypatch.syspath_prepend(str(self.packages))
        monkeypatch.setattr(asked, "ask_engine", self._answer)

    @property
    def plan(self) -> SftPlan:
        return plan_of(self.model, self.rows)

    def survey(self, plan: SftPlan | None = None, samples: int = 0) -> Any:
        return asked.survey(plan or self.plan, Output(as_json=False), samples)

    def asks(self, *given: Any) -> bool:
        """Whether a survey, made now, is the engine's own answer."""
        before = self.asked
        record = self.survey(*given)
        fresh = self.asked > before
        assert record["number"] <= self.asked and (not fresh or record["number"] == self.asked)
        return fresh

    def _answer(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked += 1
        if not self.prepared.is_dir():
            self.prepared.mkdir(parents=True)
            (self.prepared / "train.parquet").write_bytes(b"rows")
            seal(self.prepared)
        self.while_asked()
        lengths = ("rows", "eval_rows", "global_batch", "steps_an_epoch", "steps", "saves", "kept")
        training = {
            **dict.fromkeys(lengths, 1),
            "phase": "",
            "passes": 1.0,
            "data": {"prepared_in": str(self.prepared)},
            "lines": [],
            "parameters": {"trainable": 1, "total": 2, "percent": 50.0},
            "checkpoint_bytes": 1,
        }
        record = {"notes": [], "warnings": [], "trainings": [training], "disk_bytes": 1}
        return {"number": self.asked, **record, **self.told, "memory": self.memory}


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    return Case(tmp_path, monkeypatch)


def test_the_same_survey_is_asked_once_and_said_to_be_of_before(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = case.survey()
    assert "preparing" in capsys.readouterr().err
    elsewhere = case.model.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.syspath_prepend(str(elsewhere))  # as `python -m` does
    assert case.survey() == first
    assert "surveyed   before" in capsys.readouterr().err
    assert case.asked == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda case: append(case.rows, '{"messages": []}\n'),
        lambda case: (case.model / "config.json").write_text('{"model_type": "qwen2"}'),
        lambda case: (case.model / "tokenizer.json").write_text('{"a": 1}'),
        lambda case: (case.model / "chat_template.jinja").write_text("{{ messages }}"),
        lambda case: (case.model / "model.safetensors").write_bytes(bytes(7) + b"\1"),
        lambda case: (case.packages / "stackware-1.0.dist-info").rename(
            case.packages / "stackware-1.1.dist-info"
        ),
        lambda case: (case.packages / "another-1.0.dist-info").mkdir(),
        lambda case: (case.prepared / "train.parquet").unlink(),
    ],
    ids=[
        *("a row", "the config", "the tokenizer", "a template", "the weights"),
        *("a version", "a package", "the prepared rows"),
    ],
)
def test_what_changed_is_surveyed_anew(case: Case, change: Callable[[Case], Any]) -> None:
    assert case.asks()
    assert not case.asks()
    change(case)
    assert case.asks()


def test_another_plan_and_other_samples_are_surveyed_anew(case: Case) -> None:
    assert case.asks()
    rate = case.plan.training.model_copy(update={"learning_rate": 0.25})
    assert case.asks(case.plan.model_copy(update={"training": rate}))
    assert case.asks(case.plan, 3)
    assert not case.asks(case.plan, 3)


def test_runners_own_code_and_the_cache_count(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert case.asks()
    module = tmp_path / "package" / "inner" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text("ONE = 1\n")
    before = survey_cache.own_code(tmp_path / "package")
    module.write_text("ONE = 2\n")
    assert survey_cache.own_code(tmp_path / "package") != before
    monkeypatch.setattr(survey_cache, "own_code", lambda _: before)
    assert case.asks()


def test_an_answer_that_is_no_survey_is_refused_by_field(case: Case) -> None:
    case.told = {"disk_bytes": "much"}
    with pytest.raises(RefusedError, match=r"surveyed: .*, disk_bytes: 'much' is not a whole num"):
        case.survey()
    assert not (cache_folder() / survey_cache.FOLDER).exists()


def test_a_damaged_entry_is_as_not_there(case: Case) -> None:
    assert case.asks()
    (entry,) = (cache_folder() / survey_cache.FOLDER).iterdir()
    whole = json.loads(entry.read_text())
    for damaged in ("", "[]", '{"schema_version": 1}', json.dumps({**whole, "survey": {}})):
        entry.write_text(damaged)
        assert case.asks()
    changed = json.loads(entry.read_text())
    changed["survey"]["number"] = 1
    entry.write_text(json.dumps(changed))
    assert case.asks()
    assert not case.asks()


def test_what_changed_while_it_was_surveyed_is_not_kept(case: Case) -> None:
    case.while_asked = lambda: append(case.rows, "\n")
    assert case.asks()
    case.while_asked = lambda: None
    assert case.asks()
    assert not case.asks()


def test_without_predicted_memory_or_of_a_hubs_model_nothing_is_kept(case: Case) -> None:
    case.memory = None
    assert case.asks()
    assert case.asks()
    nowhere = case.plan.model.model_copy(update={"folder": None})
    case.memory = {}
    for _ in range(2):
        assert case.asks(case.plan.model_copy(update={"model": nowhere}))


def test_a_large_file_is_known_by_its_times_once_they_are_settled(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_cache, "READ_BYTES", 4)
    assert survey_cache.survey_key(case.plan, 0) is None  # written a moment ago
    monkeypatch.setattr(survey_cache, "SETTLED_SECONDS", 0.0)
    before = survey_cache.survey_key(case.plan, 0)
    weights = case.model / "model.safetensors"
    weights.write_bytes(bytes(8))
    os.utime(weights, ns=(0, 0))
    assert before is not None and survey_cache.survey_key(case.plan, 0) not in (None, before)


def test_only_the_newest_are_kept(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_cache, "KEPT", 2)
    for samples in range(4):
        assert case.asks(case.plan, samples)
    assert len(list((cache_folder() / survey_cache.FOLDER).iterdir())) == 2


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
