"""Read a run's records, whole, damaged in any way, or written by a newer runner.

Imports the standard library, runner.common.durable, and runner.runs' folder, outcome and
record_types.
Nothing here raises: a value of the wrong type counts as missing, and problems are returned as text.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeGuard, cast

from runner.common import durable
from runner.runs.folder import RunFolder
from runner.runs.outcome import SCHEMA_VERSION, Outcome, Reason
from runner.runs.record_types import (
    AdapterRecord,
    FailureRecord,
    MemoryLine,
    OutcomeRecord,
    ResultRecord,
    SourcesRecord,
    StagesRecord,
    StatusRecord,
    SupervisorRecord,
)

Kind = Callable[[object], bool]
_REASON = re.compile(r"[a-z][a-z_]{0,39}")
_LARGEST = 2**63  # what a size, a pid or a count can be
_NOT_ENDS = frozenset(("lost", "gone", "queued", "running", "by_hand", "not_started"))
"""States without an outcome: no outcome says so of itself."""
_LATEST = 253_000_000_000  # unix seconds in the year 9987, which every C library can print


def whole(value: object) -> TypeGuard[int]:
    """A count, a size, a pid."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


def number(value: object) -> TypeGuard[int | float]:
    """A figure that can be computed with."""
    return whole(value) or (
        isinstance(value, float) and math.isfinite(value) and abs(value) < _LARGEST
    )


def moment(value: object) -> TypeGuard[int | float]:
    """Unix seconds."""
    return number(value) and 0 <= value < _LATEST


def text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def flag(value: object) -> TypeGuard[bool]:
    return isinstance(value, bool)


def status(value: object) -> TypeGuard[int]:
    """What a process can exit with."""
    return whole(value) and 0 <= value <= 255


def texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(map(text, value))


def named_texts(value: object) -> TypeGuard[dict[str, str]]:
    """Names to texts."""
    return isinstance(value, dict) and all(map(text, value.values()))


def plain(value: object) -> bool:
    """Names to values that are no objects."""
    return isinstance(value, dict) and all(
        one is None or isinstance(one, str | bool) or number(one) for one in value.values()
    )


def counts(value: object) -> TypeGuard[dict[str, int]]:
    """Names to counts."""
    return isinstance(value, dict) and all(map(whole, value.values()))


def is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def objects(**needed: Kind) -> Kind:
    """A list of objects that have at least these keys; a key may hold null."""

    def fits(value: object) -> bool:
        return isinstance(value, list) and all(
            isinstance(one, dict)
            and all(key in one and (one[key] is None or kind(one[key])) for key, kind in kinds)
            for one in value
        )

    kinds = needed.items()
    return fits


COMMON: Mapping[str, Kind] = {"exit_code": status, "message": text}
"""What of an outcome every runner, however new, is taken at its word for, beside the reason."""
END: Mapping[str, Kind] = {
    **COMMON,
    "budget_bytes": whole,
    "peak_bytes": whole,
    "peak_source": text,
    "peaks": counts,
    "peak_step": counts,
    "predicted_bytes": whole,
    "advice": texts,
    "attempts": objects(
        attempt=whole, reason=text, steps=whole, peak_bytes=whole, checkpoint=text, then=text
    ),
    "enforcement": text,
    "signals": objects(),
    "checkpoint": text,
    "steps": whole,
    "max_steps": whole,
    "first_loss": number,
    "last_loss": number,
    "eval_loss": number,
    "trainings": objects(
        name=text, steps=whole, max_steps=whole, first_loss=number, last_loss=number
    ),
    "result": text,
    "adapter_sha256": text,
    "adapter_bytes": whole,
    "trainer_exit_code": whole,
    "started_unix_seconds": moment,
    "ended_unix_seconds": moment,
    "substitutions": texts,
    "warnings": texts,
    "seconds": number,
}
SUPERVISOR: Mapping[str, Kind] = {
    "schema_version": whole,
    "pid": whole,
    "start_ticks": whole,
    "boot_id": text,
    "started_unix_seconds": moment,
    "resume": flag,
}
STATUS: Mapping[str, Kind] = {
    "pid": whole,
    "start_ticks": whole,
    "boot_id": text,
    "pid_namespace": text,
    "phase": text,
    "planned_steps": whole,
    "handles": texts,
}
RESULT: Mapping[str, Kind] = {
    "completed": flag,
    "steps": whole,
    "max_steps": whole,
    "tokens": whole,
    "eval_loss": number,
}
MEMORY: Mapping[str, Kind] = {
    "time_unix_seconds": moment,
    "own_bytes": whole,
    "attribution": text,
    "devices": objects(index=whole, used_bytes=whole),
}
"""What others than the guard read of a line of memory.jsonl."""
FAILURE: Mapping[str, Kind] = {"kind": text, "message": text, "step": whole, "exit_code": whole}
SOURCES: Mapping[str, Kind] = {
    "job_file": text,
    "job_sha256": text,
    "command": texts,
    "folder": text,
    "secrets": texts,
    "sources": named_texts,
    "reproduces": named_texts,
}
STAGES: Mapping[str, Kind] = {"stage": text, "warnings": texts}
_OF_RESULTS = (
    *("reason", "exit_code", "message", "steps", "max_steps", "first_loss", "last_loss"),
    *("eval_loss", "result", "adapter_sha256", "adapter_bytes", "peak_bytes", "peak_source"),
    *("peaks", "started_unix_seconds", "ended_unix_seconds", "seconds"),
)
"""What a manifest's results say, under the outcome's names."""
_ATTEMPT = objects(
    number=whole, reason=text, steps=whole, checkpoint=text, peak_bytes=whole, changed=is_object
)
ADAPTER: Mapping[str, Kind] = {"folder": text, "sha256": text, "size_bytes": whole}


