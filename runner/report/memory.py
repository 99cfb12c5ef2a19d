"""Where a run's memory went: predicted, measured by each source, and budget side by side.

Reads the run folder; imports runner.runs.folder, runner.common.durable and runner.vram.prediction.
Unknown figures are left out.
"""

from __future__ import annotations

from runner.common import durable
from runner.common.units import format_bytes
from runner.report.prediction import headline, ordered
from runner.report.run_report import MemoryFigures
from runner.runs.folder import RunFolder
from runner.runs.metrics import loss_lines, time_of
from runner.runs.record_types import OutcomeRecord
from runner.vram.prediction import read_prediction

SOURCES = {
    "torch_max_allocated": "torch's tensors",
    "torch_max_reserved": "torch's allocator",
    "nvml_pid:nvml": "NVML",
    "accounting": "driver's accounting",
    "host_process_tree:pss": "process tree (PSS)",
    "host_process_tree:rss": "process tree (RSS)",
    "host_process_tree:high_water": "process tree (the kernel's high-water mark)",
}
SHOWN_PARTS = 4


def read_memory(folder: RunFolder, end: OutcomeRecord) -> MemoryFigures:
    """Predicted, measured and budget, JSON-ready; `end` is termination.json's record, or empty."""
    prediction = read_prediction(folder.prediction)
    measured = end.get("peak_bytes")
    predicted = None if prediction is None else prediction.process_bytes
    step, of = peak_step(folder, end)
    record: MemoryFigures = {
        "predicted_bytes": predicted,
        "predicted_low_bytes": None if prediction is None else prediction.low_bytes,
        "predicted_high_bytes": None if prediction is None else prediction.high_bytes,
        "measured_bytes": measured,
        "measured_by": end.get("peak_source"),
        "error_percent": round(100 * (predicted / measured - 1), 2)
        if predicted and measured
        else None,
        "budget_bytes": end.get("budget_bytes"),
        "by_source": end.get("peaks") or {},
        "peak_step": step,
        "peak_step_source": of,
    }
    if prediction is not None:
        largest = prediction.largest
        record |= {"parts": largest.parts, "at": largest.at, "headline": headline(prediction)}
    return record


def peak_step(folder: RunFolder, end: OutcomeRecord) -> tuple[int | None, str | None]:
    """The step in which memory was highest, and by which source.

    Torch knows its own steps; other peaks are placed by time among the logged steps.
    """
    steps = end.get("peak_step") or {}
    for source in ("torch_max_reserved", "torch_max_allocated"):
        if source in steps:
            return int(steps[source]), source
    highest, when = -1, None
    for line in durable.read_jsonl(folder.memory):
        own = line.get("own_bytes")
        if isinstance(own, int) and own > highest:
            highest, when = own, time_of(line)
    if when is None:
        return None, None
    source = str(end.get("peak_source"))
    last = None
    for loss_line in loss_lines(folder.metrics):
        logged = time_of(loss_line)
        if logged is None:
            continue
        if logged >= when:
            return loss_line["step"], source
        last = loss_line["step"]
    return None if last is None else last + 1, source


def memory_lines(memory: MemoryFigures) -> list[str]:
    """For people, each after the label "memory"."""
    parts = []
    if memory.get("predicted_bytes"):
        parts.append(f"predicted {memory['headline']}")
    if memory.get("measured_bytes"):
        error = memory.get("error_percent")
        off = "" if error is None else f", predicted {error:+.1f} % of it"
        parts.append(f"measured {format_bytes(memory['measured_bytes'])}{off}")
    if memory.get("budget_bytes"):
        parts.append(f"budget {format_bytes(memory['budget_bytes'])}")
    lines = [" · ".join(parts)] if parts else []
    by_source = {
        SOURCES[name]: size for name, size in memory["by_source"].items() if name in SOURCES
    }
    if len(by_source) > 1:
        lines.append(
            "by source: "
            + ", ".join(f"{name} {format_bytes(size)}" for name, size in by_source.items())
        )
    if memory.get("parts"):
        total = sum(memory["parts"].values()) or 1
        largest = sorted(ordered(memory["parts"]), key=lambda one: -one[1])[:SHOWN_PARTS]
        shares = ", ".join(f"{name} {size / total:.0%}" for name, size in largest)
        where = f"at step {memory['peak_step']}" if memory.get("peak_step") else "the step unknown"
        lines.append(f"peak {where}; by the prediction in the {memory['at']}: {shares}")
    elif memory.get("peak_step"):
        lines.append(f"peak at step {memory['peak_step']}")
    return lines


def attempts_lines(end: OutcomeRecord) -> list[tuple[str, str]]:
    """Label and text of each attempt that was recovered from, and of what would have fitted."""
    lines = [
        (
            "recovered",
            f"attempt {one['attempt']} ended {one['reason']} at step {one['steps']}"
            + (f", peak {format_bytes(one['peak_bytes'])}" if one.get("peak_bytes") else "")
            + f"; then {one['then']}, from {one['checkpoint'] or 'the start'}",
        )
        for one in end.get("attempts") or []
    ]
    lines += [("would fit", text) for text in end.get("advice") or []]
    return lines
