"""Scripts in real containers: how a run ends, whoever ends it, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.command import REPOSITORY
from tests.support.containers import (
    LONG,
    Bench,
    ended,
    events,
    log,
    private_of,
    started,
    supervisor_of,
    ticks,
    wait_until,
)
from tests.support.workplace import Workplace, termination
from tests.testbed.docker import Daemon, build_base

PWNED = Path("/tmp/runner-pwned")

pytestmark = pytest.mark.e2e


def test_a_script_runs_and_leaves_its_output(bench: Bench) -> None:
    done = bench.place.call("train", bench.script(ticks(3)))
    assert done.code == 0, done.err
    run = bench.place.last
    assert (run / "output" / "result.txt").read_text() == "done\n"
    assert (run / "output" / "result.txt").stat().st_uid == os.geteuid()
    assert log(run).splitlines() == ["tick 0", "tick 1", "tick 2", "done"]
    end = termination(run)
    assert (end["reason"], end["exit_code"], end["result"]) == ("completed", 0, "output")
    assert "docker" in done.err and "network none" in done.err


def test_the_container_is_as_closed_as_it_is_said_to_be(bench: Bench) -> None:
    process, run = started(bench, bench.script(ticks(LONG)))
    seen = bench.inspect(run.absolute())
    bench.place.call("stop")
    ended(process)
    host, config = seen["HostConfig"], seen["Config"]
    assert config["User"] == f"{os.geteuid()}:{os.getegid()}"
    assert host["ReadonlyRootfs"] and not host["Privileged"]
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert host["NetworkMode"] == "none"
    assert (host["PidsLimit"], host["ShmSize"]) == (4096, 8 << 30)
    mounts = {mount["Source"]: mount["RW"] for mount in seen["Mounts"]}
    within = {Path(source) for source in mounts if run.absolute() in Path(source).parents}
    writable = {Path(source) for source, writes in mounts.items() if writes}
    assert writable == {run.absolute(), run.absolute() / "logs", run.absolute() / "engine"}
    closed = {str(path.relative_to(run.absolute())) for path in within - writable}
    assert {"plan.yaml", "launch.sh", "supervisor.json", "container.id", ".lock"} <= closed
    assert set(mounts) == {str(run.absolute()), str(bench.place.folder), *map(str, within)}
    labels = config["Labels"]
    assert labels["dev.runner.run"] == str(run.absolute())
    assert labels["dev.runner.supervisor"].split(":")[0].isdigit()
    recorded = json.loads((run / "container.json").read_text())
    assert seen["Image"] == recorded["image_id"]
    assert recorded["argv"][1] == "run" and recorded["argv"][-1].endswith("launch.sh")
    assert [e["argv"] for e in events(run) if e["kind"] == "started"] == [recorded["argv"]]


@pytest.mark.parametrize("way", ["ctrl-c", "stop", "docker stop"])
def test_a_request_to_end_reaches_the_script(bench: Bench, way: str) -> None:
    process, run = started(bench, bench.script(ticks(LONG)))
    if way == "ctrl-c":
        process.send_signal(signal.SIGINT)
    elif way == "stop":
        assert bench.place.call("stop", "@last").code == 0
    else:
        bench.docker("stop", *bench.containers(run.absolute()))
    done = ended(process)
    end = termination(run)
    expected = {
        "ctrl-c": ("stopped", 130),
        "stop": ("stopped", 143),
        "docker stop": ("failed", 143),
    }
    assert (end["reason"], end["exit_code"]) == expected[way]
    assert done.code == end["exit_code"]
    assert log(run).splitlines()[-1].startswith("saved at ")


def test_a_script_that_ignores_the_request_is_killed_after_its_grace(bench: Bench) -> None:
    stubborn = ticks(LONG).replace("""'echo "saved at $i"; exit 143'""", "''")
    process, run = started(bench, bench.script(stubborn, budget={"grace_seconds": 2}))
    process.send_signal(signal.SIGINT)
    ended(process)
    end = termination(run)
    assert (end["reason"], end["exit_code"]) == ("stopped", 130)
    asked, killed = end["signals"]
    assert (asked["signal"], killed["signal"]) == ("SIGTERM", "SIGKILL")
    # its own grace, not the 60 s of a job that says none
    assert 2 <= killed["time_unix_seconds"] - asked["time_unix_seconds"] < 60
    assert log(run).splitlines()[-1].startswith("tick ")


def test_a_script_over_its_budget_is_stopped(bench: Bench) -> None:
    hog = """
    trap 'echo "asked to end"; exit 1' TERM
    echo "tick"
    text=$(head -c 60000000 /dev/zero | tr '\\0' x); more=$text$text$text
    while :; do sleep 0.2 & wait $!; done
    """
    process, run = started(bench, bench.script(hog, budget={"host_memory": "80MiB"}))
    done = ended(process)
    end = termination(run)
    assert (end["reason"], done.code) == ("over_budget", 76)
    assert end["peak_bytes"] > 80 << 20
    assert log(run).splitlines()[-1] == "asked to end"


def test_a_limit_of_the_container_itself_is_host_memory_running_out(bench: Bench) -> None:
    hog = "echo tick; sleep 1; text=$(head -c 400000000 /dev/zero | tr '\\0' x); echo ${#text}"
    process, run = started(bench, bench.script(hog, container={"memory": "100MiB"}))
    ended(process)
    end = termination(run)
    assert end["reason"] == "host_oom", end["message"]


def test_a_run_whose_supervisor_is_killed_ends_and_is_told_as_lost(bench: Bench) -> None:
    process, run = started(bench, bench.script(ticks(LONG)))
    supervisor_of(run).kill()
    assert ended(process).code == 128 + 9
    wait_until(lambda: bench.containers(run.absolute()) == [])
    # the script is told by launch.sh's own watch, and saves
    assert any(line.startswith("saved at ") for line in log(run).splitlines()[-2:])
    report = bench.place.call("report", "@last")
    assert "lost" in report.out


def test_a_killed_container_is_not_called_a_success(bench: Bench) -> None:
    process, run = started(bench, bench.script(ticks(LONG)))
    bench.docker("kill", *bench.containers(run.absolute()))
    ended(process)
    end = termination(run)
    assert (end["reason"], end["exit_code"]) == ("failed", 137)


def test_hostile_names_and_values_execute_nothing(bench: Bench) -> None:
    PWNED.unlink(missing_ok=True)
    evil = (
        "$(touch /tmp/runner-pwned) `touch /tmp/runner-pwned` '\"; touch /tmp/runner-pwned #\n--x"
    )
    job = bench.script(
        'printf "%s\\0" "$@" "$EVIL" >args',
        name='-it\'s $(touch ${TMPDIR:-}pwned)\n`id` "x", y',
        arguments=[evil, "--privileged", "-v", "{output}", "", "{source}", "$HOME"],
        environment={"EVIL": evil},
        description=evil,
    )
    done = bench.place.call("train", job)
    assert done.code == 0, done.err
    run = bench.place.last
    got = (run / "output" / "args").read_bytes().split(b"\0")[:-1]
    source = str(bench.place.folder)
    assert [word.decode() for word in got] == [
        *(evil, "--privileged", "-v", str(run / "output"), "", source, "$HOME"),
        evil,
    ]
    assert not PWNED.exists()
    assert not list(bench.place.folder.parent.rglob("pwned"))


def test_secrets_reach_the_script_and_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-of-a-secret")
    body = '[[ $MY_TOKEN == canary-of-a-secret ]] && echo "tick it is there"; ' + ticks(LONG)
    process, run = started(bench, bench.script(body, container={"secrets": ["MY_TOKEN"]}))
    assert "it is there" in log(run) and private_of(run)
    seen = json.dumps(bench.inspect(run.absolute()))
    host = psutil.Process(bench.inspect(run.absolute())["State"]["Pid"])
    bench.place.call("stop")
    done = ended(process)
    assert not host.is_running()
    texts = [p.read_text(errors="replace") for p in run.rglob("*") if p.is_file()]
    assert not any("canary-of-a-secret" in text for text in [seen, done.err, done.out, *texts])
    assert private_of(run) == []


def test_two_runs_at_once_do_not_meet(bench: Bench) -> None:
    go = bench.place.folder / "go"
    job = bench.script(ticks(LONG), environment={"GO": str(go)})
    first, run = started(bench, job)
    second = bench.place.start("train", job, "--fresh")
    runs = bench.place.folder / "runs"
    wait_until(lambda: sum("tick" in log(each) for each in runs.glob("*/*")) == 2)
    go.touch()
    assert (ended(first).code, ended(second).code) == (0, 0)
    assert len(list((bench.place.folder / "runs").glob("*/*"))) == 2
    assert run.exists()


def test_what_the_daemon_refuses_names_the_field(bench: Bench) -> None:
    cases = {
        "container.mounts": {"mounts": [{"source": "/no/such/place"}]},
        "container.image": {"image": "no-such-image:1"},
    }
    for field, settings in cases.items():
        done = bench.place.call("train", bench.script(ticks(1), container=settings))
        assert done.code == 3, done.err
        assert field in done.err
    assert not (bench.place.folder / "runs").exists()


def test_the_dry_run_prints_the_command_that_is_recorded(bench: Bench) -> None:
    done = bench.place.call("train", bench.script(ticks(1)), "--dry-run")
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("command")]
    words = shlex.split(line.removeprefix("command"))
    real = bench.place.call("train", bench.script(ticks(1)))
    assert real.code == 0, real.err
    recorded = json.loads((bench.place.last / "container.json").read_text())["argv"]

    def settings(argv: list[str]) -> list[str]:
        """Without what names the run folder and the process that asks."""
        varies = ("place/runs/job", "dev.runner.supervisor=", "dev.runner.plan=", "/dev/shm/")
        return [word for word in argv if not any(part in word for part in varies)]

    name = words.index("--name") + 1
    assert len(list((bench.place.folder / "runs").glob("*/*"))) == 1  # the real one
    assert settings(words[:name] + words[name + 1 :]) == settings(
        recorded[:name] + recorded[name + 1 :]
    )


def test_an_ordinary_user_owns_what_its_container_writes(docker_daemon: Daemon) -> None:
    """Another uid than root's, without its rights: only its membership in the socket's group."""
    python, packages = Path("/usr/bin/python3"), Path(yaml.__file__).parents[1]
    socket = Path((docker_daemon.host or "unix:///var/run/docker.sock").removeprefix("unix://"))
    if os.getuid() != 0 or shutil.which("setpriv") is None or not python.exists():
        pytest.skip("needs root, setpriv and the system's own python3, which others can execute")
    asked = f"import sys; print(sys.version_info[:2] == {tuple(sys.version_info[:2])!r})"
    fits = subprocess.run([str(python), "-c", asked], capture_output=True, text=True)
    if fits.stdout.strip() != "True":
        pytest.skip(f"{python} is of another version than the packages of this one")
    image = build_base(docker_daemon)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "runs").mkdir()
        os.chown(folder / "runs", 12345, 12346)
        bench = Bench(Workplace(folder), docker_daemon, image)
        job = bench.script("id; mkdir made; echo x >made/file")
        group = socket.stat().st_gid
        who = ["setpriv", "--reuid=12345", "--regid=12346", f"--groups={group}"]
        done = subprocess.run(
            [*who, str(python), "-m", "runner", "train", job, "--runs", str(folder / "runs")],
            cwd=folder,
            env={
                **os.environ,
                "HOME": "/var/empty",  # a folder that holds it is shown to no container
                "XDG_CACHE_HOME": str(folder / "runs" / "cache"),
                "PYTHONPATH": f"{REPOSITORY}:{packages}",
            },
            capture_output=True,
            text=True,
        )
        if "Permission denied" in done.stderr and str(REPOSITORY) in done.stderr:
            pytest.skip("this checkout can't be read by other users")
        assert done.returncode == 0, done.stderr
        (run,) = (folder / "runs" / "job").iterdir()
        assert log(run).startswith("uid=12345 gid=12346")
        for path in (run, *run.rglob("*")):
            assert (path.lstat().st_uid, path.lstat().st_gid) == (12345, 12346), path
