"""The day of a run: taken when it is planned, kept by its plan whatever day it is later."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from runner.data.template import settings_for
from runner.engines.load import load_job
from runner.engines.render import read_plan
from runner.engines.sft import facts
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.launch.resume import plan_for
from runner.plans.plan_file import plan_yaml
from runner.provenance.compare import settings_of
from runner.runs.folder import RunFolder

DAY = datetime.date(2026, 3, 5)
NEXT = DAY + datetime.timedelta(days=1)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of a model whose template writes the date, in the current folder."""
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "m"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (model / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    path = tmp_path / "job.yaml"
    path.write_text("model: ./m\ndata: {train: rows.jsonl}\nlaunch: {device: cpu}\n")
    return path


def planned(job: Path, day: datetime.date, monkeypatch: pytest.MonkeyPatch) -> SftPlan:
    monkeypatch.setattr(facts, "today", lambda: day)
    loaded = load_job(str(job), [])
    return make_plan(loaded, facts.gather(loaded))


def test_the_plan_keeps_its_day(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = planned(job, DAY, monkeypatch)
    assert first.template_date == "2026-03-05"
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.plan.write_text(plan_yaml(first), encoding="utf-8")
    # read the next day, for evaluate and chat, and from the manifest that reproduce reads
    for plan in (read_plan(folder.plan), SftPlan.model_validate(first.model_dump(mode="json"))):
        assert plan.template_date == "2026-03-05"
        assert settings_for(plan).date == DAY
        assert all(settings_for(part).date == DAY for part in plan.trainings)
    # the next day's plan finds that run by its hash, and goes on as it began
    later = planned(job, NEXT, monkeypatch)
    assert later.template_date == "2026-03-06"
    assert later.hash == first.hash
    assert plan_for(later, folder) == first
    assert settings_of(first.model_dump(mode="json"))["template_date"] == "2026-03-05"


def test_a_run_of_before_takes_the_day_of_its_resume(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(job, DAY, monkeypatch)
    old = first.model_dump(mode="json")
    old.pop("template_date")
    old["data"].pop("special_tokens")
    opened = SftPlan.model_validate(old)
    assert opened.template_date is None
    assert opened.hash == first.hash
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.plan.write_text(plan_yaml(opened), encoding="utf-8")
    assert plan_for(first, folder).template_date == "2026-03-05"


def test_a_template_that_reads_no_date_has_none(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages }}")
    assert planned(job, DAY, monkeypatch).template_date is None
    # the template may stand in the tokenizer's own settings, or beside others
    config = {"chat_template": "{{ strftime_now('%Y') }}"}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    assert planned(job, DAY, monkeypatch).template_date == "2026-03-05"
    assert facts.template_date(None) == "2026-03-05"  # a model that is not here yet


@pytest.mark.parametrize("value", ["yesterday", "2026-3-5", "2026-03-05T10:00", "2026-02-30", ""])
def test_a_day_that_is_none_is_no_plan(
    job: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    record: dict[str, Any] = planned(job, DAY, monkeypatch).model_dump(mode="json")
    with pytest.raises(ValueError, match="template_date"):
        SftPlan.model_validate({**record, "template_date": value})
