"""The leases of this machine: small files, each of which counts while its writer holds its lock.

Imports the standard library and runner.errors, liveness. The kernel drops a lock (flock) with its
process, kill -9 included, so that nothing has to be tidied up for a card to be free. Other users
write here too: files are opened without following links or waiting, belong to whom the kernel says,
and what they say is not trusted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from runner.errors import RefusedError
from runner.leases.records import Claim
from runner.liveness import host_pid

FOLDER_VARIABLE = "RUNNER_LEASES"
MUTEX_SECONDS = 20.0
_POLL_SECONDS = 0.02
_LARGEST_BYTES = 64 * 1024
_LONGEST_TEXT = 200
_MODE = 0o1777  # anybody adds files, and removes only his own


def leases_folder() -> Path:
    """Where the leases of this machine are: $RUNNER_LEASES, else the same for all of its users.

    Not below /dev/shm where that can be helped: logind empties it of what belongs to a user who
    logs out (RemoveIPC).
    """
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).absolute()
    for parent in (Path("/run/lock"), Path("/dev/shm")):  # noqa: S108 - opened with care below
        with contextlib.suppress(OSError):
            if parent.stat().st_mode & _MODE == _MODE:
                return parent / "runner-leases"
    return Path("/tmp/runner-leases")  # noqa: S108


class Entry:
    """A claim of this process, written down; it counts until it is dropped or the process ends."""

    def __init__(self, claim: Claim, path: Path, descriptor: int) -> None:
        self.claim, self.path, self._descriptor = claim, path, descriptor

    @property
    def there(self) -> bool:
        """Whether others still see it: whoever owns the folder could have removed it."""
        return os.fstat(self._descriptor).st_nlink > 0

    def drop(self) -> None:
        """Give it up."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


