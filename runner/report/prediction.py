"""A prediction for people: its parts as a table, and as one bar against the budget.

Pure: values in, lines out. Colours are marks of runner.common.terminal where asked for; without
them each part has a pattern of its own. Imports runner.common.terminal, runner.common.units and
runner.vram.prediction.
"""

from __future__ import annotations

from collections.abc import Mapping

from runner.common.terminal import ink
from runner.common.units import format_bytes
from runner.vram.prediction import Prediction, TrainingMemory

WIDTH = 60
_PATTERNS = "█▓▒░▚▞▤▥▦▧▨▩#=+"
_COLOURS = (34, 36, 32, 33, 35, 31, 94, 96, 92, 93, 95, 91, 37, 90, 97)
SMALLEST_BYTES = 1 << 20
"""Parts below this are told together."""
_ORDER = (
    *("frozen weights", "trained weights", "adapter", "gradients", "optimizer states"),
    *("activations", "backward pass", "logits", "dequantisation buffer", "optimizer step"),
)


def ordered(parts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Parts in the order of a step: what stays first, then what comes and goes."""
    large = {name: size for name, size in parts.items() if abs(size) >= SMALLEST_BYTES}
    known = [(name, large[name]) for name in _ORDER if name in large]
    known += [(name, size) for name, size in large.items() if name not in _ORDER]
    rest = sum(size for name, size in parts.items() if name not in large)
    return [*known, ("all else", rest)] if rest else known


def headline(prediction: Prediction) -> str:
    """The figure and how sure it is: "6.88 GiB ± 0.45", or "2.36 GiB (2.0 to 3.9)"."""
    memory = prediction.largest
    less, more = (
        memory.process_bytes - memory.low_bytes,
        memory.high_bytes - memory.process_bytes,
    )
    kind = "" if memory.method == "traced" else " (estimated, not traced)"
    figure = format_bytes(memory.process_bytes)
    if more > 1.2 * less:
        low, high = memory.low_bytes / 2**30, memory.high_bytes / 2**30
        return f"{figure} ({low:.2f} to {high:.2f} GiB){kind}"
    return f"{figure} ± {prediction.plus_minus_bytes / 2**30:.2f}{kind}"


def verdict(prediction: Prediction, budget_bytes: int | None) -> str:
    """Whether it fits the budget, in words."""
    if budget_bytes is None:
        return "no budget to compare with"
    budget = format_bytes(budget_bytes)
    if prediction.high_bytes <= budget_bytes:
        spare = format_bytes(budget_bytes - prediction.process_bytes)
        return f"fits the budget of {budget} with {spare} to spare"
    if prediction.low_bytes > budget_bytes:
        over = format_bytes(prediction.process_bytes - budget_bytes)
        return f"does NOT fit the budget of {budget}: {over} too much"
    return f"may or may not fit the budget of {budget}: it is within the interval"


def prediction_lines(
    prediction: Prediction, budget_bytes: int | None, *, colour: bool = False
) -> list[str]:
    """All of a prediction."""
    lines: list[str] = []
    for memory in prediction.trainings:
        if memory.phase:
            lines += ["", f"{memory.phase}:"]
        lines += training_lines(memory, budget_bytes, colour=colour)
    where = "on each GPU" if prediction.device == "cuda" else "of host memory"
    lines += ["", f"predicted  {headline(prediction)} {where}"]
    lines.append(f"           {verdict(prediction, budget_bytes)}")
    lines.append(
        f"measured   {prediction.calibration}"
        if prediction.calibration
        else "measured   nothing yet on this device, stack and method: runner smoke measures, and "
        "narrows this"
    )
    if prediction.host is not None:
        host = prediction.host
        lines.append(
            f"host       {format_bytes(host.loading_bytes)} while weights are loaded"
            + (f", {format_bytes(host.offload_bytes)} offloaded" if host.offload_bytes else "")
        )
    lines += [f"note       {note}" for note in prediction.notes]
    return lines


def training_lines(
    memory: TrainingMemory, budget_bytes: int | None, *, colour: bool = False
) -> list[str]:
    """One training's parts and bar."""
    parts = ordered(memory.parts)
    images = f", {memory.images} image(s)" if memory.images else ""
    lines = [
        f"batch      {memory.rows} x {memory.tokens} tokens{images} ({memory.length_from})",
        f"peak       in the {memory.at}; torch's tensors {format_bytes(memory.allocated_bytes)}, "
        f"its allocator {format_bytes(memory.reserved_bytes)}, "
        f"the process {format_bytes(memory.process_bytes)}",
        f"trained    {memory.trainable:,} of {memory.total:,} parameters",
        "",
    ]
    width = max((len(name) for name, _ in parts), default=0)
    for number, (name, size) in enumerate(parts):
        share = f"{size / memory.process_bytes:.1%}"
        lines.append(
            f"  {_paint(number, 2, colour)} {name:<{width}}  {format_bytes(size):>10}  {share:>6}"
        )
    lines += ["", *bar(parts, memory, budget_bytes, colour=colour)]
    return lines


def bar(
    parts: list[tuple[str, int]],
    memory: TrainingMemory,
    budget_bytes: int | None,
    *,
    colour: bool = False,
) -> list[str]:
    """The parts side by side, to scale, and under them the interval and the budget."""
    scale = max(memory.high_bytes, budget_bytes or 0, 1)

    def at(size: int) -> int:
        return round(size / scale * WIDTH)

    drawn, total = "", 0
    for number, (_, size) in enumerate(parts):
        drawn += _paint(number, at(total + size) - at(total), colour)
        total += size
    marks = [" "] * (WIDTH + 1)
    for place in range(at(memory.low_bytes), at(memory.high_bytes) + 1):
        marks[place] = "~"
    if budget_bytes is not None:
        marks[at(budget_bytes)] = "^"
    said = "~ interval" + (
        f", ^ budget {format_bytes(budget_bytes)}" if budget_bytes is not None else ""
    )
    return [f"  {drawn}", f"  {''.join(marks).rstrip()}   {said}"]


def _paint(number: int, cells: int, colour: bool) -> str:
    if cells <= 0:
        return ""
    if colour:
        return f"{ink(str(_COLOURS[number % len(_COLOURS)]))}{'█' * cells}{ink('0')}"
    return _PATTERNS[number % len(_PATTERNS)] * cells
