"""Run the MGM toolkit's preflight checks before anything is started. Imports no torch.

The same functions as in the run: by the toolkit's own interpreter where it is on this machine, else
(it is in an image) by this one, which can't look for the toolkit's packages.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.common.errors import Problem, RefusedError, SpecError
from runner.common.output import field as labelled
from runner.engines.mgm.resolve import IMAGE_TOOLKIT
from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.mgm.stages import preflight
from runner.jobs.load import LoadedJob
from runner.runs.find import default_root

_OF_THE_MACHINE = ("python", "disk", "host memory", "budget.host_memory")
_SCRIPT = Path(preflight.__file__)


@dataclass(frozen=True)
class Looked:
    """What preflight says of a plan: fields as in preflight.Report."""

    findings: Sequence[tuple[str, str, str]] = ()
    """Field, value and what is expected."""
    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()
    steps: dict[str, int] = field(default_factory=dict)

    def to_record(self) -> dict[str, object]:
        """JSON-ready."""
        return {"looked_at": list(self.lines), "steps": self.steps}


def require_preflight(
    loaded: LoadedJob,
    plan: MgmPlan,
    say: Callable[[str], None],
    *,
    images: bool,
    runs: Path | None = None,
) -> Looked:
    """Refuse before the start what the run's first stage would; else what it looked at.

    Args:
        say: is told of progress.
        images: whether they are looked for and opened too, which takes a while.
        runs: where the run's folder would be made.

    Raises:
        SpecError: the job, its rows or images are not as they have to be.
        RefusedError: this machine, or the memory that the run may take, won't do; or the toolkit's
            interpreter can't be asked.
    """
    looked = _look(plan, _existing(runs or default_root()), say, images=images)
    own = [each for each in looked.findings if each[0] not in _OF_THE_MACHINE]
    if own:
        raise SpecError(
            [
                Problem(
                    loaded.sources.get(name, str(loaded.path)),
                    name,
                    "is not as the toolkit needs it",
                    value.rstrip(","),
                    expected,
                )
                for name, value, expected in own
            ]
        )
    if looked.findings:
        told = "; ".join(
            f"{name}: {value} where {expected} is expected"
            for name, value, expected in looked.findings
        )
        raise RefusedError(f"{loaded.name} can't run: {told}", _way_out(looked))
    return looked


def _way_out(looked: Looked) -> str:
    field = looked.findings[0][0]
    return {
        "python": "--set python=PATH names the one of an environment with the toolkit's pins; or "
        "runner image build mgm and --on docker",
        "disk": "give another place with --runs DIR",
        "budget.host_memory": "--set budget.host_memory=SIZE gives it more",
    }.get(field, "other processes of this machine hold the rest")


def _look(plan: MgmPlan, run: Path, say: Callable[[str], None], *, images: bool) -> Looked:
    budget = plan.budget.limit_bytes if plan.budget.kind == "host" else None
    if plan.container is None:
        return _ask(plan, run, say, budget, images=images)
    open_them = images and importlib.util.find_spec("PIL") is not None
    report = preflight.check(
        plan.mgm.model_dump(mode="json"),
        run,
        host_budget=budget,
        images=open_them,
        toolkit=plan.mgm.toolkit != IMAGE_TOOLKIT,
    )
    lines = [*report.lines, "packages: left to the run's own preflight, in its image"]
    if images and not open_them:
        lines.append("images: left to the run's own preflight (there is no pillow here)")
    findings = [(each.field, str(each.value), each.expected) for each in report.findings]
    return Looked(findings, lines, report.warnings, report.steps)


def _ask(
    plan: MgmPlan,
    run: Path,
    say: Callable[[str], None],
    budget: int | None,
    *,
    images: bool,
) -> Looked:
    """The answer of the toolkit's interpreter. Raises RefusedError where there is none."""
    python = shutil.which(plan.python) or plan.python
    with tempfile.TemporaryDirectory(prefix="runner-preflight-") as name:
        given, answer = Path(name, "plan.json"), Path(name, "answer.json")
        given.write_text(plan.mgm.model_dump_json(), encoding="utf-8")
        command = [python, str(_SCRIPT), "--plan", str(given), "--run", str(run), "--json"]
        command += [] if images else ["--no-images"]
        command += [] if budget is None else ["--host-budget", str(budget)]
        said = ""
        with answer.open("w", encoding="utf-8") as stream:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    env=_environment(plan.mgm.toolkit),
                )
            except OSError as error:
                raise RefusedError(f"the toolkit's interpreter {python}: {error}") from None
            with process:
                for line in process.stderr or ():
                    said = line.strip() or said
                    if "images opened" in line:
                        say(labelled("looking", line.strip().removeprefix("preflight: ")))
        try:
            record = json.loads(answer.read_text("utf-8"))
            findings = [tuple(map(str, each)) for each in record["findings"]]
        except (ValueError, KeyError, TypeError):
            raise RefusedError(
                f"the toolkit's interpreter {python} ended with {process.returncode}: {said}",
                "it has to be Python 3.10 or newer, with the toolkit's pins",
            ) from None
    return Looked(findings, record["lines"], record["warnings"], record["steps"])  # type: ignore[arg-type]


def _environment(toolkit: str) -> dict[str, str]:
    """As launch.sh sets it; nothing is left beside the script."""
    own = {"PYTHONPATH": toolkit, "PYTHONSAFEPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **own, "PYTHONIOENCODING": "utf-8"}


def _existing(folder: Path) -> Path:
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    return place
