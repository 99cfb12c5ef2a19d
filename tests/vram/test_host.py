"""Host memory of CPU runs: what the processes hold besides, and what several of them share."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.engines.sft.engine import SftEngine
from runner.engines.sft.inside.memory import footprint as measuring
from runner.engines.sft.inside.memory import predict as predicting
from runner.engines.sft.inside.memory.footprint import ASSUMED, Footprint, footprint
from runner.engines.sft.inside.memory.predict import predict
from runner.engines.sft.inside.memory.process import TOKENIZER, held, packages_of
from runner.engines.sft.memory.ask import ASSUMED_NOTE, Batch, predicted
from runner.engines.sft.memory.weights import (
    maps_weights,
    shares_weights,
    stored_formats,
    tokenizer_bytes,
)
from runner.launch import check as checking
from runner.launch import plan as planning
from runner.vram.allocator import LIBC_MAPPED_BYTES, LIBC_SHARE, libc_holds
from runner.vram.calibration import CPU_SCHEMA_VERSION, Measured, apply, correction, matching
from runner.vram.prediction import LIBRARIES, Prediction, TrainingMemory
from tests.engines.sft.methods import plan_of
from tests.support.command import run_cli
from tests.vram.plans import gpu_plan
from tests.vram.real import write_model
from tests.vram.tiny_job import write_job

MIB = 1 << 20
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OWN = Footprint(100 * MIB, 400 * MIB, 200 * MIB)


def cpu_plan(ranks: int = 1, **settings: Any) -> Any:
    launch = {"num_processes": ranks, **settings.pop("launch", {})}
    return gpu_plan(device="cpu", precision="fp32", launch=launch, **settings)


def traced() -> Any:
    """A step of 10 MiB of weights and 60 of all else."""
    skeleton = SimpleNamespace(weight_bytes=10 * MIB, trainable=256 * 1024, largest_layer=MIB)
    parts = {"frozen weights": 10 * MIB, "activations": 60 * MIB}
    libc = libc_holds([], [(1, 20 * MIB), (2, 40 * MIB)])
    return SimpleNamespace(
        parts=parts,
        allocated_bytes=70 * MIB,
        reserved_bytes=70 * MIB,
        libc=libc,
        skeleton=skeleton,
    )


def test_libc_keeps_its_heap_and_gives_large_blocks_back() -> None:
    small, large = 8 * MIB, LIBC_MAPPED_BYTES
    found = libc_holds([(1, small)], [(2, small), (2, 0), (3, large), (3, 0), (4, large)])
    assert found.mapped_bytes == large
    assert found.heap_bytes == pytest.approx(small * (1 + LIBC_SHARE), rel=0.02)
    assert libc_holds([], []).peak_bytes == 0


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_process_has_its_own_and_libraries_are_there_once(ranks: int) -> None:
    found = held(cpu_plan(ranks), traced(), OWN)
    assert found.overhead_bytes == (100 + ranks * 400 + 200) * MIB
    assert found.parts[LIBRARIES] == found.overhead_bytes
    assert sum(found.parts.values()) == found.process_bytes
    assert found.parts["activations"] == ranks * 60 * MIB


def test_each_process_has_its_tokenizer(tmp_path: Path) -> None:
    plan = cpu_plan(2)
    here = plan.model_copy(
        update={"model": plan.model.model_copy(update={"folder": str(tmp_path)})}
    )
    without = held(here, traced(), OWN)
    assert TOKENIZER not in without.parts
    (tmp_path / "tokenizer.json").write_bytes(b" " * MIB)
    found = held(here, traced(), OWN)
    assert found.parts[TOKENIZER] == 2 * 16 * MIB
    assert found.process_bytes - without.process_bytes == 2 * 16 * MIB


@pytest.mark.parametrize("name", ["qwen2_5", "minimind2_small"])
def test_a_real_tokenizer_holds_about_what_is_predicted(shared: Path, name: str) -> None:
    """In a process of its own, with its vocabulary given out once."""
    folder = shared / "tokenizers" / name
    code = (
        "import sys; from transformers import AutoTokenizer\n"
        "from runner.engines.sft.inside.memory.footprint import own_memory\n"
        "AutoTokenizer.from_pretrained(sys.argv[1])\n"  # what loading any one imports
        "before = own_memory()[0]; made = AutoTokenizer.from_pretrained(sys.argv[2])\n"
        "made.get_vocab(); print(own_memory()[0] - before)"
    )
    other = shared / "models" / "stories260k"
    done = subprocess.run(
        [sys.executable, "-c", code, str(other), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == pytest.approx(tokenizer_bytes(str(folder)), rel=0.25, abs=4 * MIB)


def write_weights(folder: Path, *formats: str) -> None:
    for number, one in enumerate(formats):
        header = json.dumps({"a": {"dtype": one, "shape": [0], "data_offsets": [0, 0]}}).encode()
        (folder / f"model-{number}.safetensors").write_bytes(
            struct.pack("<Q", len(header)) + header
        )


def test_weights_stay_in_their_files_where_nothing_has_to_be_changed(tmp_path: Path) -> None:
    write_weights(tmp_path, "F32")
    assert stored_formats(str(tmp_path)) == {"F32"}

    def here(ranks: int = 1, **settings: Any) -> Any:
        plan = cpu_plan(ranks, **settings)
        model = plan.model.model_copy(update={"folder": str(tmp_path)})
        return plan.model_copy(update={"model": model})

    assert maps_weights(here())
    assert shares_weights(here())
    assert not shares_weights(here(2))  # DDP writes what it broadcasts
    assert not maps_weights(here(method="full"))
    assert not maps_weights(here(2, launch={"deepspeed": "zero3"}))
    write_weights(tmp_path, "BF16")
    assert not maps_weights(here())
    (tmp_path / "model-0.safetensors").write_bytes(b"\xff" * 12)
    assert not maps_weights(here())
    assert stored_formats(None) == set()


def test_a_footprint_is_measured_once_for_a_set_of_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path))
    monkeypatch.delenv("RUNNER_FOOTPRINT", raising=False)
    asked = []

    def run(argv: list[str], **_: Any) -> Any:
        asked.append(argv)
        return SimpleNamespace(
            stdout='noise\n{"launcher_bytes": 1, "trainer_bytes": 2, "mapped_bytes": 3}\n'
        )

    monkeypatch.setattr(measuring.subprocess, "run", run)
    for _ in range(2):
        assert footprint((), {"torch": "1"}) == Footprint(1, 2, 3)
    assert len(asked) == 1
    footprint((), {"torch": "2"})
    footprint(("deepspeed",), {"torch": "2"})
    assert len(asked) == 3
    assert asked[-1][-1] == "deepspeed"


def test_where_nothing_can_be_measured_it_is_assumed_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path))
    monkeypatch.delenv("RUNNER_FOOTPRINT", raising=False)

    def late(argv: list[str], **_: Any) -> Any:
        raise subprocess.TimeoutExpired(argv, 1)

    monkeypatch.setattr(measuring.subprocess, "run", late)
    assert footprint((), {}) == ASSUMED
    assert not ASSUMED.measured
    assert not list(tmp_path.rglob("*.json"))


def test_a_prediction_that_stands_on_an_assumption_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path))
    monkeypatch.delenv("RUNNER_FOOTPRINT", raising=False)
    assumed = prediction(1, 100).model_copy(update={"notes": [ASSUMED_NOTE]})
    measured = prediction(1, 200)
    made = iter([assumed, measured])
    plan, batches = cpu_plan(), [Batch(64, 0, "a test")]
    found = [predicted(plan, batches, {}, lambda *_: next(made)) for _ in range(3)]
    assert found == [assumed, measured, measured]


def test_what_a_plan_imports_besides() -> None:
    assert packages_of(cpu_plan()) == ()
    assert packages_of(cpu_plan(method="qlora")) == ("bitsandbytes",)
    assert packages_of(cpu_plan(2, launch={"deepspeed": "zero2"})) == ("deepspeed",)


def prediction(ranks: int, tensors: int) -> Prediction:
    overhead = OWN.of(ranks)
    process = tensors + overhead
    memory = TrainingMemory(
        phase="",
        rows=1,
        tokens=8,
        length_from="a test",
        method="traced",
        allocated_bytes=tensors,
        reserved_bytes=tensors,
        overhead_bytes=overhead,
        process_bytes=process,
        low_bytes=int(0.9 * process),
        high_bytes=int(1.1 * process),
        parts={"activations": tensors, LIBRARIES: overhead},
        at="backward pass",
        flops=1.0,
        trainable=1,
        total=2,
    )
    return Prediction(device="cpu", num_processes=ranks, trainings=[memory])


def record(
    tensors: int, overhead: int, measured: int, version: int = CPU_SCHEMA_VERSION
) -> Measured:
    return Measured(
        schema_version=version,
        device="cpu",
        stack="s",
        method="lora",
        reserved_bytes=tensors,
        overhead_bytes=overhead,
        measured_bytes=measured,
        source="host_process_tree:pss",
        job="j",
        run="r",
        time_unix_seconds=0.0,
    )


def test_one_process_that_was_measured_corrects_two() -> None:
    """Once a measured process took the place of two, and of its own uncertainty."""
    one = record(20 * MIB, OWN.of(1), 20 * MIB + int(1.1 * OWN.of(1)))
    large = record(2048 * MIB, OWN.of(1), 2048 * MIB + int(1.1 * OWN.of(1)))
    for records in ([one], [one, large]):
        after = apply(prediction(2, 40 * MIB), correction(records)).largest
        assert after.overhead_bytes == pytest.approx(1.1 * OWN.of(2), rel=1e-3)
        assert after.process_bytes == sum(after.parts.values())
        assert after.high_bytes - after.process_bytes >= 0.04 * after.process_bytes
        assert after.uncorrected_overhead_bytes == OWN.of(2)


def test_records_that_meant_something_else_correct_nothing() -> None:
    old = record(20 * MIB, 700 * MIB, 900 * MIB, version=CPU_SCHEMA_VERSION - 1)
    new = record(20 * MIB, 700 * MIB, 900 * MIB)
    assert matching([old, new], "cpu", "s", "lora") == [new]


def recorded_peaks() -> dict[str, tuple[int, int]]:
    """Configuration to bytes measured and predicted, by the benchmark's own table."""
    table = (BENCHMARKS / "host_memory.md").read_text()
    lines = re.findall(r"^\| (.+?)(?: \*)? \| (\d+) \| (\d+) \|", table, re.MULTILINE)
    return {name: (int(real) * MIB, int(predicted) * MIB) for name, real, predicted in lines}


