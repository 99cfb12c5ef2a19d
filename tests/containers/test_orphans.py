"""Whose a container is, and what becomes of orphans: with a real daemon, real dead processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runner.common.errors import RefusedError
from runner.containers import labels, orphans
from runner.containers.cli import ContainerCli
from runner.containers.labels import run_labels, supervisor_label
from tests.testbed import H100, REPOSITORY, FakeNvml, build_nvml
from tests.testbed.docker import Daemon
from tests.testbed.tiny_image import Testbed, build_tiny


@pytest.fixture(scope="module")
def tiny(docker_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> ContainerCli:
    build_tiny(docker_daemon.cli, tmp_path_factory.mktemp("tiny"))
    return docker_daemon.cli


@pytest.fixture
def bed(tiny: ContainerCli, tmp_path: Path) -> Iterator[Testbed]:
    made = Testbed(tiny, tmp_path)
    yield made
    made.clear()


@pytest.fixture(scope="module")
def dead() -> str:
    """The label of a supervisor that was killed."""
    process = subprocess.Popen(["sleep", "300"])
    label = supervisor_label(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return label


def marks(folder: Path, supervisor: str, /, **changes: str) -> dict[str, str]:
    made = run_labels(folder, "demo", "3f2a91c", os.geteuid(), supervisor)
    return made | {labels.PREFIX + name: value for name, value in changes.items()}


def found(bed: Testbed) -> list[str]:
    return [one.id for one in orphans.orphans(orphans.our_containers(bed.cli))]


# Whose it is ------------------------------------------------------------------------------------


def test_a_container_whose_supervisor_was_killed_is_an_orphan(bed: Testbed, dead: str) -> None:
    folder = bed.folder / "runs" / "a b"
    made = bed.run(marks(folder, dead))
    assert found(bed) == [made]
    [one] = orphans.our_containers(bed.cli)
    assert one.run == folder and one.job == "demo" and one.plan == "3f2a91c"
    assert one.uid == os.geteuid() and one.state == "running" and not one.ended
    assert one.exit_code is None and one.pid is not None and one.started is not None


@pytest.mark.parametrize("process", ["alive", "stopped"])
def test_a_container_whose_supervisor_lives_is_none(bed: Testbed, process: str) -> None:
    supervisor = subprocess.Popen(["sleep", "300"])
    try:
        if process == "stopped":  # Ctrl-Z is no death
            supervisor.send_signal(signal.SIGSTOP)
        bed.run(marks(bed.folder, supervisor_label(supervisor.pid)))
        assert found(bed) == []
    finally:
        supervisor.kill()
        supervisor.wait()
    assert len(found(bed)) == 1


def test_a_pid_that_is_another_process_now_is_a_dead_supervisor(bed: Testbed) -> None:
    pid, _, ticks = supervisor_label().partition(":")
    made = bed.run(marks(bed.folder, f"{pid}:{int(ticks) - 1}"))
    assert found(bed) == [made]


def test_a_zombie_is_a_dead_supervisor(bed: Testbed) -> None:
    process = subprocess.Popen(["sleep", "300"])
    label = supervisor_label(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not reaped
    try:
        assert found(bed) == []
        made = bed.run(marks(bed.folder, label))
        assert found(bed) == [made]
    finally:
        process.wait()


@pytest.mark.parametrize(
    "changes",
    [
        {"uid": str(os.geteuid() + 1)},
        {"uid": "root"},
        {"uid": ""},
        {"host": "0" * 32},
        {"host": ""},
        {"supervisor": ""},
        {"supervisor": "12"},
        {"supervisor": "12:"},
        {"supervisor": "-1:5"},
        {"supervisor": "²:³"},
    ],
)
def test_what_is_not_surely_ours_is_never_an_orphan(
    bed: Testbed, dead: str, changes: dict[str, str]
) -> None:
    bed.run(marks(bed.folder, dead, **changes))
    assert found(bed) == []


def test_a_container_without_our_labels_is_not_even_seen(bed: Testbed, dead: str) -> None:
    bed.run({})
    missing = marks(bed.folder, dead)
    del missing[labels.RUN]
    bed.run(missing)
    assert orphans.our_containers(bed.cli) == []


@pytest.mark.parametrize(
    "name",
    ["a b", "-rf", 'it\'s "x"', "a=b,c", "$(touch x)", "ümläut", "line\nbreak", "{{.ID}}", "a*"],
)
def test_a_runs_container_is_found_by_its_folder(bed: Testbed, dead: str, name: str) -> None:
    folder = bed.folder / name
    made = bed.run(marks(folder, dead))
    bed.run(marks(bed.folder / "another", dead))
    one = orphans.container_of_run(bed.cli, folder)
    assert one is not None and one.id == made and one.run == folder
    assert orphans.container_of_run(bed.cli, bed.folder / "a") is None


def test_of_several_containers_of_a_run_the_newest_is_told(bed: Testbed, dead: str) -> None:
    bed.run(marks(bed.folder, dead), "exit", "1")
    newest = bed.run(marks(bed.folder, dead))
    bed.run(marks(bed.folder, dead, host="0" * 32))
    one = orphans.container_of_run(bed.cli, bed.folder)
    assert one is not None and one.id == newest


def test_a_container_that_goes_while_it_is_asked_for_is_no_failure(bed: Testbed, dead: str) -> None:
    made = bed.run(marks(bed.folder, dead))
    program = bed.folder / "docker"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = ps ] && echo {"0" * 64}\nexec {bed.cli.program} "$@"\n'
    )
    program.chmod(0o755)
    assert [one.id for one in orphans.our_containers(ContainerCli(str(program)))] == [made]


def test_a_dead_daemon_is_a_refusal_and_not_an_empty_list(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{bed.folder}/absent.sock")
    with pytest.raises(RefusedError, match="is not running"):
        orphans.our_containers(bed.cli)
    with pytest.raises(RefusedError, match="is not running"):
        orphans.container_of_run(bed.cli, bed.folder)


# Removing ---------------------------------------------------------------------------------------


def test_an_orphan_is_asked_to_end_and_its_code_and_log_are_kept(bed: Testbed, dead: str) -> None:
    made = bed.run(marks(bed.folder, dead), "77")
    [one] = orphans.our_containers(bed.cli)
    gone = orphans.remove(bed.cli, one, grace_seconds=20)
    assert gone.exit_code == 77 and not gone.killed
    assert gone.log_tail == "running\nlast words\n"
    assert not bed.exists(made)


def test_one_that_saves_first_is_given_its_grace(bed: Testbed, dead: str) -> None:
    bed.run(marks(bed.folder, dead), "slow")
    [one] = orphans.our_containers(bed.cli)
    gone = orphans.remove(bed.cli, one, grace_seconds=20)
    assert gone.exit_code == 143 and not gone.killed and "last words" in gone.log_tail


def test_one_that_ignores_sigterm_is_killed_after_its_grace(bed: Testbed, dead: str) -> None:
    made = bed.run(marks(bed.folder, dead), "deaf")
    [one] = orphans.our_containers(bed.cli)
    gone = orphans.remove(bed.cli, one, grace_seconds=1)
    assert gone.exit_code == 137 and gone.killed and not bed.exists(made)


def test_a_paused_one_is_ended_too(bed: Testbed, dead: str) -> None:
    made = bed.run(marks(bed.folder, dead))
    bed.real.require("pause", made)
    [one] = orphans.our_containers(bed.cli)
    assert one.state == "paused" and not one.ended
    gone = orphans.remove(bed.cli, one, grace_seconds=20)
    assert gone.exit_code == 143 and not bed.exists(made)


def test_one_that_has_ended_keeps_its_code(bed: Testbed, dead: str) -> None:
    made = bed.run(marks(bed.folder, dead), "exit", "137")
    bed.real.require("wait", made)
    [one] = orphans.our_containers(bed.cli)
    assert one.state == "exited" and one.exit_code == 137
    gone = orphans.remove(bed.cli, one, grace_seconds=20)
    assert gone.exit_code == 137 and not gone.killed  # not by us
    assert not bed.exists(made)


def test_one_that_never_ran_has_no_code(bed: Testbed, dead: str) -> None:
    made = bed.run(marks(bed.folder, dead), verb="create")
    [one] = orphans.our_containers(bed.cli)
    assert one.state == "created" and one.started is None
    assert orphans.remove(bed.cli, one, grace_seconds=20).exit_code is None
    assert not bed.exists(made)


def test_one_that_is_gone_already_is_no_failure(bed: Testbed, dead: str) -> None:
    made = bed.run(marks(bed.folder, dead))
    [one] = orphans.our_containers(bed.cli)
    bed.real.require("rm", "--force", made)
    gone = orphans.remove(bed.cli, one, grace_seconds=20)
    assert gone.exit_code is None and gone.log_tail == ""


def test_one_that_stays_is_told(bed: Testbed, dead: str) -> None:
    bed.run(marks(bed.folder, dead), "exit", "0")
    [one] = orphans.our_containers(bed.cli)
    program = bed.folder / "docker"
    program.write_text(
        '#!/bin/sh\ncase "$1" in\n'
        'rm) echo "Error response from daemon: device busy" >&2; exit 1 ;;\n'
        f'*) exec {bed.real.program} "$@" ;;\nesac\n'
    )
    program.chmod(0o755)
    with pytest.raises(orphans.RunnerError, match="still there: device busy"):
        orphans.remove(ContainerCli(str(program)), one, grace_seconds=1)


# `runner doctor` --------------------------------------------------------------------------------


def doctor(bed: Testbed, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runner", "doctor", *arguments],
        cwd=bed.folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "HF_HUB_OFFLINE": "1",
            "RUNNER_CONTAINER_CLI": bed.cli.program,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


def check(record: dict[str, Any]) -> dict[str, Any]:
    [one] = [check for check in record["checks"] if check["name"] == "containers"]
    return dict(one)


def test_doctor_tells_of_orphans_and_fix_removes_them(bed: Testbed, dead: str) -> None:
    folder = bed.folder / "runs" / "demo job"
    orphan = bed.run(marks(folder, dead), "77")
    living = bed.run(marks(folder, supervisor_label()))
    foreign = bed.run(marks(folder, dead, host="0" * 32))
    name = bed.real.require("inspect", "--format", "{{.Name}}", orphan).strip().strip("/")

    plain = doctor(bed, "--json")
    record = json.loads(plain.stdout)
    assert check(record)["status"] == "warning"
    assert check(record)["found"].startswith(f"1 left by runs whose supervisor is gone ({name}); 2")
    assert "--fix" in check(record)["advice"] and record["removed"] == []
    assert bed.exists(orphan)

    fixed = doctor(bed, "--fix", "--json")
    assert fixed.returncode == plain.returncode
    record = json.loads(fixed.stdout)
    [removal] = record["removed"]
    assert removal["name"] == name and removal["run"] == str(folder)
    assert removal["state"] == "running" and removal["exit_code"] == 77
    assert removal["last_line"] == "last words" and removal["gpu_bytes"] is None
    assert f"{name}: running since" in fixed.stderr and f"run {folder}" in fixed.stderr
    assert f"{name}: removed (exit code 77)" in fixed.stderr
    assert check(record)["status"] == "ok"
    assert not bed.exists(orphan) and bed.exists(living) and bed.exists(foreign)
    assert json.loads((bed.folder / "validation_report.json").read_text()) == record

    again = doctor(bed, "--fix")
    assert "no orphans of runs" in again.stderr and "removed" not in again.stdout


def test_doctor_says_what_gpu_memory_an_orphan_holds(
    bed: Testbed, dead: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bed.run(marks(bed.folder / "spaced name", dead))
    [one] = orphans.our_containers(bed.cli)
    fake = FakeNvml(build_nvml(tmp_path_factory.mktemp("nvml")), bed.folder / "nvml.state")
    fake.set(
        f"gpu 0 GPU-0 {H100}",
        f"gpu 1 GPU-1 {H100}",
        f"compute 0 {one.pid} 3072",
        f"compute 1 {one.pid} 1024",
        f"compute 1 {os.getpid()} 7",
    )
    done = doctor(bed, "--fix", LD_LIBRARY_PATH=str(fake.library_folder), NVML_STUB=str(fake.state))
    assert "running since" in done.stderr and "4.00 GiB of GPU memory" in done.stderr
    assert "removed (exit code 143)" in done.stdout and "last words" in done.stdout


def test_doctor_without_a_daemon_skips_containers(bed: Testbed) -> None:
    nowhere = f"unix://{bed.folder}/absent.sock"
    for arguments in (["--json"], ["--json", "--fix"]):
        done = doctor(bed, *arguments, DOCKER_HOST=nowhere)
        told = check(json.loads(done.stdout))
        assert told["status"] == "skipped" and "is not running" in told["found"]
    assert "no orphans looked for" in done.stderr
    without = doctor(bed, "--json", RUNNER_CONTAINER_CLI="no-such-program")
    assert check(json.loads(without.stdout))["status"] == "skipped"


# Labels and parsing -----------------------------------------------------------------------------


def test_labels_that_would_lose_a_container_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absolute"):
        run_labels(Path("runs/x"), "demo", "3f", 0, supervisor_label())
    with pytest.raises(ValueError, match="PID:START_TICKS"):
        run_labels(tmp_path, "demo", "3f", 0, "12")
    with pytest.raises(ProcessLookupError):
        supervisor_label(2**22 + 1)
    assert labels.host_id() == labels.host_id() and len(labels.host_id()) == 32


@pytest.mark.parametrize("namespace", [["unshare", "--pid", "--fork"], ["unshare", "--uts", "sh"]])
def test_pids_of_another_namespace_or_name_are_another_hosts(namespace: list[str]) -> None:
    told = "from runner.containers.labels import host_id; print(host_id())"
    command = [*namespace, sys.executable, "-c", told]
    if "sh" in namespace:
        command = ["unshare", "--uts", "sh", "-c", 'hostname other && exec "$@"', "sh"]
        command += [sys.executable, "-c", told]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        pytest.skip(f"no new namespace can be made here: {done.stderr.strip()}")
    assert len(done.stdout.strip()) == 32 and done.stdout.strip() != labels.host_id()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
PART = st.sampled_from(["running", "exited", "created", "EXITED", ""]) | JSON
INSPECTED = st.fixed_dictionaries(
    {},
    optional={
        "Id": st.just("ab" * 32) | JSON,
        "Name": st.just("/x") | JSON,
        "Created": JSON,
        "State": JSON
        | st.fixed_dictionaries(
            {}, optional={"Status": PART, "ExitCode": JSON, "StartedAt": JSON, "Pid": JSON}
        ),
        "Config": JSON
        | st.fixed_dictionaries(
            {},
            optional={
                "Labels": JSON
                | st.fixed_dictionaries(
                    {labels.RUN: st.text()},
                    optional={
                        labels.UID: st.text() | st.just(str(os.geteuid())),
                        labels.SUPERVISOR: st.text() | st.from_regex(r"\d+:\d+"),
                        labels.HOST: st.text(),
                    },
                )
            },
        ),
    },
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # on a busy machine
@given(st.lists(INSPECTED, max_size=3))
@example([{"Id": "ab" * 32, "Config": {"Labels": {labels.RUN: "/x", labels.UID: "1" * 5000}}}])
def test_whatever_inspect_says_is_read_or_left_out(told: list[Any]) -> None:
    for one in orphans.parse(json.dumps(told)):
        assert one.id and (one.uid is None or one.uid >= 0)
        # without our host's label nothing is an orphan, whatever the rest says
        if one.host != labels.host_id():
            assert orphans.orphans([one], ticks_of=lambda pid: None) == []


@given(JSON)
def test_what_is_no_list_is_an_error_and_nothing_else(told: Any) -> None:
    if isinstance(told, list):
        orphans.parse(json.dumps(told))
    else:
        with pytest.raises(ValueError, match="list"):
            orphans.parse(json.dumps(told))


@given(st.text())
def test_a_supervisors_label_is_two_numbers_or_nothing(text: str) -> None:
    told = labels.parse_supervisor(text)
    assert told is None or (told[0] >= 0 and told[1] >= 0 and text.count(":") == 1)
