"""`runner prune`: remove old checkpoints and runs by rule, after showing them and asking."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from runner.cli.confirm import confirmed
from runner.common import durable
from runner.common.errors import RefusedError, RunnerError, UsageError
from runner.common.output import Output, table
from runner.common.units import format_bytes, parse_age
from runner.engines.sft.inside.train import best
from runner.report.run_table import RunSummary, standing_of
from runner.runs import checkpoints
from runner.runs.delete import disk_bytes, locked_for_removal, remove_checkpoints, remove_run, sweep
from runner.runs.find import all_runs, default_root
from runner.runs.folder import RunFolder
from runner.runs.records import newer_records, read_outcome
from runner.runs.retention import Candidate, Removal, Rules, doomed


def rules_of(
    keep_checkpoints: int | None, older_than: str | None, *, smokes: bool, failed: bool
) -> Rules:
    """The rules as they were typed. Raises UsageError for an age that is none."""
    try:
        seconds = None if older_than is None else parse_age(older_than)
    except ValueError as error:
        raise UsageError(f"--older-than {older_than}: {error}") from None
    return Rules(keep_checkpoints, seconds, smokes, failed)


def prune_runs(rules: Rules, *, yes: bool, dry_run: bool, runs: Path | None, as_json: bool) -> int:
    """0 once it is done (or shown, with `dry_run`), 1 where the answer was no.

    Raises UsageError where no rule was given, or nobody can be asked.
    """
    if rules == Rules():
        raise UsageError(
            "no rule was given, so there is nothing to prune",
            "--keep-checkpoints N, --older-than 30d, --smokes, --failed; --dry-run only shows",
        )
    root, out, now = runs or default_root(), Output(as_json=as_json), time.time()
    found: list[tuple[RunFolder, Removal, int]] = []
    for folder in all_runs(root):
        one = standing_of(folder, now)
        gone = None if one is None else doomed(_candidate(folder, one, now, rules), rules)
        if gone is not None:
            found.append((folder, gone, _frees(folder, gone)))
    total = sum(size for _, _, size in found)
    if not found:
        out.result(_record(found, removed=False), ["nothing here falls under these rules"])
        return 0
    shown = _lines(found, total)
    if dry_run:
        out.result(_record(found, removed=False), shown)
        return 0
    for line in shown:
        out.say(line)
    if not confirmed(f"Remove all of this ({format_bytes(total)}) for good?", yes=yes):
        out.result(_record(found, removed=False), ["nothing was removed"])
        return 1
    done = [entry for entry in found if _remove(entry[0], entry[1], out)]
    sweep(root)
    freed = format_bytes(sum(size for _, _, size in done))
    out.result(_record(done, removed=True), [f"{_counted(done)} removed: {freed} are free again"])
    return 0 if len(done) == len(found) else 1


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
    return sum(disk_bytes(folder.checkpoints / name) for name in _names(gone))


def _names(gone: Removal) -> tuple[str, ...]:
    return tuple(checkpoints.name_of(step) for step in gone.checkpoints or ())


def _remove(folder: RunFolder, gone: Removal, out: Output) -> bool:
    """Whether it was removed; what began to run since it was shown is left alone."""
    try:
        with locked_for_removal(folder):
            if gone.checkpoints is None:
                remove_run(folder)
            else:
                remove_checkpoints(folder, _names(gone))
    except (RefusedError, UsageError, RunnerError) as error:
        for line in error.lines():
            out.say(line)
        return False
    return True


def _lines(found: list[tuple[RunFolder, Removal, int]], total: int) -> list[str]:
    rows = [[gone.run, _what(gone), format_bytes(size), gone.why] for _, gone, size in found]
    return [
        *table(["RUN", "REMOVES", "FREES", "WHY"], rows),
        f"{_counted(found)}, {format_bytes(total)} in all",
    ]


def _what(gone: Removal) -> str:
    if gone.checkpoints is None:
        return "the run"
    first, last = gone.checkpoints[0], gone.checkpoints[-1]
    if first == last:
        return checkpoints.name_of(first)
    return f"{len(gone.checkpoints)} checkpoints, {first} to {last}"


def _counted(found: list[tuple[RunFolder, Removal, int]]) -> str:
    whole = sum(gone.checkpoints is None for _, gone, _ in found)
    saved = sum(len(gone.checkpoints or ()) for _, gone, _ in found)
    parts = [_number(whole, "run"), _number(saved, "checkpoint")]
    return " and ".join(part for part in parts if part) or "nothing"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}" if count else ""


def _record(found: list[tuple[RunFolder, Removal, int]], *, removed: bool) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "removed": removed,
        "freed_bytes": sum(size for _, _, size in found),
        "runs": [
            {
                "run": gone.run,
                "whole": gone.checkpoints is None,
                "checkpoints": list(_names(gone)),
                "bytes": size,
                "why": gone.why,
            }
            for _, gone, size in found
        ],
    }
