"""Which file system a path lies on, asked of the kernel."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.common import file_systems
from tests.support.network_disks import NFS


def test_the_number_is_the_one_that_the_mount_table_means(tmp_path: Path) -> None:
    """/proc is a file system that every Linux has: 0x9fa0 by linux/magic.h."""
    assert file_systems.type_number(Path("/proc/self")) == 0x9FA0
    assert file_systems.type_number(Path("/sys")) in (0x62656572, 0x9FA0, 0x01021994)
    opened = os.open(tmp_path, os.O_RDONLY)
    assert file_systems.type_number(opened) == file_systems.type_number(tmp_path) != 0
    os.close(opened)
    assert file_systems.type_number(opened) == 0  # closed: it can't be told


def test_of_what_is_not_there_the_folder_above_counts(tmp_path: Path) -> None:
    there = file_systems.type_number(tmp_path)
    assert file_systems.type_number(tmp_path / "not" / "yet") == there


def test_a_tmpfs_is_trusted(full_disk: Callable[..., Path]) -> None:
    disk = full_disk(1 << 20)
    assert file_systems.name_type(disk) == "tmpfs"
    assert file_systems.has_trusted_flock(disk)


def test_a_real_fuse_mount_is_not(machines: tuple[Path, Path]) -> None:
    assert file_systems.name_type(machines[0]) == "FUSE"
    assert not file_systems.has_trusted_flock(machines[0])


@pytest.mark.parametrize(
    ("number", "name", "trusted"),
    [
        (0xEF53, "ext4", True),
        (NFS, "NFS", False),
        (0x0BD00BD0, "Lustre", False),
        (0x47504653, "GPFS", False),
        (0xFF534D42, "CIFS", False),
        (0x12345678, "type 0x12345678", False),
    ],
)
def test_what_statfs_says_decides(
    number: int, name: str, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Libc:
        """f_type is a signed long on some machines: its upper half is not part of the number."""

        def statfs(self, _: bytes, buffer: Any) -> int:
            ctypes.c_long.from_buffer(buffer).value = ctypes.c_int32(number).value
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    assert file_systems.name_type(Path("/disk")) == name
    assert file_systems.has_trusted_flock(Path("/disk")) is trusted


def test_no_type_is_both() -> None:
    assert not file_systems.OF_ONE_MACHINE.keys() & file_systems.OF_SEVERAL.keys()
