"""`runner fit` by its own command line: plans under budgets, and the job files that it writes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import RunnerError
from runner.common.units import parse_bytes
from runner.engines.load import load_job
from runner.engines.sft.memory.ask import keep_record
from runner.report.ladder import ladder_lines
from tests.support.command import run_cli
from tests.support.forked import forks_for_modules
from tests.vram import emission
from tests.vram.tiny_job import write_job

GIB = 1 << 30
TIGHT = "940MiB"
"""A budget that half the rows, all layers recomputing, fit."""
NOTHING_FITS = "880MiB"
"""One that nothing fits but a base in 4 bits: of two layers it is no small part."""
BATCH: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
Fit = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a job of 4 x 2 rows, a cache and a state of its own."""
    folder = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RUNNER_CACHE", str(folder / "cache"))
        patch.setenv("RUNNER_STATE", str(folder / "state"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        write_job(folder, **BATCH)
        with forks_for_modules():
            yield folder


@pytest.fixture(scope="module")
def fitted(place: Path) -> Fit:
    """The record of a fit under a budget, made once."""
    made: dict[str, dict[str, Any]] = {}

    def get(budget: str, *, code: int = 0) -> dict[str, Any]:
        if budget not in made:
            answer = run_cli("fit", "job.yaml", "--budget", budget, "--json")
            assert answer.code == code, answer.out + answer.err
            made[budget] = json.loads(answer.out)
        return made[budget]

    return get


def chosen(record: dict[str, Any]) -> dict[str, Any]:
    (training,) = record["trainings"]
    rung: dict[str, Any] = training["ladder"][training["chosen"]]
    return rung


def rows_of(record: dict[str, Any]) -> int:
    """The effective batch of the job that comes of a fit."""
    got = {**BATCH}
    for name, value in record["overrides"].items():
        if name.removeprefix("training.") in got:
            got[name.removeprefix("training.")] = value
    return int(got["per_device_train_batch_size"] * got["gradient_accumulation_steps"])


@pytest.mark.e2e
def test_every_budget_has_its_own_plan_that_is_predicted_to_fit(fitted: Fit) -> None:
    texts = set()
    times = []
    for budget in ("8GiB", "1000MiB", TIGHT):
        record = fitted(budget)
        rung, (training,) = chosen(record), record["trainings"]
        assert rung["exact"]
        assert rung["fits"]
        assert training["prediction"]["trainings"][0]["high_bytes"] <= parse_bytes(budget)
        assert training["prediction"]["trainings"][0]["process_bytes"] == rung["peak_bytes"]
        assert rows_of(record) == training["effective_batch"] == 8
        assert rung["changes"] == ""  # nothing of the result
        assert record["overrides"]["budget.gpu_memory"].endswith("iB")
        texts.add(rung["text"])
        times.append(rung["time"])
    assert len(texts) == 3
    assert times == sorted(times)  # less memory takes longer


@pytest.mark.e2e
def test_what_it_says_gives_the_plan_that_it_predicted(fitted: Fit, place: Path) -> None:
    """The overrides by --set, asked of `runner vram`: the same figure."""
    record = fitted(TIGHT)
    sets = [
        f"{name}={json.dumps(value) if not isinstance(value, str) else value}"
        for name, value in record["overrides"].items()
    ]
    options = [part for one in sets for part in ("--set", one)]
    answer = run_cli("vram", "job.yaml", *options, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["process_bytes"] == chosen(record)["peak_bytes"]
    assert "tracing" not in answer.err  # it is in the cache


@pytest.mark.e2e
def test_a_budget_that_nothing_fits(fitted: Fit, place: Path) -> None:
    record = fitted(NOTHING_FITS, code=3)
    assert record["fits"] is False
    assert record["trainings"][0]["chosen"] is None
    assert record["written"] is None
    kept = (place / "job.yaml").read_text()
    answer = run_cli("fit", "job.yaml", "--budget", NOTHING_FITS, "--apply")
    assert answer.code == 3
    assert "NO PLAN" in answer.out
    assert (place / "job.yaml").read_text() == kept
    # for people: what would do, and that it is not allowed
    would = record["trainings"][0]["allowed_would_fit"]
    others = [rung for rung in record["trainings"][0]["ladder"] if not rung["allowed"]]
    assert [rung["base"] for rung in others if rung["fits"]] == would
    assert "4bit_base" in would
    assert all(rung["changes"] for rung in others)
    assert f"fit.allow: [{would[0]}]" in answer.out
    assert all(name in answer.out for name in would)


@pytest.mark.e2e
def test_what_the_job_allows_is_taken_where_nothing_else_fits(fitted: Fit, place: Path) -> None:
    refused = fitted(NOTHING_FITS, code=3)
    assert "4bit_base" in refused["trainings"][0]["allowed_would_fit"]
    allowed = run_cli(
        "fit", "job.yaml", "--budget", NOTHING_FITS, "--set", "fit.allow=[4bit_base]", "--json"
    )
    assert allowed.code == 0, allowed.out
    record = json.loads(allowed.out)
    assert record["overrides"]["method"] == "qlora"
    assert "4 bits" in chosen(record)["changes"]


@pytest.mark.e2e
def test_apply_edits_the_job_and_keeps_its_comments(fitted: Fit, place: Path) -> None:
    record = fitted(TIGHT)
    copy = place / "copy.yaml"
    before = (place / "job.yaml").read_text()
    copy.write_text(before)
    answer = run_cli("fit", "copy.yaml", "--budget", TIGHT, "--apply")
    assert answer.code == 0, answer.err
    after = copy.read_text()
    for comment in ("# what this is", "# beside this file", "# how"):
        assert comment in after
    job: Any = load_job(str(copy)).job
    assert job.budget.gpu_memory == parse_bytes(TIGHT)
    for name, value in record["overrides"].items():
        if name.startswith("training."):
            assert getattr(job.training, name.removeprefix("training.")) == value
    assert set(before.splitlines()) - set(after.splitlines()) <= {
        "  per_device_train_batch_size: 4",
        "  gradient_accumulation_steps: 2",
    }
    # and the command that it prints trains the same
    (line,) = [line for line in answer.out.splitlines() if line.startswith("train ")]
    said = shlex.split(line)
    assert said[1:4] == ["runner", "train", "copy.yaml"]
    assert f"--set=budget.gpu_memory={TIGHT}" in said


@pytest.mark.e2e
def test_apply_copies_a_packaged_job_once(
    place: Path, fitted: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """runner's own jobs are not edited: the copy lies under ./jobs, and is never overwritten."""
    import runner.launch.fit as module

    packaged = tmp_path / "packaged"
    packaged.mkdir()
    write_job(packaged, **BATCH)
    monkeypatch.setattr(module, "jobs_folder", lambda: packaged)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    original = (packaged / "job.yaml").read_text()
    command = ("fit", str(packaged / "job.yaml"), "--budget", "8GiB", "--apply")
    answer = run_cli(*command)
    assert answer.code == 0, answer.err
    assert (packaged / "job.yaml").read_text() == original
    written = elsewhere / "jobs" / "job.yaml"
    assert "8GiB" in written.read_text()
    assert "jobs/job.yaml" in answer.out
    written.write_text("mine")
    again = run_cli(*command)
    assert again.code == 3
    assert "is there already" in again.err
    assert written.read_text() == "mine"


@pytest.mark.parametrize("budget", ["lots", "", "12", "-3GiB", "0GiB"])
def test_a_budget_that_is_none_is_a_usage_error(place: Path, budget: str) -> None:
    answer = run_cli("fit", "job.yaml", f"--budget={budget}")
    assert answer.code == 2, answer.out
    assert "--budget" in answer.err
    assert "GiB" in answer.err


def test_without_any_budget_there_is_nothing_to_fit(place: Path) -> None:
    answer = run_cli("fit", "job.yaml")
    assert answer.code == 2
    assert "--budget" in answer.err


def test_a_budget_above_the_card_is_refused(place: Path) -> None:
    answer = run_cli("fit", "job.yaml", "--budget", "30GiB", "--gpu-total", "24GiB")
    assert answer.code == 2
    assert "22.80 GiB" in answer.err


def rung(text: str, peak: int, **more: Any) -> dict[str, Any]:
    return {
        "text": text,
        "base": "",
        "peak_bytes": peak,
        "time": 1.0,
        "changes": "",
        "fits": True,
        "allowed": True,
        "exact": True,
        **more,
    }


def test_the_ladder_is_shown_with_what_each_rung_changes() -> None:
    record = {
        "budget_bytes": 8 * GIB,
        "trainings": [
            {
                "phase": "second",
                "effective_batch": 16,
                "chosen": 1,
                "prediction": None,
                "ladder": [
                    rung("as it is", 16 * GIB, fits=False),
                    rung("fewer rows", 6 * GIB, time=1.25, exact=False),
                    rung("4-bit", 4 * GIB, base="4bit_base", changes="rounded", allowed=False),
                ],
            }
        ],
    }
    lines = ladder_lines(record)
    assert any("second: effective batch 16" in line for line in lines)
    own, fewer, base = (
        next(line for line in lines if f"  {text} " in line)
        for text in ("as it is", "fewer rows", "4-bit")
    )
    assert own.startswith(" x")
    assert "16.00 GiB" in own
    assert "nothing" in own
    assert fewer.startswith("->")
    assert "≈" in fewer
    assert "x1.25" in fewer
    assert base.startswith("  ")
    assert "rounded (not in fit.allow: 4bit_base)" in base
    assert own.count("█") == 24
    assert fewer.index("│") - fewer.index("█") == 12  # the budget is half of the largest


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """A cache of the emission job's recorded figures, where what is not recorded is not traced
    either; the versions that they were traced with."""
    from runner.engines.sft.inside.memory import cost_model as surface
    from runner.engines.sft.inside.memory import fit

    def not_recorded(*_: Any, **__: Any) -> Any:
        raise RunnerError(f"no figure is recorded for this: python -m {emission.__name__}")

    monkeypatch.setattr(fit, "predict", not_recorded)
    monkeypatch.setattr(surface, "trace", not_recorded)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path))
    record = json.loads(emission.FIGURES.read_text())
    for name, figures in record["figures"].items():
        keep_record(name, figures)
    versions: dict[str, str | None] = record["versions"]
    return versions


def test_the_emission_job_fits_8_12_and_24_gib_in_three_ways_by_recorded_figures(
    recorded: dict[str, str | None],
) -> None:
    plan = emission.emission_plan()
    found = []
    for budget in emission.BUDGETS_GIB:
        record = emission.fitted(plan, budget, recorded)
        (training,) = record["trainings"]
        assert training["prediction"]["trainings"][0]["high_bytes"] <= budget * GIB
        assert training["effective_batch"] == 16
        assert chosen(record)["changes"] == ""
        found.append(chosen(record))
    assert_three_ways(found)


def assert_three_ways(found: list[dict[str, Any]]) -> None:
    """Each budget its own plan, and the larger the faster."""
    assert len({one["text"] for one in found}) == 3
    assert [one["time"] for one in found] == sorted((one["time"] for one in found), reverse=True)


@pytest.mark.soak
def test_the_emission_job_fits_8_12_and_24_gib_in_three_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RUNNER_STATE", str(tmp_path / "state"))
    found = []
    for budget in emission.BUDGETS_GIB:
        answer = run_cli("fit", "emission-unified-lora", "--budget", f"{budget}GiB", "--json")
        assert answer.code == 0, answer.out + answer.err
        record = json.loads(answer.out)
        (training,) = record["trainings"]
        assert training["prediction"]["trainings"][0]["high_bytes"] <= budget * GIB
        assert training["effective_batch"] == 16
        assert chosen(record)["changes"] == ""
        sets = [
            f"{name}={json.dumps(value) if not isinstance(value, str) else value}"
            for name, value in record["overrides"].items()
        ]
        job: Any = load_job("emission-unified-lora", sets).job
        split = job.training
        assert split.per_device_train_batch_size * split.gradient_accumulation_steps == 16
        found.append(chosen(record))
    assert_three_ways(found)
