"""Runs and GPU leases on a disk whose flock can't be believed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from runner.common import file_systems
from runner.machine.leases.store import PARENTS, LeaseStore, LeasesUnusable, leases_folder
from runner.plans.container.overlays import run_overlays
from runner.runs.folder import RunFolder
from tests.support.benches import make_bench
from tests.support.network_disks import NFS
from tests.support.workplace import Workplace, processes_of, wait_gone


@pytest.mark.e2e
def test_a_run_on_a_network_disk_is_supervised_by_one(machines: tuple[Path, Path]) -> None:
    """Two machines see it run, none removes it, and a supervisor that is killed is missed."""
    here, there = machines
    bench = make_bench(here)
    sets = ("--set", "environment.PAUSE=60")
    done = Workplace(here).call("train", "job.yaml", *sets, "--detach", "--json")
    assert done.code == 0, done.err
    run = Path(done.json["folder"])
    seen = RunFolder(there / run.relative_to(here))
    try:
        assert RunFolder(run).is_supervised() and seen.is_supervised()
        assert (seen.lock_lease / "holder").is_file()
        assert seen.try_lock() is None
        refused = Workplace(there).call("rm", str(seen.path), "--yes")
        assert refused.code == 3, refused.err
        assert run.is_dir()
        supervisor = next(x for x in processes_of(run) if "runner.supervisor" in x.cmdline())
        supervisor.kill()
        supervisor.wait(30)
        assert not seen.is_supervised()
        held = seen.try_lock()
        assert held is not None and RunFolder(run).is_supervised()
        held.release()
    finally:
        for process in processes_of(run):
            process.kill()
        wait_gone(run, 30)
    assert bench.place.folder == here


@pytest.mark.e2e
def test_a_run_on_a_network_disk_ends_and_leaves_no_lease(machines: tuple[Path, Path]) -> None:
    run = make_bench(machines[0]).train()
    assert not RunFolder(run).lock_lease.exists()
    assert (run / "termination.json").is_file()
    removed = Workplace(machines[1]).call("rm", "@last", "--yes")
    assert removed.code == 0, removed.err
    assert not run.exists()


def test_a_supervisor_whose_lock_is_taken_ends_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runner.supervisor import __main__ as supervisor

    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))
    supervisor._stop("pid 7 on other")
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert "pid 7 on other" in capsys.readouterr().err


def test_what_was_put_in_place_of_a_lease_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's container can write its folder before a supervisor comes back to it."""
    monkeypatch.setattr(file_systems, "type_number", lambda _: NFS)
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").mkdir()
    folder = RunFolder(tmp_path / "run")
    folder.lock_lease.symlink_to(tmp_path / "outside")
    held = folder.try_lock()
    assert held is not None
    assert not list((tmp_path / "outside").iterdir())
    assert (folder.lock_lease / "holder").is_file() and not folder.lock_lease.is_symlink()
    held.release()


def test_a_container_can_not_write_the_lease_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    assert folder.lock_lease not in [Path(mount.target) for mount in run_overlays(folder)]
    monkeypatch.setattr(file_systems, "type_number", lambda _: NFS)
    held = folder.try_lock()
    assert held is not None
    found = {Path(mount.target): mount for mount in run_overlays(folder)}
    assert found[folder.lock_lease].readonly
    held.release()


def test_gpu_leases_are_refused_where_two_could_have_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_LEASES", str(tmp_path / "leases"))
    monkeypatch.setattr(file_systems, "type_number", lambda _: NFS)
    with pytest.raises(LeasesUnusable, match="is on NFS") as refused, LeaseStore().alone():
        pass
    assert refused.value.own and refused.value.exit_code == 3
    assert "RUNNER_LEASES names another folder" in "\n".join(refused.value.lines())


def test_gpu_leases_are_refused_on_a_real_one(machines: tuple[Path, Path]) -> None:
    with (
        pytest.raises(LeasesUnusable, match="is on FUSE"),
        LeaseStore(machines[0] / "leases").alone(),
    ):
        pass


def test_doctor_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.machine.doctor.leases import judge_leases, read_leases

    monkeypatch.setenv("RUNNER_LEASES", str(tmp_path / "leases"))
    assert judge_leases(read_leases())[0] == "ok"
    monkeypatch.setattr(file_systems, "type_number", lambda _: NFS)
    status, text, fix = judge_leases(read_leases())
    assert status == "problem" and "is on NFS" in text
    assert fix is not None and "RUNNER_LEASES" in fix


def test_by_themselves_they_go_where_locks_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a rootless container all but /dev/shm may be FUSE."""
    monkeypatch.delenv("RUNNER_LEASES")
    monkeypatch.setattr(Path, "lstat", lambda _: Path("/proc/self/stat").stat())
    first, second = PARENTS
    monkeypatch.setattr(file_systems, "has_trusted_flock", lambda place: place == second)
    assert leases_folder() == second / "runner-leases"
    assert first != second
