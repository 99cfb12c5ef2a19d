"""Choose the runs and checkpoints that a rule of `runner prune` removes.

Pure: values in, values out.
"""

from __future__ import annotations

from dataclasses import dataclass

from runner.common.units import format_age
from runner.runs.outcome import Reason
from runner.runs.state import LIVING, NOT_STARTED

ASKED_FOR = (Reason.COMPLETED, Reason.STOPPED, Reason.TIMEOUT)
"""Ends that somebody wanted. `--failed` means all others."""
YOUNG_SECONDS = 3600.0
"""A folder in which nothing has started may be one that is just being made ready."""


@dataclass(frozen=True)
class Rules:
    """What was asked for; at least one of them."""

    keep_checkpoints: int | None = None
    """In each run, so many of the newest stay (and the newest whole and the best always)."""
    older_than_seconds: float | None = None
    """Narrows the other rules to runs that ended so long ago; alone it removes those runs."""
    smokes: bool = False
    """Smokes and dry runs."""
    failed: bool = False

    @property
    def removes_runs(self) -> bool:
        return self.smokes or self.failed or self.keep_checkpoints is None


@dataclass(frozen=True)
class Candidate:
    """A run as far as the rules ask."""

    run: str
    state: str
    over: bool
    """Nothing of it lives, and its records can be read: a rule may judge it."""
    variant: str
    age_seconds: float
    """Since it ended, or since its last sign; never negative."""
    checkpoints: tuple[int, ...] = ()
    """Steps, lowest first."""
    protected: frozenset[int] = frozenset()
    """The newest whole one and the best of each training."""
    goes_on_from: str | None = None


@dataclass(frozen=True)
class Removal:
    """What goes of one run."""

    run: str
    checkpoints: tuple[int, ...] | None
    """None: the run as a whole."""
    why: str


def doomed(one: Candidate, rules: Rules) -> Removal | None:
    """What the rules remove of a run; None for nothing. A run that lives is never touched."""
    if not one.over or one.state in LIVING:
        return None
    if rules.older_than_seconds is not None and one.age_seconds < rules.older_than_seconds:
        return None
    why = _why_whole(one, rules)
    if why is not None:
        could = f"; could resume from {one.goes_on_from}" if one.goes_on_from else ""
        return Removal(one.run, None, why + could)
    if rules.keep_checkpoints is None:
        return None
    own = one.checkpoints
    surplus = own[: max(0, len(own) - rules.keep_checkpoints)]
    gone = tuple(step for step in surplus if step not in one.protected)
    if not gone:
        return None
    return Removal(one.run, gone, f"{len(own) - len(gone)} of {len(own)} stay")


def _why_whole(one: Candidate, rules: Rules) -> str | None:
    """Why the whole run goes, in a few words; None where it stays."""
    if not rules.removes_runs:
        return None
    if one.state == NOT_STARTED and one.age_seconds < YOUNG_SECONDS:
        return None
    if rules.smokes and one.variant != "train":
        return f"{one.variant.replace('_', ' ')}, {one.state.replace('_', ' ')}"
    if rules.failed and one.state not in (*ASKED_FOR, "by_hand"):
        return one.state.replace("_", " ")
    alone = not (rules.smokes or rules.failed)
    if alone and rules.older_than_seconds is not None:
        return f"{one.state.replace('_', ' ')} {format_age(one.age_seconds)} ago"
    return None
