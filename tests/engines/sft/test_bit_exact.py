"""The same bits: two runs of a plan, runs stopped anywhere and gone on with, whatever was drawn
before; by the sha256 of the adapter, in whole runs of the engine.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.common import durable
from runner.common.errors import RefusedError, RunnerError
from runner.engines.sft.plan import SftPlan
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from tests.engines.sft import in_process
from tests.engines.sft.in_process import Ended, Interruptions, make_rows, run
from tests.support.forked import run_ranks

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")
pytestmark = pytest.mark.e2e

ROWS = 9
"""Of which 1 is held out: 8 x 1 row, 2 batches a step, make 4 steps an epoch."""
STOP = (signal.SIGTERM,)
SAVE_AND_STOP = (signal.SIGUSR1, signal.SIGTERM)  # as the guard asks


def plan_of(model: Path, rows: Path, **changes: Any) -> SftPlan:
    """A plan of 10 steps of 2 accumulated batches; `training` among the changes is merged."""
    short = {"max_steps": 10, "gradient_accumulation_steps": 2, "eval_steps": 2}
    training = {**short, **changes.pop("training", {})}
    return in_process.plan_of(model, rows, training=training, **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a module's runs and caches lie."""
    folder = tmp_path_factory.mktemp("exact")
    before = os.environ.get("RUNNER_CACHE")
    os.environ["RUNNER_CACHE"] = str(folder / "cache")
    yield folder
    os.environ.pop("RUNNER_CACHE")
    if before is not None:
        os.environ["RUNNER_CACHE"] = before


@pytest.fixture(scope="module")
def job(place: Path, shared: Path) -> tuple[Path, Path]:
    """The model's folder and the rows."""
    return shared / "models" / "stories260k", make_rows(place / "rows.jsonl", ROWS)


@pytest.fixture(scope="module")
def undisturbed(place: Path, job: tuple[Path, Path]) -> Ended:
    """The run that all others are to equal: dropout, warmup and cosine, 2.5 epochs, evaluations."""
    return run(plan_of(*job), place / "undisturbed")


def stopped_at(
    batch: int, job: tuple[Path, Path], path: Path, signals: Any = STOP, **changes: Any
) -> Ended:
    """A run that is asked to end while it computes `batch`, and is gone on with; as one."""
    plan = plan_of(*job, **changes)
    first = run(plan, path, meanwhile=Interruptions({batch: signals}))
    assert first.code == 128 + signal.SIGTERM
    assert first.batches
    rest = run(plan, path, resume=True)
    return replace(rest, batches=first.batches + rest.batches)


def assert_same(one: Ended, other: Ended) -> None:
    """The same rows in the same order, the same losses, the same adapter."""
    assert one.batches == other.batches
    assert one.losses == other.losses
    assert one.evaluations == other.evaluations
    assert one.adapter == other.adapter


def test_two_runs_of_a_plan_give_the_same_bits(
    undisturbed: Ended, job: tuple[Path, Path], tmp_path: Path
) -> None:
    import torch

    torch.rand(5)  # nothing that was drawn before counts
    again = run(plan_of(*job), tmp_path / "run", meanwhile=Interruptions(after_weights=_noise))
    assert_same(again, undisturbed)


def _noise() -> None:
    import random

    import numpy
    import torch

    torch.rand(7)
    numpy.random.rand(3)
    random.random()  # noqa: S311


@pytest.mark.parametrize(
    ("batch", "signals", "checkpoint"),
    [
        (3, STOP, 2),  # the first of two batches of a step whose evaluation the stop cuts off
        (7, SAVE_AND_STOP, 4),  # the last step of an epoch, evaluated too
        (18, STOP, 9),  # in the third epoch, where the rate is almost down
    ],
)
def test_a_run_stopped_anywhere_ends_as_if_it_had_not_been(
    undisturbed: Ended,
    job: tuple[Path, Path],
    tmp_path: Path,
    batch: int,
    signals: tuple[signal.Signals, ...],
    checkpoint: int,
) -> None:
    ended = stopped_at(batch, job, tmp_path / "run", signals)
    whole = [checkpoints.step_of(path) for path in checkpoints.listed(ended.folder.checkpoints)]
    assert whole == [checkpoint]
    assert_same(ended, undisturbed)


