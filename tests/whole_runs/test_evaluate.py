"""`runner evaluate` on real runs of the 260K-parameter model, and on that model as it is.

The engine is forked from this process (support/engine_forks.py); Ctrl-C is tried on a new one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sklearn import metrics as sklearn

from tests.support.command import SHARED
from tests.support.engine_forks import call_here, preloaded, train_here
from tests.support.workplace import Finished, Workplace, lines

pytestmark = pytest.mark.e2e

SUBJECTS = ["room", "soup", "train", "film", "shop", "walk", "phone", "song"]
MOODS = {"1": ["lovely", "bright", "kind", "warm"], "0": ["awful", "dirty", "late", "cold"]}
ROWS = [
    {"text": f"The {subject} was {word} and so was the rest.", "label": label}
    for subject in SUBJECTS
    for label, words in MOODS.items()
    for word in words
]
JOB = """
model: {model}
lora: {{r: 4, lora_alpha: 8, target_modules: all-linear}}
data:
  train: rows.jsonl
  format: text_label
  labels: {{"0": bad, "1": good}}
  prompt: "Good or bad? {{text}}"
  split: {{eval: 0.1, test: 0.4, stratify: label, seed: 3}}
training:
  max_steps: 8
  per_device_train_batch_size: 4
  learning_rate: 5.0e-3
  max_length: 128
evaluation: {{max_new_tokens: 6, per_device_batch_size: 8}}
budget: {{host_memory: 6GiB}}
"""


@dataclass(frozen=True)
class Here(Workplace):
    """A workplace whose calls are made in this process, the engine forked from it."""

    def call(self, *arguments: str, seconds: float = 0.0) -> Finished:
        return call_here(self.folder, *arguments)


@pytest.fixture(scope="module", autouse=True)
def engine_is_here() -> Iterator[None]:
    with preloaded():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> Workplace:
    """A folder with a job of two labels, its rows, and one finished run of it."""
    folder = tmp_path_factory.mktemp("labels") / 'it\'s "a" place'
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "labels.yaml").write_text(JOB.format(model=stories))
    train_here(folder, "labels.yaml")
    return Here(folder)


@pytest.fixture(scope="module")
def evaluated(place: Workplace) -> tuple[dict[str, Any], list[dict[str, Any]], Finished]:
    """The run's evaluation: its record, its predictions, and the call."""
    done = place.call("evaluate", "@last", "--json")
    assert done.code == 0, done.err
    record = done.json
    return record, lines(Path(record["folder"]) / "predictions.jsonl"), done


def test_figures_are_scikit_learns_on_the_saved_predictions(evaluated: Any) -> None:
    record, predictions, _ = evaluated
    figures = record["sets"][0]
    assert record["complete"] is True and record["task"] == "classification"
    assert len(predictions) == record["rows"] == figures["rows"] == round(0.4 * len(ROWS))
    expected = [line["expected"] for line in predictions]
    assert set(expected) == {"good", "bad"}
    for who in ("model", "base"):
        told = [
            (line if who == "model" else line["base"])["parsed"] or "none" for line in predictions
        ]
        right = [(line if who == "model" else line["base"])["correct"] for line in predictions]
        assert right == [one == two for one, two in zip(expected, told, strict=True)]
        assert figures["accuracy"][who]["value"] == sklearn.accuracy_score(expected, told)
        for name, function in (
            ("macro_precision", sklearn.precision_score),
            ("macro_recall", sklearn.recall_score),
            ("macro_f1", sklearn.f1_score),
        ):
            value = function(
                expected, told, labels=["bad", "good"], average="macro", zero_division=0
            )
            assert figures[name][who]["value"] == pytest.approx(value)
        matrix = sklearn.confusion_matrix(expected, told, labels=["bad", "good", "none"])
        assert figures["confusion"][who] == matrix.tolist()
    assert figures["majority"]["accuracy"]["value"] == pytest.approx(0.5, abs=0.05)


