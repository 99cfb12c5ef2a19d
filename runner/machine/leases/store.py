"""The leases of this machine: small files, each of which counts while its writer holds its lock.

The kernel drops a lock (flock) with its process, kill -9 included, so that nothing has to be tidied
up for a GPU to be free. Other users write here too: files are opened without following links or
waiting, belong to whom the kernel says, and what they say counts only where the kernel agrees.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import heapq
import os
import pwd
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from runner.common import file_systems
from runner.common.errors import RefusedError
from runner.common.locks import try_flock
from runner.common.process_times import boot_id, pid_namespace
from runner.common.processes import real_uid
from runner.machine.leases.kernel import Inner, has_locked, is_process, lock_holders
from runner.machine.leases.lease_file import LARGEST_BYTES, decode_claim, encode_claim, plain
from runner.machine.leases.models import Identity, Lease
from runner.machine.leases.run_files import find_orphans
from runner.machine.leases.small_file import SmallFile, read_small

FOLDER_VARIABLE = "RUNNER_LEASES"
PARENTS = (Path("/run/lock"), Path("/dev/shm"))  # noqa: S108 - opened with care below
MUTEX_SECONDS = 20.0
ORPHAN_SECONDS = 600.0
"""How long after its supervisor last touched it a lease can be kept by trainers alone."""
MOST_CLAIMS = 256
"""Files that are read of one user: those that hold GPUs first, then by age."""
HELD = ".held.json"
"""How the file of a claim that holds GPUs ends; one that waits ends in .json alone."""
_POLL_SECONDS = 0.02
_WRITE_TRIES = 5
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = re.compile(r"\.?\d{8,20}-\d{1,10}-[0-9a-f]{8}(\.held)?\.(json|new)")
"""What is removed once it is dead; nothing else that may lie in the folder."""
_MODE = 0o1777  # anybody adds files, and removes only his own


class LeasesUnusable(RefusedError):
    """The folder of leases can't be used now."""

    def __init__(self, message: str, hint: str, *, own: bool) -> None:
        """`own`: it is this user's doing, as far as can be told, and not another's."""
        super().__init__(message, hint)
        self.own = own


def now_number() -> int:
    """What an arrival at this moment has as its number: it depends on nobody else's."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def leases_folder() -> Path:
    """Where the leases of this machine are: $RUNNER_LEASES, else the same for all of its users.

    Not below /dev/shm where that can be helped: logind empties it of what belongs to a user who
    logs out (RemoveIPC). Not where flock can't be believed, as on a rootless container's FUSE.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).absolute()
    for parent in PARENTS:  # one that root made (systemd-tmpfiles), whatever its parent's mode
        with contextlib.suppress(OSError):
            about = (parent / "runner-leases").lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == 0 and about.st_mode & _MODE == _MODE:
                return parent / "runner-leases"
    for parent in PARENTS:
        with contextlib.suppress(OSError):
            open_to_all = parent.stat().st_mode & _MODE == _MODE
            if open_to_all and file_systems.has_trusted_flock(parent):
                return parent / "runner-leases"
    return Path("/tmp/runner-leases")  # noqa: S108


class Entry:
    """A claim of this process, written down; it counts until it is dropped or the process ends."""

    def __init__(self, claim: Lease, path: Path, descriptor: int) -> None:
        self.claim, self.path, self._descriptor = claim, path, descriptor
        self._closing = threading.Lock()  # a number that is closed is another file's a moment later
        self._dropped = False

    @property
    def there(self) -> bool:
        """Whether others still see it: whoever owns the folder could have removed it."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._descriptor), self.path.lstat())
        return False

    def touch(self) -> None:
        """Say that the supervisor lives: by the file's ctime, which nobody can set back."""
        with self._closing, contextlib.suppress(OSError):
            if not self._dropped:
                os.utime(self._descriptor)

    def drop(self) -> None:
        """Give it up."""
        with self._closing:
            if self._dropped:
                return
            self._dropped = True
            if self.there:
                with contextlib.suppress(OSError):
                    self.path.unlink()
            with contextlib.suppress(OSError):
                os.close(self._descriptor)


