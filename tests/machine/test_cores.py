"""Threads are as many as cores may be used: the affinity's, at most a cgroup's quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.machine.cores import cpu_quota, usable_cores


def laid(folder: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc, mount = folder / "cgroup", folder / "fs"
    proc.write_text(cgroup)
    mount.mkdir()
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)
    return proc, mount


V1 = "5:memory:/d\n4:cpu,cpuacct:/d/x\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/../../x\n", {"cpu.max": "300000 100000"}, 3.0),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {"cpu.max": ""}, None),
        (V1, {"cpu/d/x/cpu.cfs_quota_us": "-1", "cpu/d/x/cpu.cfs_period_us": "100000"}, None),
        (V1, {"cpu/d/cpu.cfs_quota_us": "250000", "cpu/d/cpu.cfs_period_us": "100000"}, 2.5),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "1", "cpu,cpuacct/cpu.cfs_period_us": "0"}, None),
        ("", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_quota(cgroup: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cpu_quota(*laid(tmp_path, cgroup, files)) == quota


@pytest.mark.parametrize(
    ("text", "cores"), [("max 1", 8), ("150000 100000", 1), ("20000 100000", 1), ("3 1", 3)]
)
def test_the_cores(text: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores(*laid(tmp_path, "0::/\n", {"cpu.max": text})) == cores
