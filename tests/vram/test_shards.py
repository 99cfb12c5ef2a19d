"""Shards, buckets, offloading: against the ZeRO paper's formulas and DeepSpeed's buffers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from runner.common.errors import RefusedError
from runner.engines.sft.facts import Facts
from runner.engines.sft.inside.memory.predict import predict
from runner.engines.sft.inside.memory.step import trace
from runner.jobs.training import TrainingSettings
from runner.launch.vram import require_fits
from runner.plans.base import PlannedLaunch
from runner.plans.facts import Gpu
from runner.plans.sources import DataSource, ModelSource
from runner.vram.prediction import HostMemory, Prediction, TrainingMemory
from runner.vram.sharding import (
    BUCKET_VALUES,
    PYTHON_BYTES,
    Sharded,
    loading_bytes,
    shard,
    state_bytes,
)
from tests.vram.plans import gpu_plan

GIB = 1 << 30
VALUES = 8_000_000_000  # psi, all trained
FULL = {"trained weights": 2 * VALUES, "activations": GIB}


def launch(**settings: Any) -> PlannedLaunch:
    return PlannedLaunch.model_validate(
        {
            "device": "cuda",
            "num_processes": 4,
            "deepspeed": "none",
            "threads_per_process": 1,
            **settings,
        }
    )


def sharded(parts: dict[str, int] = FULL, trained: int = VALUES, **settings: Any) -> Sharded:
    return shard(
        parts,
        launch(**settings),
        TrainingSettings(),
        weights=2 * VALUES,
        trained=trained,
        largest_layer=GIB,
        width=2,
    )


def states(found: Sharded) -> int:
    """Weights, gradients and optimizer states of a card: what the paper counts."""
    return sum(
        size
        for name, size in found.parts.items()
        if name not in ("activations", "gradient buckets (ZeRO)", "gathered weights (ZeRO-3)")
    )


@pytest.mark.parametrize("cards", [1, 2, 4, 64])
def test_zero_stages_come_to_the_papers_formulas(cards: int) -> None:
    """2 + 2 + 12 bytes a value: stage 1 shards the 12, stage 2 gradients too, stage 3 all."""
    at = {
        stage: states(sharded(deepspeed=f"zero{stage}", num_processes=cards)) for stage in (1, 2, 3)
    }
    assert at[1] == 4 * VALUES + 12 * VALUES // cards
    assert at[2] == 2 * VALUES + 14 * VALUES // cards
    assert at[3] == 16 * VALUES // cards


def test_buckets_are_of_the_size_that_the_launch_says() -> None:
    found = sharded(deepspeed="zero2")
    assert found.parts["gradient buckets (ZeRO)"] == 2 * 2 * BUCKET_VALUES
    assert found.parts["activations"] == GIB
    on_cpu = sharded(deepspeed="zero2", device="cpu")
    assert on_cpu.parts["gradient buckets (ZeRO)"] == 2 * BUCKET_VALUES


def test_zero_3_gathers_two_layers_but_never_more_than_there_is() -> None:
    gathered = "gathered weights (ZeRO-3)"
    assert 2 * GIB < sharded(deepspeed="zero3").parts[gathered] < 2.2 * GIB
    tiny = shard(
        {"trained weights": 1000},
        launch(deepspeed="zero3"),
        TrainingSettings(),
        weights=1000,
        trained=500,
        largest_layer=800,
        width=2,
    )
    assert tiny.parts[gathered] == 1000


def test_offloading_moves_states_to_the_host_and_takes_them_off_the_card() -> None:
    kept, moved = (
        sharded(deepspeed="zero2", offload=where, num_processes=2)
        for where in ("none", "optimizer")
    )
    assert kept.offload_bytes == 0
    # fp32 copies, two moments and fp32 gradients, of all ranks together
    assert moved.offload_bytes == 16 * VALUES
    assert sum(kept.parts.values()) - sum(moved.parts.values()) == 12 * VALUES // 2
    everything = sharded(deepspeed="zero3", offload="parameters", num_processes=2)
    assert everything.offload_bytes == 18 * VALUES
    assert "trained weights" not in everything.parts


@pytest.mark.parametrize("cards", [1, 2])
def test_ddp_adds_a_bucket_for_every_gradient_on_several_cards(cards: int) -> None:
    found = sharded({"adapter": 400, "activations": GIB}, trained=100, num_processes=cards)
    assert found.offload_bytes == 0
    added = sum(found.parts.values()) - GIB - 400
    assert added == (0 if cards == 1 else 400 + (1 << 20))


def test_adam_in_8_bits_takes_a_quarter_of_adam_in_32() -> None:
    eight = TrainingSettings(optim="adamw_8bit")
    assert state_bytes(VALUES, TrainingSettings()) == 8 * VALUES
    assert state_bytes(VALUES, eight) == pytest.approx(2 * VALUES, rel=0.02)
    assert state_bytes(VALUES, eight) > 2 * VALUES


def test_every_process_loads_the_whole_model_but_a_quantized_one() -> None:
    four = launch()
    assert loading_bytes(7 * GIB, four, on_device=False) == 4 * (7 * GIB + PYTHON_BYTES)
    assert loading_bytes(7 * GIB, four, on_device=True) == 4 * PYTHON_BYTES


def tiny_plan(**settings: Any) -> Any:
    return gpu_plan("HuggingFaceTB/SmolLM2-135M", **settings)


def test_a_traced_step_counts_gradients_under_deepspeed_once() -> None:
    """A full training's gradients are in the shard's part; the traced ones come and go."""
    training = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    plain, zero = (
        trace(
            tiny_plan(method="full", training=training, launch={"deepspeed": stage}), 64, layers=4
        )
        for stage in ("none", "zero2")
    )
    assert plain.parts["gradients"] >= 4 * zero.skeleton.trainable
    largest = 2 * 49152 * 576
    assert zero.parts.get("gradients", 0) <= 2 * largest
    assert "optimizer states" not in zero.parts


# ---- a run that the host or the card can't hold is refused


def facts(total: int = 24 * GIB) -> Facts:
    return Facts(
        python="/py",
        cores=8,
        torch_version="2.13.0+cu130",
        gpus=(Gpu(0, "GPU-0", "NVIDIA RTX 4090", total, 8.9),),
        gpu_absence="",
        model=ModelSource("hub", "m", None, None, False),
        rows={"data.train": DataSource("file", None, None, None, "0" * 64, 1, True)},
        cache=None,  # type: ignore[arg-type]
    )


def prediction(size: int, *, half: int = GIB, host: HostMemory | None = None) -> Prediction:
    memory = TrainingMemory(
        phase="",
        rows=1,
        tokens=8,
        length_from="a test",
        method="traced",
        allocated_bytes=size,
        reserved_bytes=size,
        overhead_bytes=0,
        process_bytes=size,
        low_bytes=size - half,
        high_bytes=size + half,
        parts={"activations": size},
        at="backward pass",
        flops=1.0,
        trainable=1,
        total=2,
    )
    return Prediction(device="cuda", trainings=[memory], host=host)


def on_card(**settings: Any) -> Any:
    return gpu_plan(launch={"gpu_indices": [0], "gpu_uuids": ["GPU-0"]}, **settings)


def test_a_run_that_surely_does_not_fit_its_card_is_refused() -> None:
    with pytest.raises(RefusedError) as refused:
        require_fits(prediction(30 * GIB), on_card(), facts())
    text = " ".join(refused.value.lines())
    assert "30.00 GiB" in text
    assert "24.00 GiB" in text
    assert "runner fit planned" in text
    assert refused.value.exit_code == 3
    require_fits(prediction(24 * GIB + GIB // 2), on_card(), facts())  # it may fit
    require_fits(prediction(10 * GIB), on_card(), facts())


def test_the_budget_counts_where_it_is_less_than_the_card() -> None:
    with pytest.raises(RefusedError, match="the budget"):
        require_fits(prediction(14 * GIB), on_card(budget_bytes=12 * GIB), facts())
    require_fits(prediction(12 * GIB), on_card(budget_bytes=12 * GIB), facts())


def test_a_card_of_unknown_size_refuses_nothing() -> None:
    unknown = replace(facts(), gpus=(Gpu(0, "GPU-0", "?", None, None),))
    require_fits(prediction(300 * GIB), on_card(), unknown)


@pytest.mark.parametrize(("total", "fits"), [(100 * GIB, True), (31 * GIB, False)])
def test_a_run_that_the_host_cannot_hold_is_refused(
    total: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=total))
    host = HostMemory(loading_bytes=20 * GIB, offload_bytes=12 * GIB)
    asked = prediction(GIB, host=host)
    if fits:
        require_fits(asked, on_card(), facts())
        return
    with pytest.raises(RefusedError) as refused:
        require_fits(asked, on_card(), facts())
    text = " ".join(refused.value.lines())
    for part in ("32.00 GiB", "20.00 GiB", "12.00 GiB", "31.00 GiB", "launch.offload"):
        assert part in text


def test_the_prediction_says_what_the_host_needs() -> None:
    from runner.engines.sft.memory.ask import Batch

    plan = tiny_plan(
        method="full",
        training={"per_device_train_batch_size": 1},
        launch={"num_processes": 2, "deepspeed": "zero2", "offload": "optimizer"},
    )
    found = predict(plan, [Batch(64, 0, "a test")])
    assert found.host is not None
    assert found.host.offload_bytes == pytest.approx(16 * 134_515_008, rel=0.01)
    assert found.host.loading_bytes == 2 * (2 * 134_515_008 + PYTHON_BYTES)
    memory = found.largest
    assert sum(memory.parts.values()) == memory.process_bytes
    assert memory.parts["gradients kept (ZeRO)"] == 134_515_008
