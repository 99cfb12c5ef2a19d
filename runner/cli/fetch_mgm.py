"""`runner fetch` of a job on the MGM toolkit: download toolkit, weights, rows and images, and
verify each. A process of its own downloads (runner.engines.mgm.fetch.__main__); this module
finds what is missing and prints the result.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.common import terminal
from runner.common.caches import cache_folder
from runner.common.errors import (
    EXIT_BAD_SPEC,
    EXIT_REFUSED,
    Problem,
    RefusedError,
    RunnerError,
    SpecError,
)
from runner.common.output import Output, field, table
from runner.common.own_python import module_argv, safe_environment
from runner.common.units import format_bytes
from runner.engines.mgm.fetch.address import address, of_kind, shown
from runner.engines.mgm.fetch.record import base_folder, belongs, images_to_check, read_record
from runner.engines.mgm.resolve import mgm_job, placed
from runner.engines.mgm.sources import SOURCES, MgmSource
from runner.jobs.load import LoadedJob
from runner.plans.sources import offline_switch

_INFER = ("infer.textvqa_questions", "infer.textvqa_images", "infer.mmbench")


@dataclass(frozen=True)
class MgmNeed:
    """One source that a job names, and where the job looks for it."""

    source: MgmSource
    fields: tuple[str, ...]
    paths: tuple[Path, ...]
    """Of `fields`, absolute, whether they are there or not."""
    ours: bool
    """They are where a fetch puts them; otherwise they are the user's own."""
    record: dict[str, Any] | None
    """What a fetch left beside it, where all of it is here."""

    @property
    def here(self) -> bool:
        """All of it is here; the user's own by its name alone."""
        if self.ours:
            return self.record is not None
        return all(path.exists() for path in self.paths)


def fetch_mgm(loaded: LoadedJob, *, as_json: bool) -> int:
    """0 where all of it is here, 2 where the job names a path that no one can fetch, 3 where a
    server, the disk or the content refuses. What is optional and can't be had is told, and is no
    error.
    """
    out = Output(as_json=as_json)
    base = base_folder(cache_folder())
    wanted = needs(loaded, base)
    away = [need for need in wanted if need.ours and not need.here]
    # images that are here are asked for too where they and their rows were not held together
    unchecked = {archive.name for archive, *_ in images_to_check(SOURCES, base)}
    come = [need.source for need in away]
    unchecked |= {a.name for a in SOURCES if any(belongs(rows, a) for rows in come)}
    asked = [n for n in wanted if n.ours and (n in away or n.source.name in unchecked)]
    answers: dict[str, dict[str, Any]] = {}
    if away:
        answers = _unreachable(away)
    names = [need.source.name for need in asked if need.source.name not in answers]
    if names:
        answers |= dict(zip(names, _fetch(names, base, quiet=as_json), strict=True))
    items = [_item(need, answers.get(need.source.name), base) for need in wanted]
    out.result(
        {
            "schema_version": 1,
            "job": loaded.name,
            "ok": all(item["state"] in ("here", "fetched") or _optional(item) for item in items),
            "items": items,
        },
        _lines(items),
    )
    return _complain(loaded, wanted, items)


def needs(loaded: LoadedJob, base: Path) -> list[MgmNeed]:
    """Every source that the job's fields name, in the table's order."""
    job = mgm_job(loaded)
    settings = placed(job, loaded, base.parent).model_dump()
    found = []
    for source in SOURCES:
        named = {name: settings_path(settings, name) for name in _fields(source)}
        paths = {name: path for name, path in named.items() if path is not None}
        if not paths:  # the job does without
            continue
        target = base / source.target
        whole = source.field != "infer"
        ours = all(p == target or (not whole and target in p.parents) for p in paths.values())
        record = read_record(source, base) if ours else None
        found.append(MgmNeed(source, tuple(paths), tuple(paths.values()), ours, record))
    return found


def settings_path(settings: dict[str, Any], name: str) -> Path | None:
    """The path in a field, or what an empty one means: images lie where their rows do."""
    block, _, last = name.rpartition(".")
    text = (settings[block] if block else settings)[last]
    if text is None and last == "image_folder":
        rows = settings_path(settings, f"{block}.data_path")
        return rows.parent if rows else None
    return None if text is None else Path(os.path.normpath(Path(text).expanduser()))


def _fields(source: MgmSource) -> tuple[str, ...]:
    if source.field == "infer":
        return _INFER
    return (source.field,) if source.field else ()


def _unreachable(absent: list[MgmNeed]) -> dict[str, dict[str, Any]]:
    """Answers for what can't come, known without a long wait: each host is asked for seconds.

    Raises RefusedError, which names all that is lacking, where the network is forbidden.
    """
    from runner.machine.doctor.hub import HUB_SECONDS, ask_hub
    from runner.machine.doctor.programs import ask_program

    if (switch := offline_switch()) and all(need.source.optional for need in absent):
        away = {"error": f"{switch} forbids the network", "hint": None, "exit_code": EXIT_REFUSED}
        return {need.source.name: away for need in absent}
    if switch:
        names = ", ".join(need.source.name for need in absent)
        raise RefusedError(
            f"not on this machine: {names}; and {switch} forbids the network",
            "unset it; or run runner fetch where there is a network, with RUNNER_CACHE on a disk "
            f"that both see, or copied: it is all in {base_folder(cache_folder())}",
        )
    failures: dict[str, tuple[str, str]] = {}
    kinds = {_host(need.source) for need in absent}
    if "hub" in kinds and (found := ask_hub()).failure:
        told = f"{found.endpoint} can't be reached: {found.text or found.failure}"
        failures["hub"] = (told, "HF_ENDPOINT names a mirror")
    variables = {"data": "MGM_DATA_ENDPOINT", "toolkit": "MGM_REPOSITORY"}
    for kind in sorted(kinds & set(variables)):
        where = of_kind(kind)
        if where is None:  # a repository on this machine or behind ssh: git says it as soon
            continue
        ask = module_argv("runner.engines.mgm.fetch.address", kind)
        answer = ask_program(ask, HUB_SECONDS)
        if answer.timed_out or '"status"' not in answer.out:
            reason = "no answer" if answer.timed_out else _failure_text(answer.out)
            told = f"{shown(where)} can't be reached: {reason}"
            failures[kind] = (told, f"{variables[kind]} names a mirror")
    return {
        need.source.name: {
            "error": f"not on this machine, and {told}",
            "hint": f"{hint}; --set FIELD=PATH takes a copy; runner smoke does without",
            "exit_code": EXIT_REFUSED,
        }
        for need in absent
        if _host(need.source) in failures
        for told, hint in [failures[_host(need.source)]]
    }


