"""Fetch all that a job names into the caches, so that its runs work offline. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.common.errors import EXIT_BAD_SPEC, EXIT_REFUSED, RunnerError
from runner.common.output import Output
from runner.engines.sft.facts import gather, said_by
from runner.engines.sft.needs import needs
from runner.fetch.fetched import weights_sha256
from runner.fetch.files import RemoteFile
from runner.jobs.load import LoadedJob
from runner.launch.fetch import fetch, place
from runner.launch.preflight import refuse_unreachable
from runner.plans.needs import Need
from runner.plans.resolve import planned_container
from runner.plans.sources import MANIFEST, DataSource, ModelSource, missing_data

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Item:
    """One source of a job, and what is here of it. None is what is not known."""

    fields: list[str]
    source: str
    split: str | None
    revision: str | None
    state: str
    """here, fetched, absent (of the user's own) or failed."""
    size_bytes: int | None
    fetched_bytes: int
    """That came over the network this time."""
    seconds: float | None
    sha256: str | None
    where: str | None
    error: str | None
    hint: str | None
    exit_code: int | None

    @property
    def is_here(self) -> bool:
        return self.state in ("here", "fetched")


@dataclass(frozen=True)
class FetchedJob:
    """What a job names, all of it, after a fetch."""

    job: str
    items: list[Item]
    complaints: list[RunnerError]
    """What is not here and why."""
    exit_code: int
    """2 for a file that no one can fetch, 3 where the hub, the disk or the content refuses."""

    @property
    def ok(self) -> bool:
        return all(item.is_here for item in self.items)

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        items = [asdict(item) for item in self.items]
        return {"schema_version": 1, "job": self.job, "ok": self.ok, "items": items}


def fetch_job(loaded: LoadedJob, output: Output) -> FetchedJob:
    """Fetch what a job names and is not here.

    Raises:
        SpecError: the job's model or data can't be what its text says.
        RefusedError: the network is forbidden or out of reach.
        RunnerError: what came is not found where it should lie.
    """
    facts = gather(loaded)
    wanted = needs(loaded, facts)
    absent = [need for need in wanted if need.wanted is not None and not need.source.present]
    asked = [need.wanted for need in absent if need.wanted is not None]
    came: list[dict[str, Any]] = []
    if asked:
        refuse_unreachable(asked)
        container = planned_container(loaded.job, facts, online=True)
        came = fetch(asked, quiet=output.as_json, container=container)
    answers = {need.fields: record for need, record in zip(absent, came, strict=True)}
    now = {need.fields: need.source for need in needs(loaded, gather(loaded))} if came else {}
    items = [
        _item(need, now.get(need.fields, need.source), answers.get(need.fields)) for need in wanted
    ]
    complaints, code = _complaints(loaded, wanted, items)
    return FetchedJob(loaded.name, items, complaints, code)


def _item(need: Need, source: ModelSource | DataSource, answer: dict[str, Any] | None) -> Item:
    """One line of the table, with the record of its fetch where there was one."""
    failed = answer is not None and "error" in answer
    if answer is not None and not failed and not source.present:
        raise RunnerError(
            f"{need.wanted.label if need.wanted else need.fields[0]} came to {answer['place']}, "
            "and is not found there",
            "does something else clear the cache?",
        )
    where = place(source)
    state = "failed" if failed else "fetched" if answer else "here" if source.present else "absent"
    told = answer or {}
    return Item(
        fields=list(need.fields),
        source=need.wanted.text if need.wanted else _own(source),
        split=need.wanted.split if need.wanted else None,
        revision=source.revision,
        state=state,
        size_bytes=_size(source) if where else None,
        fetched_bytes=told.get("fetched_bytes", 0),
        seconds=told.get("seconds"),
        sha256=told.get("sha256") or _sha256(source),
        where=str(where) if where else None,
        error=told.get("error"),
        hint=told.get("hint"),
        exit_code=told.get("exit_code"),
    )


def _complaints(
    loaded: LoadedJob, wanted: list[Need], items: list[Item]
) -> tuple[list[RunnerError], int]:
    """What is not here and why, and the exit code."""
    code, found = 0, []
    for need, item in zip(wanted, items, strict=True):
        if item.state == "failed":
            found.append(RunnerError(str(item.error), item.hint))
            code = code or int(item.exit_code or EXIT_REFUSED)
        elif item.state == "absent" and isinstance(need.source, DataSource):
            own = said_by(loaded, need.fields[0])
            where = loaded.sources.get(own, str(loaded.path))
            found.append(missing_data(need.source, str(need.source.path), field=own, where=where))
            code = EXIT_BAD_SPEC
    return found, code


def _own(source: ModelSource | DataSource) -> str:
    return source.id or "" if isinstance(source, ModelSource) else "a file"


def _size(source: ModelSource | DataSource) -> int | None:
    if isinstance(source, DataSource):
        return source.size_bytes
    files = [path for path in _files(source.folder) if path.is_file()]
    return sum(path.stat().st_size for path in files)


def _sha256(source: ModelSource | DataSource) -> str | None:
    """Of the rows or weights, where it is known without reading them.

    The hub's cache names each large file by its hash; what came from ModelScope has a manifest.
    """
    if isinstance(source, DataSource):
        return source.sha256
    stated: dict[str, str] = {}
    if source.kind == "modelscope" and source.folder is not None:
        manifest = durable.read_json(source.folder / MANIFEST)
        files = manifest.get("files", []) if isinstance(manifest, dict) else []
        stated = {str(file["path"]): str(file["sha256"]) for file in files}
    weights = []
    for path in _files(source.folder):
        if path.suffix == ".safetensors":
            sha256 = stated.get(path.name, path.resolve().name)
            known = sha256 if _SHA256.fullmatch(sha256) else None
            weights.append(RemoteFile(path.name, None, known))
    return weights_sha256(weights)


def _files(folder: Path | None) -> list[Path]:
    return sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []
