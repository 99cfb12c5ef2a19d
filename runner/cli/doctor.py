"""`runner doctor`: examine this machine, and print what was found."""

from __future__ import annotations

from pathlib import Path

from runner.common.output import Output, field
from runner.launch.doctor import Examination, examine


def examine_machine(out: Path, *, as_json: bool, fix: bool = False) -> int:
    """1 where a check found a problem, an orphan stayed or the report was not written, else 0.

    Arguments and refusals are those of launch.doctor.examine.
    """
    output = Output(as_json=as_json)
    found = examine(out, output, fix=fix)
    output.result(found.record, _lines(found, out))
    if found.unwritten is not None:
        output.say(f"error: the report was not written: {found.unwritten}")
    return 0 if found.is_clean else 1


def _lines(found: Examination, report: Path) -> list[str]:
    """One aligned line a check, what to do under those that need it, and a summary."""
    checks, summary = found.record["checks"], found.record["summary"]
    width = max(len(check["name"]) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check['name']:<{width}}  {check['status']:<7}  {check['found']}")
        if check["advice"]:
            lines.append(f"{'':<{width}}  {'do':>7}  {check['advice']}")
    for told in found.removed:
        lines.append(f"{told.name}  {told.outcome}; was {told.was}")
        if told.last_line:
            lines.append(f"  {field('last line', told.last_line)}")
    counts = [f"{summary['ok']} ok", _count(summary["warning"], "warning")]
    counts += [_count(summary["problem"], "problem"), f"{summary['skipped']} skipped"]
    lines += ["", field("summary", ", ".join(counts))]
    if found.unwritten is None:
        lines.append(field("report", str(report)))
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