def valid_fields(record: object, kinds: Mapping[str, Kind]) -> dict[str, object]:
    """Those values of a record that are of their kind; nothing of what is no object."""
    if not isinstance(record, dict):
        return {}
    return {key: record[key] for key, kind in kinds.items() if key in record and kind(record[key])}


def object_at(path: Path) -> dict[str, object]:
    """The object in a file as it is; empty where there is none, or it is damaged."""
    record = durable.read_json(path)
    return record if isinstance(record, dict) else {}


def read_outcome(folder: RunFolder) -> OutcomeRecord | None:
    """The outcome; None where there is none, or it is damaged so that no reason is known.

    Of this runner's own every field is there and of its type. A newer runner's has what is common,
    and its schema_version. Of a run that came in a bundle it is what its manifest says: nothing on
    this machine has seen it end.
    """
    came = durable.is_there(folder.bundle)
    record = _bundled_end(folder) if came else object_at(folder.termination)
    reason = record.get("reason")
    if not _is_reason(reason):
        return None
    if durable.newer(record, SCHEMA_VERSION) is not None:
        head = {"schema_version": record["schema_version"], "reason": reason}
        common = {**head, "exit_code": 1, "message": None, **valid_fields(record, COMMON)}
        return cast(OutcomeRecord, common)
    bare = Outcome(Reason.FAILED, 1, "").to_record()
    return cast(OutcomeRecord, {**bare, "reason": reason, **valid_fields(record, END)})


def _is_reason(value: object) -> TypeGuard[str]:
    return text(value) and _REASON.fullmatch(value) is not None and value not in _NOT_ENDS


def _bundled_end(folder: RunFolder) -> dict[str, object]:
    """An outcome's record from what came in a bundle; empty where its manifest says none.

    The manifest has its own names for some of it, and the rest lies in the records beside.
    """
    manifest = object_at(folder.manifest)
    results, plan = manifest.get("results"), manifest.get("plan")
    if not is_object(results):
        return {}
    end: dict[str, object] = {"schema_version": manifest.get("schema_version")}
    end |= {name: results[name] for name in _OF_RESULTS if name in results}
    if is_object(plan):
        budget = plan.get("budget")
        end["budget_bytes"] = budget.get("limit_bytes") if is_object(budget) else None
        end["substitutions"] = plan.get("substitutions")
    attempts = manifest.get("attempts")
    if isinstance(attempts, list) and _ATTEMPT(attempts):
        end["attempts"] = [
            {**one, "attempt": one["number"], "then": _changes(one["changed"])} for one in attempts
        ]
    end["advice"] = object_at(folder.advice).get("texts")
    return end


def _changes(changed: dict[str, object] | None) -> str:
    """Fields and what became of each, of an attempt that was recovered from."""
    pairs = ((name, value) for name, value in (changed or {}).items() if isinstance(value, list))
    return ", ".join(
        f"{name} {value[0]} → {value[1]}"
        if len(value) == 2 and plain(dict(enumerate(value)))
        else name
        for name, value in pairs
    )


