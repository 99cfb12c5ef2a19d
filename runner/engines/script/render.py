"""ScriptPlan -> launch.sh.

Pure; imports jinja2 (by runner.plans.render) and runner.engines.script.plan.

A value reaches the script only quoted; {output} in one becomes the run's own output folder, which
the launch script finds when it runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from runner import __version__
from runner.engines.script.plan import ScriptPlan
from runner.plans.render import templates, title

_PLACEHOLDER = re.compile(r"\{(source|max_steps|inputs\.\d+)\}")


def script_launch(plan: ScriptPlan) -> str:
    """launch.sh of a user's own script."""
    known = {
        "source": str(Path(plan.script.path).parent),
        **{f"inputs.{number}": each.path for number, each in enumerate(plan.inputs)},
    }
    if plan.max_steps is not None:
        known["max_steps"] = str(plan.max_steps)
    program = {"python": [shlex.quote(plan.python)], "bash": ["bash"], "itself": []}[plan.runs_with]
    return (
        templates()
        .get_template("script.sh.j2")
        .render(
            plan=plan,
            version=__version__,
            title=title(plan),
            described=[f"{label:<9} {text}" for label, text in script_lines(plan)],
            program=[*program, shlex.quote(plan.script.path)],
            arguments=[word(text, known) for text in plan.arguments],
            environment={name: word(text, known) for name, text in plan.environment.items()},
            source_folder=known["source"],
        )
    )


def word(text: str, known: Mapping[str, str]) -> str:
    """One word of bash that stands for `text`, its placeholders filled in; unknown ones stay."""
    parts = [  # filled in once: what a path contains is not looked into again
        _PLACEHOLDER.sub(lambda found: known.get(found[1], found[0]), part)
        for part in text.split("{output}")
    ]
    return '"$OUTPUT"'.join(shlex.quote(part) if part else "" for part in parts) or "''"


def script_lines(plan: ScriptPlan) -> list[tuple[str, str]]:
    """Label and text of what is run, for people."""
    sha = (plan.script.sha256 or "")[:12]
    lines = [("script", f"{plan.script.path} (sha256 {sha})")]
    if plan.arguments:
        lines.append(("arguments", " ".join(shlex.quote(text) for text in plan.arguments)))
    for source in plan.inputs:
        known = f"sha256 {source.sha256[:12]}" if source.sha256 else "a folder, known by its path"
        lines.append(("input", f"{source.path} ({known})"))
    return lines
