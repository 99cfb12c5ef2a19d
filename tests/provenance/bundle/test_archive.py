"""The archive: the same files come back, and whatever else comes in is named and leaves nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.common import locks
from runner.common.errors import RefusedError, UsageError
from runner.launch.sigterm import tidy_at_sigterm
from runner.provenance.bundle import tar, unpack
from runner.provenance.bundle.contents import Contents
from runner.provenance.bundle.gathering import Item
from runner.provenance.bundle.index import Index, Member, Placed, name_problem
from runner.provenance.bundle.write import write

FILES = {"manifest.json": b"{}\n", "inputs/rows/a.jsonl": b'{"text": "a"}\n', "plan.yaml": b"#\n"}


def index_of(files: dict[str, bytes], **changes: Any) -> Index:
    members = [
        Member(
            path=name,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            executable=name.endswith(".sh"),
        )
        for name, content in sorted(files.items())
    ]
    inputs = sorted({"/".join(name.split("/")[:2]) for name in files if name.startswith("inputs/")})
    record = {
        "made_by": "runner 0",
        "run": "job/20261125-183738-28d4593",
        "plan_hash": "a" * 64,
        "manifest_sha256": "b" * 64,
        "places": {
            f"inputs.{number}": Placed(path=path, kind="file" if path in files else "folder")
            for number, path in enumerate(inputs)
        },
        "members": members,
    }
    return Index(**{**record, **changes}).sealed()


def bundle(files: dict[str, bytes], path: Path, **changes: Any) -> Path:
    index = index_of(files, **changes)
    items = [Item(member, path, files[member.path]) for member in index.members]
    write(Contents(index, items), path, lambda _: None)
    return path


def laid(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "bundle.json"
    }


def is_refused(archive: Path, place: Path) -> UsageError:
    """The refusal, with nothing left in `place`."""
    with pytest.raises(UsageError) as caught:
        unpack.unpack(archive, place / "new" / "run", lambda *_: None)
    assert caught.value.exit_code == 2
    assert list(place.iterdir()) == []
    return caught.value


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


STEP = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40)
NAME = st.lists(STEP, min_size=1, max_size=4).map("/".join)
LONG = st.sampled_from(["a/" * 70 + "b", "ü" * 120, "x" * 255, "d" * 99 + "/" + "e" * 200])


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(
        (NAME | LONG).filter(lambda name: name_problem(name) is None),
        st.binary(max_size=2000),
        max_size=6,
    ),
    packed=st.booleans(),
)
def test_any_files_come_back(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], packed: bool
) -> None:
    files = {f"inputs/rows/{name}": content for name, content in files.items()}
    names = [*files]
    if any(b.startswith(f"{a}/") for a in names for b in names):
        return  # a file and a folder at once
    folder = tmp_path_factory.mktemp("archive")
    suffix = ".tar.gz" if packed else ".tar"
    path = bundle(files, folder / f"one{suffix}")
    unpack.unpack(path, folder / "run", lambda *_: None)
    assert laid(folder / "run") == files
    again = bundle(files, folder / f"two{suffix}")
    assert again.read_bytes() == path.read_bytes()
    with tarfile.open(path) as other:  # any tar reads it
        assert sorted(other.getnames())[: len(files) + 1] == sorted([*files, "index.json"])
        assert {info.mtime for info in other} == {0}


def test_empty_folders_come_back_and_nothing_is_executable(tmp_path: Path) -> None:
    places = {"inputs.0": Placed(path="inputs/empty", kind="folder")}
    files = {"manifest.json": b"{}", "output/run.sh": b"#!\n"}
    path = bundle(files, tmp_path / "b.tar", places=places)
    unpack.unpack(path, tmp_path / "run", lambda *_: None)
    assert not (tmp_path / "run" / "output" / "run.sh").stat().st_mode & 0o111
    assert (tmp_path / "run" / "inputs" / "empty").is_dir()


@settings(max_examples=150, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@example(155.5 / 10240, 0)  # behind a header's checksum
def test_one_bit_in_any_place_is_found(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    content = bytearray(bundle(FILES, folder / "b.tar").read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    (folder / "b.tar").write_bytes(content)
    (folder / "place").mkdir()
    is_refused(folder / "b.tar", folder / "place")


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 0.999), packed=st.booleans())
def test_what_was_cut_short_is_found(
    tmp_path_factory: pytest.TempPathFactory, cut: float, packed: bool
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = bundle(FILES, folder / f"b{'.tar.gz' if packed else '.tar'}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    (folder / "place").mkdir()
    is_refused(path, folder / "place")


def raw(
    index: Index, write_to: Callable[[tarfile.TarFile], None], fmt: int = tarfile.PAX_FORMAT
) -> bytes:
    """An archive with that index, and whatever `write_to` adds."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fmt) as archive:
        add(archive, "index.json", index.content())
        write_to(archive)
    return out.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **changes: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


