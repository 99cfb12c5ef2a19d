"""Our trainer trains as plain TRL does: the same rows in the same order, the same losses and
weights to the last bit, the same count of operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engines.sft import tiny

SETTINGS = {
    "max_steps": 6,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.0,
    "logging_steps": 1,
    "max_grad_norm": 0.05,  # reached at each step
}


def trained(ours: bool, path: Path, **options: Any) -> tuple[list[float], dict[str, Any], float]:
    """Losses, trainable weights and operations of a training by our trainer or by TRL's own."""
    from trl import SFTConfig, SFTTrainer

    plan = tiny.plan_of(SETTINGS)
    trainer = tiny.make_trainer(plan, tiny.run_folder(path))
    if not ours:
        training = plan.training
        config = SFTConfig(
            output_dir=str(path / "plain"),
            max_steps=training.max_steps,
            per_device_train_batch_size=training.per_device_train_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.lr_scheduler_type,
            max_grad_norm=training.max_grad_norm,
            gradient_checkpointing=training.gradient_checkpointing,
            use_cpu=True,
            bf16=False,
            seed=training.seed,
            data_seed=training.seed,
            logging_steps=1,
            save_strategy="no",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        trainer = SFTTrainer(
            model=trainer.model,  # with its adapter
            args=config,
            train_dataset=trainer.train_dataset,
            processing_class=trainer.processing_class,
        )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    weights = {
        name: value.detach().clone()
        for name, value in trainer.model.named_parameters()
        if value.requires_grad
    }
    return losses, weights, trainer.state.total_flos


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, Any], float]:
    return trained(True, tmp_path_factory.mktemp("ours"))


def test_losses_weights_and_operations_are_plain_trls(ours: Any, tmp_path: Path) -> None:
    import torch

    losses, weights, operations = trained(False, tmp_path)
    assert len(losses) == 6 and len(set(losses)) == 6
    assert ours[0] == losses
    assert sorted(ours[1]) == sorted(weights)
    assert all(torch.equal(ours[1][name], value) for name, value in weights.items())
    assert ours[2] == operations > 0


def test_what_differs_by_an_optimizer_named_adamw_torch_is_its_kernel_alone(
    ours: Any, tmp_path: Path
) -> None:
    """transformers takes AdamW's fused kernel by itself; the plain one rounds in another order."""
    import torch

    losses, weights, _ = trained(False, tmp_path, optim="adamw_torch")
    assert losses[0] == ours[0][0]  # before any update
    assert losses == pytest.approx(ours[0], rel=1e-5)
    assert not all(torch.equal(ours[1][name], value) for name, value in weights.items())
    for name, value in weights.items():
        torch.testing.assert_close(ours[1][name], value, rtol=1e-4, atol=1e-6)


def test_parameters_are_counted_once_for_all_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny.plan_of({"max_steps": 3, "gradient_accumulation_steps": 2})
    trainer = tiny.make_trainer(plan, tiny.run_folder(tmp_path))
    base = type(trainer.model.get_base_model())
    counted, real = [], base.num_parameters

    def num_parameters(self: Any, *given: Any, **more: Any) -> int:
        counted.append(more)
        return int(real(self, *given, **more))

    monkeypatch.setattr(base, "num_parameters", num_parameters)
    trainer.train()
    assert trainer.state.total_flos > 0
    assert counted == [{"exclude_embeddings": True}]
