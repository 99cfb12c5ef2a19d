"""`runner fetch JOB`: download weights and rows into the caches, so that runs work offline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from runner.cli.fetch_mgm import fetch_mgm
from runner.common import durable, terminal
from runner.common.errors import EXIT_BAD_SPEC, EXIT_REFUSED, RunnerError
from runner.common.output import Output, field, table
from runner.common.units import format_bytes
from runner.engines.load import load_job
from runner.engines.mgm.job import MgmJob
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


def fetch_job(name: str, sets: list[str], *, as_json: bool) -> int:
    """0 where all of it is here, 2 for a wrong job or a file that no one can fetch, 3 where the
    hub, the disk or the content refuses.
    """
    out = Output(as_json=as_json)
    loaded = load_job(name, sets)
    if isinstance(loaded.job, MgmJob):  # has sources of its own, which no hub lists
        return fetch_mgm(loaded, as_json=as_json)
    facts = gather(loaded)
    wanted = needs(loaded, facts)
    absent = [need for need in wanted if need.wanted is not None and not need.source.present]
    asked = [need.wanted for need in absent if need.wanted is not None]
    came: list[dict[str, Any]] = []
    if asked:
        refuse_unreachable(asked)
        container = planned_container(loaded.job, facts, online=True)
        came = fetch(asked, quiet=as_json, container=container)
    answers = {need.fields: record for need, record in zip(absent, came, strict=True)}
    now = {need.fields: need.source for need in needs(loaded, gather(loaded))} if came else {}
    items = [
        _item(need, now.get(need.fields, need.source), answers.get(need.fields)) for need in wanted
    ]
    out.result(
        {
            "schema_version": 1,
            "job": loaded.name,
            "ok": all(item["state"] in ("here", "fetched") for item in items),
            "items": items,
        },
        _lines(items),
    )
    return _complain(loaded, wanted, items)


def _item(
    need: Need, source: ModelSource | DataSource, answer: dict[str, Any] | None
) -> dict[str, Any]:
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
    return {
        "fields": list(need.fields),
        "source": need.wanted.text if need.wanted else _own(source),
        "split": need.wanted.split if need.wanted else None,
        "revision": source.revision,
        "state": state,
        "size_bytes": _size(source) if where else None,
        "fetched_bytes": told.get("fetched_bytes", 0),
        "seconds": told.get("seconds"),
        "sha256": told.get("sha256") or _sha256(source),
        "where": str(where) if where else None,
        "error": told.get("error"),
        "hint": told.get("hint"),
        "exit_code": told.get("exit_code"),
    }


def _lines(items: list[dict[str, Any]]) -> list[str]:
    rows = []
    for item in items:
        split = f" ({item['split']})" if item["split"] else ""
        seconds = item["seconds"]
        rows.append(
            [
                ", ".join(item["fields"]),
                f"{item['source']}{split}",
                _short(item["revision"]),
                format_bytes(item["size_bytes"]) if item["size_bytes"] is not None else "-",
                (item["sha256"] or "-")[:12],
                item["state"] if seconds is None else f"{item['state']} in {seconds:.1f} s",
                item["where"] or "-",
            ]
        )
    lines = table(["FIELD", "SOURCE", "REVISION", "SIZE", "SHA256", "STATE", "WHERE"], rows)
    fetched = [item for item in items if item["state"] == "fetched"]
    good = sum(item["state"] in ("here", "fetched") for item in items)
    if good < len(items):
        lines.append(f"{good} of {len(items)} are here")
    elif fetched:
        came = sum(item["fetched_bytes"] for item in fetched)
        lines.append(field("all here", f"{format_bytes(came)} came over the network"))
    else:
        lines.append("all here")
    return lines


def _complain(loaded: LoadedJob, wanted: list[Need], items: list[dict[str, Any]]) -> int:
    """Say on stderr what is not here and why; the exit code."""
    code = 0
    for need, item in zip(wanted, items, strict=True):
        if item["state"] == "failed":
            error = RunnerError(item["error"], item["hint"])
            code = code or int(item["exit_code"] or EXIT_REFUSED)
        elif item["state"] == "absent" and isinstance(need.source, DataSource):
            own = said_by(loaded, need.fields[0])
            where = loaded.sources.get(own, str(loaded.path))
            error = missing_data(need.source, str(need.source.path), field=own, where=where)
            code = EXIT_BAD_SPEC
        else:
            continue
        terminal.say("\n".join(error.lines()))
    return code


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


def _short(revision: str | None) -> str:
    """A commit in seven letters; other revisions whole."""
    if revision is None:
        return "-"
    return revision[:7] if re.fullmatch(r"[0-9a-f]{40}", revision) else revision
