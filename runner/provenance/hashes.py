"""sha256 of files and folders; of large files cached by (path, size, mtime, inode).

Imports the standard library, runner.common.durable and runner.plans.sources. Reads on, file by
file, until it is told to give up; says how far it has come now and then.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from runner.common import durable, terminal
from runner.common.units import format_bytes

CACHED_BYTES = 8 << 20
"""A file smaller than this is read anew: that costs less than it would to keep its hash."""
SETTLED_SECONDS = 2.0
"""A file changed a moment ago can change again within the same mtime; its hash is not kept."""
SAY_SECONDS = 5.0
_BLOCK_BYTES = 4 << 20
_UNWANTED = {"__pycache__", ".git"}


class GaveUp(Exception):
    """The hashing was called off."""


class Hasher:
    """Hashes files; one after the other."""

    def __init__(
        self,
        cache: Path,
        *,
        gave_up: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """`cache` is the folder for what was hashed before; `gave_up` is asked every few MB."""
        self.cache, self._gave_up = cache, gave_up
        self.say = say or terminal.say
        self._done_bytes, self._said = 0, time.monotonic()

    def file(self, path: Path) -> str:
        """sha256 of a file's content. Raises OSError, GaveUp."""
        path = path.resolve()
        before = path.stat()
        key = [str(path), before.st_size, before.st_mtime_ns, before.st_ino]
        place = self.cache / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
        large = before.st_size >= CACHED_BYTES
        if large:
            known = durable.read_json(place)
            if isinstance(known, dict) and known.get("key") == key:
                return str(known["sha256"])
        digest = self._read(path, before.st_size)
        after = path.stat()
        settled = time.time() - after.st_mtime_ns / 1e9 > SETTLED_SECONDS
        if large and settled and (after.st_size, after.st_mtime_ns) == (key[1], key[2]):
            with contextlib.suppress(OSError):  # a full disk costs time only
                self.cache.mkdir(parents=True, exist_ok=True)
                durable.write_json(place, {"schema_version": 1, "key": key, "sha256": digest})
        return digest

    def folder(self, path: Path) -> tuple[str, int, int]:
        """sha256 over `NAME NUL SHA256 LF` of its files by name, their number and bytes.

        Raises OSError, GaveUp.
        """
        whole, count, size = hashlib.sha256(), 0, 0
        for file in sorted(files_in(path)):
            whole.update(f"{file.relative_to(path).as_posix()}\0{self.file(file)}\n".encode())
            count, size = count + 1, size + file.stat().st_size
        return whole.hexdigest(), count, size

    def _read(self, path: Path, size: int) -> str:
        digest, done = hashlib.sha256(), 0
        with path.open("rb", buffering=0) as stream:
            while block := stream.read(_BLOCK_BYTES):
                if self._gave_up():
                    raise GaveUp
                digest.update(block)
                done += len(block)
                if time.monotonic() - self._said >= SAY_SECONDS:
                    self._said = time.monotonic()
                    told = f"{format_bytes(done)} of {format_bytes(size)}"
                    self.say(f"hashing    {path.name}: {told}")
        return digest.hexdigest()


def files_in(folder: Path) -> Iterator[Path]:
    """The files that count as a folder's content: no .git, no bytecode, no links to folders."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in _UNWANTED and not path.is_symlink():
            yield from files_in(path)
        elif path.is_file() and path.suffix != ".pyc":
            yield path