def test_the_loss_is_that_of_the_saved_rows(evaluated: Any) -> None:
    record, predictions, _ = evaluated
    loss = record["sets"][0]["loss"]
    tokens = sum(line["answer_tokens"] for line in predictions)
    for who in ("model", "base"):
        rows = predictions if who == "model" else [line["base"] for line in predictions]
        nats = sum(line["answer_loss"] * line["answer_tokens"] for line in rows)
        assert loss[who]["value"] == pytest.approx(nats / tokens)
        assert loss[who]["low"] < loss[who]["value"] < loss[who]["high"]
    assert loss["model"]["value"] < loss["base"]["value"]  # eight steps teach the label words
    assert loss["difference"]["high"] < 0


def test_it_is_proven_that_test_rows_were_not_trained_on(evaluated: Any) -> None:
    record, predictions, done = evaluated
    seen = record["sets"][0]["trained_on"]
    rows = len(predictions)
    assert [(one["rows"], one["seen_prompts"]) for one in seen] == [(rows, 0)]
    assert f"0 of {rows} test rows were trained on" in done.err


def test_what_is_left_says_under_which_conditions(evaluated: Any, place: Workplace) -> None:
    record, predictions, _ = evaluated
    folder = Path(record["folder"])
    assert folder.parent == place.last / "evaluations"
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.png",
        "evaluation.json",
        "plan.yaml",
        "predictions.jsonl",
        "request.json",
    ]
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")
    held = record["conditions"]
    adapter = json.loads((place.last / "engine" / "result.json").read_text())["adapter"]
    assert [each["sha256"] for each in held["weights"]] == [adapter["sha256"]]
    assert held["device"] == "cpu" and held["precision"] == "fp32"
    assert {"torch", "transformers", "peft", "scikit-learn"} <= held["packages"].keys()
    assert record["sets"][0]["sources"][0]["place"].endswith("rows.jsonl")
    by_line = dict(enumerate(ROWS, start=1))
    for line in predictions:
        row = by_line[line["line"]]
        assert line["prompt_tail"] == f"Good or bad? {row['text']}"
        assert line["expected"] == {"0": "bad", "1": "good"}[row["label"]]


def test_the_base_beside_a_run_is_the_base_alone(
    evaluated: Any, place: Workplace, stories: Path
) -> None:
    _, predictions, _ = evaluated
    done = place.call(
        "evaluate",
        str(stories),
        "--job",
        "labels.yaml",
        "--set",
        "evaluation.per_device_batch_size=1",  # and other batches change nothing
        "--out",
        "alone",
        "--json",
    )
    assert done.code == 0, done.err
    alone = lines(place.folder / "alone" / "predictions.jsonl")
    assert [line["line"] for line in alone] == [line["line"] for line in predictions]
    for one, two in zip(alone, predictions, strict=True):
        assert one["generated"] == two["base"]["generated"]
        assert one["answer_loss"] == pytest.approx(two["base"]["answer_loss"], rel=1e-5)
        assert "base" not in one
    assert done.json["run"] is None and done.json["sets"][0]["trained_on"] == []
    again = place.call("evaluate", str(stories), "--job", "labels.yaml", "--out", "alone")
    assert again.code == 2 and "is there already" in again.err


def test_rows_that_were_trained_on_are_called_out(place: Workplace) -> None:
    done = place.call("evaluate", "--data", "rows.jsonl", "--max-rows", "6", "--no-base")
    assert done.code == 0, done.err
    trained = len(ROWS) // 2
    assert f"WARNING: {trained} of {len(ROWS)} rows rows were trained on" in done.err
    assert "the figures flatter the run" in done.out
    assert "6 of 64 rows rows" in done.out
    assert "base" not in done.out.split("Brackets")[0].split("accuracy")[1].splitlines()[0]


