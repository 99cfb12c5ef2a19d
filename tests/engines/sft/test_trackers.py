"""Trackers, read back by their own libraries; and none of them can hold a training up."""

from __future__ import annotations

import json
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.common import durable
from runner.engines.sft.inside.train import trackers
from runner.engines.sft.inside.train.trackers import (
    Feed,
    State,
    Trackers,
    missing_trackers,
    open_trackers,
)
from runner.runs.folder import RunFolder
from tests.engines.sft.tiny import make_trainer, plan_of, run_folder

pytest.importorskip("torch")

PATIENCE_SECONDS = 600.0
"""How long a library's own process is waited for, on whatever machine."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return run_folder(tmp_path / "tiny" / "20260101-000000-abcdef0")


def told(folder: RunFolder, name: str, losses: Mapping[int, float], resumed: int | None) -> None:
    """One start of a run that tells a tracker these losses."""
    plan = plan_of(tracking={"report_to": [name], "project": "a project"})
    with open_trackers(plan, folder, resumed_step=resumed, first=True) as made:
        for step, loss in losses.items():
            made.log(step, {"loss": loss, "learning_rate": 1e-4, "memory_source": "process_rss"})


def tensorboard_series(folder: RunFolder, tag: str) -> dict[int, float]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder.tensorboard))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    internal = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block is too small for a record's head
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if at + 7 + length > len(content):
            return  # the rest is not written yet
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            record = internal.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def wandb_history(path: Path) -> list[dict[str, Any]]:
    lines = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            lines.append(
                {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}
            )
    return lines


def mlflow_client(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracking = pytest.importorskip("mlflow.tracking")
    return tracking.MlflowClient(tracking_uri=folder.mlruns.as_uri())


@pytest.mark.e2e
def test_all_three_have_every_figure_of_a_real_training(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    client = mlflow_client(folder, monkeypatch)
    report_to = ["tensorboard", "wandb", "mlflow"]
    plan = plan_of({"max_steps": 4, "eval_steps": 2}, tracking={"report_to": report_to})
    with open_trackers(plan, folder, resumed_step=None, first=True) as made:
        make_trainer(plan, folder, trackers=made, step_offset=10).train()

    lines = list(durable.read_jsonl(folder.metrics))
    (wandb_file,) = folder.wandb.glob("offline-run-*/*.wandb")
    history = wandb_history(wandb_file)
    end = time.monotonic() + PATIENCE_SECONDS
    while [h for h in history if h["train/global_step"] == 14] == [] and time.monotonic() < end:
        time.sleep(0.2)  # its service writes on after finish()
        history = wandb_history(wandb_file)
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == folder.path.name
    assert run.data.params["plan"] == plan.hash
    assert run.data.params["training.max_steps"] == "4"
    for name, tag in trackers.TAGS.items():
        figures = {line["step"]: line[name] for line in lines if line.get(name) is not None}
        assert list(figures) == ([12, 14] if name == "eval_loss" else [11, 12, 13, 14]), name
        assert tensorboard_series(folder, tag) == {
            step: pytest.approx(value, rel=1e-6) for step, value in figures.items()
        }
        assert {h["train/global_step"]: h[tag] for h in history if tag in h} == figures
        told_mlflow = client.get_metric_history(run.info.run_id, tag)
        assert {metric.step: metric.value for metric in told_mlflow} == figures


def test_tensorboard_of_a_resumed_run_hides_the_steps_trained_again(folder: RunFolder) -> None:
    told(folder, "tensorboard", {1: 5.0, 2: 4.0, 3: 3.0}, None)
    told(folder, "tensorboard", {3: 3.5, 4: 2.0}, 2)
    assert tensorboard_series(folder, "train/loss") == {1: 5.0, 2: 4.0, 3: 3.5, 4: 2.0}


def wandb_parts(folder: RunFolder) -> list[tuple[Any, dict[int, float]]]:
    """What each part of an offline run says of itself, and its losses, as far as it is written."""
    found = []
    for file in sorted(folder.wandb.glob("offline-run-*/*.wandb")):
        said = [r.run for r in wandb_records(file) if r.WhichOneof("record_type") == "run"]
        losses = {h["train/global_step"]: h["train/loss"] for h in wandb_history(file)}
        found += [(run, losses) for run in said[:1]]
    return found


def test_weights_and_biases_of_a_resumed_run_is_one_run_in_two_parts(folder: RunFolder) -> None:
    pytest.importorskip("wandb")
    told(folder, "wandb", {1: 5.0, 2: 4.0}, None)
    time.sleep(1.1)  # its folders are named by the second
    told(folder, "wandb", {2: 4.5, 3: 2.0}, 1)
    wanted = [{1: 5.0, 2: 4.0}, {2: 4.5, 3: 2.0}]
    end = time.monotonic() + PATIENCE_SECONDS
    parts = wandb_parts(folder)
    while [losses for _, losses in parts] != wanted and time.monotonic() < end:
        time.sleep(0.2)  # its service writes on after finish()
        parts = wandb_parts(folder)
    assert [losses for _, losses in parts] == wanted
    runs = [run for run, _ in parts]
    assert runs[0].run_id == runs[1].run_id
    assert runs[0].run_id.startswith(folder.path.name)
    assert {run.project for run in runs} == {"a project"}
    assert {run.display_name for run in runs} == {folder.path.name}


def test_mlflow_of_a_resumed_run_is_one_run(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_client(folder, monkeypatch)
    told(folder, "mlflow", {1: 5.0, 2: 4.0}, None)
    told(folder, "mlflow", {3: 2.0}, 2)
    experiment = client.get_experiment_by_name("a project")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 5.0), (2, 4.0), (3, 2.0)]
    assert run.info.status == "FINISHED"


def test_a_failed_run_is_told_as_failed(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow_client(folder, monkeypatch)
    plan = plan_of(tracking={"report_to": ["mlflow"]})
    with (
        pytest.raises(MemoryError),
        open_trackers(plan, folder, resumed_step=None, first=True),
    ):
        raise MemoryError
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FAILED"


def test_only_the_first_process_tells_and_only_what_was_asked(folder: RunFolder) -> None:
    plan = plan_of(tracking={"report_to": ["tensorboard", "mlflow"]})
    open_trackers(plan, folder, resumed_step=None, first=False).close()
    open_trackers(plan_of(), folder, resumed_step=None, first=True).close()
    assert not folder.tensorboard.exists()
    assert not folder.trackers.exists()


class Fake:
    """A tracker that keeps what it is told, and breaks where it is told to."""

    def __init__(self, *, breaks: str = "", gate: threading.Event | None = None) -> None:
        self.breaks, self.gate = breaks, gate
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.state: State | None = None

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if self.gate is not None:
            self.gate.wait()
        if self.breaks == f"step {step}":
            raise ConnectionError("the server is down\nsecond line with a secret")
        self.lines.append((step, dict(figures)))

    def close(self, state: State) -> None:
        if self.breaks == "close":
            raise SystemExit(1)
        self.state = state


@pytest.fixture(autouse=True)
def _time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy machine makes late is no failure of a tracker."""
    monkeypatch.setitem(trackers.CLOSE_SECONDS, "finished", PATIENCE_SECONDS)


