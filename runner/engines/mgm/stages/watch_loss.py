"""Fail a training whose loss is absurd: read the losses that transformers wrote and judge them.

    python watch_loss.py --state OUTPUT/trainer_state.json --config BASE/config.json

A model that knows nothing gives every token of its vocabulary V the same chance: a loss of ln V,
12.45 for Gemma's 256,000. A pretrained model behind an untrained projector begins below that.
So one loss over 4 ln V is no training but a broken one (upstream's own "successful" LoRA run began
at 3e11), and so is an end, the mean of the last five, over 1.5 ln V; no number at all (nan, inf) or
exactly 0 (no token was trained) fails as well. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

if __package__:
    from .records import fail
else:  # in a run folder the scripts lie beside each other
    from records import fail  # type: ignore[import-not-found, no-redef]

ANY_LOSS_LIMIT = 4.0  # times ln V
LAST_LOSS_LIMIT = 1.5  # times ln V
LAST_LOSSES = 5


def absurd_loss(loss: float, vocabulary: int) -> str | None:
    """Why this one loss ends the run, or None."""
    if not math.isfinite(loss):
        return f"loss {loss} is not a number"
    if loss == 0:
        return "loss 0: no token was trained (all labels masked)"
    limit = ANY_LOSS_LIMIT * math.log(vocabulary)
    if loss < 0 or loss > limit:
        return f"loss {loss:.4g} where {limit:.1f} is the most that a whole model can give"
    return None


def absurd_losses(losses: Sequence[tuple[int, float]], vocabulary: int) -> str | None:
    """Why (step, loss) pairs are no training, or None."""
    if not losses:
        return "no loss was logged"
    for step, loss in losses:
        if (reason := absurd_loss(loss, vocabulary)) is not None:
            return f"step {step}: {reason}"
    last = [loss for _, loss in losses[-LAST_LOSSES:]]
    mean, limit = sum(last) / len(last), LAST_LOSS_LIMIT * math.log(vocabulary)
    if mean > limit:
        return f"it ends at a loss of {mean:.4g}, worse than guessing ({limit:.1f} at most)"
    return None


def logged_losses(history: Iterable[Mapping[str, float]]) -> list[tuple[int, float]]:
    """(step, loss) of trainer_state.json's log_history."""
    return [
        (int(entry["step"]), float(entry["loss"]))
        for entry in history
        if "loss" in entry and "step" in entry
    ]


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    given = parser.parse_args()
    try:
        losses = logged_losses(json.loads(given.state.read_text("utf-8"))["log_history"])
        vocabulary = int(json.loads(given.config.read_text("utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"watch_loss: {error!r}", file=sys.stderr)
        return 1
    reason = absurd_losses(losses, vocabulary)
    if reason is not None:
        print(f"watch_loss: this training failed: {reason}", file=sys.stderr)
        fail("non_finite_loss", f"{given.state.parent.name}: {reason}")
        return 1
    first, last = losses[0], losses[-1]
    print(
        f"watch_loss: {len(losses)} losses, {first[1]:.4f} at step {first[0]} to {last[1]:.4f} "
        f"at step {last[0]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