OF_THE_TABLE = Footprint(160 * MIB, 338 * MIB, 153 * MIB)
"""What the processes held there besides, as runner measured it before the predictions."""
TOKENIZERS = {"tiny": 21_588, "middle": 397_932, "words": 6_773_616}
"""Bytes of each model's tokenizer.json there."""
RECORDED = [
    "tiny lora 2x64 1p",
    "tiny lora 2x64 2p ddp",
    "middle full 2x128 1p",
    "words lora 4x256 1p",
    "middle full 2x128 2p ddp",
]


@pytest.mark.parametrize("name", RECORDED)
def test_what_a_run_took_lies_in_its_interval(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peaks that were measured when the table was made: what a run takes now depends on who else
    maps the same libraries."""
    monkeypatch.setattr(predicting, "ASSUMED", OF_THE_TABLE)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import host_memory

    case = next(one for one in host_memory.CASES if one.name == name)
    model = write_model(tmp_path / "model", host_memory.MODELS[case.model])
    write_weights(model, "F32")
    (model / "tokenizer.json").write_bytes(bytes(TOKENIZERS[case.model]))
    (tmp_path / "rows.jsonl").touch()
    training = {"per_device_train_batch_size": case.rows, "max_length": case.tokens}
    training |= {"max_steps": 2, "save_steps": None}
    plan = plan_of(model, tmp_path / "rows.jsonl", method=case.method, training=training)
    launch = plan.launch.model_copy(update={"num_processes": case.ranks})
    plan = plan.model_copy(update={"launch": launch})
    found = predict(plan, [Batch(case.tokens, 0, "every row is cut to it")])
    measured, predicted = recorded_peaks()[name]
    assert found.process_bytes == pytest.approx(predicted, rel=0.02)
    assert found.low_bytes <= measured <= found.high_bytes


@pytest.mark.soak
@pytest.mark.parametrize("case", ["tiny lora 2x64 2p ddp", "middle full 2x128 1p"])
def test_what_a_run_takes_lies_in_its_interval(case: str, tmp_path: Path) -> None:
    """On a machine where nothing else that has torch loaded runs beside."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "host_memory.py"), str(tmp_path), "--only", case],
        capture_output=True,
        text=True,
    )
    line = next((one for one in done.stdout.splitlines() if one.startswith(f"| {case}")), "")
    assert line.endswith("| yes |"), done.stdout + done.stderr


