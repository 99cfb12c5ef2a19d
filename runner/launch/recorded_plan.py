"""The plan of a RUN for a command that asks its result: chat, evaluate, merge. Imports no torch."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runner.common.caches import cache_folder
from runner.common.errors import UsageError
from runner.common.output import Output, field
from runner.containers.cli import require_cli
from runner.engines.mounts import plan_mounts
from runner.engines.recorded_plan import take_plan
from runner.engines.registry import engine_of
from runner.engines.render import read_any_plan
from runner.engines.sft.plan import SftPlan
from runner.plans.base import PlannedMount
from runner.plans.plan_file import plan_yaml
from runner.report.run import require_plan
from runner.runs.folder import RunFolder
from runner.runs.origin import origin_of


def plan_to_ask(folder: RunFolder, out: Output, *, trust_code: bool) -> SftPlan:
    """The plan by which a run's model is loaded, with all left off that is not to be taken; said.

    Raises RefusedError where it ran in a container and there is no docker; RunnerError where it
    can't be read.
    """
    require_native(folder)
    recorded, origin = require_plan(folder), origin_of(folder.path)
    program = None if recorded.container is None else require_cli().program
    taken = take_plan(
        recorded, origin, program=program, python=sys.executable, code=trust_code, whole=False
    )
    for line in taken.left_off:
        out.say(field("LEFT OFF", f"{folder.name} {origin.why}: {line}"))
    native: SftPlan | None = engine_of(taken.plan).surveyed(taken.plan)
    assert native is not None  # noqa: S101 - looked at above
    return native


def require_native(folder: RunFolder) -> None:
    """Refuse a run of another engine by what it left: its model is not loaded here.

    Raises UsageError; RunnerError where the plan can't be read.
    """
    plan = read_any_plan(folder.plan)
    if (why := engine_of(plan).explain_no_model(plan, folder)) is not None:
        raise UsageError(*why)


def result_mounts(plan: SftPlan, folder: RunFolder) -> list[PlannedMount]:
    """What a container sees that a run's result is asked in; the run's folder to read only."""
    cache = cache_folder()
    return plan_mounts(plan, folder.path, cache, run_writable=False, own_mounts=False)


def mount_of(path: Path) -> PlannedMount:
    """A file or folder, to be read at the same path."""
    return PlannedMount(source=str(path), target=str(path))


@contextlib.contextmanager
def plan_file(plan: SftPlan) -> Iterator[Path]:
    """A file that holds the plan, for a process that is handed it."""
    with tempfile.TemporaryDirectory(prefix="runner-plan-") as name:
        path = Path(name) / "plan.yaml"
        path.write_text(plan_yaml(plan), encoding="utf-8")
        yield path
