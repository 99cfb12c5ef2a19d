"""`runner smoke`: each job for a few steps, end to end, in a folder of its own, then one table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from runner.cli.train import ready_smoke, start_and_follow
from runner.common import durable
from runner.common.errors import EXIT_INTERRUPTED, RunnerError, UsageError
from runner.common.output import Output, field, table
from runner.common.units import format_bytes
from runner.engines.load import load_job
from runner.engines.registry import engine_of
from runner.engines.sft.resolve import SMOKE_DEFAULT_STEPS
from runner.jobs.load import LoadedJob, list_jobs
from runner.launch.calibrate import keep_measurement, predict_smoke
from runner.launch.gpus import preflight
from runner.launch.preflight import place_line


def smoke_jobs(
    names: list[str],
    sets: list[str],
    *,
    max_steps: int | None,
    runs: Path | None,
    wait: bool,
    as_json: bool,
    unsafe: bool = False,
) -> int:
    """0 where every job passed, 1 where one did not, 130 after Ctrl-C; each one is in the table."""
    out = Output(as_json=as_json)
    chosen = names or list(list_jobs())
    if not chosen:
        raise UsageError("there are no jobs here", "runner jobs lists them")
    # a wrong name or field is answered before anything starts
    loaded = [(name, load_job(name, sets)) for name in chosen]
    records: list[dict[str, Any]] = []
    for number, (name, job) in enumerate(loaded, start=1):
        out.say(f"\n[{number}/{len(loaded)}] {job.name}")
        began = time.monotonic()
        try:
            records.append(_smoke(job, max_steps, runs, out, wait=wait, unsafe=unsafe))
        except RunnerError as error:
            for line in error.lines():
                out.say(line)
            records.append(
                {"job": name, "passed": False, "verdict": "refused", "why": error.message}
            )
        records[-1]["seconds"] = round(time.monotonic() - began, 1)
        if records[-1].get("exit_code") == EXIT_INTERRUPTED:
            break
    passed = len(records) == len(loaded) and all(record["passed"] for record in records)
    lines = [
        "",
        *table(
            ["JOB", "SUBSTITUTED", "STEPS", "LOSS", "PEAK", "SECONDS", "VERDICT"],
            [_row(record) for record in records],
        ),
    ]
    for record in records:
        lines += [
            field("SUBSTITUTE", f"{record['job']}: {text}")
            for text in record.get("substitutions") or []
        ]
    left = len(loaded) - len(records)
    good = sum(record["passed"] for record in records)
    lines.append(f"{good} of {len(loaded)} passed" + (f", {left} not run" if left else ""))
    out.result({"schema_version": 1, "passed": passed, "jobs": records}, lines)
    if records and records[-1].get("exit_code") == EXIT_INTERRUPTED:
        return EXIT_INTERRUPTED
    return 0 if passed else 1


def _smoke(
    job: LoadedJob,
    max_steps: int | None,
    runs: Path | None,
    out: Output,
    *,
    wait: bool,
    unsafe: bool,
) -> dict[str, Any]:
    steps = max_steps or SMOKE_DEFAULT_STEPS
    plan, facts, folder = ready_smoke(job, steps, runs, out, wait=wait, unsafe=unsafe)
    out.say(field("place", place_line(plan, facts)))
    for line in plan.substitutions:
        out.say(field("SUBSTITUTE", line))
    out.say(preflight(plan))
    prediction = predict_smoke(plan, facts, folder, out)
    out.say(field("run", str(folder.path)))
    code = start_and_follow(folder, plan, out, wait=wait)
    end = durable.read_json(folder.termination) or {}
    result = durable.read_json(folder.engine_result) or {}
    reached = end.get("steps") == plan.planned_steps
    reloaded = bool((result.get("checks") or {}).get("reload", {}).get("loaded"))
    # of a script of the user's own nothing is known but that it ended well
    proven = (reached and reloaded) or engine_of(plan).is_judged_by_exit_code
    passed = code == 0 and end.get("reason") == "completed" and proven
    why = end.get("message", "there is no verdict") if not passed else ""
    keep_measurement(plan, facts, folder, prediction, end, out)
    if not passed:
        out.say(field("failed", str(why)))
        out.say(field("log", str(folder.train_log)))
    return {
        "job": job.name,
        "run": folder.name,
        "passed": passed,
        "substitutions": list(plan.substitutions),
        "steps": end.get("steps"),
        "first_loss": end.get("first_loss"),
        "last_loss": end.get("last_loss"),
        "trainings": end.get("trainings") or [],
        "eval_loss": end.get("eval_loss"),
        "peak_bytes": end.get("peak_bytes"),
        "peak_source": end.get("peak_source"),
        "predicted_bytes": end.get("predicted_bytes"),
        "verdict": end.get("reason", "lost"),
        "why": why,
        "exit_code": code,
    }


def _row(record: dict[str, Any]) -> list[str]:
    several = record.get("trainings") or [record]
    losses = ", ".join(_from_to(one.get("first_loss"), one.get("last_loss")) for one in several)
    verdict = "passed" if record["passed"] else f"FAILED: {record['verdict']}"
    return [
        record["job"],
        _kinds(record.get("substitutions") or []),
        str(record.get("steps") or 0),
        losses,
        format_bytes(record.get("peak_bytes")),
        f"{record['seconds']:.0f}",
        verdict,
    ]


def _from_to(first: float | None, last: float | None) -> str:
    return "-" if first is None or last is None else f"{first:.3f} → {last:.3f}"


def _kinds(substitutions: list[str]) -> str:
    """The substitutions in a word each, for the table; the lines under it say them whole."""
    if not substitutions:
        return "nothing"
    words = {
        "MGM": "toolkit",
        "smoke:": "batch",
        "questions": "questions",
        "random": "model",
        "budget": "budget",
        "CPU": "GPU",
        "fp32": "precision",
        "unquantized": "quantization",
        "not tried": "settings",
    }
    found = [
        next((word for sign, word in words.items() if sign in text), "data")
        for text in substitutions
    ]
    return ", ".join(dict.fromkeys(found))
