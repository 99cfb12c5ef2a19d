"""Find the earlier run of a plan that `runner train` resumes, if any.

Imports no torch. Only this user's own runs are resumed (docs/security.md), and by this process's
own plan: nothing in a folder is executed, and it decides only where training resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner.common import terminal
from runner.common.errors import RefusedError, RunnerError
from runner.common.output import Output, field
from runner.engines.registry import engine_of
from runner.engines.render import read_any_plan, render
from runner.plans.base import Plan
from runner.runs.delete import locked_for_removal
from runner.runs.find import runs_of
from runner.runs.folder import RunFolder
from runner.runs.origin import Origin, origin_of
from runner.runs.outcome import Reason
from runner.runs.records import newer_records
from runner.runs.state import state_of
from runner.runs.supervisor_process import find_supervisor
from runner.supervisor.rendered import differing

Choice = Literal["resume", "fresh"]


@dataclass(frozen=True)
class Earlier:
    """The latest run of one plan, and what is left of it."""

    folder: RunFolder
    state: str
    """queued, running, by_hand, not_started, or the reason of its end."""
    kept: str | None
    """What can be resumed from: its newest whole checkpoint, or the stages that are done."""
    newer: str | None = None
    """That a newer runner wrote its records, which this one does not touch."""


def latest_of(plan: Plan, root: Path, *, unsealed: bool = False) -> Earlier | None:
    """The newest own run under `root` of this job and this very plan, smokes left out.

    With `unsealed` also one of this user that carries no seal: an earlier runner's, or a copy.
    """
    for folder, found, origin in _runs_of_plan(plan, root):
        if origin.is_own or (unsealed and origin.kind == "unsealed"):
            newer = newer_records(folder)
            return Earlier(folder, state_of(folder), engine_of(found).resume_point(folder), newer)
    return None


def newest_foreign(plan: Plan, root: Path) -> tuple[RunFolder, Origin] | None:
    """The newest run of this plan, where it is not this user's own; None where it is, or none."""
    for folder, _, origin in _runs_of_plan(plan, root):
        return None if origin.is_own else (folder, origin)
    return None


def _runs_of_plan(plan: Plan, root: Path) -> Iterator[tuple[RunFolder, Plan, Origin]]:
    """The runs of this job and this very plan, newest first, each with its recorded plan."""
    for folder in reversed(runs_of(root, plan.job, plan.short_hash)):
        try:
            found = read_any_plan(folder.plan)
        except RunnerError:
            continue  # an edited or older plan is another plan
        if plan.hash in (found.hash, getattr(found, "recovered_from", None)):
            yield folder, found, origin_of(folder.path)


def choose(plan: Plan, root: Path, wanted: Choice | None, out: Output) -> RunFolder | None:
    """The run to resume, or None for a new one; says which and why.

    Raises:
        RefusedError: that plan trains at this moment, or `wanted` is "resume" and there is nothing
            to resume from.
    """
    if wanted == "fresh":
        return None
    foreign = newest_foreign(plan, root)
    if foreign is not None:
        _refuse_living(*foreign)
    earlier = latest_of(plan, root, unsealed=wanted == "resume")
    if foreign is not None and (earlier is None or earlier.folder != foreign[0]):
        out.say(field("earlier", _passed_over(*foreign)))
    if earlier is None:
        if wanted == "resume":
            raise RefusedError(
                f"there is no run of this plan ({plan.short_hash}) under {root} to resume",
                "without --resume a new one is started",
            )
        return None
    name = earlier.folder.name
    if earlier.state in ("running", "queued"):
        doing = "trains" if earlier.state == "running" else "waits for a GPU"
        raise RefusedError(
            f"this plan {doing} at this moment in {name}",
            f"runner attach {name} follows it; --fresh starts another beside it",
        )
    if earlier.newer is not None:
        if wanted == "resume":
            raise RefusedError(
                f"{name} is a newer runner's: {earlier.newer}",
                "resume it with the runner that wrote it",
            )
        out.say(field("earlier", f"{name} stays, {earlier.newer}; this is a new run"))
        return None
    if earlier.state == Reason.COMPLETED:
        if wanted == "resume":
            raise RefusedError(
                f"{name} completed; there is nothing left to train in it",
                f"runner report {name}; --fresh trains anew",
            )
        out.say(field("earlier", f"{name} of the same plan completed and stays; this is a new run"))
        return None
    if earlier.kept is None:
        if wanted == "resume":
            raise RefusedError(
                f"{name} ({earlier.state}) left no whole checkpoint to resume from",
                "without --resume a new run is started",
            )
        out.say(field("earlier", f"{name} ({earlier.state}) left no checkpoint; this is a new run"))
        return None
    where = f"{name} ({earlier.state}) from {earlier.kept}"
    if wanted is None and earlier.state == Reason.NON_FINITE_LOSS:
        out.say(
            field(
                "earlier",
                f"{name} ended by a loss that is not finite, which would come again; this is a new "
                "run (--resume resumes it from its checkpoint all the same)",
            )
        )
        return None
    if wanted is None and sys.stdin.isatty() and sys.stderr.isatty() and not _agreed(where):
        return None
    out.say(field("resuming", f"{where}; --fresh would start anew"))
    return earlier.folder


