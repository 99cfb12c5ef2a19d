"""Print the options of `runner fit` for people.

Pure; imports runner.common.units and the prediction's view.
"""

from __future__ import annotations

from runner.common.units import format_bytes
from runner.engines.sft.memory.messages import FitAnswer, FittedTraining
from runner.report.prediction import training_lines
from runner.vram.prediction import Prediction

_WIDTH = 24


def ladder_lines(record: FitAnswer, *, colour: bool = False) -> list[str]:
    """Every option with its peak, time and what it changes; then the chosen one's memory."""
    lines: list[str] = []
    limit = int(record["budget_bytes"])
    for part in record["trainings"]:
        head = f"{part['phase']}: " if part["phase"] else ""
        lines += ["", f"{head}effective batch {part['effective_batch']} rows in all options", ""]
        lines += _rungs(part, limit)
        if part["prediction"] is not None:
            found = Prediction.model_validate(part["prediction"])
            lines += ["", *training_lines(found.largest, limit, colour=colour)]
    return lines


def _rungs(part: FittedTraining, limit: int) -> list[str]:
    rungs = part["ladder"]
    largest = max(limit, *(rung["peak_bytes"] for rung in rungs))
    mark = round(limit / largest * _WIDTH)
    width = max(len(rung["text"]) for rung in rungs)
    lines = [f"   {'PEAK':>10}  {'':{_WIDTH + 1}}  TIME    {'':{width}}  CHANGES"]
    for number, rung in enumerate(rungs):
        cells = list("█" * round(rung["peak_bytes"] / largest * _WIDTH)) + [" "] * (_WIDTH + 1)
        cells = cells[: _WIDTH + 1]
        if cells[mark] == " ":
            cells[mark] = "│"
        chosen = "->" if number == part["chosen"] else "  " if rung["fits"] else " x"
        sure = " " if rung["exact"] else "≈"
        changed = rung["changes"] or "nothing"
        if not rung["allowed"]:
            changed += f" (not in fit.allow: {rung['base']})"
        lines.append(
            f"{chosen} {sure}{format_bytes(rung['peak_bytes']):>9}  {''.join(cells)}  "
            f"x{rung['time']:<5.2f}  {rung['text']:<{width}}  {changed}"
        )
    lines.append(
        "   -> chosen, x does not fit (with its margin), ≈ from shallow traces, │ the budget; TIME "
        "for the same rows against the job as it is, by operations and assumed efficiency"
    )
    return lines