class Book:
    """The claims of all runs on this machine."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or leases_folder()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else looks, decides or writes meanwhile.

        Raises RefusedError where the folder can't be used, or stays locked.
        """
        deadline = time.monotonic() + MUTEX_SECONDS
        while True:
            descriptor = self._open_folder()
            try:
                if _lock(descriptor, fcntl.LOCK_EX) and self._is_still(descriptor):
                    yield
                    return
            finally:
                os.close(descriptor)
            if time.monotonic() > deadline:
                raise RefusedError(
                    f"{self.folder} stays locked by another process, so that no card can be taken",
                    f"fuser {self.folder} names it; a supervisor hung in the driver does this",
                )
            time.sleep(_POLL_SECONDS)

    def claims(self, *, tidy: bool = False) -> list[Claim]:
        """Those that count, in the order of arrival.

        Args:
            tidy: remove what is left of the dead, where this user may. Only within `alone`.
        """
        found: dict[tuple[int, int, str], Claim] = {}
        with contextlib.suppress(OSError):
            for path in sorted(self.folder.iterdir()):
                if path.suffix == ".json" or (tidy and path.suffix == ".new"):
                    claim = _read(path, tidy=tidy)
                    # while a claim is written anew there are two of it for an instant
                    key = None if claim is None else (claim.number, claim.pid, claim.user)
                    if claim is not None and key and not (key in found and claim.waits):
                        found[key] = claim
        return sorted(found.values(), key=lambda claim: claim.number)

    def write(self, claim: Claim) -> Entry:
        """Write a claim down. Only within `alone`.

        Raises RefusedError where the folder can't be written.
        """
        name = f"{claim.number:08d}-{claim.pid}-{secrets.token_hex(4)}"
        path, new = self.folder / f"{name}.json", self.folder / f".{name}.new"
        record = {"schema_version": 1, **asdict(claim)}
        descriptor = -1
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(new, flags, 0o644)
            os.fchmod(descriptor, 0o644)  # whatever the umask: all users read it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, json.dumps(record).encode() + b"\n")
            new.rename(path)  # the lock goes along: it is never seen unlocked
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            with contextlib.suppress(OSError):
                new.unlink()
            raise self._unusable(error) from None
        return Entry(claim, path, descriptor)

    def _is_still(self, descriptor: int) -> bool:
        """Whether the folder that was locked is the one that others would lock now."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(descriptor), os.lstat(self.folder))
        return False

    def _open_folder(self) -> int:
        """The folder, made where it is not there, and found to be safe."""
        try:
            before = os.umask(0)
            try:
                self.folder.mkdir(mode=_MODE)  # at once with its mode: another user may come next
            except FileExistsError:
                pass
            finally:
                os.umask(before)
            descriptor = os.open(
                self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError as error:
            raise self._unusable(error) from None
        mode = os.fstat(descriptor).st_mode
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            os.close(descriptor)
            raise RefusedError(
                f"{self.folder} has mode {stat.S_IMODE(mode):04o}: anybody could remove the leases "
                "of others",
                f"chmod 1777 {self.folder}; or {FOLDER_VARIABLE} names another folder",
            )
        return descriptor

    def _unusable(self, error: OSError) -> RefusedError:
        reason = error.strerror or str(error)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            reason = "it is not a folder of its own"
        return RefusedError(
            f"no card can be taken, for {self.folder}, where runs say which they have, can't be "
            f"used: {reason}",
            f"make it with mode 1777; or {FOLDER_VARIABLE} names another folder, the same for all",
        )


def _read(path: Path, *, tidy: bool) -> Claim | None:
    """The claim of a file, if it still counts."""
    content = read_small(path)
    if content is None:
        return None
    text, owner, locked = content
    claim = None
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        claim = _claim_of(json.loads(text), owner)
    if locked:
        return claim if path.suffix == ".json" else None
    orphans = () if claim is None or claim.waits else _orphans(claim.folder)
    if claim is not None and orphans:
        return replace(claim, orphans=orphans)
    if tidy:
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_small(path: Path) -> tuple[bytes, int, bool] | None:
    """Content, owner's uid, and whether somebody holds its lock, of a file that anybody made.

    None where it is gone or no plain small file; never follows a link, never waits.
    """
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        descriptor = os.open(path, flags)
    except OSError:
        return None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST_BYTES:
            return None
        locked = not _lock(descriptor, fcntl.LOCK_SH)
        return os.read(descriptor, _LARGEST_BYTES), about.st_uid, locked
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _claim_of(record: Any, owner: int) -> Claim:
    """A claim from its file. Raises ValueError, TypeError or KeyError where it is none."""
    known = {field.name for field in fields(Claim)}
    values = {name: value for name, value in record.items() if name in known}
    for name in ("number", "pid", "start_ticks", "count"):
        if type(values[name]) is not int or values[name] < 0:
            raise ValueError(name)
    budget = values["budget_bytes"]
    if budget is not None and (type(budget) is not int or budget <= 0):
        raise ValueError("budget_bytes")
    for name in ("cards", "allowed"):
        if values[name] is not None:
            values[name] = tuple(str(uuid) for uuid in list(values[name]))
    values["run"], values["folder"] = _plain(values["run"]), str(values["folder"])
    if "\0" in values["folder"]:
        raise ValueError("folder")
    values["share"] = values["share"] is True
    values["since_unix_seconds"] = float(values["since_unix_seconds"])
    return Claim(**{**values, "user": user_name(owner), "orphans": ()})


def _plain(text: object) -> str:
    """Somebody else's text, fit for a terminal."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return shown if len(shown) <= _LONGEST_TEXT else shown[: _LONGEST_TEXT - 1] + "…"


def user_name(uid: int) -> str:
    """The user's name, or uid 1234 where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _orphans(folder: str) -> tuple[int, ...]:
    """pids that still train in a run folder whose supervisor is gone, loading weights maybe."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted((Path(folder) / "engine").glob("rank-*.json"))[:64]:
            content = read_small(path)
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                pid = None if content is None else host_pid(json.loads(content[0]))
                if pid is not None:
                    found.append(pid)
    return tuple(found)
