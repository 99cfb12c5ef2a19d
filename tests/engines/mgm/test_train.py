"""What is put around the toolkit's train(): stops, losses, rows. No toolkit is needed for it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.engines.mgm.stages import train

pytest.importorskip("transformers")
VOCABULARY = 256_000


def watching(*, resumable: bool, run: Path | None = None) -> tuple[Any, train.Requests]:
    requests = train.Requests()
    phase = "finetune" if resumable else "pretrain"
    watch = train.callback(requests, VOCABULARY, resumable, phase, run or Path("/nowhere"))()
    state = SimpleNamespace(global_step=0, max_steps=9, is_world_process_zero=run is not None)
    watch.on_train_begin(SimpleNamespace(), state, None)
    return watch, requests


def call(watch: Any, hook: str, step: int = 3, output: Path = Path("/x"), **rest: Any) -> Any:
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    first = rest.pop("first", False)
    logged = [rest.get("logs") or {}]
    state = SimpleNamespace(global_step=step, log_history=logged, is_world_process_zero=first)
    getattr(watch, hook)(SimpleNamespace(world_size=1, output_dir=output), state, control, **rest)
    return control


def test_a_stop_while_weights_load_ends_at_once() -> None:
    with pytest.raises(SystemExit) as ended:
        train.Requests().on_term(signal.SIGTERM, None)
    assert ended.value.code == 143


def test_a_stop_of_the_finetuning_saves_and_then_ends_with_143() -> None:
    watch, requests = watching(resumable=True)
    requests.on_term(signal.SIGTERM, None)
    for hook in ("on_substep_end", "on_step_end"):  # a step may be 128 batches
        control = call(watch, hook)
        assert control.should_save
        assert control.should_training_stop
    with pytest.raises(SystemExit) as ended:
        call(watch, "on_train_end")
    assert ended.value.code == 143


def test_a_stop_within_a_step_writes_no_checkpoint_twice(tmp_path: Path) -> None:
    watch, requests = watching(resumable=True)
    requests.on_term(signal.SIGTERM, None)
    (tmp_path / "checkpoint-3").mkdir()
    for step in (0, 3):  # before the first step there is nothing to keep
        control = call(watch, "on_substep_end", step, tmp_path)
        assert (control.should_save, control.should_training_stop) == (False, True)
    assert call(watch, "on_substep_end", 4, tmp_path).should_save


def test_a_stop_of_the_pretraining_saves_nothing() -> None:
    watch, requests = watching(resumable=False)
    requests.on_term(signal.SIGTERM, None)
    assert not call(watch, "on_step_end").should_save
    with pytest.raises(SystemExit) as ended:
        call(watch, "on_substep_end")
    assert ended.value.code == 143


def test_a_request_to_save_is_kept_once() -> None:
    watch, requests = watching(resumable=True)
    requests.on_usr1(signal.SIGUSR1, None)
    control = call(watch, "on_step_end")
    assert (control.should_save, control.should_training_stop) == (True, False)
    assert not call(watch, "on_step_end").should_save


def test_a_training_that_was_not_stopped_goes_on_to_its_results() -> None:
    watch, _ = watching(resumable=True)
    call(watch, "on_train_end")


@pytest.mark.parametrize("loss", [3e11, float("nan"), 0.0])
def test_an_absurd_loss_ends_the_training_when_it_is_logged(loss: float) -> None:
    watch, _ = watching(resumable=True)
    call(watch, "on_log", logs={"loss": 2.5})
    call(watch, "on_log", logs={"train_runtime": 1.0})
    with pytest.raises(SystemExit, match="step 3"):
        call(watch, "on_log", logs={"loss": loss})


def test_a_tensor_among_the_figures_becomes_a_number() -> None:
    torch = pytest.importorskip("torch")
    watch, _ = watching(resumable=True)
    logs = {"loss": 2.5, "grad_norm": torch.tensor(0.5)}
    call(watch, "on_log", logs=logs)
    assert logs == {"loss": 2.5, "grad_norm": 0.5}
    assert isinstance(logs["grad_norm"], float)


def test_a_row_that_can_not_be_read_is_named_and_not_replaced() -> None:
    class Rows:
        list_data_dict = ({"id": "7", "image": "a.jpg"},)

        def _sample_item(self, number: int) -> Any:
            raise OSError("cut short")

        def __getitem__(self, number: int) -> Any:
            return "another row"

    train.strict_rows(Rows)
    with pytest.raises(RuntimeError, match=r"row 0, id '7', image 'a.jpg': cut short"):
        Rows()[0]


def test_one_process_gets_the_environment_that_a_launcher_would_set() -> None:
    found = train.single_process_environment({})
    assert found["WORLD_SIZE"] == "1"
    assert int(found["MASTER_PORT"]) > 0
    assert train.single_process_environment({"RANK": "1"}) == {}


def test_the_toolkits_flags_begin_behind_two_dashes() -> None:
    given = ["--attention", "sdpa", "--", "--bf16", "True", "--", "x"]
    assert train.split_command(given) == (given[:2], ["--bf16", "True", "--", "x"])


def test_losses_and_their_end_are_recorded_for_the_host(tmp_path: Path) -> None:
    """Steps count on through both trainings; what is trained again is not told twice."""
    for resumable in (False, True):  # the pretraining, then the finetuning
        watch, _ = watching(resumable=resumable, run=tmp_path)
        for step in (1, 2, 3):
            call(watch, "on_log", step, first=True, logs={"loss": 5.0 + step, "learning_rate": 0.1})
    again = train.callback(train.Requests(), VOCABULARY, True, "finetune", tmp_path)()
    state = SimpleNamespace(global_step=2, max_steps=9, is_world_process_zero=True)
    again.on_train_begin(SimpleNamespace(), state, None)
    call(again, "on_log", 3, first=True, logs={"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["phase"], line["loss"]) for line in lines] == [
        (1, "pretrain", 6.0),
        (2, "pretrain", 7.0),
        (3, "pretrain", 8.0),
        (4, "finetune", 6.0),
        (5, "finetune", 7.0),
        (6, "finetune", 9.0),
    ]
    with pytest.raises(SystemExit):
        call(again, "on_log", 4, logs={"loss": 3e11})
    failure = json.loads((tmp_path / "engine" / "failure.json").read_text())
    assert failure["kind"] == "non_finite_loss" and "finetune, step 4" in failure["message"]