def test_ctrl_c_leaves_what_was_answered_and_no_figures(place: Workplace) -> None:
    process = place.start(
        "evaluate",
        "--out",
        "cut short",
        "--set",
        "evaluation.per_device_batch_size=1",
        "--set",
        "evaluation.max_new_tokens=100",
    )
    predictions = place.folder / "cut short" / "predictions.jsonl"
    end = time.monotonic() + 1800
    while not lines(predictions):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=1800)
    assert process.returncode == 130, err
    assert "evaluation incomplete" in err and "Traceback" not in err
    record = json.loads((place.folder / "cut short" / "evaluation.json").read_text())
    assert record["complete"] is False and "sets" not in record
    done = lines(predictions)
    assert 0 < len(done) == record["rows_done"] < record["rows"]
    assert all("generated" in line for line in done)


def test_seven_sets_have_a_figure_each_and_a_macro_average(tmp_path: Path, stories: Path) -> None:
    files = sorted((SHARED / "data" / "commonsense_test_small").glob("*.json"))
    if len(files) != 7:
        pytest.skip("the seven commonsense test sets are not on this machine")
    train = SHARED / "data" / "commonsense_17k.json"
    settings = [
        f"data.train={train}",
        "evaluation.task=multiple_choice",
        "evaluation.max_new_tokens=4",
    ]
    done = Here(tmp_path).call(
        "evaluate",
        str(stories),
        "--job",
        "commonsense-two-stage",
        *(part for text in settings for part in ("--set", text)),
        *(part for path in files for part in ("--data", str(path))),
        "--max-rows",
        "4",
        "--json",
    )
    assert done.code == 0, done.err
    record = done.json
    assert [each["name"] for each in record["sets"]] == [path.stem for path in files]
    assert all(each["rows"] == 4 and each["available_rows"] == 50 for each in record["sets"])
    chances = {each["name"]: each["chance"] for each in record["sets"]}
    assert chances["boolq"] == chances["piqa"] == 0.5
    assert chances["social_i_qa"] == pytest.approx(1 / 3)
    values = [each["accuracy"]["model"]["value"] for each in record["sets"]]
    assert record["macro"]["accuracy"]["model"]["value"] == pytest.approx(sum(values) / 7)
    # the rows' own `answer` key is what counts as right
    keys = {
        (str(path), number): row["answer"]
        for path in files
        for number, row in enumerate(json.loads(path.read_text()), start=1)
    }
    for line in lines(Path(record["folder"]) / "predictions.jsonl"):
        assert line["expected"] == keys[line["source"], line["line"]]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--set", "training.max_steps=1"], 2, "only evaluation.* can be set"),
        (["--set", "evaluation.tsk=json"], 2, "evaluation.task"),
        (["--set", "evaluation.task=jsn"], 2, "evaluation.task"),
        (["--set", "evaluation.task=json"], 2, "the row's answer is not JSON"),
        (["--set", "evaluation.task=multiple_choice"], 2, "names no choices"),
        (["--data", "row.jsonl"], 2, "rows.jsonl"),
        (["--data", "labels.yaml"], 2, "labels.yaml"),
        (["no-such-run"], 2, "no run 'no-such-run'"),
    ],
)
def test_wrong_calls_are_refused_before_any_weights_are_loaded(
    place: Workplace, arguments: list[str], code: int, told: str
) -> None:
    before = sorted((place.last / "evaluations").glob("*"))
    done = place.call("evaluate", *arguments)
    assert done.code == code and told in done.err
    assert "measuring" not in done.err
    assert sorted((place.last / "evaluations").glob("*")) == before  # no folder is left


def test_a_model_needs_a_job_and_a_run_needs_none(place: Workplace, stories: Path) -> None:
    done = place.call("evaluate", str(stories))
    assert done.code == 2 and "--job JOB" in done.err
    done = place.call("evaluate", str(place.last), "--job", "labels.yaml")
    assert done.code == 2 and "is a run" in done.err


def test_a_run_without_an_adapter_is_refused(place: Workplace, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(place.last, copy)
    shutil.rmtree(copy / "adapter")
    done = place.call("evaluate", str(copy))
    assert done.code == 3 and "no finished adapter" in done.err
