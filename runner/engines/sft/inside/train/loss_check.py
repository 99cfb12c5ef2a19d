"""Is this loss one that training can have? Pure; standard library only."""

from __future__ import annotations

import math


class NonFiniteLoss(Exception):
    """A loss or gradient norm that is not a number, infinite, or absurdly large."""


def check_loss(
    step: int, loss: float | None, grad_norm: float | None, ceiling: float, *, scaled: bool
) -> None:
    """Raise NonFiniteLoss for a loss that shows a broken training.

    Args:
        step: optimizer step, for the message.
        loss: mean cross-entropy per trained token of the last logging window, in nats.
        grad_norm: gradient norm before clipping.
        ceiling: the job's training.loss_ceiling, in nats.
        scaled: fp16 with a gradient scaler, where an infinite norm only skips a step.
    """
    if loss is not None and not math.isfinite(loss):
        raise NonFiniteLoss(f"the loss is {loss} at step {step}")
    if loss is not None and loss > ceiling:
        raise NonFiniteLoss(
            f"the loss is {loss:g} at step {step}, above training.loss_ceiling {ceiling:g}"
        )
    if grad_norm is not None and not scaled and not math.isfinite(grad_norm):
        raise NonFiniteLoss(f"the gradient norm is {grad_norm} at step {step}")
