"""`runner smoke`: run each job for a few steps from end to end, in a folder of its own, and print a
table.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from runner.common.errors import EXIT_INTERRUPTED, RunnerError, UsageError
from runner.common.output import Output, field, table
from runner.common.units import format_bytes
from runner.jobs.load import list_jobs
from runner.launch.jobs import load_job
from runner.launch.prepare_smokes import prepare_smokes
from runner.launch.smoke import smoke


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
    prepare_smokes([job for _, job in loaded], max_steps, out)
    records: list[dict[str, Any]] = []
    for number, (name, job) in enumerate(loaded, start=1):
        out.say(f"\n[{number}/{len(loaded)}] {job.name}")
        began = time.monotonic()
        try:
            shown = smoke(job, out, max_steps=max_steps, runs=runs, wait=wait, unsafe=unsafe)
            records.append(shown.to_record())
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
            ["JOB", "SUBSTITUTED", "STEPS", "LOSS", "PEAK", "SECONDS", "OUTCOME"],
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
        "warm-up": "warm-up",
    }
    found = [
        next((word for sign, word in words.items() if sign in text), "data")
        for text in substitutions
    ]
    return ", ".join(dict.fromkeys(found))