def all_of(archive: tarfile.TarFile) -> None:
    for name, content in sorted(FILES.items()):
        add(archive, name, content)


def hostile() -> Iterator[Any]:
    """(what it does, the archive, what the error names)."""
    good = index_of(FILES)

    def case(name: str, told: str, write_to: Callable[[tarfile.TarFile], None]) -> Any:
        return pytest.param(raw(good, write_to), told, id=name)

    def link(kind: bytes) -> Callable[[tarfile.TarFile], None]:
        name = "inputs/rows/a.jsonl"
        return lambda archive: add(archive, name, type=kind, linkname="/etc/passwd")

    yield case("a symbolic link", "'inputs/rows/a.jsonl' is a symbolic link", link(tarfile.SYMTYPE))
    yield case("a hard link", "'inputs/rows/a.jsonl' is a hard link", link(tarfile.LNKTYPE))
    yield case("a device", "'inputs/rows/a.jsonl' is a device", link(tarfile.CHRTYPE))
    yield case("a pipe", "'inputs/rows/a.jsonl' is a pipe", link(tarfile.FIFOTYPE))
    yield case("a folder", "'inputs' is a folder", lambda a: add(a, "inputs", type=tarfile.DIRTYPE))
    yield case("a way out", "'../evil' is where", lambda a: add(a, "../evil", b"x"))
    yield case("an absolute name", "'/tmp/evil' is where", lambda a: add(a, "/tmp/evil", b"x"))

    def twice(archive: tarfile.TarFile) -> None:
        all_of(archive)
        add(archive, "manifest.json", b"{}\n")

    def other(archive: tarfile.TarFile) -> None:
        add(archive, "inputs/rows/a.jsonl", b'{"text": "b"}\n')

    yield case("a name twice", "'manifest.json' is in it, and not in its index", twice)
    yield case("another content", "inputs/rows/a.jsonl is damaged: expected sha256", other)
    yield case(
        "another size",
        "claims 9 bytes, its index says 14",
        lambda a: add(a, "inputs/rows/a.jsonl", b"123456789"),
    )
    yield case("nothing more", "inputs/rows/a.jsonl is missing", lambda _: None)
    pax = {"GNU.sparse.realsize": "1"}
    yield case("a sparse file", "asks for 'GNU.sparse", lambda a: add(a, "x", b"", pax_headers=pax))
    huge = {"comment": "x" * 20_000}
    yield case("a huge header", "an extended header of", lambda a: add(a, "x", pax_headers=huge))
    long = raw(good, lambda a: add(a, "y" * 300, b""), tarfile.GNU_FORMAT)
    yield pytest.param(long, "plain files only", id="a long name of GNU's")
    whole = raw(good, all_of)
    yield pytest.param(whole + b"x" * 512, "something follows the end", id="more behind the end")
    yield pytest.param(whole + whole, "something follows the end", id="an archive behind it")
    yield pytest.param(
        gzip.compress(whole + bytes(1 << 24)), "follows the end", id="zeros without end"
    )
    yield pytest.param(
        gzip.compress(whole) + b"rest", "damaged or cut short", id="more behind gzip"
    )
    yield pytest.param(b"PK\x03\x04" + bytes(600), "damaged, or no bundle", id="another format")
    yield pytest.param(b"", "cut short", id="nothing at all")
    yield pytest.param(b"\x28\xb5\x2f\xfd" + bytes(600), "zstd", id="zstd")
    no_index = io.BytesIO()
    with tarfile.open(fileobj=no_index, mode="w") as archive:
        add(archive, "etc/passwd", b"x")
    yield pytest.param(no_index.getvalue(), "begins with 'etc/passwd'", id="no index")


@pytest.mark.parametrize(("content", "told"), [*hostile()])
def test_hostile_archives_are_refused_by_name(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(content)
    (tmp_path / "place").mkdir()
    assert told in is_refused(tmp_path / "b.tar", tmp_path / "place").message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../evil", "leads out of the folder"),
        ("a/../../evil", "leads out of the folder"),
        ("/etc/cron.d/evil", "is an absolute path"),
        ("a//b", "is no plain path"),
        ("./a", "is no plain path"),
        ("a/", "is no plain path"),
        ("a\x1b[2Jb", "holds control characters"),
        ("x" * 256, "is too long"),
        ("bundle.json", "is nothing that a bundle holds"),
        ("supervisor.json", "is nothing that a bundle holds"),
    ],
)
def test_an_index_may_name_only_plain_files_below(name: str, told: str, place: Path) -> None:
    index = index_of({name: b"x"})
    (place.parent / "b.tar").write_bytes(raw(index, lambda a: add(a, name, b"x")))
    assert told in is_refused(place.parent / "b.tar", place).message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"places": {"model": Placed(path="../out", kind="folder")}}, "leads out"),
        (
            {
                "places": {
                    "inputs.0": Placed(path="inputs/rows", kind="folder"),
                    "model": Placed(path="inputs/no", kind="file"),
                }
            },
            "is not in it",
        ),
        ({"places": {"model": Placed(path="plan.yaml", kind="folder")}}, "where inputs are"),
        ({"run": "job/\x1b]0;evil"}, "control characters"),
        ({"notes": ["\x1b[2J"]}, "control characters"),
    ],
)
def test_an_index_that_says_more_than_it_may(
    changes: dict[str, Any], told: str, place: Path
) -> None:
    archive = place.parent / "b.tar"
    archive.write_bytes(raw(index_of(FILES, **changes), all_of))
    assert told in is_refused(archive, place).message