class LeaseStore:
    """The claims of all runs on this machine."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or leases_folder()
        self._busy_since: float | None = None
        self._went_on = ""
        self._crowds: tuple[int, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, or done otherwise, when it was last used; in words."""
        crowds = (
            f"{user_name(uid)} has more than {MOST_CLAIMS} files in {self.folder}: the others are "
            "not read"
            for uid in self._crowds
        )
        return (*((self._went_on,) if self._went_on else ()), *crowds)

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Nobody else looks, decides or writes meanwhile; gives whether that is so.

        It is not where another user keeps the folder locked for MUTEX_SECONDS: then one continues
        without (`notes` says so), and what was written has to be compared with what others wrote
        in the meantime. Raises LeasesUnusable where the folder can't be used, or a process of this
        user keeps it locked.
        """
        while True:
            descriptor = self._open_folder()
            try:
                if self._lock(descriptor):
                    self._busy_since, self._went_on = None, ""
                    yield True
                    return
                self._busy_since = self._busy_since or time.monotonic()
                if time.monotonic() - self._busy_since > MUTEX_SECONDS:
                    self._went_on = self._blame(descriptor)
                    yield False
                    return
            finally:
                os.close(descriptor)
            time.sleep(_POLL_SECONDS)

    def claims(self, *, tidy: bool = False) -> list[Lease]:
        """Those that count, in the order of arrival.

        Args:
            tidy: remove what is left of the dead, where this user may. Only within `alone`.
        """
        found: dict[Identity, Lease] = {}
        now, inner = now_number(), Inner()
        try:
            # all by the descriptor: its owner could put a link to other files in the folder's place
            folder = os.open(self.folder, _FOLDER)
        except OSError:
            return []
        try:
            for name in self._names(folder, tidy=tidy):
                claim = _read(folder, name, now, inner, tidy=tidy)
                # while a claim is written anew there are two of it for an instant
                if claim is not None and not (claim.identity in found and claim.waits):
                    found[claim.identity] = claim
        finally:
            os.close(folder)
        return sorted(found.values(), key=lambda claim: claim.identity)

    def write(self, claim: Lease) -> Entry:
        """Write a claim down. Only within `alone`.

        Raises LeasesUnusable where the folder can't be written.
        """
        content = encode_claim(claim)
        if decode_claim(content, claim.uid, claim.user, claim.number) is None:
            raise LeasesUnusable(
                f"a lease of {claim.run} would be out of the bounds that all keep to: its folder "
                f"({claim.folder}), {claim.count} GPUs, budget {claim.budget_bytes} bytes",
                "give the run a shorter path, fewer GPUs or a smaller budget",
                own=True,
            )
        folder = self._open_folder()
        try:
            for tries_left in reversed(range(_WRITE_TRIES)):
                name = f"{claim.number:020d}-{claim.pid}-{secrets.token_hex(4)}"
                final = name + (".json" if claim.waits else HELD)
                try:
                    descriptor = _write(folder, final, f".{name}.new", content)
                    return Entry(claim, self.folder / final, descriptor)
                except (FileNotFoundError, BlockingIOError):
                    # another of this user's runs, without the mutex, took it for what a dead one
                    # left
                    if not tries_left:
                        raise
        except OSError as error:
            raise self._unusable(error) from None
        finally:
            os.close(folder)
        raise AssertionError("unreachable")

    def _names(self, folder: int, *, tidy: bool) -> list[str]:
        """The files to be read; of a user who put in more than MOST_CLAIMS, only so many."""
        by_owner: dict[int, list[str]] = {}
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith((".json", ".new") if tidy else ".json"):
                    with contextlib.suppress(OSError):
                        owner = entry.stat(follow_symlinks=False).st_uid
                        by_owner.setdefault(owner, []).append(entry.name)
        self._crowds = tuple(
            sorted(uid for uid, names in by_owner.items() if len(names) > MOST_CLAIMS)
        )
        chosen = (heapq.nsmallest(MOST_CLAIMS, names, key=_rank) for names in by_owner.values())
        return sorted(name for names in chosen for name in names)

    def _blame(self, descriptor: int) -> str:
        """Why it continued without the folder's lock.

        Raises LeasesUnusable where a process of this user has it, or the folder never stays.
        """
        if not self._is_still(descriptor):
            raise LeasesUnusable(
                f"{self.folder} is replaced by another again and again, by its owner "
                f"({user_name(os.fstat(descriptor).st_uid)})",
                f"{FOLDER_VARIABLE} names another folder, the same for all",
                own=os.fstat(descriptor).st_uid == os.geteuid(),
            )
        about = os.fstat(descriptor)
        holders = lock_holders(about)
        mine = [pid for pid in holders if real_uid(pid) == os.getuid() and has_locked(pid, about)]
        who = ", ".join(_name_process(pid) for pid in mine or holders)
        if mine:
            raise LeasesUnusable(
                f"{self.folder} stays locked by {who}, so that no GPU can be taken",
                "end it: a supervisor hung in the driver does this",
                own=True,
            )
        by = f"by {who}" if who else "by a process that can't be seen from here"
        return f"{self.folder} stays locked {by}: continued without its lock"

    def _lock(self, descriptor: int) -> bool:
        """Whether the folder is this process's now."""
        try:
            return try_flock(descriptor) and self._is_still(descriptor)
        except OSError as error:
            raise self._unusable(error) from None

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
            descriptor = os.open(self.folder, _FOLDER)
        except OSError as error:
            raise self._unusable(error) from None
        mode = os.fstat(descriptor).st_mode
        if not file_systems.has_trusted_flock(descriptor):
            kind = file_systems.name_type(descriptor)
            os.close(descriptor)
            raise LeasesUnusable(
                f"{self.folder} is on {kind}, where a lock may be given to several at once: two "
                "runs would take the same card",
                f"{FOLDER_VARIABLE} names another folder, on a disk of this machine and the same "
                "for all, such as /run/lock/runner-leases",
                own=True,
            )
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            owner = os.fstat(descriptor).st_uid
            os.close(descriptor)
            raise LeasesUnusable(
                f"{self.folder} has mode {stat.S_IMODE(mode):04o}: anybody could remove the leases "
                "of others",
                f"chmod 1777 {self.folder} (as {user_name(owner)} or root); or {FOLDER_VARIABLE} "
                "names another folder",
                own=owner == os.geteuid(),
            )
        return descriptor

    def _unusable(self, error: OSError) -> LeasesUnusable:
        reason = error.strerror or str(error)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            reason = "it is not a folder of its own"
        own = error.errno not in (errno.ENOSPC, errno.EDQUOT)  # others can fill the disk
        with contextlib.suppress(OSError):
            owner = self.folder.lstat().st_uid
            own = own and owner == os.geteuid()
            reason += f" (it belongs to {user_name(owner)})"
        return LeasesUnusable(
            f"no GPU can be taken, for {self.folder}, where runs say which they have, can't be "
            f"used: {reason}",
            f"make it with mode 1777; or {FOLDER_VARIABLE} names another folder, the same for all",
            own=own,
        )


