"""Disks whose flock can't be believed: one that only says so, and a real one of two mounts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.common import file_systems

NFS = 0x6969


@pytest.fixture(params=["flock", "lease"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Locks of the kernel, and then, as on a disk that says that it is NFS, leases."""
    if request.param == "lease":
        monkeypatch.setattr(file_systems, "type_number", lambda _: NFS)
    return str(request.param)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """One folder as two machines see it on a network disk: two FUSE mounts of it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    servers = []
    places = (tmp_path / "here", tmp_path / "there")
    try:
        for place in places:
            place.mkdir()
            command = [sys.executable, str(Path(__file__).with_name("fuse_disk.py"))]
            server = subprocess.Popen(
                [*command, str(folder), str(place)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            servers.append(server)
            assert server.stdout is not None and server.stderr is not None
            if server.stdout.readline() != "mounted\n":
                pytest.skip(f"FUSE can't be mounted here: {server.stderr.read().strip()}")
        yield places
    finally:
        for place in places:
            if place.is_mount():
                subprocess.run(["umount", "--lazy", str(place)], check=True)
        for server in servers:
            server.kill()
            server.communicate()