def test_a_file_that_is_a_folder_too_and_a_name_twice(place: Path) -> None:
    archive = place.parent / "b.tar"
    archive.write_bytes(raw(index_of({"inputs/r/a": b"", "inputs/r/a/b": b""}), lambda _: None))
    assert "inputs/r/a is a file and a folder" in is_refused(archive, place).message
    index = index_of(FILES)
    doubled = index.model_copy(update={"members": [*index.members, index.members[0]]}).sealed()
    archive.write_bytes(raw(doubled, lambda _: None))
    assert "comes twice" in is_refused(archive, place).message


def test_sizes_are_not_believed(place: Path) -> None:
    archive = place.parent / "b.tar"
    index = index_of(FILES)
    first, *others = index.members
    bombs = [first.model_copy(update={"size_bytes": 1 << 60}), *others]
    archive.write_bytes(raw(index.model_copy(update={"members": bombs}).sealed(), all_of))
    with pytest.raises(RefusedError, match="it holds"):
        unpack.unpack(archive, place / "run", lambda *_: None)
    assert list(place.iterdir()) == []
    archive.write_bytes(gzip.compress(tar.header("index.json", 1 << 40, executable=False)))
    assert "index.json claims" in is_refused(archive, place).message


def test_a_newer_schema_is_refused_in_words(place: Path) -> None:
    record = {**json.loads(index_of(FILES).content()), "schema_version": 2, "new": 1}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        add(archive, "index.json", json.dumps(record).encode())
    (place.parent / "b.tar").write_bytes(out.getvalue())
    error = is_refused(place.parent / "b.tar", place)
    assert "a newer runner: schema_version 2, this one reads up to 1" in error.message
    assert "runner 0" in str(error.hint)


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz"])
def test_a_full_disk_is_told_and_leaves_nothing(
    name: str, full_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    disk = full_disk(1 << 20)
    files = {"inputs/w.bin": hashlib.shake_128(b"w").digest(2 << 20)}
    with pytest.raises(RefusedError, match="No space left on device"):
        bundle(files, disk / name)
    assert list(disk.iterdir()) == []
    whole = bundle(files, tmp_path / name)
    with pytest.raises(RefusedError, match="it holds"):
        unpack.unpack(whole, disk / "runs" / "job" / "run", lambda *_: None)
    assert list(disk.iterdir()) == []


def test_a_file_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(FILES["inputs/rows/a.jsonl"])
    index = index_of({"inputs/rows/a.jsonl": source.read_bytes()})
    source.write_bytes(b"another")
    with pytest.raises(RefusedError, match="was changed while it was bundled"):
        write(Contents(index, [Item(index.members[0], source)]), tmp_path / "b.tar", lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_what_a_killed_unbundling_left_is_swept_and_a_running_ones_is_not(
    place: Path, tmp_path: Path
) -> None:
    path = bundle(FILES, tmp_path / "b.tar")
    dead, alive = (place / f".run.{token * 16}.staging" for token in "da")
    for left in (dead, alive):
        left.mkdir()
        (left / "half").write_bytes(b"x")
    held = locks.try_lock_folder(alive)
    assert held is not None
    unpack.unpack(path, place / "run", lambda *_: None)
    held.release()
    assert sorted(each.name for each in place.iterdir()) == [alive.name, "run"]


@pytest.mark.parametrize("command", ["bundle", "unbundle"])
def test_a_sigterm_leaves_nothing(command: str, place: Path, tmp_path: Path) -> None:
    def end_it(*_: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended, tidy_at_sigterm():
        if command == "bundle":
            index = index_of(FILES)
            items = [Item(member, place, FILES[member.path]) for member in index.members]
            write(Contents(index, items), place / "b.tar", end_it)
        else:
            unpack.unpack(bundle(FILES, tmp_path / "b.tar"), place / "run", end_it)
    assert ended.value.code == 143
    assert list(place.iterdir()) == []