def _host(source: MgmSource) -> str:
    return {"git": "toolkit", "hub": "hub"}.get(source.kind, "data")


def _failure_text(told: str) -> str:
    try:
        record = json.loads(told)
        return str(record.get("text") or record["failure"])
    except (ValueError, KeyError, AttributeError):
        return "no answer"


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


def _item(need: MgmNeed, answer: dict[str, Any] | None, base: Path) -> dict[str, Any]:
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
    return {
        "fields": list(need.fields),
        "name": source.name,
        "part": source.part,
        "kind": source.kind,
        "optional": source.optional,
        "source": "your own" if own else shown(address(source)),
        "licence": None if own else source.licence,
        "revision": record.get("revision") or (None if own else source.revision),
        "state": state,
        "size_bytes": record.get("size_bytes"),
        "fetched_bytes": told.get("fetched_bytes", 0),
        "seconds": told.get("seconds"),
        "sha256": record.get("sha256"),
        "rows": record.get("rows"),
        "verified": record.get("verified", []),
        "authenticated": record.get("authenticated") if record else None,
        "where": str(where) if state in ("here", "fetched") or record else None,
        "error": told.get("error"),
        "hint": told.get("hint"),
        "exit_code": told.get("exit_code"),
    }


def _lines(items: list[dict[str, Any]]) -> list[str]:
    rows = []
    for item in items:
        fetched = item["state"] == "fetched"
        optional = item["optional"] and item["state"] == "absent"
        state = f"{item['state']} in {item['seconds']:.1f} s" if fetched else item["state"]
        rows.append(
            [
                item["name"],
                _source(item),
                (item["revision"] or "-")[:7],
                format_bytes(item["size_bytes"]) if item["size_bytes"] is not None else "-",
                (item["sha256"] or "-")[:12],
                "optional, absent" if optional else state,
                item["where"] or "-",
            ]
        )
    lines = table(["WHAT", "SOURCE", "REVISION", "SIZE", "SHA256", "STATE", "WHERE"], rows)
    for item in items:
        if item["verified"]:
            lines.append(field("verified", f"{item['name']}: {'; '.join(item['verified'])}"))
    if plain := [item["name"] for item in items if item["authenticated"] is False]:
        lines.append(
            field(
                "unproven",
                f"{', '.join(plain)}: from a mirror or over plain http, without a hash that their "
                "makers state. The checks above hold; who wrote the files can't be verified",
            )
        )
    if own := [item["name"] for item in items if item["source"] == "your own" and item["where"]]:
        lines.append(field("your own", f"{', '.join(own)}: used as they are, nothing verified"))
    good = sum(item["state"] in ("here", "fetched") for item in items)
    came = sum(item["fetched_bytes"] for item in items)
    if good < len(items):
        lines.append(f"{good} of {len(items)} are here")
    elif came:
        lines.append(field("all here", f"{format_bytes(came)} came over the network"))
    else:
        lines.append("all here")
    return lines


def _source(item: dict[str, Any]) -> str:
    """Short: the host of an address, the hub's id."""
    text = str(item["source"])
    return text.partition("://")[2].partition("/")[0] or text


def _optional(item: dict[str, Any]) -> bool:
    return bool(item["optional"]) and item["state"] == "absent"


def _complain(loaded: LoadedJob, wanted: list[MgmNeed], items: list[dict[str, Any]]) -> int:
    """Say on stderr what is not here and why; the exit code."""
    code = 0
    failed: dict[tuple[str, str | None], list[str]] = {}
    for need, item in zip(wanted, items, strict=True):
        if _optional(item):
            why = item["error"] or "it is not where the job looks for it"
            terminal.say(f"note: {item['name']}, which is optional: {why}")
        elif item["state"] == "failed":
            failed.setdefault((item["error"], item["hint"]), []).append(item["name"])
            code = code or int(item["exit_code"] or EXIT_REFUSED)
        elif item["state"] == "absent":
            terminal.say("\n".join(_not_fetched(loaded, need).lines()))
            code = EXIT_BAD_SPEC
    for (message, hint), names in failed.items():  # one host out of reach is said once
        error = RunnerError(f"{', '.join(names)}: {message}", hint)
        terminal.say("\n".join(error.lines()))
    return code


def _not_fetched(loaded: LoadedJob, need: MgmNeed) -> SpecError:
    name = next(n for n, path in zip(need.fields, need.paths, strict=True) if not path.exists())
    path = need.paths[need.fields.index(name)]
    where = loaded.sources.get(name, str(loaded.path))
    expected = f"a path that is there; or mgm/{need.source.target}, where runner fetch puts it"
    problem = "not on this machine, and not where runner fetch puts things"
    return SpecError([Problem(where, name, problem, str(path), expected)])
