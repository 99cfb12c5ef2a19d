"""Checkpoints whose files are pickles that would run something: refused by name, and nothing runs.

The attacker has sealed them: hashes fit. Plain (transformers' files) in this process; DeepSpeed's
in real runs of launch.sh with two ranks, forked.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.common import durable, tensors_only
from runner.common.errors import RefusedError
from runner.engines.inputs import relocated
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from tests.engines.sft.in_process import Interruptions, make_rows, plan_of, run
from tests.support.command import REPOSITORY
from tests.support.preloaded import preloaded
from tests.support.soaking import examples

torch = pytest.importorskip("torch")
pytest.importorskip("trl")


class Runs:
    """Has a shell make a file where a pickle of it is loaded as anything Python can be."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.canary}'",)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def poison(file: Path, canary: Path, form: str = "raw") -> None:
    """Put the pickle in place of `file`, as it is or in torch's forms; seal the checkpoint."""
    if form == "raw":
        file.write_bytes(pickle.dumps(Runs(canary), protocol=2))
    else:
        zipped = form == "zip"
        torch.save({"a": Runs(canary)}, file, _use_new_zipfile_serialization=zipped)
    checkpoint = next(each for each in file.parents if each.name.startswith("checkpoint-"))
    checkpoints.seal(checkpoint, checkpoints.facts_of(checkpoint))


def test_the_poison_is_one(canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tensors_only.FORCED, raising=False)  # a trainer in this process has set it
    (tmp_path / "checkpoint-1").mkdir()
    for form in ("raw", "zip", "legacy"):
        file = tmp_path / "checkpoint-1" / "optimizer.pt"
        poison(file, canary, form)
        if form == "raw":
            pickle.loads(file.read_bytes())  # noqa: S301 - our own
        else:
            torch.load(file, weights_only=False)
        assert canary.exists()
        canary.unlink()


# Plain checkpoints


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[dict[str, Path]]:
    """Runs that were stopped after a checkpoint, by method."""
    place = tmp_path_factory.mktemp("stopped")
    before = os.environ.get("RUNNER_CACHE")
    os.environ["RUNNER_CACHE"] = str(place / "cache")
    model, rows = shared / "models" / "stories260k", make_rows(place / "rows.jsonl")
    training = {"max_steps": 3, "save_steps": 1, "eval_steps": None}
    for method in ("lora", "full"):
        plan = plan_of(model, rows, training=training, method=method)
        run(plan, place / method, meanwhile=Interruptions({5: (signal.SIGTERM,)}))
    yield {method: place / method for method in ("lora", "full")}
    os.environ.pop("RUNNER_CACHE")
    if before is not None:
        os.environ["RUNNER_CACHE"] = before


@pytest.mark.parametrize(
    ("method", "name", "form"),
    [
        ("lora", "optimizer.pt", "raw"),
        ("lora", "optimizer.pt", "zip"),
        ("lora", "optimizer.pt", "legacy"),
        ("lora", "scheduler.pt", "zip"),
        ("lora", "rng_state.pth", "zip"),
        ("lora", "adapter_model.bin", "zip"),
        ("full", "optimizer.pt", "zip"),
        ("full", "pytorch_model.bin", "zip"),
    ],
)
def test_a_file_of_a_checkpoint_runs_nothing_and_is_refused_by_name_and_class(
    stopped: dict[str, Path],
    tmp_path: Path,
    canary: Path,
    method: str,
    name: str,
    form: str,
) -> None:
    from runner.engines.render import read_plan

    folder = tmp_path / "run"
    shutil.copytree(stopped[method], folder)
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    if name.endswith(".bin"):
        (checkpoint / name).with_suffix(".safetensors").unlink(missing_ok=True)
        (checkpoint / "model.safetensors").unlink(missing_ok=True)
    poison(checkpoint / name, canary, form)
    plan = read_plan(folder / "plan.yaml")
    with pytest.raises(RefusedError) as caught:
        run(plan, folder, resume=True)
    assert not canary.exists()
    assert "checkpoint-2 holds something else than tensors" in caught.value.message
    assert f"{name} asks for posix.system" in caught.value.message
    assert "delete it to resume" in str(caught.value.hint)


def test_what_is_loaded_nowhere_is_not_loaded(
    stopped: dict[str, Path], tmp_path: Path, canary: Path
) -> None:
    from runner.engines.render import read_plan

    folder = tmp_path / "run"
    shutil.copytree(stopped["lora"], folder)
    poison(folder / "checkpoints" / "checkpoint-2" / "training_args.bin", canary)
    assert run(read_plan(folder / "plan.yaml"), folder, resume=True).code == 0
    assert not canary.exists()


def test_a_damaged_file_is_refused_by_name_too(stopped: dict[str, Path], tmp_path: Path) -> None:
    from runner.engines.render import read_plan

    folder = tmp_path / "run"
    shutil.copytree(stopped["lora"], folder)
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    (checkpoint / "optimizer.pt").write_bytes(b"PK\x03\x04 and no more")
    checkpoints.seal(checkpoint, checkpoints.facts_of(checkpoint))
    with pytest.raises(RefusedError, match=r"optimizer\.pt can't be read: "):
        run(read_plan(folder / "plan.yaml"), folder, resume=True)


def test_an_adapter_of_a_checkpoint_that_names_a_module_is_refused(
    stopped: dict[str, Path], tmp_path: Path
) -> None:
    from runner.engines.render import read_plan

    folder = tmp_path / "run"
    shutil.copytree(stopped["lora"], folder)
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    config |= {"megatron_config": {"a": 1}, "megatron_core": "megatron.evil"}
    (checkpoint / "adapter_config.json").write_text(json.dumps(config))
    checkpoints.seal(checkpoint, checkpoints.facts_of(checkpoint))
    with pytest.raises(RefusedError, match="megatron_co"):
        run(read_plan(folder / "plan.yaml"), folder, resume=True)


