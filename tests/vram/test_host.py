"""Host memory of CPU runs: what the processes hold besides, and what several of them share."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.engines.sft.inside.memory import footprint as measuring
from runner.engines.sft.inside.memory.footprint import ASSUMED, Footprint, footprint
from runner.engines.sft.inside.memory.process import held, packages_of
from runner.engines.sft.memory.weights import maps_weights, shares_weights, stored_formats
from runner.vram.allocator import LIBC_MAPPED_BYTES, LIBC_SHARE, libc_holds
from runner.vram.calibration import Measured, apply, correction, matching
from runner.vram.prediction import LIBRARIES, Prediction, TrainingMemory
from tests.vram.plans import gpu_plan

MIB = 1 << 20
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


def record(tensors: int, overhead: int, measured: int, version: int = 2) -> Measured:
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
    old = record(20 * MIB, 700 * MIB, 900 * MIB, version=1)
    new = record(20 * MIB, 700 * MIB, 900 * MIB)
    assert matching([old, new], "cpu", "s", "lora") == [new]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tiny lora 2x64 2p ddp", "middle full 2x128 1p"])
def test_what_a_run_takes_lies_in_its_interval(case: str, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks/host_memory.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "--only", case],
        capture_output=True,
        text=True,
        timeout=560,
    )
    line = next((one for one in done.stdout.splitlines() if one.startswith(f"| {case}")), "")
    assert line.endswith("| yes |"), done.stdout + done.stderr