def _read(folder: int, name: str, now: int, inner: Inner, *, tidy: bool) -> Lease | None:
    """The claim of a file, if it still counts."""
    found = read_small(name, LARGEST_BYTES, folder=folder)
    if found is None:
        return None
    claim = None
    if name.endswith(".json"):
        claim = decode_claim(found.content, found.uid, user_name(found.uid), now)
    if claim is not None and claim.boot_id not in (None, boot_id()):
        claim = None
    lives = claim is not None and _lives(claim)
    if claim is not None and found.locked and lives is not False and _is_own_lock(claim, found):
        return claim
    if claim is not None and not claim.waits and _is_fresh(found):
        orphans = find_orphans(claim, inner)
        if orphans:
            return replace(claim, orphans=orphans)
    gone = claim is not None and claim.pid_namespace is not None and lives is False
    # one that is locked has a writer, or somebody else locked what is left of a dead one
    dead = not found.locked or (gone and found.uid == os.geteuid())
    if tidy and dead and _NAME.fullmatch(name):
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
    return None


def _lives(claim: Lease) -> bool | None:
    """Whether its supervisor does; None where it can't be told from here."""
    if claim.pid_namespace not in (None, pid_namespace()):
        return None
    return is_process(claim.pid, claim.start_ticks, claim.uid)


def _is_own_lock(claim: Lease, found: SmallFile) -> bool:
    """Whether a claim of another pid namespace is locked by its own user, as far as can be told.

    Anybody who can read a file can lock it.
    """
    if claim.pid_namespace in (None, pid_namespace()):
        return True  # the process was looked at
    owners = [real_uid(pid) for pid in lock_holders(found.about)]
    return not owners or None in owners or claim.uid in owners


def _is_fresh(found: SmallFile) -> bool:
    """Whether its supervisor lived a few minutes ago; a clock that is set makes no endless one."""
    return abs(time.time() - found.about.st_ctime) <= ORPHAN_SECONDS


def _write(folder: int, final: str, new: str, content: bytes) -> int:
    """Make the file of a claim, locked by the descriptor that is given back. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # nobody else can open it, and so lock it, before this process does
    descriptor = os.open(new, flags, 0o600, dir_fd=folder)
    try:
        if not try_flock(descriptor):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fchmod(descriptor, 0o644)  # whatever the umask: all users read it
        # the lock goes along: it is never seen unlocked
        os.rename(new, final, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise
    return descriptor


def _rank(name: str) -> tuple[bool, str]:
    """Those that hold GPUs first, then in the order of arrival."""
    return not name.endswith(HELD), name


def _name_process(pid: int) -> str:
    """pid 4242 python (mallory)"""
    uid = real_uid(pid)
    if uid is None:
        return f"pid {pid} (gone, or hidden from here)"
    command = ""
    with contextlib.suppress(OSError):
        command = plain(Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()) + " "
    return f"pid {pid} {command}({user_name(uid)})"


@functools.lru_cache(maxsize=256)
def user_name(uid: int) -> str:
    """The user's name, or uid 1234 where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
