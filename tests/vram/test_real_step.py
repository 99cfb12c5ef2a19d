"""The prediction against a real step: what torch's CPU allocator really gave, and what the settings
that save memory really do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.engines.sft.inside.memory.step import trace
from runner.engines.sft.plan import SftPlan
from tests.vram.real import LLAMA, QWEN, TOKENS, make_trainer, measure, plan_of

CHECKPOINTING = {"gradient_checkpointing": True}
CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, checkpointing": {"training": CHECKPOINTING},
    "lora, 1 of 3 layers": {"training": {**CHECKPOINTING, "gradient_checkpointing_layers": 1}},
    "lora, checkpointing, chunks of 64": {"training": {**CHECKPOINTING, "loss_chunk_tokens": 64}},
    "lora, chunks of 64, 2 x 1 row": {
        "training": {
            "loss_chunk_tokens": 64,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
        }
    },
    "full": {"method": "full"},
    "full, checkpointing, chunks": {
        "method": "full",
        "training": {**CHECKPOINTING, "loss_chunk_tokens": 64},
    },
    # a CPU without bf16 products takes long over them
    "bf16": {"precision": "bf16", "config": {**LLAMA, "num_hidden_layers": 2, "vocab_size": 2048}},
    "qwen, dropout, two modules": {
        "config": QWEN,
        "lora": {"r": 8, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        "training": {"loss_chunk_tokens": 64},
    },
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.e2e
@pytest.mark.parametrize("case", CASES)
def test_a_real_step_takes_what_was_predicted(case: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, **CASES[case])
    real = measure(plan, tmp_path / "run")
    predicted = trace(plan, TOKENS)
    print(f"{case}: real {real.peak:,}, predicted {predicted.allocated_bytes:,} bytes")
    assert predicted.allocated_bytes == pytest.approx(real.peak, rel=0.01)
    # and what the step starts from: weights and optimizer states
    parts = predicted.parts
    kept = [parts.get(name, 0) for name in ("frozen weights", "trained weights", "adapter")]
    assert sum(kept) + parts["optimizer states"] == pytest.approx(real.before, rel=0.01)
    assert sum(parts.values()) == predicted.allocated_bytes
    assert real.peak > 1.1 * real.before, "the step itself takes too little to be tested"


def small(folder: Path, **settings: Any) -> SftPlan:
    config = {**LLAMA, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 512}
    settings.setdefault("lora", {"r": 4})
    return plan_of(folder, {**config, "num_hidden_layers": 4}, **settings)


class _Watch:
    """What a training does in each step: forward calls of each layer, gradients, losses."""

    def __init__(self, plan: SftPlan, path: Path, rows: int) -> None:
        from transformers import TrainerCallback

        from runner.engines.sft.inside.model.saving import loss_chunks

        watch = self
        self.calls: Counter[int] = Counter()
        self.gradients: list[dict[str, torch.Tensor]] = []

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_pre_optimizer_step(
                self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
            ) -> None:
                watch.gradients.append(
                    {
                        name: one.grad.clone()
                        for name, one in model.named_parameters()
                        if one.grad is not None
                    }
                )

        trainer = make_trainer(plan, path, tokens=40, rows=rows, callbacks=[Callback()], lengths=7)
        for name, module in trainer.model.named_modules():
            if name.endswith(".mlp"):
                number = int(name.split(".")[-2])
                module.register_forward_pre_hook(lambda *_, n=number: self.calls.update([n]))
        with loss_chunks(plan.training):
            trainer.train()
        history = trainer.state.log_history
        self.losses = [line["loss"] for line in history if "loss" in line]


@pytest.mark.parametrize("wanted", [None, 1, 3, 4, 9])
def test_exactly_the_layers_that_are_asked_for_recompute(
    wanted: int | None, tmp_path: Path
) -> None:
    plan = small(
        tmp_path,
        training={"max_steps": 1, **CHECKPOINTING, "gradient_checkpointing_layers": wanted},
    )
    watch = _Watch(plan, tmp_path / "run", rows=2)
    expected = 4 if wanted is None else min(4, wanted)
    assert [watch.calls[layer] for layer in range(4)] == [2] * expected + [1] * (4 - expected)


def test_without_checkpointing_no_layer_recomputes(tmp_path: Path) -> None:
    plan = small(tmp_path, training={"max_steps": 1})
    assert set(_Watch(plan, tmp_path / "run", rows=2).calls.values()) == {1}


@pytest.mark.e2e
@pytest.mark.parametrize("method", ["lora", "full"])
def test_no_setting_that_saves_memory_changes_loss_or_gradients(
    method: str, tmp_path: Path
) -> None:
    every: list[dict[str, Any]] = [
        {},
        CHECKPOINTING,
        {**CHECKPOINTING, "gradient_checkpointing_layers": 1},
        {**CHECKPOINTING, "gradient_checkpointing_layers": 3},
        {"loss_chunk_tokens": 16},
        {"loss_chunk_tokens": 50},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            **CHECKPOINTING,
            "loss_chunk_tokens": 32,
        },
    ]
    same = {"max_steps": 2, "per_device_train_batch_size": 4, "max_grad_norm": 0.0}
    found = []
    for number, settings in enumerate(every):
        plan = small(tmp_path, method=method, training={**same, **settings})
        found.append(_Watch(plan, tmp_path / f"run{number}", rows=8))
    first = found[0]
    assert len(first.gradients) == len(first.losses) == 2
    # in the second step B is no longer 0, so that A has gradients too
    assert all(bool(one.abs().max() > 0) for one in first.gradients[1].values())
    for settings, other in zip(every[1:], found[1:], strict=True):
        assert other.losses == pytest.approx(first.losses, rel=1e-4), settings
        # Adam's first step is the gradient's sign; of one near 0 rounding decides it, so how much
        # the second step's gradients differ is the machine's (1.5e-4 where AVX-512 adds)
        bounds = (1e-4, 1e-3)
        for mine, theirs, bound in zip(first.gradients, other.gradients, bounds, strict=True):
            assert mine.keys() == theirs.keys()
            largest = max(float(one.abs().max()) for one in mine.values())
            for name, gradient in mine.items():
                distance = float((gradient - theirs[name]).abs().max())
                assert distance <= bound * largest, (settings, name)


def test_the_loss_head_itself_is_chunked(tmp_path: Path) -> None:
    """So that a setting which nothing reads would be seen: chunks take less, and are counted."""
    whole, chunked = (
        trace(small(tmp_path, training={"loss_chunk_tokens": chunk}), 256) for chunk in (None, 16)
    )
    assert chunked.parts["logits"] < whole.parts["logits"] / 4
    assert chunked.allocated_bytes < whole.allocated_bytes
