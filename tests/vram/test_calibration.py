"""What measurements make of a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engines.sft.memory import ask
from runner.vram import calibration
from runner.vram.calibration import (
    NARROWEST_SHARE,
    Correction,
    Measured,
    apply,
    correction,
    keep,
    matching,
    read_records,
)
from runner.vram.prediction import CONTEXT, Prediction, TrainingMemory

GIB = 1 << 30
MIB = 1 << 20
VERSIONS: dict[str, str | None] = dict.fromkeys(ask.PACKAGES, "1.0")


def measured(reserved: int, total: int, overhead: int = 450 * MIB, **more: Any) -> Measured:
    return Measured(
        **{
            "device": "NVIDIA H100",
            "stack": ask.stack(VERSIONS),
            "method": "lora",
            "reserved_bytes": reserved,
            "overhead_bytes": overhead,
            "measured_bytes": total,
            "source": "nvml_pid:nvml",
            "job": "job",
            "run": "run",
            "time_unix_seconds": 1.0,
            **more,
        }
    )


def prediction(
    reserved: int = 10 * GIB, method: Any = "traced", device: Any = "cuda"
) -> Prediction:
    overhead = 450 * MIB
    half = reserved // 25 + 200 * MIB
    memory = TrainingMemory(
        phase="",
        rows=1,
        tokens=8,
        length_from="a test",
        method=method,
        allocated_bytes=reserved,
        reserved_bytes=reserved,
        overhead_bytes=overhead,
        process_bytes=reserved + overhead,
        low_bytes=reserved + overhead - half,
        high_bytes=reserved + overhead + half,
        parts={"activations": reserved, CONTEXT: overhead},
        at="backward pass",
        flops=1.0,
        trainable=1,
        total=2,
    )
    return Prediction(device=device, trainings=[memory])


def share(found: Prediction) -> float:
    return found.plus_minus_bytes / found.process_bytes


def test_no_records_change_nothing() -> None:
    assert correction([]) is None
    assert apply(prediction(), None) == prediction()


def test_small_models_give_what_is_there_besides() -> None:
    found = correction([measured(size * MIB, (size + 300) * MIB) for size in (20, 40, 500)])
    assert found is not None
    assert found.model_copy(update={"overhead_ratio": 1.0}) == Correction(
        overhead_bytes=300 * MIB, ratio=1.0, spread=0.0, samples=3
    )
    assert found.overhead_ratio == pytest.approx(300 / 450, rel=1e-3)
    after = apply(prediction(), found).largest
    assert after.parts[CONTEXT] == after.overhead_bytes == 300 * MIB
    assert after.process_bytes == 10 * GIB + 300 * MIB == sum(after.parts.values())
    assert after.high_bytes - after.low_bytes < (prediction().high_bytes - prediction().low_bytes)


def test_large_models_give_the_ratio_and_its_spread() -> None:
    besides = 450 * MIB
    found = correction(
        [measured(10 * GIB, int(10 * GIB * ratio) + besides) for ratio in (1.02, 1.04, 1.05)]
    )
    assert found is not None
    assert found.overhead_bytes is None
    assert found.ratio == pytest.approx(1.04, abs=1e-3)
    assert found.spread == pytest.approx(0.02, abs=1e-3)
    after = apply(prediction(), found)
    assert after.process_bytes == pytest.approx(10.4 * GIB + besides, rel=1e-3)
    assert sum(after.largest.parts.values()) == after.process_bytes
    # as wide as three measurements are sure, which is more than they lie apart
    assert share(after) == pytest.approx(0.04 / 3**0.5 * 10.4 / 10.84, rel=0.01)
    assert share(after) < share(prediction())
    assert after.calibration is not None
    assert "3 step" in after.calibration


def test_a_prediction_that_was_right_to_the_byte_is_surer() -> None:
    right = measured(10 * GIB, 10 * GIB + 450 * MIB)
    once, after = (apply(prediction(), correction([right] * count)) for count in (1, 40))
    assert share(after) < share(once) < share(prediction())
    assert after.process_bytes == prediction().process_bytes
    assert after.plus_minus_bytes < prediction().plus_minus_bytes
    assert share(after) == pytest.approx(NARROWEST_SHARE, rel=0.05)
    assert after.largest.parts == prediction().largest.parts


def test_the_overhead_of_small_models_is_taken_off_large_ones() -> None:
    found = correction([measured(20 * MIB, 320 * MIB), measured(10 * GIB, 10 * GIB + 300 * MIB)])
    assert found is not None
    assert (found.overhead_bytes, found.ratio) == (300 * MIB, 1.0)


def test_an_estimate_stays_as_wide_as_it_is() -> None:
    wide = prediction(method="estimated")
    after = apply(wide, correction([measured(10 * GIB, 11 * GIB)]))
    assert after.plus_minus_bytes == pytest.approx(wide.plus_minus_bytes, rel=0.05)


def test_only_the_same_device_stack_and_method_count() -> None:
    ours = measured(10 * GIB, 11 * GIB)
    others = [
        ours.model_copy(update={"device": "NVIDIA A100"}),
        ours.model_copy(update={"stack": "torch 0.1"}),
        ours.model_copy(update={"method": "full"}),
    ]
    wanted = (ours.device, ours.stack, ours.method)
    assert matching([*others, ours], *wanted) == [ours]
    assert matching(others, *wanted) == []


def test_kept_records_are_read_and_damaged_lines_passed_over(tmp_path: Path) -> None:
    one, two = measured(1, 2), measured(3, 4)
    path = keep(one, tmp_path)
    with path.open("a") as stream:
        stream.write('{"half": \n[1, 2]\n{"device": "x"}\n\nnot json\n')
    keep(two, tmp_path)
    with path.open("a") as stream:
        stream.write('{"device": "cut')
    assert read_records(tmp_path) == [one, two]
    assert read_records(tmp_path / "nothing") == []


def test_a_prediction_is_corrected_by_the_users_own_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_STATE", str(tmp_path))
    monkeypatch.setattr(calibration, "shipped_records", list)
    asked: dict[str, Any] = {"device": "NVIDIA H100", "method": "lora", "versions": VERSIONS}
    before = ask.corrected(prediction(), **asked)
    assert before == prediction()
    for _ in range(3):
        keep(measured(10 * GIB, int(10.5 * GIB) + 450 * MIB))
    after = ask.corrected(prediction(), **asked)
    assert after.process_bytes == pytest.approx(10.5 * GIB + 450 * MIB, rel=1e-3)
    others: list[dict[str, Any]] = [{"device": "cpu"}, {"method": "full"}, {"versions": {}}]
    for other in others:
        assert ask.corrected(prediction(), **{**asked, **other}) == prediction()


def test_the_newest_records_count() -> None:
    old = [measured(10 * GIB, 20 * GIB)] * calibration.KEPT
    new = [measured(10 * GIB, 10 * GIB + 450 * MIB)] * calibration.KEPT
    found = correction([*old, *new])
    assert found is not None
    assert (found.ratio, found.samples) == (1.0, calibration.KEPT)


RATIOS = st.floats(0.5, 2.0)


@given(st.lists(RATIOS, min_size=1, max_size=9), st.integers(2, 80))
def test_the_corrected_centre_lies_within_what_was_measured(ratios: list[float], size: int) -> None:
    besides = 450 * MIB
    records = [measured(8 * GIB, int(8 * GIB * ratio) + besides) for ratio in ratios]
    after = apply(prediction(size * GIB), correction(records))
    tensors = after.process_bytes - after.largest.overhead_bytes
    slack = 1e-3 * size * GIB
    assert min(ratios) * size * GIB - slack <= tensors <= max(ratios) * size * GIB + slack
    assert after.low_bytes < after.process_bytes < after.high_bytes
    assert after.plus_minus_bytes >= NARROWEST_SHARE * after.process_bytes - 1
    assert sum(after.largest.parts.values()) == after.process_bytes


@given(RATIOS, RATIOS)
def test_more_measured_predicts_no_less(one: float, other: float) -> None:
    def centre(ratio: float) -> int:
        records = [measured(8 * GIB, int(8 * GIB * ratio) + 450 * MIB)]
        return apply(prediction(), correction(records)).process_bytes

    low, high = sorted((one, other))
    assert centre(low) <= centre(high)
