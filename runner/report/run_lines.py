"""A run's report in words, for people. Reads nothing: what is said is in the report.

Imports the standard library, runner.common, runs and this package.
"""

from __future__ import annotations

import time
from typing import Any

from runner.common.units import format_duration
from runner.report.labelled import labelled, loss_figure
from runner.report.memory import memory_lines
from runner.report.outcome_lines import outcome_lines
from runner.report.run_report import LossFigures, RunReport
from runner.runs.records import is_object, number, text, valid_fields, whole


def report_lines(report: RunReport) -> list[str]:
    """The report for people."""
    plan = report["plan"]
    out = [
        labelled("run", f"{report['run']}   plan {report['plan_hash'][:7]}"),
        *([labelled("came in", report["came_in"])] if report["came_in"] else []),
        *(labelled(label, text) for label, text in plan["lines"]),
    ]
    out += [labelled("SUBSTITUTE", text) for text in plan["substitutions"]]
    data = report["data"]
    if data:
        out.append(labelled("data", _data(data)))
    losses = report["losses"]
    if losses:
        out += [labelled("loss", text) for text in _loss_lines(report)]
        if losses["median_tokens_per_second"]:
            speed = f"{losses['median_tokens_per_second']:,.0f} tokens/s (median)"
            out.append(labelled("speed", speed))
    result = report["result"] or {}
    best = valid_fields(result.get("best"), {"eval_loss": number, "step": whole})
    if len(best) == 2:
        out.append(labelled("best", f"eval {best['eval_loss']:.4g} at step {best['step']}"))
    stopped_early = result.get("stopped_early")
    if text(stopped_early):
        out.append(labelled("early end", stopped_early))
    times = _times(result.get("times"))
    if times:
        out.append(labelled("times", times))
    if report["checkpoints"]:
        names = report["checkpoints"]
        out.append(labelled("checkpoints", f"{len(names)}: {', '.join(names[-3:])}"))
    out += [labelled("memory", text) for text in memory_lines(report["memory"])]
    for event in report["events"]:
        clock = time.strftime("%H:%M:%S", time.localtime(event["time_unix_seconds"]))
        out.append(labelled(event["kind"], f"{clock} {event['text']}"))
    return [*out, "", *outcome_lines(report)]


def _loss_lines(report: RunReport) -> list[str]:
    """From which loss to which, and the curve; a line for each training where there are several."""

    def from_to(losses: LossFigures) -> str:
        return f"{loss_figure(losses['first'])} → {loss_figure(losses['last'])}  {losses['curve']}"

    several = report.get("trainings") or []
    if not several:
        whole_run = report["losses"]
        return [from_to(whole_run)] if whole_run else []
    lines = []
    for one in several:
        most = f" of {one['max_steps']}" if one["max_steps"] else ""
        losses = from_to(one["losses"]) if one["losses"] else "not begun"
        lines.append(f"{one['name']}, {one['steps']}{most} steps: {losses}")
    return lines


def _data(data: Any) -> str:
    """What was made of the rows, as data.json has it."""
    try:
        train = data["train"]
        ending = train["end_of_turn"]
        return (
            f"{data['rows_read']:,} rows read ({data['format']}) · "
            f"{data['train_rows']:,} train / {data['eval_rows']:,} eval · "
            f"{train['supervised_share']:.0%} of tokens supervised · "
            f"longest {train['longest']['tokens']} tokens · end of turn "
            + (f"{ending['text']!r} trained" if ending["trained"] else "NOT trained")
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
        return "data.json is damaged"


_TIMES = (
    "seconds_per_step_median",
    "seconds_per_step_p95",
    "evaluation_seconds",
    "saving_seconds",
)


def _times(said: object) -> str:
    """Where the seconds went, of the statistics in result.json."""
    found = said if is_object(said) else {}
    times = {name: value for name in _TIMES if number(value := found.get(name))}
    step = times.get("seconds_per_step_median")
    slow = times.get("seconds_per_step_p95")
    parts = (
        []
        if step is None or slow is None
        else [f"{step:.3g} s a step (median), {slow:.3g} s (95th percentile)"]
    )
    for name, what in (("evaluation_seconds", "evaluating"), ("saving_seconds", "saving")):
        if times.get(name):
            parts.append(f"{format_duration(times[name])} {what}")
    return " · ".join(parts)