# Each process of the engine


@pytest.mark.parametrize("said", [None, "1"])
def test_every_load_of_a_process_builds_tensors_alone_whatever_a_library_asks_for(
    tmp_path: Path, canary: Path, said: str | None
) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    file = tmp_path / "checkpoint-1" / "optimizer.pt"
    poison(file, canary, "zip")
    code = (
        "import sys, torch\nfrom runner.common.tensors_only import load_tensors_only\n"
        "load_tensors_only()\ntorch.load(sys.argv[1], weights_only=False)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop(tensors_only.FORCED, None)
    if said is not None:
        environment[tensors_only.FORBIDDEN] = said
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "posix.system" in done.stderr
    assert not canary.exists()
    assert (f"{tensors_only.FORBIDDEN} is not followed" in done.stderr) == (said is not None)


# DeepSpeed


def launch(folder: RunFolder, *arguments: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", str(folder.path / "launch.sh"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def forking_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with preloaded(tmp_path_factory.mktemp("preloaded") / "of ranks") as python:
        yield python


@pytest.fixture(scope="module")
def sharded(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared: Path,
    forking_python: Path,
) -> RunFolder:
    """A run of four steps on two ranks with checkpoints at steps 2 and 4."""
    pytest.importorskip("deepspeed")
    from runner.engines.load import load_job
    from runner.engines.sft.facts import gather
    from runner.engines.sft.resolve import make_plan
    from runner.launch.train import prepare_folder

    place = tmp_path_factory.mktemp(request.param)
    sets = [
        f"model={shared / 'models' / 'stories260k'}",
        f"data.train={make_rows(place / 'rows.jsonl')}",
        "data.format=conversations",
        "training.max_steps=4",
        "training.save_steps=2",
        "training.max_length=64",
        "training.learning_rate=2e-3",
        "lora.r=4",
        "lora.lora_dropout=0.1",
        "budget.host_memory=10GiB",
        "launch.num_processes=2",
        "launch.threads_per_process=1",
        f"launch.deepspeed={request.param}",
    ]
    loaded = load_job("demo-identity", sets)
    plan = make_plan(loaded, gather(loaded), "train", None)
    plan = relocated(plan, {"python": str(forking_python)})
    folder = prepare_folder(loaded, plan, place / "runs")
    code, told = launch(folder)
    assert code == 0, told[-3000:]
    return folder


def half(sharded: RunFolder, place: Path) -> RunFolder:
    """A copy of the run as it was after its first checkpoint."""
    shutil.copytree(sharded.path, place)
    folder = RunFolder(place)
    shutil.rmtree(folder.checkpoints / "checkpoint-4")
    shutil.rmtree(folder.adapter)
    shutil.rmtree(folder.engine)
    return folder


STAGES = ["zero3", "zero2", "zero1"][: examples(1, 3)]
"""The others are resumed to the same bits by tests/whole_runs/test_kills.py, and here in a soak."""
POISONED = [
    ("zero3", "optim_states.pt"),
    ("zero2", "optim_states.pt"),
    ("zero2", "model_states.pt"),
    ("zero2", "rng_state_1.pth"),
][: examples(1, 4)]


@pytest.mark.e2e
@pytest.mark.parametrize("sharded", STAGES, indirect=True)
def test_a_sharded_run_goes_on_to_the_same_bits(sharded: RunFolder, tmp_path: Path) -> None:
    folder = half(sharded, tmp_path / "run")
    code, told = launch(folder, "--resume")
    assert code == 0, told[-3000:]
    assert "resuming from checkpoint-2" in told
    whole, resumed = (
        (each.adapter / "adapter_model.safetensors").read_bytes() for each in (sharded, folder)
    )
    assert whole == resumed


@pytest.mark.e2e
@pytest.mark.parametrize("sharded", STAGES, indirect=True)
def test_the_ranks_of_a_sharded_run_train_one_adapter(sharded: RunFolder, shared: Path) -> None:
    """Whole, though ZeRO-3 shards it; of ZeRO-2 tests/runs/test_kills.py says so."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    ranks = sorted(path.name for path in sharded.engine.glob("rank-*.json"))
    assert ranks == ["rank-0.json", "rank-1.json"]
    base = transformers.AutoModelForCausalLM.from_pretrained(str(shared / "models" / "stories260k"))
    model = peft.PeftModel.from_pretrained(base, str(sharded.adapter))
    shapes = {tuple(p.shape) for n, p in model.named_parameters() if "q_proj.lora_B" in n}
    assert shapes == {(64, 4)}
    assert all(bool(p.any()) for n, p in model.named_parameters() if "lora_B" in n)


@pytest.mark.e2e
@pytest.mark.parametrize(("sharded", "what"), POISONED, indirect=["sharded"])
def test_a_file_of_a_sharded_checkpoint_runs_nothing(
    sharded: RunFolder, tmp_path: Path, canary: Path, what: str
) -> None:
    folder = half(sharded, tmp_path / "run")
    checkpoint = folder.checkpoints / "checkpoint-2"
    for file in checkpoint.rglob(f"*{what}"):
        poison(file, canary, "zip")
    code, told = launch(folder, "--resume")
    assert code != 0
    assert not canary.exists(), told[-3000:]
    failure = durable.read_json(folder.engine_failure)
    assert "checkpoint-2 holds something else than tensors" in failure["message"]
    assert f"{what} asks for posix.system" in failure["message"]
    assert failure["exit_code"] == 3
    assert "Traceback" not in told.partition("error: checkpoint-2")[0]
