"""Write in a folder that others can write too: nothing below it is opened through a link.

A run's folder is mounted, writable, in the run's own container. A link, a pipe or a hard link found
in the place of a record or folder is moved aside to NAME.planted-N with a warning, so that no
record is redirected or lost. Standard library, runner.common.durable and runner.common.terminal
only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from runner.common import durable, terminal

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_FOLDER = (errno.ELOOP, errno.ENOTDIR)
_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
_TRIES = 8
"""Times that one name is cleared for a record, where somebody keeps putting something there."""
_NUMBERS = 100


def say(text: str) -> None:
    """A warning on stderr: the supervisor's log, the trainer's, or a user's terminal."""
    with contextlib.suppress(OSError, ValueError):
        terminal.say(f"WARNING: {text}")


@dataclass(frozen=True)
class SharedFolder:
    """A folder and what is written below it.

    The way to `path` itself may lead through the user's own links; below it none is followed. All
    places are given as paths below `path`; another is a ValueError. Folders on the way to what is
    written are made.

    Attributes:
        told: takes a line for each thing that was moved aside.
    """

    path: Path
    told: Callable[[str], None] = field(default=say, compare=False, repr=False, kw_only=True)

    @contextlib.contextmanager
    def whole_file(self, place: Path, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
        """A stream whose content replaces `place` when the block ends well, whole or not at all.

        A link of that name is replaced itself; a folder is moved aside. Raises OSError as
        durable.whole_file does.
        """
        with (
            self._parent(place) as (parent, name),
            durable.whole_file_in(
                parent, name, mode=mode, make_way=lambda: self._move_aside(parent, name, place)
            ) as stream,
        ):
            yield stream

    def write_file(self, place: Path, content: bytes | str, *, mode: int = 0o644) -> None:
        """Replace `place` by `content` (text as UTF-8), whole or not at all. Raises OSError."""
        with self.whole_file(place, mode=mode) as stream:
            stream.write(content.encode() if isinstance(content, str) else content)

    def write_json(self, place: Path, record: object) -> None:
        """`write_file` for one JSON document. Raises OSError; ValueError for a NaN."""
        self.write_file(place, durable.json_text(record))

    def open_lines(self, place: Path) -> durable.JsonlWriter:
        """Append JSON objects, one a line. Raises OSError."""
        return durable.JsonlWriter(self._open(place, os.O_RDWR | os.O_APPEND))

    def open_log(self, place: Path) -> IO[bytes]:
        """Append bytes, as a process's output is. Raises OSError."""
        return os.fdopen(self._open(place, os.O_WRONLY | os.O_APPEND), "ab")

    def open_over(self, place: Path) -> IO[bytes]:
        """Write over what is there, from its first byte on, without a new file. Raises OSError."""
        return os.fdopen(self._open(place, os.O_RDWR), "r+b")

    def open_lock(self, place: Path) -> int:
        """The descriptor of a file to be locked; what is in it stays. Raises OSError.

        It may be another user's, or have other names: nothing is written to it.
        """
        return self._open(place, os.O_RDWR, owned=False)

    def make_folder(self, place: Path) -> None:
        """Make it, and those on the way, where they are not there yet. Raises OSError."""
        with self._parent(place) as (parent, name):
            os.close(self._enter(parent, name, place, make=True))

    def make_new_folder(self, place: Path) -> None:
        """Make it. Raises FileExistsError where anything has its name; OSError."""
        with self._parent(place) as (parent, name):
            os.mkdir(name, dir_fd=parent)

    def move(self, old: Path, new: Path) -> None:
        """Rename, to survive a power cut; a file at `new` gives way, a folder in its way is moved
        aside.

        Raises OSError, also where a link is on the way to `old`.
        """
        with (
            self._parent(old, make=False) as (from_, old_name),
            self._parent(new) as (to, new_name),
        ):
            try:
                os.rename(old_name, new_name, src_dir_fd=from_, dst_dir_fd=to)
            except (IsADirectoryError, NotADirectoryError):
                self._move_aside(to, new_name, new)
                os.rename(old_name, new_name, src_dir_fd=from_, dst_dir_fd=to)
            os.fsync(from_)
            os.fsync(to)

    def remove(self, place: Path, *, as_far_as_possible: bool = False) -> None:
        """Remove a file, a link itself, or a folder with all that is in it; nothing may be there.

        Raises OSError, also where a link is on the way; with `as_far_as_possible` what can't be
        deleted stays.
        """
        try:
            with self._parent(place, make=False) as (parent, name):
                try:
                    os.unlink(name, dir_fd=parent)
                except IsADirectoryError:
                    shutil.rmtree(name, ignore_errors=as_far_as_possible, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError:
            if not as_far_as_possible:
                raise

    def names(self, place: Path) -> list[str]:
        """What lies in a folder, sorted; nothing where it is none, or is reached by a link."""
        try:
            with self._opened(place) as descriptor:
                return sorted(os.listdir(descriptor))  # noqa: PTH208 - of a descriptor
        except OSError:
            return []

    def is_folder(self, place: Path) -> bool:
        """Whether it is a folder, reached by no link."""
        try:
            with self._opened(place):
                return True
        except OSError:
            return False

    def is_there(self, place: Path) -> bool:
        """Whether anything has this name, a link too; False where a link is on the way."""
        try:
            self._told_of(place)
        except OSError:
            return False
        return True

    def is_same(self, place: Path, descriptor: int) -> bool:
        """Whether `place` is still the file that is open as `descriptor`."""
        try:
            return os.path.samestat(self._told_of(place), os.fstat(descriptor))
        except OSError:
            return False

    def make_writable(self) -> bool:
        """Give this user all rights to the folder itself, where it is theirs; whether it was not.

        Raises OSError.
        """
        descriptor = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if mode & stat.S_IRWXU == stat.S_IRWXU:
                return False
            Path(f"/proc/self/fd/{descriptor}").chmod(mode | stat.S_IRWXU)
        finally:
            os.close(descriptor)
        return True

    def _told_of(self, place: Path) -> os.stat_result:
        with self._parent(place, make=False) as (parent, name):
            return os.stat(name, dir_fd=parent, follow_symlinks=False)

    @contextlib.contextmanager
    def _opened(self, place: Path) -> Iterator[int]:
        """The folder at `place`, which may be `path` itself."""
        descriptor = _open_root(self.path)
        try:
            for name in self._parts(place):
                inner = self._enter(descriptor, name, place, make=False)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _parent(self, place: Path, *, make: bool = True) -> Iterator[tuple[int, str]]:
        """The folder that `place` lies in, and its name there."""
        *folders, name = self._parts(place)
        descriptor = _open_root(self.path)
        try:
            way = self.path
            for one in folders:
                way /= one
                inner = self._enter(descriptor, one, way, make=make)
                os.close(descriptor)
                descriptor = inner
            yield descriptor, name
        finally:
            os.close(descriptor)

    def _parts(self, place: Path) -> tuple[str, ...]:
        parts = place.relative_to(self.path).parts
        if ".." in parts:
            raise ValueError(f"{place} is not below {self.path}")
        return parts

    def _enter(self, parent: int, name: str, place: Path, *, make: bool) -> int:
        for _ in range(_TRIES):
            try:
                return os.open(name, _FOLDER, dir_fd=parent)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=parent)
            except OSError as error:
                if error.errno not in _NO_FOLDER or not make:
                    raise
                self._move_aside(parent, name, place)
        raise OSError(errno.ELOOP, f"{place} does not stay a folder")

    def _open(self, place: Path, flags: int, *, owned: bool = True) -> int:
        """A regular file, made where there is none. `owned`: this user's, by this name alone."""
        with self._parent(place) as (parent, name):
            for _ in range(_TRIES):
                try:
                    opened = os.open(name, flags | _FILE | os.O_CREAT, 0o644, dir_fd=parent)
                except OSError as error:
                    if error.errno not in _NO_FILE:
                        raise
                else:
                    if _fits(os.fstat(opened), os.fstat(parent), owned=owned):
                        os.set_blocking(opened, True)
                        return opened
                    os.close(opened)
                self._move_aside(parent, name, place)
        raise OSError(errno.ELOOP, f"{place} does not stay a file")

    def _move_aside(self, parent: int, name: str, place: Path) -> None:
        """Give up a name to what belongs there."""
        try:
            what = _kind(os.stat(name, dir_fd=parent, follow_symlinks=False))
            taken = set(os.listdir(parent))
            numbered = (f"{name}.planted-{number}" for number in range(1, _NUMBERS))
            new = next(
                (one for one in numbered if one not in taken),
                f"{name}.planted-{secrets.token_hex(8)}",
            )
            os.rename(name, new, src_dir_fd=parent, dst_dir_fd=parent)
        except FileNotFoundError:
            return  # gone meanwhile
        where = place.relative_to(self.path)
        self.told(f"{where} was {what}, put there by something else; it is now {new}")


def require_own_way(folder: Path) -> None:
    """Raise OSError where `folder` is a link that another user made."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid()):
        raise OSError(errno.ELOOP, f"{folder} is a link of another user")


def _open_root(path: Path) -> int:
    """The folder itself. Where others can write beside it, they may put a link in its place."""
    try:
        return os.open(path, _FOLDER)
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
    require_own_way(path)
    return os.open(path, _FOLDER & ~os.O_NOFOLLOW)


def _fits(found: os.stat_result, parent: os.stat_result, *, owned: bool) -> bool:
    if not stat.S_ISREG(found.st_mode):
        return False
    # the folder's owner: a network disk may make root somebody else
    return not owned or (found.st_nlink == 1 and found.st_uid in (os.geteuid(), parent.st_uid))


def _kind(found: os.stat_result) -> str:
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    known = kinds.get(stat.S_IFMT(found.st_mode))
    if known is not None:
        return known
    if stat.S_ISREG(found.st_mode):
        return "a file with another name too" if found.st_nlink > 1 else "another user's file"
    return "a device"
