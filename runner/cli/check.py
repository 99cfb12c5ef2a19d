"""`runner check JOB`: fields, data, masks, model and machine, without training.

The parts that need a tokenizer or torch run in a process of their own.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from runner.cli.output import Output, colour, field
from runner.cli.preflight import fetch_builtin, require_hub, require_training_stack
from runner.errors import RefusedError
from runner.facts import gather, require_data
from runner.jobfile import load_job
from runner.plan import make_plan
from runner.render import budget_line, method_line, model_line, plan_yaml, steps_line

_GREEN, _PLAIN = "\x1b[30;42m", "\x1b[0m"


def check_job(name: str, sets: list[str], *, samples: int, as_json: bool) -> int:
    """0 where the job can be trained here, 2 for a wrong job or data, 3 for a lacking machine."""
    out = Output(as_json=as_json)
    loaded = load_job(name, sets)
    facts = gather(loaded)
    require_data(loaded, facts)
    require_training_stack()
    facts = fetch_builtin(facts, out)
    require_hub(facts)
    plan = make_plan(loaded, facts, "train")
    lines = [
        field("job", f"{loaded.name}: {loaded.path} is valid"),
        field("plan", plan.short_hash),
        field("model", model_line(plan)),
        field("method", method_line(plan)),
        field("training", steps_line(plan)),
        field("memory", budget_line(plan)),
    ]
    lines += [field("SUBSTITUTE", text) for text in plan.substitutions]
    out.say("reading the rows and counting parameters (some seconds)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.yaml"
        path.write_text(plan_yaml(plan), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "runner.engine.audit", str(path), str(samples)],
            capture_output=True,
            text=True,
        )
    try:
        audit = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        tail = [line for line in done.stderr.splitlines() if line.strip()]
        raise RefusedError(
            f"the check could not be made: {tail[-1] if tail else 'no output'}",
            "runner doctor looks at the packages",
        ) from None
    if "error" in audit:
        print("\n".join(audit["error"]), file=sys.stderr)
        if as_json:
            out.result({"ok": False, "job": loaded.name, "exit_code": done.returncode, **audit}, [])
        return done.returncode
    lines += [field("note", text) for text in audit["notes"]]
    for text in audit["lines"]:
        label, _, rest = text.partition(" ")
        lines.append(field(label, rest) if label == "data" else field("", text))
    count = audit["parameters"]
    lines.append(
        field(
            "parameters",
            f"{count['trainable']:,} of {count['total']:,} trainable ({count['percent']:.2f} %)",
        )
    )
    lines.append(field("rows", _histogram(audit["data"]["train"]["lengths"])))
    for sample in audit["data"]["train"]["samples"]:
        lines += ["", *sample_lines(sample)]
    command = ["runner", "train", name, *(part for text in sets for part in ("--set", text))]
    lines += ["", field("ok", f"{shlex.join(command)} would start")]
    out.result(
        {
            "ok": True,
            "job": loaded.name,
            "plan_hash": plan.hash,
            "exit_code": 0,
            "substitutions": plan.substitutions,
            **audit,
        },
        lines,
    )
    return 0


def sample_lines(sample: dict[str, Any]) -> list[str]:
    """A row as the model sees it; what carries loss stands in green, or between ⟦ and ⟧."""
    opening, closing = (_GREEN, _PLAIN) if colour() else ("⟦", "⟧")
    text = "".join(
        f"{opening}{part}{closing}" if trained else part for part, trained in sample["segments"]
    )
    head = (
        f"sample, line {sample['line']}: {sample['supervised']} of {sample['tokens']} tokens "
        f"trained, shown {'in green' if colour() else 'between ⟦ and ⟧'}"
    )
    return [head, *(f"  | {line}" for line in text.rstrip("\n").split("\n"))]


def _histogram(buckets: list[list[int]]) -> str:
    largest = max((rows for _, _, rows in buckets), default=0) or 1
    bars = "▁▂▃▄▅▆▇█"
    shown = [
        f"{low}-{high} {bars[round(rows / largest * 7)]} {rows}" for low, high, rows in buckets
    ]
    return "by length in tokens: " + ", ".join(shown)
