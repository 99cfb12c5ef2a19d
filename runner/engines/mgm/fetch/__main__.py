"""`python -m runner.engines.mgm.fetch.__main__`.

What a job on the MGM toolkit needs, into runner's cache.

In, on stdin: {"quiet": bool, "base": FOLDER, "wanted": [NAME, ...], "table": [MgmSource, ...]}.
Out: one JSON object a line for each of `wanted`, in its order: the record that lies beside what
came, or {"error", "hint", "exit_code"}. Exit code 0, or that of the first refusal.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from runner.common import durable, terminal
from runner.common.errors import EXIT_INTERRUPTED, RefusedError, RunnerError, bug
from runner.common.tensors_only import load_tensors_only
from runner.engines.mgm.fetch.address import DATA_ENDPOINT, address, shown
from runner.engines.mgm.fetch.place import alone
from runner.engines.mgm.fetch.record import images_to_check, read_record, record_file
from runner.engines.mgm.sources import MgmSource
from runner.fetch.refusals import is_connection_error, refusal, said


def main() -> int:
    """Fetch one after the other; one that can't be had does not keep the others away."""
    load_tensors_only()
    asked = json.load(sys.stdin)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    quiet, base = bool(asked["quiet"]), Path(asked["base"])
    table = tuple(from_record(one) for one in asked["table"])
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries that print must not get between the answers

    def say(line: str) -> None:
        if not quiet:
            terminal.say(line)

    records: dict[str, dict[str, Any]] = {}
    try:
        with alone(base, say):
            for source in table:
                if source.name in asked["wanted"]:
                    records[source.name] = _one(source, table, base, quiet, say)
            for name, more in _held_together(table, base, say).items():
                records.setdefault(name, {}).update(more)
    except KeyboardInterrupt:
        terminal.say("\nstopped; the same command continues where it was")
        return EXIT_INTERRUPTED
    except OSError as error:
        lost = RefusedError(
            f"{base} can't be written to: {said(error)}",
            "look at its rights and room, or name another place in RUNNER_CACHE",
        )
        records = {name: records.get(name) or failure(lost) for name in asked["wanted"]}
    told = [records[name] for name in asked["wanted"]]
    for record in told:
        terminal.put_json(record, stream=answers)
    return next((int(record["exit_code"]) for record in told if "error" in record), 0)


def from_record(record: dict[str, object]) -> MgmSource:
    """A row of the table as it came through JSON."""
    kept: dict[str, Any] = {}
    for field in fields(MgmSource):
        value = record[field.name]
        kept[field.name] = tuple(value) if isinstance(value, list) else value
    return MgmSource(**kept)


def failure(error: RunnerError) -> dict[str, object]:
    """A refusal as the process that asked reads it."""
    return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}


def _one(
    source: MgmSource,
    table: tuple[MgmSource, ...],
    base: Path,
    quiet: bool,
    say: Callable[[str], None],
) -> dict[str, object]:
    began = time.monotonic()
    try:
        record, came = _fetch(source, table, base, quiet, say)
        answer = {**record, "fetched_bytes": came}
    except Exception as error:
        answer = failure(refused(error, source) or bug(error))
    return {**answer, "seconds": round(time.monotonic() - began, 1)}


def _fetch(
    source: MgmSource,
    table: tuple[MgmSource, ...],
    base: Path,
    quiet: bool,
    say: Callable[[str], None],
) -> tuple[dict[str, object], int]:
    if record := read_record(source, base):  # by another process, meanwhile
        return record, 0
    if source.kind == "git":
        from runner.engines.mgm.fetch.git import fetch_git

        return fetch_git(source, base, say=say)
    if source.kind == "hub":
        from runner.engines.mgm.fetch.hub import fetch_hub

        return fetch_hub(source, base, quiet=quiet, say=say)
    if source.kind == "archive":
        from runner.engines.mgm.fetch.archive import fetch_archive

        return fetch_archive(source, table, base, quiet=quiet, say=say)
    from runner.engines.mgm.fetch.rows import fetch_file

    return fetch_file(source, base, quiet=quiet, say=say)


def _held_together(
    table: tuple[MgmSource, ...], base: Path, say: Callable[[str], None]
) -> dict[str, dict[str, object]]:
    """Look for the images that rows name, where both are here; what to add to each answer."""
    from runner.engines.mgm.fetch.rows import missing_images

    answers: dict[str, dict[str, object]] = {}
    for archive, rows, record, other in images_to_check(table, base):
        folder = base / archive.target
        say(f"{archive.name}: looking for those that {rows.name} name")
        try:
            count, missing = missing_images(base / rows.target, folder)
        except (ValueError, RecursionError) as error:
            answers[archive.name] = failure(
                RefusedError(
                    f"{base / rows.target} no longer parses: {str(error)[:200]}",
                    "remove it, and the same command fetches it anew",
                )
            )
            continue
        if missing:
            answers[archive.name] = failure(
                RefusedError(
                    f"{len(missing)} of {count} images that {rows.name} name are not in {folder}: "
                    f"{missing[0]}",
                    f"remove {folder} to fetch it anew; the toolkit would take other, random rows "
                    "in their place without a word",
                )
            )
            continue
        told = f"has all {count} images that {rows.name} name"
        record["images"] = {"rows_sha256": other["sha256"], "count": count}
        verified = [line for line in record["verified"] if not line.startswith("has all ")]
        record["verified"] = [*verified, told]
        durable.write_json(record_file(archive, base), record)
        answers[archive.name] = record
    return answers


def refused(error: BaseException, source: MgmSource) -> RunnerError | None:
    """The refusal for `error` met while fetching `source`; None where it is a defect of ours."""
    if isinstance(error, RunnerError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return RefusedError(
            f"fetching {source.name} needs the package {error.name}", "pip install 'runner[train]'"
        )
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if source.kind == "hub":
        closed = "GatedRepoError" in names or status in (401, 403)
        return licence(source) if source.login and closed else refusal(error, source.where, "hub")
    where = shown(address(source))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RefusedError(
            f"the disk is full: {source.name} can't be stored",
            "make room; what has come so far is kept, and the same command continues",
        )
    ways = f"{DATA_ENDPOINT} names a mirror; --set {source.field}=PATH takes a copy"
    if is_connection_error(error):
        return RefusedError(
            f"{where} could not be reached for {source.name}: {said(error)}",
            f"the same command continues where it stopped; {ways}",
        )
    if status is not None:
        gone = "is not there" if status == 404 else "is refused"
        return RefusedError(f"{source.name} {gone}: HTTP {status} for {where}", ways)
    if isinstance(error, OSError):
        return RefusedError(f"{source.name} can't be stored: {said(error)}", "look at the folder")
    return None


def licence(source: MgmSource) -> RefusedError:
    """The refusal of weights whose licence has to be accepted first."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    has = "the one in use was not let in" if token else "HF_TOKEN is not set"
    return RefusedError(
        f"{source.where} is handed out only to accounts that accepted its licence "
        f"({source.licence})",
        f"log in and accept it at https://huggingface.co/{source.where}, then set HF_TOKEN to a "
        f"token of that account that may read gated repositories ({has}); or --set "
        f"{source.field}=FOLDER takes a copy",
    )


if __name__ == "__main__":
    terminal.guard_streams()
    sys.exit(main())
