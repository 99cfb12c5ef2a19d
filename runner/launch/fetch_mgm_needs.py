"""What a job on the MGM toolkit needs from elsewhere: whether it is here, and can be reached."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common.caches import cache_folder
from runner.common.errors import EXIT_REFUSED, RefusedError
from runner.common.own_python import module_argv
from runner.engines.mgm.fetch.address import of_kind, shown
from runner.engines.mgm.fetch.record import base_folder, read_record
from runner.engines.mgm.resolve import mgm_job, placed
from runner.engines.mgm.sources import MgmSource
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


def needs(loaded: LoadedJob, base: Path, sources: Iterable[MgmSource]) -> list[MgmNeed]:
    """Those of `sources` that the job's fields name, in their order."""
    job = mgm_job(loaded)
    settings = placed(job, loaded, base.parent).model_dump()
    found = []
    for source in sources:
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


def find_unreachable(absent: list[MgmNeed]) -> dict[str, dict[str, Any]]:
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