def test_a_run_stopped_twice_and_asked_for_a_checkpoint_is_the_same_run(
    undisturbed: Ended, job: tuple[Path, Path], tmp_path: Path
) -> None:
    plan, path = plan_of(*job), tmp_path / "run"
    asked = {3: (signal.SIGUSR1,), 9: STOP}
    first = run(plan, path, meanwhile=Interruptions(asked))
    second = run(plan, path, resume=True, meanwhile=Interruptions({7: STOP}))
    third = run(plan, path, resume=True)
    batches = first.batches + second.batches + third.batches
    assert_same(replace(third, batches=batches), undisturbed)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"precision": "bf16", "lora": {"dtype": "bf16"}}, id="adapter in bf16"),
        pytest.param({"method": "qlora"}, id="nf4"),
        pytest.param(
            {"training": {"optim": "adamw_8bit", "logging_steps": 4}},
            id="8-bit AdamW, lines of four steps",
        ),
    ],
)
def test_a_resume_puts_back_what_a_method_has_of_its_own(
    job: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "optim" in changes.get("training", {}) or changes.get("method") == "qlora":
        pytest.importorskip("bitsandbytes")
    short = {"max_steps": 5, "eval_steps": 3}
    changes = {**changes, "training": {**short, **changes.get("training", {})}}
    whole = run(plan_of(*job, **changes), tmp_path / "whole")
    assert_same(stopped_at(5, job, tmp_path / "stopped", **changes), whole)


def test_the_evaluation_that_a_stop_cut_off_is_made_up_for_and_can_end_the_run(
    job: tuple[Path, Path], tmp_path: Path
) -> None:
    training = {"early_stopping_patience": 1, "early_stopping_threshold": 50.0}
    whole = run(plan_of(*job, training=training), tmp_path / "whole")
    assert len(whole.batches) == 2 * 4  # the second evaluation is no better by 50
    assert_same(stopped_at(7, job, tmp_path / "stopped", training=training), whole)


def test_the_order_of_rows_depends_on_seed_and_step_alone(
    undisturbed: Ended,
    job: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from runner.engines.sft.inside.train import arguments

    real = arguments.training_arguments

    def with_workers(*given: Any, **more: Any) -> Any:
        made = real(*given, **more)
        made.dataloader_num_workers = 2
        return made

    monkeypatch.setattr(arguments, "training_arguments", with_workers)
    # no dropout, no evaluation: nothing is drawn but the order
    training = {"max_steps": 6, "eval_steps": None}  # in the second epoch
    changed = plan_of(*job, training=training, lora={"lora_dropout": 0.0, "r": 2})
    assert run(changed, tmp_path / "run").batches == undisturbed.batches[:12]
    monkeypatch.undo()
    other = plan_of(*job, training={"max_steps": 2, "eval_steps": None, "seed": 43})
    assert run(other, tmp_path / "other").batches != undisturbed.batches[:4]


def test_the_gradient_scaler_of_fp16_is_put_back(tmp_path: Path) -> None:
    """With a real scaler on the CPU, where fp16 itself can't be: the clipped gradients are scaled
    ones, so that the weights show whether its scale and its count came back."""
    import torch

    from tests.engines.sft import tiny

    plan = tiny.plan_of({"max_steps": 7, "save_steps": 3, "learning_rate": 1e-2})

    def train(folder: RunFolder, step: int | None = None) -> Any:
        trainer = tiny.make_trainer(plan, folder, resumed_step=step)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        start = folder.checkpoints / f"checkpoint-{step}"
        trainer.train(resume_from_checkpoint=str(start) if step else None)
        return trainer.accelerator.scaler.state_dict()

    whole, other = tiny.run_folder(tmp_path / "whole"), tiny.run_folder(tmp_path / "other")
    end = train(whole)
    assert (end["scale"], end["_growth_tracker"]) == (64.0, 1)  # doubled every second step
    saved = torch.load(whole.checkpoints / "checkpoint-3" / "scaler.pt", weights_only=True)
    assert (saved["scale"], saved["_growth_tracker"]) == (16.0, 1)
    (whole.checkpoints / "checkpoint-3").rename(other.checkpoints / "checkpoint-3")
    assert train(other, 3) == end
    assert _adapter(other, 6) == _adapter(whole, 6)
    assert _adapter(other, 7) == _adapter(whole, 7)


def _adapter(folder: RunFolder, step: int) -> bytes:
    place = folder.checkpoints / checkpoints.name_of(step)
    return (place / "adapter_model.safetensors").read_bytes()


class _Touches:
    """Writes a file where a pickle of it is loaded as anything Python can be."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_a_checkpoint_that_is_not_our_own_runs_no_code(
    job: tuple[Path, Path], tmp_path: Path
) -> None:
    plan, path = plan_of(*job, training={"max_steps": 3, "save_steps": 1}), tmp_path / "run"
    run(plan, path, meanwhile=Interruptions({3: STOP}))
    checkpoint = path / "checkpoints" / "checkpoint-2"
    canary = tmp_path / "canary"
    state = (checkpoint / "rng_state.pth").read_bytes()
    (checkpoint / "rng_state.pth").write_bytes(pickle.dumps(_Touches(canary)))
    found, skipped = checkpoints.newest_whole(path / "checkpoints")
    assert found is not None and found.name == "checkpoint-1"
    assert "rng_state.pth" in skipped[0]
    checkpoints.seal(checkpoint, checkpoints.facts_of(checkpoint))  # by someone who knows how
    with pytest.raises(RunnerError, match="checkpoint-2 holds something else than tensors"):
        run(plan, path, resume=True)
    assert not canary.exists()
    (checkpoint / "rng_state.pth").write_bytes(state)


# Several processes


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_stopped_by_one_of_them_end_as_if_they_had_not_been(
    job: tuple[Path, Path], tmp_path: Path, ranks: int
) -> None:
    """With three, the order in which DDP's buckets hold gradients shows in the sums."""
    model, _ = job
    rows = make_rows(tmp_path / "rows.jsonl")
    ended = run_ranks(
        "tests.engines.sft.in_process", *map(str, (tmp_path, model, rows)), ranks=ranks
    )
    assert [each.code for each in ended] == [0] * ranks, ended[0].err[-3000:]
    results = dict(re.findall(r"^RESULT (\w+) (\w+)$", ended[0].out, re.MULTILINE))
    assert results["again"] == results["resumed"] == results["whole"]
    saved = tmp_path / "stopped" / "checkpoints" / "checkpoint-4"
    assert len(list(saved.glob("rng_state_*.pth"))) == ranks


# deterministic: true


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """What the plan turns in this process is turned back."""
    import torch

    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("torch_as_before")
def test_deterministic_turns_torchs_switches_and_says_so(
    undisturbed: Ended, job: tuple[Path, Path], tmp_path: Path
) -> None:
    before = durable.read_json(undisturbed.folder.engine_stack)["switches"]
    assert not before["deterministic_algorithms"]
    ended = run(plan_of(*job, deterministic=True), tmp_path / "run")
    switches = durable.read_json(ended.folder.engine_stack)["switches"]
    assert {
        name: switches.get(name) for name in switches if switches[name] != before.get(name)
    } == {
        "deterministic_algorithms": True,
        "deterministic_fill": False,
        "cudnn.deterministic": True,
    }
    assert not switches["deterministic_warn_only"]
    assert len(ended.losses) == len(undisturbed.losses)


@pytest.mark.usefixtures("torch_as_before")
def test_an_operation_without_a_deterministic_kernel_is_named(
    job: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    from runner.engines.sft.inside import __main__ as engine
    from runner.engines.sft.inside.train.trainer import RunTrainer

    real = RunTrainer.compute_loss

    def compute_loss(self: Any, *given: Any, **more: Any) -> Any:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        return real(self, *given, **more)

    path = tmp_path / "run"
    plan = plan_of(*job, deterministic=True)
    monkeypatch.setattr(RunTrainer, "compute_loss", compute_loss)
    monkeypatch.setattr(sys, "argv", ["engine", str(path)])
    monkeypatch.setattr(engine.faulthandler, "enable", lambda: None)  # it wants a real stderr
    in_process.ready(plan, path)
    with in_process.signals_put_back():
        assert engine.main() == 1
    failure = durable.read_json(path / "engine" / "failure.json")
    assert failure["message"] == (
        f"deterministic: true: torch {torch.__version__} has no deterministic kernel of put_, "
        "which this training uses"
    )
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "hint      deterministic: false trains it" in told


def test_on_a_gpu_cublas_has_to_be_told_before_it_starts(
    job: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.engines.sft.inside.determinism import lacking_kernel, make_deterministic

    plan = plan_of(*job, deterministic=True)
    plan = plan.model_copy(update={"launch": plan.launch.model_copy(update={"device": "cuda"})})
    for value in (None, ":4096:2:16:8"):
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        if value:
            monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
        with pytest.raises(RefusedError, match="needs CUBLAS_WORKSPACE_CONFIG") as caught:
            make_deterministic(plan)
        assert caught.value.hint == (
            "launch.sh sets it; by hand: export CUBLAS_WORKSPACE_CONFIG=:4096:8"
        )
    said = (
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` "
        "or `at::Context::setDeterministicAlgorithms(true)`, but this operation is not "
        "deterministic because it uses CuBLAS and you have CUDA >= 10.2."
    )
    assert str(lacking_kernel(said)).startswith("cuBLAS is not deterministic without")
    assert lacking_kernel("shapes do not match") is None
