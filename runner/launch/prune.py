"""Find the runs and checkpoints that rules doom, and remove them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.common.errors import RefusedError, RunnerError, UsageError
from runner.engines.sft.inside.train import best
from runner.report.run_table import RunSummary, standing_of
from runner.runs import checkpoints
from runner.runs.delete import disk_bytes, locked_for_removal, remove_checkpoints, remove_run, sweep
from runner.runs.find import all_runs
from runner.runs.folder import RunFolder
from runner.runs.records import newer_records, read_outcome
from runner.runs.retention import Candidate, Removal, Rules, doomed


@dataclass(frozen=True)
class Doomed:
    """A run, or checkpoints of it, that a rule removes."""

    folder: RunFolder
    removal: Removal
    frees_bytes: int

    @property
    def checkpoint_names(self) -> tuple[str, ...]:
        """Lowest step first; none where the whole run goes."""
        return tuple(checkpoints.name_of(step) for step in self.removal.checkpoints or ())

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "run": self.removal.run,
            "whole": self.removal.checkpoints is None,
            "checkpoints": list(self.checkpoint_names),
            "bytes": self.frees_bytes,
            "why": self.removal.why,
        }


def find_doomed(root: Path, rules: Rules, now: float) -> list[Doomed]:
    """What the rules remove of the runs under `root`, as of `now` (unix seconds)."""
    found = []
    for folder in all_runs(root):
        one = standing_of(folder, now)
        gone = None if one is None else doomed(_candidate(folder, one, now, rules), rules)
        if gone is not None:
            found.append(Doomed(folder, gone, _frees(folder, gone)))
    return found


def remove_doomed(
    root: Path, entries: Iterable[Doomed], say: Callable[[str], None]
) -> list[Doomed]:
    """Remove them; those that went. What began to run meanwhile is left alone, and said."""
    done = [entry for entry in entries if _remove(entry, say)]
    sweep(root)
    return done


def _candidate(folder: RunFolder, one: RunSummary, now: float, rules: Rules) -> Candidate:
    end = read_outcome(folder)
    ended = one.last_sign_unix_seconds if end is None else end.get("ended_unix_seconds")
    # a clock that was set back makes it young, and young stays
    age = 0.0 if ended is None else max(0.0, now - ended)
    # what a newer runner wrote, or what can't be read, is not judged by a rule
    over = one.over and not one.living_processes and not one.damaged
    over = over and newer_records(folder) is None
    looks = rules.keep_checkpoints is not None and over
    return Candidate(
        run=one.run,
        state=one.state,
        over=over,
        variant=one.variant,
        age_seconds=age,
        checkpoints=tuple(map(checkpoints.step_of, checkpoints.listed(folder.checkpoints))),
        protected=_protected(folder) if looks else frozenset(),
        goes_on_from=one.goes_on_from,
    )


def _protected(folder: RunFolder) -> frozenset[int]:
    """Steps whose checkpoints stay whatever the rule: the newest whole, the best of each training.

    Where best.json can't be read, or a newer runner sealed one, all stay: which is the best, or
    whole, is not known.
    """
    steps = [checkpoints.step_of(path) for path in checkpoints.listed(folder.checkpoints)]
    if any(_sealed_by_newer(path) for path in checkpoints.listed(folder.checkpoints)):
        return frozenset(steps)
    whole, _ = checkpoints.newest_whole(folder.checkpoints)
    kept = set() if whole is None else {checkpoints.step_of(whole)}
    try:
        evaluations = best.read(folder.best)
    except RunnerError:
        return frozenset(steps)
    for phase in {each.phase for each in evaluations}:
        found = best.best_saved(evaluations, phase, steps)
        kept |= set() if found is None else {found.step}
    return frozenset(kept)


def _sealed_by_newer(path: Path) -> bool:
    seal = durable.read_json(path / checkpoints.SEAL)
    return durable.newer(seal, checkpoints.SCHEMA_VERSION) is not None


def _frees(folder: RunFolder, gone: Removal) -> int:
    if gone.checkpoints is None:
        return disk_bytes(folder.path)
    names = map(checkpoints.name_of, gone.checkpoints)
    return sum(disk_bytes(folder.checkpoints / name) for name in names)


def _remove(entry: Doomed, say: Callable[[str], None]) -> bool:
    """Whether it was removed."""
    folder = entry.folder
    try:
        with locked_for_removal(folder):
            if entry.removal.checkpoints is None:
                remove_run(folder)
            else:
                remove_checkpoints(folder, entry.checkpoint_names)
    except (RefusedError, UsageError, RunnerError) as error:
        for line in error.lines():
            say(line)
        return False
    return True
