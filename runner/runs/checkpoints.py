"""Write and verify checkpoints as whole folders, sealed with a list of sizes and hashes.

Imports the standard library and runner.common.durable: the supervisor verifies without torch. A
checkpoint is written in a staging folder, sealed, and renamed into place; what has no valid seal is
no checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from runner.common import durable, staged_folder

SEAL = "seal.json"
SCHEMA_VERSION = 1
_NAME = re.compile(r"^checkpoint-(\d{1,18})\Z", re.ASCII)
_HOLLOW_BYTES = 1 << 30
"""What is larger is looked at for holes: a file of petabytes is made in an instant."""


def seal(folder: Path, facts: Mapping[str, object] | None = None) -> None:
    """Flush every file of `folder` to disk and write the seal (path -> size, sha256).

    `facts` say what the checkpoint is of (its step, its training, the plan); JSON values.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            durable.fsync_folder(path)
        elif path.is_file() and path != folder / SEAL:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                os.fsync(stream.fileno())
            files[str(path.relative_to(folder))] = {
                "size_bytes": path.stat().st_size,
                "sha256": digest,
            }
    record = {"schema_version": SCHEMA_VERSION, "facts": dict(facts or {}), "files": files}
    durable.write_json(folder / SEAL, record)


def facts_of(folder: Path) -> dict[str, object]:
    """What `seal` was told of a checkpoint; empty where its seal says nothing of it."""
    record = durable.read_json(folder / SEAL)
    facts = record.get("facts") if isinstance(record, dict) else None
    return facts if isinstance(facts, dict) else {}


def publish(staged: Path, final: Path) -> None:
    """Rename a sealed staging folder to its final name; an older one of that name gives way."""
    staged_folder.replace(staged, final, staged.parent / f"{final.name}{staged_folder.REPLACED}")


def damage(folder: Path, *, by_size: bool = False) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where it is as it was sealed.

    With `by_size` nothing is read but names and sizes, for a list that has to be there at once.
    """
    record = durable.read_json(folder / SEAL)
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        return "it has no seal, so its save did not finish"
    for name, facts in record["files"].items():
        if not isinstance(facts, dict) or not {"size_bytes", "sha256"} <= facts.keys():
            return f"its seal says nothing usable of {name}"
        if name.startswith("/") or ".." in name.split("/"):
            return f"its seal names {name}, which is not in it"
        wrong = _damage_of(folder / name, facts, by_size=by_size)
        if wrong is not None:
            return f"{name} {wrong}"
    return None


def _damage_of(path: Path, facts: Mapping[str, object], *, by_size: bool) -> str | None:
    try:
        with durable.open_record(path) as stream:
            status = os.fstat(stream.fileno())
            if status.st_size != facts["size_bytes"]:
                return f"has {status.st_size} bytes, not {facts['size_bytes']}"
            if status.st_size > _HOLLOW_BYTES and status.st_blocks * 512 < status.st_size // 8:
                return "is mostly a hole, which no save leaves"  # and would take hours to read
            if by_size:
                return None
            if hashlib.file_digest(stream, "sha256").hexdigest() != facts["sha256"]:
                return "was changed since it was sealed"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"can't be read: {error.strerror}"
    return None


def delete(folder: Path) -> None:
    """Delete a checkpoint; a kill in between leaves none that is half there.

    It has the name of a staging folder first, which the next start of the run clears.
    """
    doomed = folder.parent / f".staging-old-{folder.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def name_of(step: int) -> str:
    """The folder name of the checkpoint after `step` optimizer steps of the run."""
    return f"checkpoint-{step}"


def step_of(folder: Path) -> int:
    """The optimizer step of a checkpoint folder, from its name."""
    match = _NAME.match(folder.name)
    if not match:
        raise ValueError(f"{folder.name} is not a checkpoint's name")
    return int(match[1])


def listed(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, lowest step first, whole or not."""
    named = (path for path in durable.entries(folder) if _NAME.match(path.name))
    return sorted(filter(durable.is_folder, named), key=step_of)


def surplus(
    folder: Path, keep: int, *, protected: Collection[int] = (), after: int = 0
) -> list[Path]:
    """The checkpoints to delete so that the `keep` newest and the `protected` steps stay.

    Only steps above `after` are counted and named: what an earlier training of the run left
    belongs to that training.
    """
    own = [path for path in listed(folder) if step_of(path) > after]
    return [path for path in own[: max(0, len(own) - keep)] if step_of(path) not in protected]


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was sealed, and a line for each newer damaged one."""
    skipped: list[str] = []
    for path in reversed(listed(folder)):
        wrong = damage(path)
        if wrong is None:
            return path, skipped
        skipped.append(f"{path.name} is passed over: {wrong}")
    return None, skipped
