"""`runner prune`: remove old checkpoints and runs by rule, after showing them and asking."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from runner.cli.confirm import confirmed
from runner.common.errors import UsageError
from runner.common.output import Output, table
from runner.common.units import format_bytes, parse_age
from runner.launch.prune import Doomed, find_doomed, remove_doomed
from runner.runs.checkpoints import name_of
from runner.runs.find import default_root
from runner.runs.retention import Removal, Rules


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
    root, out = runs or default_root(), Output(as_json=as_json)
    found = find_doomed(root, rules, time.time())
    total = format_bytes(_bytes(found))
    if not found:
        out.result(_record(found, removed=False), ["nothing here falls under these rules"])
        return 0
    shown = [*_table(found), f"{_counted(found)}, {total} in all"]
    if dry_run:
        out.result(_record(found, removed=False), shown)
        return 0
    for line in shown:
        out.say(line)
    if not confirmed(f"Remove all of this ({total}) for good?", yes=yes):
        out.result(_record(found, removed=False), ["nothing was removed"])
        return 1
    done = remove_doomed(root, found, out.say)
    freed = format_bytes(_bytes(done))
    out.result(_record(done, removed=True), [f"{_counted(done)} removed: {freed} are free again"])
    return 0 if len(done) == len(found) else 1


def _table(found: list[Doomed]) -> list[str]:
    rows = [
        [one.removal.run, _what(one.removal), format_bytes(one.frees_bytes), one.removal.why]
        for one in found
    ]
    return table(["RUN", "REMOVES", "FREES", "WHY"], rows)


def _what(gone: Removal) -> str:
    if gone.checkpoints is None:
        return "the run"
    first, last = gone.checkpoints[0], gone.checkpoints[-1]
    if first == last:
        return name_of(first)
    return f"{len(gone.checkpoints)} checkpoints, {first} to {last}"


def _counted(found: list[Doomed]) -> str:
    whole = sum(one.removal.checkpoints is None for one in found)
    saved = sum(len(one.removal.checkpoints or ()) for one in found)
    parts = [_number(whole, "run"), _number(saved, "checkpoint")]
    return " and ".join(part for part in parts if part) or "nothing"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}" if count else ""


def _bytes(found: list[Doomed]) -> int:
    return sum(one.frees_bytes for one in found)


def _record(found: list[Doomed], *, removed: bool) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "removed": removed,
        "freed_bytes": _bytes(found),
        "runs": [one.to_record() for one in found],
    }
