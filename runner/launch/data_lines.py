"""What became of a job's rows, in words: steps, sides, leakage, labels and lengths. Pure."""

from __future__ import annotations

from typing import Any

from runner.common.output import field, table
from runner.data.summary import OLD_RULE, cleaning_lines, leaks, name_of

_STEPS = ("empty", "untrained", "duplicates", "conflicts", "leaked")
_ALWAYS = ("empty", "duplicates", "conflicts", "leaked")
_LABELS_SHOWN = 20


def report_lines(report: Any) -> list[str]:
    """What became of the rows: a table of the steps, then splits, mix, labels and lengths."""
    sources = report["sources"]
    steps = [
        step
        for step in _STEPS
        if step in _ALWAYS or any(source[step]["rows"] for source in sources)
    ]
    header = ["ROWS", "FORMAT", "READ", *(step.upper() for step in steps), "TRAIN", "EVAL", "TEST"]
    mixed = report["mix"] is not None
    if mixed:
        header.append("DRAWN")
    rows = [
        [
            name_of(source),
            source["format"],
            f"{source['read']:,}",
            *(f"{source[step]['rows']:,}" for step in steps),
            *(f"{source[side]:,}" for side in ("train", "eval", "test")),
            *([f"{source['drawn']:,}"] if mixed else []),
        ]
        for source in sources
    ]
    lines = table(header, rows)
    lines.append("")
    total = sum(report["sides"].values())
    shares = ", ".join(
        f"{rows:,} {side} ({rows / total:.1%})" for side, rows in report["sides"].items() if rows
    )
    lines.append(field("sides", shares))
    lines += [field("", text) for text in cleaning_lines(report)]
    lines.append(field("leakage", _leakage_words(report["leakage"])))
    strata = (report["split"] or {}).get("strata")
    if strata:
        lines += _distribution(f"by {report['split']['stratify']}", strata)
    elif report["labels"]:
        lines += _distribution("by label", report["labels"])
    for side, buckets in report["characters"].items():
        shown = ", ".join(f"{low}-{high}: {rows:,}" for low, high, rows in buckets)
        lines.append(field("characters", f"{side}: {shown}"))
    return lines


def _leakage_words(leakage: dict[str, Any]) -> str:
    rule = leakage.get("rule", OLD_RULE)
    found = leaks(leakage)
    if not found:
        return f"none: no prompt is on two sides ({rule})"
    said = {"remove": "left out", "keep": "kept, as the job says", "refuse": "refused"}
    shared = ", ".join(
        f"{number:,} {side} rows with a prompt of {other}" for (side, other), number in found
    )
    return f"{shared} ({rule}): {said[leakage['mode']]}"


def _distribution(head: str, values: dict[str, dict[str, int]]) -> list[str]:
    """A value on each line, with its share of each side; the most frequent first."""
    sides = [side for side in ("train", "eval", "test") if any(v[side] for v in values.values())]
    totals = {side: sum(counts[side] for counts in values.values()) for side in sides}
    ordered = sorted(values.items(), key=lambda item: -sum(item[1].values()))
    rows = [
        [value, *(f"{counts[side]:,} ({counts[side] / totals[side]:.1%})" for side in sides)]
        for value, counts in ordered[:_LABELS_SHOWN]
    ]
    lines = ["", *table([head, *sides], rows)]
    if len(ordered) > _LABELS_SHOWN:
        lines.append(f"and {len(ordered) - _LABELS_SHOWN:,} more")
    return [*lines, ""]
