"""Decide whether a run is this user's own or foreign, by its folder and the seal of its plan.

Imports the standard library, runner.common.durable and runner.common.state_folder. docs/security.md
says who may be hostile and what follows for a foreign run. The seal is HMAC-SHA256 (RFC 2104) over
the bytes of plan.yaml, with a key in the user's state folder: no bundle, no other user and no
container has it, so nothing that any of them wrote is taken for this user's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner.common import durable
from runner.common.state_folder import state_folder

SEAL = "origin.json"
"""Beside plan.yaml."""
SCHEMA_VERSION = 1
PLAN, BUNDLE = "plan.yaml", "bundle.json"
_KEY = "seal.key"
_KEY_BYTES = 32
_DOMAIN = b"runner plan v1\0"
_KEPT = 4
"""Seals in a file: a plan that replaces another is sealed before it is written, so that a kill
between the two leaves a plan that is known."""
_LARGEST_PLAN_BYTES = 4 << 20


class SealError(Exception):
    """The key can't be had, or the seal not be written; the message says why."""


@dataclass(frozen=True)
class Origin:
    """Where a run comes from."""

    kind: Literal["own", "bundle", "user", "unsealed"]
    why: str
    """In words, to follow the run's name: "came in a bundle"."""

    @property
    def is_own(self) -> bool:
        return self.kind == "own"


OWN = Origin("own", "is this user's own")


def origin_of(run: Path) -> Origin:
    """Where the run in the folder `run` comes from. Never raises."""
    try:
        about = run.stat()
    except OSError as error:
        return Origin("unsealed", f"can't be looked at: {error.strerror}")
    if about.st_uid != os.geteuid():
        return Origin("user", "belongs to another user")
    if os.path.lexists(run / BUNDLE):
        return Origin("bundle", "came in a bundle")
    content = _plan_bytes(run / PLAN)
    if content is None or not is_sealed(run, content):
        return Origin(
            "unsealed",
            "carries no seal of this user's: an earlier runner made it, its plan was edited, or it "
            "was copied from elsewhere",
        )
    return OWN


def is_sealed(run: Path, plan: bytes) -> bool:
    """Whether these bytes are a plan that this user's runner put into that folder's seal."""
    record = durable.read_json(run / SEAL)
    seals = record.get("plans") if isinstance(record, dict) else None
    key = _read_key()
    if key is None or not isinstance(seals, list):
        return False
    own = _digest(key, plan)
    return any(isinstance(each, str) and _equal(each, own) for each in seals[-_KEPT:])


def seal(run: Path, plan: bytes) -> None:
    """Say of a plan, before it is written into a folder, that it is this user's own.

    Raises SealError.
    """
    try:
        own = _digest(_make_key(), plan)
        record: object = durable.read_json(run / SEAL)
        earlier = record.get("plans") if isinstance(record, dict) else None
        kept = [each for each in earlier or [] if isinstance(each, str) and each != own]
        durable.write_json(
            run / SEAL,
            {"schema_version": SCHEMA_VERSION, "plans": [*kept[-(_KEPT - 1) :], own]},
        )
    except OSError as error:
        place = state_folder() / _KEY
        raise SealError(
            f"{error.strerror or error} ({error.filename or place}); RUNNER_STATE names a folder "
            "for the key"
        ) from None


def _digest(key: bytes, plan: bytes) -> str:
    return hmac.new(key, _DOMAIN + plan, hashlib.sha256).hexdigest()


def _equal(one: str, other: str) -> bool:
    return one.isascii() and hmac.compare_digest(one, other)


def _plan_bytes(path: Path) -> bytes | None:
    """A plan's bytes; None where what lies there is no plain file of at most 4 MiB."""
    try:
        return durable.read_record(path, _LARGEST_PLAN_BYTES)
    except OSError:
        return None


def _read_key() -> bytes | None:
    """This user's key; None where there is none, or others could have written or read it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(
            state_folder() / _KEY, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
        with os.fdopen(descriptor, "rb") as stream:
            about = os.fstat(descriptor)
            private = stat.S_ISREG(about.st_mode) and not about.st_mode & 0o077
            if private and about.st_uid == os.geteuid():
                key = stream.read(_KEY_BYTES + 1)
                return key if len(key) == _KEY_BYTES else None
    return None


def _make_key() -> bytes:
    """This user's key, made at its first use; whole or not there. Raises OSError."""
    key = _read_key()
    if key is not None:
        return key
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{_KEY}.{secrets.token_hex(8)}"
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(secrets.token_bytes(_KEY_BYTES))
        stream.flush()
        os.fsync(stream.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(new, folder / _KEY)  # unlike a rename it replaces nobody's key
        durable.fsync_folder(folder)
    finally:
        new.unlink()
    key = _read_key()
    if key is None:
        problem = "is there and is no key of this user's alone: remove it, and runs made before are"
        raise PermissionError(1, f"{folder / _KEY} {problem} foreign", str(folder / _KEY))
    return key