# What is said of it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "fit", "end"),
    [
        ("100MiB", "does NOT fit", "would start, but is predicted to be ended over its budget"),
        ("8GiB", "fits", "would start"),
    ],
)
def test_a_check_says_one_thing_of_a_budget_that_a_cpu_run_is_predicted_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str, fit: str, end: str
) -> None:
    write_job(tmp_path, device="cpu")
    monkeypatch.chdir(tmp_path)
    memory = prediction(1, 200 << 20).model_dump(mode="json")
    found = {"disk_bytes": 0, "warnings": [], "notes": [], "trainings": [], "memory": memory}
    monkeypatch.setattr(checking, "survey", lambda *_: found)
    monkeypatch.setattr(SftEngine, "require_packages", lambda *_: None)
    monkeypatch.setattr(planning, "fetch_missing", lambda *_: False)
    words = ["check", "job.yaml", "--set", f"budget.host_memory={budget}"]
    answer = run_cli(*words)
    assert answer.code == 0, answer.err
    assert f"{fit} the budget" in answer.out
    label, _, last = answer.out.strip().splitlines()[-1].partition(" ")
    assert (label, last.strip().endswith(end)) == ("ok" if fit == "fits" else "starts", True)
    warned = [line for line in answer.out.splitlines() if "predicted over its budget" in line]
    assert len(warned) == (fit != "fits")
    told = json.loads(run_cli(*words, "--json").out)["warnings"]
    assert sum("predicted over its budget: at least" in line for line in told) == len(warned)