@pytest.fixture
def no_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "LIBRARIES", {"wandb": "json", "mlflow": "json"})


@pytest.mark.usefixtures("no_imports")
@pytest.mark.parametrize("breaks", ["step 2", "close", "open"])
def test_a_tracker_that_fails_is_warned_of_once_and_left(
    breaks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, well = Fake(breaks=breaks), Fake()

    def opener() -> Fake:
        if breaks == "open":
            raise ValueError("no API key")
        return broken

    made = Trackers([Feed("wandb", opener), Feed("mlflow", lambda: well)])
    for step in range(1, 5):
        made.log(step, {"loss": 1.0 / step})
    made.close()
    assert [step for step, _ in well.lines] == [1, 2, 3, 4]
    assert well.lines[0][1] == {"train/loss": 1.0}
    assert well.state == "finished"
    (warning,) = capsys.readouterr().err.splitlines()
    said = {
        "step 2": "could not take step 2 (ConnectionError: the server is down)",
        "close": "could not close (SystemExit: 1)",
        "open": "could not open (ValueError: no API key)",
    }
    assert warning.startswith(f"runner: warning: tracker wandb {said[breaks]}; training continues")


@pytest.mark.usefixtures("no_imports")
def test_a_tracker_that_hangs_costs_no_step_and_a_bounded_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "QUEUE_LINES", 10)
    monkeypatch.setitem(trackers.CLOSE_SECONDS, "stopped", 0.2)
    gate = threading.Event()
    patience = threading.Timer(240, gate.set)  # a step or an end that waits for it is seen below
    patience.start()
    hung, slow = Fake(gate=gate), Fake()
    made = Trackers([Feed("wandb", lambda: hung), Feed("mlflow", lambda: slow)])
    for step in range(1000):
        made.log(step, {"loss": 1.0})
    made.close("stopped")
    assert not gate.is_set()
    patience.cancel()
    assert "tracker wandb did not finish in time" in capsys.readouterr().err
    gate.set()


def test_a_library_that_does_not_import_is_warned_of(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    told(folder, "wandb", {1: 5.0}, None)
    assert "tracker wandb could not be imported" in capsys.readouterr().err


def test_missing_packages_are_named_as_pip_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_trackers([]) == []
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    assert missing_trackers(["wandb", "mlflow"]) == ["wandb", "mlflow-skinny"]


def test_no_server_is_asked_and_no_key_is_kept(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    told(folder, "wandb", {1: 5.0}, None)
    told(folder, "mlflow", {1: 5.0}, None)
    kept = [path for path in folder.path.rglob("*") if path.is_file()]
    assert not any(b"0123456789abcdef0123456789" in path.read_bytes() for path in kept)
    assert any(folder.mlruns.rglob("train/loss"))


@pytest.mark.e2e
def test_online_follows_the_environment_and_a_dead_server_stops_nothing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    plan = plan_of({"max_steps": 2}, tracking={"report_to": ["mlflow"], "offline": False})
    with open_trackers(plan, folder, resumed_step=None, first=True) as made:
        make_trainer(plan, folder, trackers=made).train()
    assert "tracker mlflow could not open" in capsys.readouterr().err
    assert [line["step"] for line in durable.read_jsonl(folder.metrics)] == [1, 2]
    assert not folder.mlruns.exists()
