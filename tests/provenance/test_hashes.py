"""Hashes of large files are kept by path, size, mtime and inode; any of them changed is noticed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from runner.provenance import hashes
from runner.provenance.hashes import CACHED_BYTES, GaveUp, Hasher


def large(path: Path, fill: bytes = b"a", age_seconds: float = 60) -> Path:
    path.write_bytes(fill * CACHED_BYTES)
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = large(tmp_path / "w.safetensors")
    hasher = Hasher(tmp_path / "cache")
    assert hasher.file(path) == sha256(path)
    monkeypatch.setattr(Hasher, "_read", lambda *_: pytest.fail("it was read again"))
    assert Hasher(tmp_path / "cache").file(path) == sha256(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert hasher.file(link) == sha256(path)


@pytest.mark.parametrize("how", ["size", "mtime", "inode"])
def test_a_change_is_noticed(tmp_path: Path, how: str) -> None:
    path = large(tmp_path / "w")
    before = path.stat()
    hasher = Hasher(tmp_path / "cache")
    hasher.file(path)
    if how == "size":
        path.write_bytes(b"b" * (CACHED_BYTES + 1))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif how == "mtime":
        path.write_bytes(b"b" * CACHED_BYTES)
    else:
        other = large(tmp_path / "other", b"b")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(path)
    assert hasher.file(path) == sha256(path)


def test_a_file_changed_a_moment_ago_is_not_kept(tmp_path: Path) -> None:
    path = large(tmp_path / "w", age_seconds=0)
    Hasher(tmp_path / "cache").file(path)
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def test_it_says_how_far_it_is_and_gives_up_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large(tmp_path / "w")
    said: list[str] = []
    monkeypatch.setattr(hashes, "SAY_SECONDS", 0.0)
    Hasher(tmp_path / "none", say=said.append).file(path)
    assert any("w: 4 MiB of 8 MiB" in line for line in said), said
    with pytest.raises(GaveUp):
        Hasher(tmp_path / "other", gave_up=lambda: True).file(path)


def test_a_folder_is_known_by_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "inner" / "b").write_text("22")
    hasher = Hasher(tmp_path / "cache")
    digest, count, size = hasher.folder(folder)
    assert (count, size) == (2, 3)
    (folder / "a").rename(folder / "c")
    renamed = hasher.folder(folder)[0]
    (folder / "c").write_text("3")
    assert len({digest, renamed, hasher.folder(folder)[0]}) == 3
