"""Save images as files with a checksum, check and load them, for machines without a registry.

Standard library and runner's own modules.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from runner.common import durable
from runner.common.errors import RefusedError, UsageError
from runner.containers.cli import Answer, ContainerCli, explain
from runner.containers.images import Image

_BLOCK = 1 << 20
_GZIP_LEVEL = 1  # layers are mostly machine code: level 6 takes four times as long for 5 % less
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")

Progress = Callable[[int], None]
"""Called with the bytes handled so far."""


class Sink(Protocol):
    """Where bytes go."""

    def write(self, block: bytes, /) -> int: ...


class Source(Protocol):
    """Where bytes come from."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Saved:
    """An image in a file."""

    path: Path
    size_bytes: int
    sha256: str


def checksum_file(path: Path) -> Path:
    """The side file with the checksum, in sha256sum's form."""
    return path.with_name(path.name + ".sha256")


def save(cli: ContainerCli, image: Image, path: Path, *, force: bool, progress: Progress) -> Saved:
    """Write an image to `path`, whole or not at all, and its checksum beside it.

    The suffix decides on compression: .tar, .tar.gz, .tgz or .tar.zst. Raises UsageError for
    another suffix, or a file that is there and not `force`; RefusedError where the program or the
    disk refuses.
    """
    _require_suffix(path)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", "--force replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}")
    digest = hashlib.sha256()
    try:
        with durable.whole_file(path) as file:
            with _packed(path, _Hashing(file, digest)) as sink:
                _pump_out(cli, image, sink, progress)
            size = file.tell()
        line = f"{digest.hexdigest()}  {path.name}\n"
        durable.write_text(checksum_file(path), line)
    except OSError as error:
        raise RefusedError(
            f"{path} can't be written: {error.strerror or error}",
            f"the image is {image.size_bytes / 1e9:.1f} GB before compression",
        ) from None
    return Saved(path, size, digest.hexdigest())


def check(path: Path, progress: Progress) -> str | None:
    """The file's sha256 where a side file vouches for it; None where there is no side file.

    Raises RefusedError where the two differ.
    """
    side = checksum_file(path)
    try:
        said = side.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RefusedError(f"{side} can't be read: {error}") from None
    if not said or not re.fullmatch(r"[0-9a-f]{64}", said[0]):
        raise RefusedError(f"{side} holds no sha256", "copy it again, or remove it to go without")
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress(done)
    if digest.hexdigest() != said[0]:
        raise RefusedError(
            f"{path} is damaged: its sha256 is {digest.hexdigest()}, {side.name} says {said[0]}",
            "copy it again; nothing was loaded",
        )
    return said[0]


def load(cli: ContainerCli, path: Path, progress: Progress) -> list[str]:
    """Load an image's file; the names or ids of what came. Raises RefusedError where it fails."""
    _require_suffix(path)
    process = subprocess.Popen(
        cli.argv("load"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None  # noqa: S101
    done, broken = 0, ""
    try:
        with _unpacked(path) as source:
            while block := source.read(_BLOCK):
                try:
                    process.stdin.write(block)
                except BrokenPipeError:  # it says why
                    break
                done += len(block)
                progress(done)
    except (EOFError, OSError, zlib.error) as error:
        broken = str(error) or type(error).__name__
        process.kill()  # before its input ends: what came so far is no image
    except BaseException:
        process.kill()
        process.wait()
        raise
    with suppress(BrokenPipeError):
        process.stdin.close()
    said = process.stdout.read().decode(errors="replace")
    code = process.wait()
    if broken:
        raise RefusedError(f"{path} is damaged or cut short: {broken}", "copy it again")
    if code:
        refusal = explain(cli, Answer(code, "", said))
        raise RefusedError(f"{path} can't be loaded: {refusal.message}", refusal.hint)
    return re.findall(r"^Loaded image(?:\(s\)| ID)?: (\S+)", said, re.MULTILINE)


def _pump_out(cli: ContainerCli, image: Image, sink: Sink, progress: Progress) -> None:
    process = subprocess.Popen(
        cli.argv("save", image.name),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None  # noqa: S101
    done = 0
    try:
        while block := process.stdout.read(_BLOCK):
            sink.write(block)
            done += len(block)
            progress(done)
    except BaseException:
        process.kill()
        process.wait()
        raise
    said = process.stderr.read().decode(errors="replace")
    code = process.wait()
    if code:
        raise explain(cli, Answer(code, "", said))


class _Hashing:
    """A stream that hashes what goes through it."""

    def __init__(self, stream: IO[bytes], digest: hashlib._Hash) -> None:
        self._stream, self._digest = stream, digest

    def write(self, block: bytes) -> int:
        self._digest.update(block)
        return self._stream.write(block)

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def _packed(path: Path, sink: _Hashing) -> Iterator[Sink]:
    if path.suffix in (".gz", ".tgz"):
        # no name and time in the header: the same image gives the same file
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, sink, mtime=0) as stream:
            yield stream
    elif path.suffix == ".zst":
        process = subprocess.Popen(
            [_zstd(), "-q", "-c", "-3", "-T0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with _through(process, sink) as stream:
            yield stream
    else:
        yield sink


@contextmanager
def _through(process: subprocess.Popen[bytes], sink: _Hashing) -> Iterator[IO[bytes]]:
    """A stream into a filter program, whose output a thread carries to `sink`."""
    import threading

    failed: list[BaseException] = []

    def carry() -> None:
        assert process.stdout is not None  # noqa: S101
        try:
            while block := process.stdout.read(_BLOCK):
                sink.write(block)
        except OSError as error:
            failed.append(error)
            process.kill()

    thread = threading.Thread(target=carry)
    thread.start()
    assert process.stdin is not None  # noqa: S101
    try:
        with suppress(BrokenPipeError):
            yield process.stdin
        with suppress(BrokenPipeError):
            process.stdin.close()
    except BaseException:
        process.kill()
        raise
    finally:
        process.wait()
        thread.join()
    if failed:
        raise failed[0]
    if process.returncode:
        raise RefusedError(f"zstd failed with exit code {process.returncode}")


@contextmanager
def _unpacked(path: Path) -> Iterator[Source]:
    if path.suffix in (".gz", ".tgz"):
        with gzip.open(path, "rb") as stream:
            yield stream
    elif path.suffix == ".zst":
        process = subprocess.Popen([_zstd(), "-q", "-d", "-c", str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None  # noqa: S101
        try:
            yield process.stdout
            if process.wait():
                raise OSError(f"zstd ended with exit code {process.returncode}")
        finally:
            process.kill()
            process.wait()
    else:
        with path.open("rb") as plain:
            yield plain


def _zstd() -> str:
    found = shutil.which("zstd")
    if found is None:
        raise RefusedError("there is no zstd on this machine", "take .tar.gz, or install zstd")
    return found


def _require_suffix(path: Path) -> None:
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path.name} is of no known kind", f"one of: {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder")
    if path.name.startswith("-"):
        raise UsageError(f"{os.fspath(path)!r} starts with a dash", f"./{path}")
