"""How a run ended, in a few lines that could be pasted into a chat.

Imports the standard library, runner.common, runs and this package; reads nothing.
"""

from __future__ import annotations

import time

from runner.common import durable
from runner.common.units import format_bytes, format_duration
from runner.report.labelled import labelled, loss_figure
from runner.report.memory import attempts_lines
from runner.report.run_report import RunReport
from runner.report.run_table import still_alive
from runner.runs.outcome import SCHEMA_VERSION, Reason
from runner.runs.record_types import OutcomeRecord
from runner.runs.trainings import in_words


def outcome_lines(report: RunReport) -> list[str]:
    """How it ended, in a few lines that could be pasted into a chat."""
    state, termination = report["state"], report.get("termination")
    if termination is not None:
        lines = _ended(report["run"], report["folder"], termination, report.get("goes_on_by"))
        return [*lines, *(labelled("damaged", text) for text in report.get("damaged", ()))]
    if state == "running":
        stage = f", in stage {report['stage']}" if report.get("stage") else ""
        return [
            labelled("running", f"no outcome yet{stage}"),
            labelled("next", f"runner attach {report['run']} · runner stop {report['run']}"),
        ]
    if state == "queued":
        return [
            labelled("queued", str((report.get("queue") or {}).get("text", "it waits for a GPU"))),
            labelled("next", f"runner attach {report['run']} · runner stop {report['run']}"),
        ]
    if state == "not_started" and report.get("came_in"):
        return [labelled("not known", "the bundle does not say how it ended")]
    if state == "not_started":
        return [labelled("not started", "the folder was made, and nothing ran in it")]
    if state == "by_hand":
        result = report.get("result") or {}
        done = "completed" if result.get("completed") else "did not complete"
        return [labelled("by hand", f"launch.sh was run without the guard and {done}")]
    lines = [
        labelled(
            "lost",
            "the supervisor is gone and left no outcome (killed, or the machine "
            "went down); nothing after its end is known",
        )
    ]
    seen = report.get("last_sign_unix_seconds")
    if seen:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen))
        lines.append(
            labelled(
                "last sign",
                f"{when}, phase {report.get('last_phase') or 'not known'}, "
                f"step {report.get('steps_logged')}",
            )
        )
    checkpoint = report.get("whole_checkpoint")
    lines.append(
        labelled("kept", f"{checkpoint} is whole" if checkpoint else "no whole checkpoint")
    )
    lines.append(labelled("lost work", f"{report.get('steps_lost')} steps"))
    damaged = (*report.get("damaged", ()), *report.get("damaged_checkpoints", ()))
    lines += [labelled("damaged", text) for text in damaged]
    if report.get("living_processes"):
        alive = still_alive(report.get("living_engines") or [], report["living_processes"])
        lines.append(labelled("alive", alive))
    if checkpoint:
        lines.append(labelled("next", f"the same runner train command resumes from {checkpoint}"))
    goes_on_by = report.get("goes_on_by")
    if goes_on_by:
        lines.append(labelled("resume", goes_on_by))
    return lines


def _ended(run: str, folder: str, end: OutcomeRecord, by: str | None = None) -> list[str]:
    other = durable.newer(end, SCHEMA_VERSION)
    if other is not None:
        said = f"{end.get('message') or 'no message'} (exit code {end.get('exit_code')})"
        return [
            labelled(str(end.get("reason")), said),
            labelled("newer", f"its outcome was {other}"),
        ]
    steps = f"{end['steps']}" + (f" of {end['max_steps']}" if end.get("max_steps") else "")
    counted = f"{steps} steps in " if end["steps"] or end.get("max_steps") else "in "
    figures = [counted + format_duration(float(end["seconds"]))]
    if end.get("trainings"):
        figures.append(in_words(end["trainings"], loss_figure))
    elif end.get("first_loss") is not None or end.get("last_loss") is not None:
        figures.append(
            f"loss {loss_figure(end.get('first_loss'))} → {loss_figure(end.get('last_loss'))}"
        )
    if end.get("eval_loss") is not None:
        figures.append(f"eval {loss_figure(end['eval_loss'])}")
    if end.get("peak_bytes") is not None:
        budget = f" of {format_bytes(end['budget_bytes'])}" if end.get("budget_bytes") else ""
        guess = end.get("predicted_bytes")
        predicted = f", predicted {format_bytes(guess)}" if guess else ""
        source = end.get("peak_source") or "its source is not known"
        figures.append(f"peak {format_bytes(end['peak_bytes'])}{budget} ({source}{predicted})")
    digest = end.get("adapter_sha256")
    if digest:
        size = format_bytes(end.get("adapter_bytes"))
        figures.append(f"{end.get('result') or 'adapter'} {size} sha256 {digest[:12]}…")
    lines = [labelled(end["reason"], " · ".join(figures))]
    if end["reason"] != Reason.COMPLETED:
        lines.append(labelled("why", f"{end['message']} (exit code {end['exit_code']})"))
    lines += [labelled("SUBSTITUTE", text) for text in end.get("substitutions", [])]
    lines += [labelled(label, text) for label, text in attempts_lines(end)]
    if end["reason"] == Reason.COMPLETED:
        if end.get("adapter_sha256"):
            lines.append(labelled("next", f"runner chat {run} · runner evaluate {run}"))
        elif end.get("result"):
            lines.append(labelled("output", f"{folder}/{end['result']}"))
    else:
        if end.get("checkpoint"):
            lines.append(
                labelled(
                    "resume", f"the same runner train command resumes from {end['checkpoint']}"
                )
            )
        if by is not None:
            lines.append(labelled("resume" if not end.get("checkpoint") else "", by))
        lines.append(labelled("next", f"runner report {run} · log {folder}/logs/train.log"))
    return lines