def supervisor_of(folder: RunFolder) -> SupervisorRecord:
    """Who supervises; empty where nobody did, or the record is damaged."""
    return cast(SupervisorRecord, valid_fields(durable.read_json(folder.supervisor), SUPERVISOR))


def status_of(folder: RunFolder, rank: int = 0) -> StatusRecord:
    """What a training process said of itself."""
    return valid_status(durable.read_json(folder.engine_status(rank)))


def valid_status(record: object) -> StatusRecord:
    """What is valid of the record of a training process."""
    return cast(StatusRecord, valid_fields(record, STATUS))


def valid_result(record: object) -> ResultRecord:
    """What is valid of engine/result.json, as far as an outcome goes by it."""
    return cast(ResultRecord, valid_fields(record, RESULT))


def valid_adapter(record: object) -> AdapterRecord:
    """What is valid of the `adapter` in engine/result.json."""
    return cast(AdapterRecord, valid_fields(record, ADAPTER))


def failure_of(folder: RunFolder) -> FailureRecord:
    """Why the engine gave up; empty where it did not, or the record is damaged."""
    return cast(FailureRecord, valid_fields(object_at(folder.engine_failure), FAILURE))


def sources_of(folder: RunFolder) -> SourcesRecord:
    """What is valid of sources.json, which lies where anybody may have edited it."""
    return cast(SourcesRecord, valid_fields(object_at(folder.sources), SOURCES))


def stages_of(folder: RunFolder) -> StagesRecord:
    """What the toolkit's stages say of themselves; empty in a run without stages."""
    return cast(StagesRecord, valid_fields(object_at(folder.engine_stages), STAGES))


def valid_memory_line(record: object) -> MemoryLine:
    """What is valid of a line of memory.jsonl."""
    return cast(MemoryLine, valid_fields(record, MEMORY))


def started(folder: RunFolder) -> bool:
    """Whether a supervisor has taken it over once, be its record damaged by now."""
    return durable.is_there(folder.supervisor)


def record_problems(folder: RunFolder) -> list[str]:
    """What of its supervisor's records can't be read as it should be, in words; [] where all can.

    A run with such an outcome counts as one without: `lost`, or as long as somebody supervises it,
    running.
    """
    found: list[str] = []
    if durable.is_there(folder.bundle):
        return found  # it has none of these; verify says what of a bundle was changed
    for path, kinds in ((folder.termination, END), (folder.supervisor, SUPERVISOR)):
        line = _trouble(path, kinds)
        if line is not None:
            found.append(line)
    return found + [line for path in folder.records() if (line := _odd(path, folder)) is not None]


def _odd(path: Path, folder: RunFolder) -> str | None:
    """That something else stands in a record's or a folder's place, or that it has no end."""
    try:
        status = path.lstat()
    except OSError:
        return None
    name = path.relative_to(folder.path)
    if path.suffix:
        if stat.S_ISLNK(status.st_mode):
            return f"{name} is a link, which is not followed"
        if not stat.S_ISREG(status.st_mode):
            return f"{name} is no regular file: it is not read"
        if path.suffix == ".jsonl" and status.st_size > durable.MAX_JSONL_BYTES:
            read = durable.MAX_JSONL_BYTES >> 20
            return f"{name} is longer than {read} MiB: what comes after is not read"
        return None
    return None if durable.is_folder(path) else f"{name} is no folder: nothing in it is read"


def newer_records(folder: RunFolder) -> str | None:
    """That a newer runner wrote this run's supervisor.json, outcome or manifest, in words."""
    for path in (folder.termination, folder.supervisor, folder.manifest):
        line = durable.newer(durable.read_json(path), SCHEMA_VERSION)
        if line is not None:
            return f"its {path.name} was {line}"
    return None


def _trouble(path: Path, kinds: Mapping[str, Kind]) -> str | None:
    try:
        with durable.open_record(path) as stream:
            size = len(stream.read(1))
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path.name} can't be read: {error.strerror}"
    record = durable.read_json(path)
    if not isinstance(record, dict):
        return f"{path.name} is damaged" if size else f"{path.name} is empty"
    if durable.newer(record, SCHEMA_VERSION) is not None:
        return None  # said elsewhere, as what it is
    wrong = [
        key
        for key, kind in kinds.items()
        if key in record and record[key] is not None and not kind(record[key])
    ]
    if path.name == RunFolder(path.parent).termination.name:
        reason = record.get("reason")
        if not _is_reason(reason):
            wrong.insert(0, "reason")
    return f"{path.name} is damaged: {', '.join(wrong[:5])}" if wrong else None
