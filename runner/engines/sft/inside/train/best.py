"""The evaluations of a run so far: the best of them, and whether to stop for want of a better.

Imports the standard library, runner.runs.checkpoints and runner.common.durable: read without torch
too. checkpoints/best.json holds the evaluations themselves. What follows from them is worked out
anew, so a resumed run that drops those after its checkpoint is where the undisturbed one was.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.common.errors import RunnerError
from runner.runs import checkpoints

NAME = "best.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """The mean cross-entropy over the evaluation rows (nats a trained token) after `step`.

    `step` counts all optimizer steps of the run; `phase` names its training ("" for the only
    one). `eval_loss` is None where it was not a number.
    """

    step: int
    eval_loss: float | None
    phase: str = ""


@dataclass(frozen=True)
class EarlyStoppingState:
    """Where a training stands: its best evaluation, and how many in a row were no better."""

    best: Evaluation | None
    without_improvement: int


def standing(evaluations: Sequence[Evaluation], phase: str, threshold: float) -> EarlyStoppingState:
    """Fold the evaluations of one training, in order.

    As in transformers' EarlyStoppingCallback, an evaluation is an improvement where its loss
    lies more than `threshold` below the lowest so far; a smaller fall still lowers that lowest.
    """
    best: Evaluation | None = None
    count = 0
    for found in _of(evaluations, phase):
        if found.eval_loss is None:
            count += 1
            continue
        lowest = math.inf if best is None or best.eval_loss is None else best.eval_loss
        count = 0 if lowest - found.eval_loss > threshold else count + 1
        if found.eval_loss < lowest:
            best = found
    return EarlyStoppingState(best, count)


def best_saved(
    evaluations: Sequence[Evaluation], phase: str, steps: Collection[int]
) -> Evaluation | None:
    """The evaluation with the lowest loss (the earlier of equals) among the saved `steps`."""
    ranked = _ranked(evaluations, phase)
    return next((found for found in ranked if found.step in steps), None)


def stop_sentence(state: EarlyStoppingState, patience: int | None, threshold: float) -> str | None:
    """Why training ends here, for a reader; None where it continues."""
    if patience is None or state.without_improvement < patience:
        return None
    fall = f" by more than {threshold:g}" if threshold else ""
    times = "1 evaluation" if patience == 1 else f"{patience} evaluations in a row"
    end = (
        f"; the lowest is {state.best.eval_loss:.4g}, at step {state.best.step}"
        if state.best
        else "; none was a number"
    )
    return f"stopped early: eval_loss did not fall{fall} in {times}{end}"


def best_checkpoint(folder: Path, phase: str = "") -> tuple[Path | None, list[str]]:
    """The whole checkpoint in `folder` with the lowest eval_loss of a training.

    Returns None where no saved step was evaluated, and a line for each better one that was
    passed over because it is damaged.

    Raises:
        RunnerError: best.json is there and can't be read.
    """
    here = {checkpoints.step_of(path): path for path in checkpoints.listed(folder)}
    skipped: list[str] = []
    for found in _ranked(read(folder / NAME), phase):
        path = here.get(found.step)
        if path is None:
            continue
        wrong = checkpoints.damage(path)
        if wrong is None:
            return path, skipped
        skipped.append(
            f"{path.name}, with eval_loss {found.eval_loss:.4g}, is passed over: {wrong}"
        )
    return None, skipped


def read(path: Path) -> list[Evaluation]:
    """The evaluations in a best.json, in order; none where there is no file.

    Raises:
        RunnerError: the file is there and is not one of ours.
    """
    if not path.exists():
        return []
    record: Any = durable.read_json(path)  # None where it is torn: a TypeError below
    try:
        version = record["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(f"its schema_version is {version}, not {SCHEMA_VERSION}")
        return [_evaluation(entry) for entry in record["evaluations"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunnerError(
            f"{path} can't be read: {error}",
            "it holds the best evaluation so far; without it (delete it) a resumed run counts "
            "evaluations from its checkpoint on",
        ) from None


def write(path: Path, evaluations: Iterable[Evaluation]) -> None:
    """Replace best.json, whole or not at all. `best` is there for readers; see `read`."""
    entries = list(evaluations)
    best = standing(entries, entries[-1].phase, 0.0).best if entries else None
    durable.write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "best": asdict(best) if best else None,
            "evaluations": [asdict(entry) for entry in entries],
        },
    )


def _evaluation(entry: dict[str, object]) -> Evaluation:
    step, loss, phase = entry["step"], entry["eval_loss"], entry["phase"]
    if not isinstance(step, int) or not isinstance(phase, str):
        raise TypeError(f"not an evaluation: {entry}")
    if loss is not None and not isinstance(loss, int | float):
        raise TypeError(f"not an evaluation: {entry}")
    return Evaluation(step, None if loss is None else float(loss), phase)


def _of(evaluations: Sequence[Evaluation], phase: str) -> list[Evaluation]:
    return [found for found in evaluations if found.phase == phase]


def _ranked(evaluations: Sequence[Evaluation], phase: str) -> list[Evaluation]:
    """Those with a loss, lowest first; sorting is stable, so the earlier of equals leads."""
    counted = [found for found in _of(evaluations, phase) if found.eval_loss is not None]
    return sorted(counted, key=lambda found: found.eval_loss or 0.0)