def _passed_over(folder: RunFolder, origin: Origin) -> str:
    """Why a run that is not this user's own stays as it is, and the way to resume it."""
    if origin.kind == "unsealed" and state_of(folder) == Reason.COMPLETED:
        return f"{folder.name} of the same plan completed and stays; this is a new run"
    ways = "; --resume resumes it all the same" if origin.kind == "unsealed" else ""
    return f"{folder.name} {origin.why}: it is not resumed{ways}"


def _refuse_living(folder: RunFolder, origin: Origin) -> None:
    """Refuse where an earlier runner trains this plan now; its word alone is not taken for it."""
    if origin.kind == "unsealed" and find_supervisor(folder).pid is not None:
        raise RefusedError(
            f"this plan trains at this moment in {folder.name}",
            f"runner attach {folder.name} follows it; --fresh starts another beside it",
        )


def plan_for(plan: Plan, folder: RunFolder) -> Plan:
    """The plan with which a folder is resumed: this process's own.

    Where the run was recovered, with the settings of the last step down, which are the one thing
    taken from the folder: they count only where they make the plan that its seal names.

    Raises RefusedError where they do not.
    """
    found = read_any_plan(folder.plan)
    if found.engine != plan.engine:
        return plan
    own = origin_of(folder.path).is_own
    adopted: Plan | None = engine_of(plan).adopt(plan, found, is_own=own)
    if adopted is not None:
        return adopted
    raise RefusedError(
        f"{folder.name} was recovered by a plan ({found.short_hash}) that does not follow from "
        f"this one ({plan.short_hash})",
        "--fresh trains anew",
    )


def write_plan(plan: Plan, folder: RunFolder, out: Output) -> None:
    """Write the plan into a folder that is resumed, and render its other files again.

    What was edited of the rendered files is kept under earlier/, and said.

    Raises RefusedError where the run is started, removed or another user's meanwhile; RunnerError
    where the disk refuses.
    """
    with locked_for_removal(folder):
        edited = _edited(folder)
        try:
            aside = folder.set_aside(edited)
            folder.write_rendered(render(plan))
        except OSError as error:
            raise RunnerError(
                f"the plan can't be written into {folder.path}: {error.strerror}",
                "the run is as it was but for that",
            ) from None
    if aside is not None:
        names = ", ".join(path.name for path in edited)
        out.say(field("rendered", f"{names} anew; as edited it is kept in {aside}"))


def _edited(folder: RunFolder) -> list[Path]:
    """The rendered files that are not what their plan renders to, the plan itself left out."""
    try:
        expected = render(read_any_plan(folder.plan))
    except RunnerError:
        return []
    changed = [folder.path / name for name in differing(folder, expected)]
    return [path for path in changed if path.parent == folder.path and path != folder.plan]


def _agreed(where: str) -> bool:
    terminal.say(f"Resume {where}? [Y/n] ", end="")
    answer = sys.stdin.readline()
    if not answer:  # the terminal went away: nothing is decided for its user
        raise RefusedError("no answer", "give --resume or --fresh")
    return answer.strip().lower() in ("", "y", "yes")
