"""Which file system a path lies on, and whether its flock can be believed. Standard library only.

`flock` succeeds for everybody on some network disks (Lustre mounted with localflock or noflock,
NFS with nolock, many FUSE ones), or holds on one machine of several. The kernel names the type of a
file system by a number (statfs(2), f_type), which Python's os.statvfs leaves out.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# numbers: include/uapi/linux/magic.h, and fs/*/ of those that are not in it
OF_ONE_MACHINE = {
    0x0000EF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlay",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
    0xCA451A4E: "bcachefs",
    0x3153464A: "jfs",
    0x52654973: "reiserfs",
    0x00003434: "nilfs2",
    0x73717368: "squashfs",
    0xE0F5E1E2: "erofs",
    0x0000F15F: "ecryptfs",
    0x00004D44: "vfat",
    0x2011BAB0: "exfat",
    0x7366746E: "ntfs3",
}
"""Their locks are this kernel's own, and all who could ask for one ask this kernel."""
OF_SEVERAL = {
    0x00006969: "NFS",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x65735546: "FUSE",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x0000517B: "SMB",
    0x00C36400: "Ceph",
    0x19830326: "BeeGFS",
    0x01021997: "9p",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x20030528: "OrangeFS",
    0xAAD7AAEA: "PanFS",
    0x786F4256: "VirtualBox's shared folders",
    0xBACBACBC: "VMware's shared folders",
}
"""A lock may hold here and not there, or be given to everybody."""
_STATFS_BYTES = 512  # struct statfs has 120 on x86_64


def has_trusted_flock(path: Path | int) -> bool:
    """Whether one who takes a flock there has it alone, whoever asks.

    A type that is not known is not trusted. `path`: a path, or an open descriptor. Where it is not
    there (yet), the nearest folder above it counts.
    """
    return type_number(path) in OF_ONE_MACHINE


def name_type(path: Path | int) -> str:
    """The type in a word: "NFS"; of one that is not known the number, "type 0x12345678"."""
    number = type_number(path)
    known = OF_ONE_MACHINE.get(number) or OF_SEVERAL.get(number)
    return known or f"type {number:#010x}"


def type_number(path: Path | int) -> int:
    """f_type of statfs(2), an unsigned 32-bit number; 0 where it can't be told."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if isinstance(path, int):
        failed = libc.fstatfs(path, buffer)
    else:
        there = path.absolute()
        while failed := libc.statfs(os.fsencode(there), buffer):
            if there == there.parent:
                break
            there = there.parent
    if failed:
        return 0
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF  # the first member, a long
