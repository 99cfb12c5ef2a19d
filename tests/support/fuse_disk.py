"""A FUSE disk that shows a folder: `python fuse_disk.py FOLDER MOUNTPOINT`, until it is ended.

The kernel's own protocol (include/uapi/linux/fuse.h, version 7.31) over /dev/fuse, in pure Python:
no library is needed, only the right to mount. Two of them on one folder are two machines with one
network disk: files, O_EXCL and renames are shared, and each kernel mount keeps a flock for itself.
Nothing is cached. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable

READ_BYTES = 1 << 20
WRITE_BYTES = 1 << 17
ROOT = 1
DIRECT_IO = 1
IN_HEADER = struct.Struct("<IIQQIIIHH")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
MODE, UID, GID, SIZE, ATIME, MTIME, ATIME_NOW, MTIME_NOW = 1, 2, 4, 8, 16, 32, 128, 256
PASSED = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_EXCL


class Disk:
    """The folder behind the mount; a node of it is an O_PATH descriptor."""

    def __init__(self, folder: str) -> None:
        self.nodes = {ROOT: os.open(folder, os.O_PATH | os.O_DIRECTORY)}
        root = os.fstat(self.nodes[ROOT])
        self.numbers = {(root.st_dev, root.st_ino): ROOT}
        self.opened: dict[int, list[tuple[str, int, int]]] = {}
        self.answers: dict[int, Callable[[int, bytes], bytes]] = {
            1: self.lookup,
            3: self.getattr,
            4: self.setattr,
            5: self.readlink,
            6: self.symlink,
            9: self.mkdir,
            10: self.unlink,
            11: self.rmdir,
            12: self.rename,
            13: self.link,
            14: self.open,
            15: self.read,
            16: self.write,
            17: self.statfs,
            18: self.release,
            20: self.fsync,
            25: self.nothing,
            26: self.init,
            27: self.opendir,
            28: self.readdir,
            29: self.releasedir,
            30: self.nothing,
            35: self.create,
        }

    def answer(self, request: bytes) -> bytes | None:
        """What is written back for a request; None where the kernel wants no answer."""
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        if opcode in (2, 36, 42):  # forget, interrupt, forget many
            return None
        code, body = 0, b""
        try:
            if opcode not in self.answers:
                raise OSError(errno.ENOSYS, "")
            body = self.answers[opcode](node, request[IN_HEADER.size :])
        except OSError as error:
            code = error.errno or errno.EIO
        return struct.pack("<IiQ", 16 + len(body), -code, unique) + body

    def init(self, _: int, body: bytes) -> bytes:
        (_, minor, ahead, _) = struct.unpack_from("<IIII", body)
        return struct.pack(
            "<IIIIHHIIHHI28x", 7, min(31, minor), ahead, 0, 12, 9, WRITE_BYTES, 1, 32, 0, 0
        )

    def nothing(self, _: int, __: bytes) -> bytes:
        return b""

    def path(self, node: int) -> str:
        return f"/proc/self/fd/{self.nodes[node]}"

    def attributes(self, about: os.stat_result) -> bytes:
        times = (about.st_atime_ns, about.st_mtime_ns, about.st_ctime_ns)
        return ATTR.pack(
            about.st_ino,
            about.st_size,
            about.st_blocks,
            *(time // 10**9 for time in times),
            *(time % 10**9 for time in times),
            about.st_mode,
            about.st_nlink,
            about.st_uid,
            about.st_gid,
            0,
            4096,
            0,
        )

    def entry(self, parent: int, name: str) -> bytes:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.nodes[parent])
        about = os.fstat(descriptor)
        key = (about.st_dev, about.st_ino)
        if key in self.numbers:
            os.close(descriptor)
        else:
            self.numbers[key] = len(self.numbers) + 1
            self.nodes[self.numbers[key]] = descriptor
        return struct.pack("<QQQQII", self.numbers[key], 0, 0, 0, 0, 0) + self.attributes(about)

    def lookup(self, node: int, body: bytes) -> bytes:
        return self.entry(node, text(body))

    def getattr(self, node: int, _: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self.attributes(os.fstat(self.nodes[node]))

    def setattr(self, node: int, body: bytes) -> bytes:
        given = SETATTR.unpack_from(body)
        valid, size, seconds, mode = given[0], given[3], given[5:7], given[11]
        about, path = os.fstat(self.nodes[node]), self.path(node)
        if valid & MODE:
            os.chmod(path, stat.S_IMODE(mode))  # noqa: PTH101 - a node of /proc
        if valid & (UID | GID):
            owner = given[13] if valid & UID else -1
            os.chown(path, owner, given[14] if valid & GID else -1)
        if valid & SIZE:
            os.truncate(path, size)
        if valid & (ATIME | MTIME | ATIME_NOW | MTIME_NOW):
            if valid & ATIME_NOW and valid & MTIME_NOW:
                os.utime(path)
            else:
                read = seconds[0] * 10**9 + given[8] if valid & ATIME else about.st_atime_ns
                written = seconds[1] * 10**9 + given[9] if valid & MTIME else about.st_mtime_ns
                os.utime(path, ns=(read, written))
        return self.getattr(node, b"")

    def readlink(self, node: int, _: bytes) -> bytes:
        return os.fsencode(os.readlink("", dir_fd=self.nodes[node]))

    def symlink(self, node: int, body: bytes) -> bytes:
        name, target = body.split(b"\0")[:2]
        os.symlink(target, name, dir_fd=self.nodes[node])
        return self.entry(node, os.fsdecode(name))

    def mkdir(self, node: int, body: bytes) -> bytes:
        mode, umask = struct.unpack_from("<II", body)
        name = text(body[8:])
        os.mkdir(name, mode & ~umask, dir_fd=self.nodes[node])
        return self.entry(node, name)

    def unlink(self, node: int, body: bytes) -> bytes:
        os.unlink(text(body), dir_fd=self.nodes[node])
        return b""

    def rmdir(self, node: int, body: bytes) -> bytes:
        os.rmdir(text(body), dir_fd=self.nodes[node])
        return b""

    def rename(self, node: int, body: bytes) -> bytes:
        (to,) = struct.unpack_from("<Q", body)
        old, new = body[8:].split(b"\0")[:2]
        os.rename(old, new, src_dir_fd=self.nodes[node], dst_dir_fd=self.nodes[to])
        return b""

    def link(self, node: int, body: bytes) -> bytes:
        (old,) = struct.unpack_from("<Q", body)
        name = text(body[8:])
        os.link(self.path(old), name, dst_dir_fd=self.nodes[node], follow_symlinks=True)
        return self.entry(node, name)

    def open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        descriptor = os.open(self.path(node), flags & PASSED & ~os.O_EXCL)
        return struct.pack("<QII", descriptor, DIRECT_IO, 0)

    def create(self, node: int, body: bytes) -> bytes:
        flags, mode, umask = struct.unpack_from("<III", body)
        name = text(body[16:])
        made = os.O_CREAT | os.O_NOFOLLOW | (flags & PASSED)
        descriptor = os.open(name, made, mode & ~umask, dir_fd=self.nodes[node])
        return self.entry(node, name) + struct.pack("<QII", descriptor, DIRECT_IO, 0)

    def read(self, _: int, body: bytes) -> bytes:
        descriptor, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(descriptor, size, offset)

    def write(self, _: int, body: bytes) -> bytes:
        descriptor, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(descriptor, body[40 : 40 + size], offset), 0)

    def release(self, _: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def fsync(self, _: int, body: bytes) -> bytes:
        os.fsync(struct.unpack_from("<Q", body)[0])
        return b""

    def statfs(self, node: int, _: bytes) -> bytes:
        of = os.fstatvfs(self.nodes[node])
        counts = (of.f_blocks, of.f_bfree, of.f_bavail, of.f_files, of.f_ffree)
        return struct.pack("<QQQQQIIII24x", *counts, of.f_bsize, of.f_namemax, of.f_frsize, 0)

    def opendir(self, node: int, _: bytes) -> bytes:
        found = [(".", 0, stat.S_IFDIR), ("..", 0, stat.S_IFDIR)]
        with os.scandir(self.path(node)) as entries:
            for entry in entries:
                about = entry.stat(follow_symlinks=False)
                found.append((entry.name, about.st_ino, about.st_mode))
        number = max(self.opened, default=0) + 1
        self.opened[number] = found
        return struct.pack("<QII", number, 0, 0)

    def readdir(self, _: int, body: bytes) -> bytes:
        number, offset, size = struct.unpack_from("<QQI", body)
        out = b""
        for place, (name, inode, mode) in enumerate(self.opened[number]):
            raw = os.fsencode(name)
            record = struct.pack("<QQII", inode or 1, place + 1, len(raw), stat.S_IFMT(mode) >> 12)
            record += raw + bytes(-len(raw) % 8)
            if place >= offset:
                if len(out) + len(record) > size:
                    break
                out += record
        return out

    def releasedir(self, _: int, body: bytes) -> bytes:
        self.opened.pop(struct.unpack_from("<Q", body)[0], None)
        return b""


def text(raw: bytes) -> str:
    return os.fsdecode(raw.split(b"\0", 1)[0])


def main() -> None:
    """Mount, say so on stdout, and answer until the mount goes."""
    folder, mountpoint = sys.argv[1:]
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (b"shared", os.fsencode(mountpoint), b"fuse.shared", 0, options.encode())
    if libc.mount(*arguments):
        sys.exit(os.strerror(ctypes.get_errno()))
    print("mounted", flush=True)
    disk = Disk(folder)
    while True:
        try:
            request = os.read(device, READ_BYTES)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            if error.errno in (errno.EINTR, errno.ENOENT):
                continue
            raise
        answer = disk.answer(request)
        if answer is not None:
            try:
                os.write(device, answer)
            except FileNotFoundError:  # the request was interrupted
                continue


if __name__ == "__main__":
    main()
