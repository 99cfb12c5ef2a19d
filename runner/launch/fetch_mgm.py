"""Fetch what a job on the MGM toolkit names: toolkit, weights, rows and images, each verified.

A process of its own downloads (runner.engines.mgm.fetch.__main__). What is missing, and why a host
can't be reached, is found in `fetch_mgm_needs`.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.common.caches import cache_folder
from runner.common.errors import EXIT_BAD_SPEC, EXIT_REFUSED, Problem, RunnerError, SpecError
from runner.common.output import Output
from runner.common.own_python import module_argv, safe_environment
from runner.engines.mgm.fetch.address import address, shown
from runner.engines.mgm.fetch.record import base_folder, belongs, images_to_check, read_record
from runner.engines.mgm.sources import SOURCES
from runner.jobs.load import LoadedJob
from runner.launch.fetch_mgm_needs import MgmNeed, find_unreachable, needs


@dataclass(frozen=True)
class MgmItem:
    """One source of a job on the toolkit, and what is here of it. None is what is not known."""

    fields: list[str]
    name: str
    part: str
    kind: str
    optional: bool
    source: str
    licence: str | None
    revision: str | None
    state: str
    """here, fetched, absent or failed."""
    size_bytes: int | None
    fetched_bytes: int
    """That came over the network this time."""
    seconds: float | None
    sha256: str | None
    rows: int | None
    verified: list[str]
    """What was held against what, in words."""
    authenticated: bool | None
    where: str | None
    error: str | None
    hint: str | None
    exit_code: int | None

    @property
    def is_here(self) -> bool:
        return self.state in ("here", "fetched")

    @property
    def is_done_without(self) -> bool:
        """Whether it is not here, and need not be."""
        return self.optional and self.state == "absent"


@dataclass(frozen=True)
class FetchedMgm:
    """What a job on the toolkit names, all of it, after a fetch."""

    job: str
    items: list[MgmItem]
    complaints: list[str]
    """What is not here and why, in lines for people."""
    exit_code: int
    """2 where the job names a path that no one can fetch, 3 where a server, the disk or the
    content refuses. What is optional and can't be had is told, and is no error."""

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "schema_version": 1,
            "job": self.job,
            "ok": all(item.is_here or item.is_done_without for item in self.items),
            "items": [asdict(item) for item in self.items],
        }


def fetch_mgm(loaded: LoadedJob, output: Output) -> FetchedMgm:
    """Fetch what a job on the toolkit names and is not here, and verify each.

    Raises:
        RefusedError: the network is forbidden.
        RunnerError: the process ended without having answered, or what came is not found.
    """
    base = base_folder(cache_folder())
    wanted = needs(loaded, base, SOURCES)
    away = [need for need in wanted if need.ours and not need.here]
    # images that are here are asked for too where they and their rows were not held together
    unchecked = {archive.name for archive, *_ in images_to_check(SOURCES, base)}
    come = [need.source for need in away]
    unchecked |= {a.name for a in SOURCES if any(belongs(rows, a) for rows in come)}
    asked = [n for n in wanted if n.ours and (n in away or n.source.name in unchecked)]
    answers: dict[str, dict[str, Any]] = {}
    if away:
        answers = find_unreachable(away)
    names = [need.source.name for need in asked if need.source.name not in answers]
    if names:
        answers |= dict(zip(names, _fetch(names, base, quiet=output.as_json), strict=True))
    items = [_item(need, answers.get(need.source.name), base) for need in wanted]
    complaints, code = _complaints(loaded, wanted, items)
    return FetchedMgm(loaded.name, items, complaints, code)


def _fetch(names: list[str], base: Path, *, quiet: bool) -> list[dict[str, Any]]:
    """Ask the process that fetches; for each name its record, with "error" where it failed.

    On this machine even for jobs in a container: the toolkit's image has an old huggingface_hub.

    Raises:
        RunnerError: the process ended without having answered.
        KeyboardInterrupt: the user stopped it; what came is kept.
    """
    process = subprocess.Popen(
        module_argv("runner.engines.mgm.fetch.__main__"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=safe_environment(to_terminal=True),
    )
    table = [asdict(source) for source in SOURCES]
    asked = {"quiet": quiet, "base": str(base), "wanted": names, "table": table}
    try:
        told, _ = process.communicate(json.dumps(asked))
    except KeyboardInterrupt:
        process.wait()  # it got the same signal
        raise
    if process.returncode == 130:
        raise KeyboardInterrupt
    records = [json.loads(line) for line in told.splitlines()]
    if len(records) < len(names):
        raise RunnerError(
            f"fetching {', '.join(names)} ended with exit code {process.returncode}",
            "what came so far is kept; the same command continues",
        )
    return records


def _item(need: MgmNeed, answer: dict[str, Any] | None, base: Path) -> MgmItem:
    """One line of the table."""
    source = need.source
    told = answer or {}
    record = (read_record(source, base) if need.ours else None) or {}
    if "error" in told:
        state = "absent" if source.optional and not record else "failed"
    elif need.here:
        state = "here"
    elif record:
        state = "fetched"
    elif told:
        raise RunnerError(
            f"{source.name} came, and is not found in {base / source.target}",
            "does something else clear the cache?",
        )
    else:
        state = "absent"
    where = base / source.target if need.ours else need.paths[0]
    own = not need.ours
    return MgmItem(
        fields=list(need.fields),
        name=source.name,
        part=source.part,
        kind=source.kind,
        optional=source.optional,
        source="your own" if own else shown(address(source)),
        licence=None if own else source.licence,
        revision=record.get("revision") or (None if own else source.revision),
        state=state,
        size_bytes=record.get("size_bytes"),
        fetched_bytes=told.get("fetched_bytes", 0),
        seconds=told.get("seconds"),
        sha256=record.get("sha256"),
        rows=record.get("rows"),
        verified=record.get("verified", []),
        authenticated=record.get("authenticated") if record else None,
        where=str(where) if state in ("here", "fetched") or record else None,
        error=told.get("error"),
        hint=told.get("hint"),
        exit_code=told.get("exit_code"),
    )


def _complaints(
    loaded: LoadedJob, wanted: list[MgmNeed], items: list[MgmItem]
) -> tuple[list[str], int]:
    """What is not here and why, in lines, and the exit code."""
    code, told = 0, []
    failed: dict[tuple[str, str | None], list[str]] = {}
    for need, item in zip(wanted, items, strict=True):
        if item.is_done_without:
            why = item.error or "it is not where the job looks for it"
            told.append(f"note: {item.name}, which is optional: {why}")
        elif item.state == "failed":
            failed.setdefault((str(item.error), item.hint), []).append(item.name)
            code = code or int(item.exit_code or EXIT_REFUSED)
        elif item.state == "absent":
            told += _not_fetched(loaded, need).lines()
            code = EXIT_BAD_SPEC
    for (message, hint), names in failed.items():  # one host out of reach is said once
        told += RunnerError(f"{', '.join(names)}: {message}", hint).lines()
    return told, code


def _not_fetched(loaded: LoadedJob, need: MgmNeed) -> SpecError:
    name = next(n for n, path in zip(need.fields, need.paths, strict=True) if not path.exists())
    path = need.paths[need.fields.index(name)]
    where = loaded.sources.get(name, str(loaded.path))
    expected = f"a path that is there; or mgm/{need.source.target}, where runner fetch puts it"
    problem = "not on this machine, and not where runner fetch puts things"
    return SpecError([Problem(where, name, problem, str(path), expected)])
