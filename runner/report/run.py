"""A run in words, from its folder alone: what it was, how it ended and why.

Imports runner.runs.folder, runner.common.durable, runner.engines.render and the checkpoints' files;
no torch. A run whose supervisor is gone without an outcome is `lost`, and the report shows what is
known.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.common import durable
from runner.common.errors import RunnerError
from runner.common.terminal import indented
from runner.common.units import format_bytes, format_duration
from runner.engines.mgm.progress import stage_now
from runner.engines.progress import planned_trainings
from runner.engines.render import read_any_plan, summary
from runner.engines.sft.plan import Plan
from runner.plans.base import PlanBase
from runner.provenance.bundle.index import maker_beside
from runner.provenance.bundle.local_plan import plan_here
from runner.report.memory import attempts_lines, memory_lines, read_memory
from runner.report.run_table import kept_in, last_sign, still_alive
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from runner.runs.metrics import is_loss_line, time_of
from runner.runs.orphans import living_processes
from runner.runs.outcome import SCHEMA_VERSION, Reason
from runner.runs.ranks import living_engines
from runner.runs.records import end_of, number, object_at, status_of, text, told, trouble, whole
from runner.runs.resume_command import going_on
from runner.runs.state import BY_HAND, state_of
from runner.runs.trainings import in_words

_LABEL = 12
EVENTS_BYTES = 16 << 20
"""Of events.jsonl so much is reported: some hundred thousand warnings."""
UNFINISHED = tuple(reason for reason in Reason if reason is not Reason.COMPLETED)


def read_report(folder: RunFolder) -> dict[str, Any]:
    """Everything the report says, JSON-ready.

    Raises RunnerError where the folder has no readable plan.
    """
    plan = read_any_plan(folder.plan)
    planned = planned_trainings(folder, plan)
    losses = _Losses.of(folder, planned)
    state = state_of(folder)
    termination = end_of(folder)
    kept = state in (Reason.LOST, *UNFINISHED) and kept_in(folder) is not None
    report: dict[str, Any] = {
        "schema_version": 1,
        "run": folder.name,
        "folder": str(folder.path),
        "job": plan.job,
        "variant": plan.variant,
        "plan_hash": plan.hash,
        "state": state,
        "came_in": _origin(folder),
        "plan": {
            "engine": getattr(plan, "engine", None),
            "lines": [[label, text] for label, text in summary(plan)],
            "substitutions": list(plan.substitutions),
        },
        "data": durable.read_json(folder.data_report),
        "result": object_at(folder.engine_result),
        "failure": object_at(folder.engine_failure) or None,
        "queue": object_at(folder.queue) or None,
        "losses": losses.to_record(),
        "trainings": losses.trainings(planned),
        "stage": stage_now(folder).name,
        "eval_loss": losses.eval_loss,
        "events": [
            event
            for event in durable.read_jsonl(folder.events, EVENTS_BYTES)
            if event.get("kind") in ("warning", "notice", "signal")
            and time_of(event) is not None
            and isinstance(event.get("text"), str)
        ],
        "memory": read_memory(folder, termination or {}),
        "checkpoints": [path.name for path in checkpoints.listed(folder.checkpoints)],
        "termination": termination,
        "goes_on_by": going_on(folder) if kept else None,
        "damaged": trouble(folder),
    }
    if state in (Reason.LOST, BY_HAND):
        report |= _traces(folder, plan, losses)
    return report


def _origin(folder: RunFolder) -> str | None:
    """Of a run that came in a bundle, who made it, in words; None of one that was made here."""
    if not durable.is_there(folder.bundle):
        return None
    maker = maker_beside(folder.bundle)
    return f"a bundle, made by {maker}; its outcome is what the bundle says"


def _traces(folder: RunFolder, plan: PlanBase, losses: _Losses) -> dict[str, Any]:
    """What a run without an outcome left behind."""
    checkpoint, skipped = checkpoints.newest_whole(folder.checkpoints)
    step = losses.last_step
    saved = checkpoints.step_of(checkpoint) if checkpoint else 0
    return {
        "last_phase": status_of(folder).get("phase"),
        "last_sign_unix_seconds": last_sign(folder),
        "whole_checkpoint": checkpoint.name if checkpoint else None,
        "damaged_checkpoints": skipped,
        "steps_logged": step,
        "steps_lost": max(0, step - saved),
        "living_engines": living_engines(folder),
        "living_processes": living_processes(folder),
        "max_steps": plan.planned_steps,
    }


@dataclass
class _Losses:
    """The figures of a metrics.jsonl, of which there may be millions; of each phase apart too."""

    losses: array[float] = field(default_factory=lambda: array("d"))
    """NaN is one that was not finite."""
    rates: array[float] = field(default_factory=lambda: array("d"))
    first: float | None = None
    last: float | None = None
    last_step: int = 0
    eval_loss: float | None = None
    phases: dict[str, _Losses] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: RunFolder, planned: Mapping[str, int | None]) -> _Losses:
        """`planned`: the trainings of a run with several, by name."""
        found = cls(phases={name: cls() for name in planned})
        for line in durable.read_jsonl(folder.metrics):
            if number(line.get("eval_loss")):
                found.eval_loss = line["eval_loss"]
            if is_loss_line(line):
                found._add(line)
                phase = found.phases.get(str(line.get("phase")))
                if phase is not None:
                    phase._add(line)
        return found

    def _add(self, line: Mapping[str, Any]) -> None:
        loss = line["loss"] if number(line["loss"]) else None
        self.first = self.first if self.losses else loss
        self.last, self.last_step = loss, line["step"]
        self.losses.append(math.nan if loss is None else loss)
        rate = line.get("tokens_per_second")
        self.rates.append(float(rate) if number(rate) else 0.0)

    def to_record(self) -> dict[str, Any] | None:
        if not self.losses:
            return None
        return {
            "logged_steps": len(self.losses),
            "first": self.first,
            "last": self.last,
            "last_step": self.last_step,
            "median_tokens_per_second": sorted(self.rates)[len(self.rates) // 2],
            "curve": sparkline(self.losses),
        }

    def trainings(self, planned: Mapping[str, int | None]) -> list[dict[str, Any]]:
        """Each training of a run with several, its steps counted from its own start."""
        found, before = [], 0
        for name, steps in planned.items():
            one = self.phases[name]
            done = max(0, one.last_step - before) if one.losses else 0
            losses = one.to_record()
            found.append({"name": name, "steps": done, "max_steps": steps, "losses": losses})
            before = max(before, one.last_step)
        return found


def sparkline(values: Sequence[float | None], width: int = 60) -> str:
    """A line of bars; several values share a bar by their mean. None (not finite) shows as !."""
    if not values:
        return ""
    count = min(width, len(values))
    means = [
        _mean(values[i * len(values) // count : (i + 1) * len(values) // count])
        for i in range(count)
    ]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return "!" * count
    low, high = min(finite), max(finite)
    bars = "▁▂▃▄▅▆▇█"
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(
        bars[round((mean - low) * scale)] if math.isfinite(mean) else "!" for mean in means
    )


def _mean(group: Sequence[float | None]) -> float:
    """NaN where a value is none."""
    return sum(math.nan if value is None else value for value in group) / len(group)


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    plan = report["plan"]
    out = [
        _line("run", f"{report['run']}   plan {report['plan_hash'][:7]}"),
        *([_line("came in", report["came_in"])] if report["came_in"] else []),
        *(_line(label, text) for label, text in plan["lines"]),
    ]
    out += [_line("SUBSTITUTE", text) for text in plan["substitutions"]]
    data = report["data"]
    if data:
        out.append(_line("data", _data(data)))
    losses = report["losses"]
    if losses:
        out += [_line("loss", text) for text in _loss_lines(report)]
        if losses["median_tokens_per_second"]:
            speed = f"{losses['median_tokens_per_second']:,.0f} tokens/s (median)"
            out.append(_line("speed", speed))
    result = report["result"] or {}
    best = told(result.get("best"), {"eval_loss": number, "step": whole})
    if len(best) == 2:
        out.append(_line("best", f"eval {best['eval_loss']:.4g} at step {best['step']}"))
    if text(result.get("stopped_early")):
        out.append(_line("early end", result["stopped_early"]))
    times = _times(told(result.get("times"), dict.fromkeys(_TIMES, number)))
    if times:
        out.append(_line("times", times))
    if report["checkpoints"]:
        names = report["checkpoints"]
        out.append(_line("checkpoints", f"{len(names)}: {', '.join(names[-3:])}"))
    out += [_line("memory", text) for text in memory_lines(report["memory"])]
    for event in report["events"]:
        clock = time.strftime("%H:%M:%S", time.localtime(event["time_unix_seconds"]))
        out.append(_line(event["kind"], f"{clock} {event['text']}"))
    return [*out, "", *verdict(report)]


def _loss_lines(report: dict[str, Any]) -> list[str]:
    """From which loss to which, and the curve; a line for each training where there are several."""

    def from_to(losses: dict[str, Any]) -> str:
        return f"{_figure(losses['first'])} → {_figure(losses['last'])}  {losses['curve']}"

    several = report.get("trainings") or []
    if not several:
        return [from_to(report["losses"])]
    lines = []
    for one in several:
        most = f" of {one['max_steps']}" if one["max_steps"] else ""
        told = from_to(one["losses"]) if one["losses"] else "not begun"
        lines.append(f"{one['name']}, {one['steps']}{most} steps: {told}")
    return lines


def _data(data: dict[str, Any]) -> str:
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


def _times(times: dict[str, Any]) -> str:
    """Where the seconds went, of the statistics in result.json."""
    step = times.get("seconds_per_step_median")
    slow = times.get("seconds_per_step_p95")
    parts = (
        []
        if step is None or slow is None
        else [f"{step:.3g} s a step (median), {slow:.3g} s (95th percentile)"]
    )
    for name, what in (("evaluation_seconds", "evaluating"), ("saving_seconds", "saving")):
        if times.get(name):
            parts.append(f"{format_duration(float(times[name]))} {what}")
    return " · ".join(parts)


def verdict(report: dict[str, Any]) -> list[str]:
    """How it ended, in a few lines that could be pasted into a chat."""
    state, termination = report["state"], report.get("termination")
    if isinstance(termination, dict):
        lines = _ended(report["run"], report["folder"], termination, report.get("goes_on_by"))
        return [*lines, *(_line("damaged", text) for text in report.get("damaged", ()))]
    if state == "running":
        stage = f", in stage {report['stage']}" if report.get("stage") else ""
        return [
            _line("running", f"no outcome yet{stage}"),
            _line("next", f"runner attach {report['run']} · runner stop {report['run']}"),
        ]
    if state == "queued":
        return [
            _line("queued", str((report.get("queue") or {}).get("text", "it waits for a GPU"))),
            _line("next", f"runner attach {report['run']} · runner stop {report['run']}"),
        ]
    if state == "not_started" and report.get("came_in"):
        return [_line("not known", "the bundle does not say how it ended")]
    if state == "not_started":
        return [_line("not started", "the folder was made, and nothing ran in it")]
    if state == "by_hand":
        result = report.get("result") or {}
        done = "completed" if result.get("completed") else "did not complete"
        return [_line("by hand", f"launch.sh was run without the guard and {done}")]
    lines = [
        _line(
            "lost",
            "the supervisor is gone and left no outcome (killed, or the machine "
            "went down); nothing after its end is known",
        )
    ]
    seen = report.get("last_sign_unix_seconds")
    if seen:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen))
        lines.append(
            _line(
                "last sign",
                f"{when}, phase {report.get('last_phase') or 'not known'}, "
                f"step {report.get('steps_logged')}",
            )
        )
    checkpoint = report.get("whole_checkpoint")
    lines.append(_line("kept", f"{checkpoint} is whole" if checkpoint else "no whole checkpoint"))
    lines.append(_line("lost work", f"{report.get('steps_lost')} steps"))
    damaged = (*report.get("damaged", ()), *report.get("damaged_checkpoints", ()))
    lines += [_line("damaged", text) for text in damaged]
    if report.get("living_processes"):
        alive = still_alive(report.get("living_engines") or [], report["living_processes"])
        lines.append(_line("alive", alive))
    if checkpoint:
        lines.append(_line("next", f"the same runner train command resumes from {checkpoint}"))
    if report.get("goes_on_by"):
        lines.append(_line("resume", report["goes_on_by"]))
    return lines


def _ended(run: str, folder: str, end: dict[str, Any], by: str | None = None) -> list[str]:
    other = durable.newer(end, SCHEMA_VERSION)
    if other is not None:
        said = f"{end.get('message') or 'no message'} (exit code {end.get('exit_code')})"
        return [
            _line(str(end.get("reason")), said),
            _line("newer", f"its outcome was {other}"),
        ]
    steps = f"{end['steps']}" + (f" of {end['max_steps']}" if end.get("max_steps") else "")
    counted = f"{steps} steps in " if end["steps"] or end.get("max_steps") else "in "
    figures = [counted + format_duration(float(end["seconds"]))]
    if end.get("trainings"):
        figures.append(in_words(end["trainings"], _figure))
    elif end.get("first_loss") is not None or end.get("last_loss") is not None:
        figures.append(f"loss {_figure(end.get('first_loss'))} → {_figure(end.get('last_loss'))}")
    if end.get("eval_loss") is not None:
        figures.append(f"eval {_figure(end['eval_loss'])}")
    if end.get("peak_bytes") is not None:
        budget = f" of {format_bytes(end['budget_bytes'])}" if end.get("budget_bytes") else ""
        guess = end.get("predicted_bytes")
        predicted = f", predicted {format_bytes(guess)}" if guess else ""
        source = end.get("peak_source") or "its source is not known"
        figures.append(f"peak {format_bytes(end['peak_bytes'])}{budget} ({source}{predicted})")
    if end.get("adapter_sha256"):
        size, digest = format_bytes(end.get("adapter_bytes")), end["adapter_sha256"][:12]
        figures.append(f"{end.get('result') or 'adapter'} {size} sha256 {digest}…")
    lines = [_line(end["reason"], " · ".join(figures))]
    if end["reason"] != Reason.COMPLETED:
        lines.append(_line("why", f"{end['message']} (exit code {end['exit_code']})"))
    lines += [_line("SUBSTITUTE", text) for text in end.get("substitutions", [])]
    lines += [_line(label, text) for label, text in attempts_lines(end)]
    if end["reason"] == Reason.COMPLETED:
        if end.get("adapter_sha256"):
            lines.append(_line("next", f"runner chat {run} · runner evaluate {run}"))
        elif end.get("result"):
            lines.append(_line("output", f"{folder}/{end['result']}"))
    else:
        if end.get("checkpoint"):
            lines.append(
                _line("resume", f"the same runner train command resumes from {end['checkpoint']}")
            )
        if by is not None:
            lines.append(_line("resume" if not end.get("checkpoint") else "", by))
        lines.append(_line("next", f"runner report {run} · log {folder}/logs/train.log"))
    return lines


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL - 1}} {indented(text, _LABEL)}"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def require_plan(folder: RunFolder) -> Plan:
    """The plan of a run that a command needs whole (chat, say)."""
    try:
        return plan_here(folder)
    except RunnerError as error:
        raise type(error)(f"run {folder.name}: {error.message}", error.hint) from None
