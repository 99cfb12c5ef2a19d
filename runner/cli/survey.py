"""What a plan comes to, asked of the engine in a process of its own: rows, parameters, disk.

Imports no torch. The rows that the survey prepares are cached for the run that follows.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.cli.output import Output, field
from runner.container.inside import question
from runner.container.mounts import plan_mounts
from runner.errors import EXIT_INTERRUPTED, RefusedError, RunnerError
from runner.plan import Plan
from runner.render import plan_yaml
from runner.sources import cache_folder
from runner.units import format_bytes

_OURS = "runner: "


class SurveyRefused(RunnerError):
    """The engine refused the plan; its own lines say why."""

    def __init__(self, told: list[str], exit_code: int) -> None:
        super().__init__(told[0] if told else "the survey was refused")
        self._told = told
        self._code = exit_code

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return self._code

    def lines(self) -> list[str]:
        return self._told


def survey(plan: Plan, out: Output, samples: int = 0) -> dict[str, Any]:
    """The document of runner.engine.survey for `plan`.

    Raises:
        SurveyRefused: as the engine refused.
        RefusedError: it could not be asked.
    """
    out.say(field("preparing", "the rows, and counting parameters"))
    with tempfile.TemporaryDirectory(prefix="runner-survey-") as folder:
        path = Path(folder) / "plan.yaml"
        path.write_text(plan_yaml(plan), encoding="utf-8")
        asked = question(
            plan.container,
            ["runner.engine.survey", str(path), str(samples)],
            reads=plan_mounts(plan, None, cache_folder()),
            writes=[Path(folder)],
        )
        process = subprocess.Popen(
            asked.argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        others: deque[str] = deque(maxlen=1)
        listener = threading.Thread(target=_listen, args=(process, out, others), daemon=True)
        listener.start()
        try:
            assert process.stdout is not None  # noqa: S101 - a pipe, see above
            printed = process.stdout.read()
            process.wait()
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            asked.abandon()
            sys.exit(EXIT_INTERRUPTED)
        listener.join()
    try:
        record: dict[str, Any] = json.loads(printed.splitlines()[-1])
    except (ValueError, IndexError):
        raise RefusedError(
            f"the plan could not be surveyed: {others[0] if others else 'no output'}",
            "runner doctor looks at the packages",
        ) from None
    if "error" in record:
        raise SurveyRefused(record["error"], process.returncode)
    return record


def _listen(process: subprocess.Popen[str], out: Output, others: deque[str]) -> None:
    """Hand on what the engine says of its progress; of the libraries' chatter the last line."""
    assert process.stderr is not None  # noqa: S101 - a pipe, see above
    for line in process.stderr:
        if line.startswith(_OURS):
            out.say(field("", line.removeprefix(_OURS).rstrip()))
        elif line.strip():
            others.append(line.strip())


def survey_lines(surveyed: Mapping[str, Any]) -> list[str]:
    """Rows, parameters, steps and disk in a few lines, each training's own."""
    out = []
    for part in surveyed["trainings"]:
        place = f"{part['phase']}: " if part["phase"] else ""
        for number, text in enumerate(part["lines"]):
            label, _, rest = text.partition(" ")
            told = rest if label == "data" else text
            out.append(field("data" if number == 0 else "", place + told))
        count = part["parameters"]
        out.append(
            field(
                "parameters",
                f"{place}{count['trainable']:,} of {count['total']:,} trainable "
                f"({count['percent']:.2f} %)",
            )
        )
        out.append(
            field(
                "steps",
                f"{place}{part['steps']} of {part['global_batch']} rows, "
                f"{part['passes']:.2f} passes over {part['rows']:,} rows; "
                f"{part['saves']} checkpoints of about {format_bytes(part['checkpoint_bytes'])}",
            )
        )
    out.append(field("disk", f"about {format_bytes(surveyed['disk_bytes'])} for what is kept"))
    return out


def require_disk(folder: Path, needed_bytes: int, *, what: str) -> None:
    """Refuse before the start where the disk under `folder` has less free than is needed."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise RefusedError(
            f"the disk of {folder} has {format_bytes(free)} free; {what} will take about "
            f"{format_bytes(needed_bytes)}",
            "give another place with --runs DIR, keep fewer (training.save_total_limit), or save "
            "less often (training.save_steps)",
        )
