"""Which earlier run of a plan a `runner train` goes on with, if any. Imports no torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner import checkpoints, terminal
from runner.cli.output import Output, field
from runner.errors import RefusedError, RunnerError
from runner.folder import RunFolder, runs_of
from runner.outcome import Reason
from runner.plan_base import PlanBase
from runner.plan_mgm import MgmPlan
from runner.recorded import newer_records
from runner.render import read_any_plan
from runner.state import state_of

Choice = Literal["resume", "fresh"]


@dataclass(frozen=True)
class Earlier:
    """The latest run of one plan, and what is left of it."""

    folder: RunFolder
    state: str
    """queued, running, by_hand, not_started, or the reason of its end."""
    kept: str | None
    """What can be gone on from: its newest whole checkpoint, or the stages that are done."""
    newer: str | None = None
    """That a newer runner wrote its records, which this one does not touch."""


def latest_of(plan: PlanBase, root: Path) -> Earlier | None:
    """The newest run under `root` of this job and this very plan, smokes left out."""
    for folder in reversed(runs_of(root, plan.job, plan.short_hash)):
        try:
            found = read_any_plan(folder.plan)
        except RunnerError:
            continue  # an edited or older plan is another plan
        if plan.hash not in (found.hash, getattr(found, "recovered_from", None)):
            continue
        newer = newer_records(folder)
        return Earlier(folder, state_of(folder), _kept(folder, found), newer)
    return None


def _kept(folder: RunFolder, plan: PlanBase) -> str | None:
    if isinstance(plan, MgmPlan):
        done = sorted(path.stem for path in folder.stages.glob("*.json"))
        return f"its stages that are done ({', '.join(done)})" if done else None
    checkpoint, _ = checkpoints.newest_whole(folder.checkpoints)
    return checkpoint.name if checkpoint else None


def choose(plan: PlanBase, root: Path, wanted: Choice | None, out: Output) -> RunFolder | None:
    """The run to go on with, or None for a new one; says which and why.

    Raises:
        RefusedError: that plan trains at this moment, or `wanted` is "resume" and there is nothing
            to go on from.
    """
    if wanted == "fresh":
        return None
    earlier = latest_of(plan, root)
    if earlier is None:
        if wanted == "resume":
            raise RefusedError(
                f"there is no run of this plan ({plan.short_hash}) under {root} to go on with",
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
                f"{name} is a newer runner's: {earlier.newer}", "the runner that wrote it goes on"
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
                f"{name} ({earlier.state}) left no whole checkpoint to go on from",
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
                "run (--resume goes on from its checkpoint all the same)",
            )
        )
        return None
    if wanted is None and sys.stdin.isatty() and sys.stderr.isatty() and not _agreed(where):
        return None
    out.say(field("resuming", f"{where}; --fresh would start anew"))
    return earlier.folder


def _agreed(where: str) -> bool:
    terminal.say(f"Go on with {where}? [Y/n] ", end="")
    answer = sys.stdin.readline()
    if not answer:  # the terminal went away: nothing is decided for its user
        raise RefusedError("no answer", "--resume or --fresh says it beforehand")
    return answer.strip().lower() in ("", "y", "yes")
