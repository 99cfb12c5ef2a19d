"""The container's command line, as values: what is always in it, and what never is."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runner.engines.mounts import plan_mounts
from runner.engines.script.plan import ScriptPlan
from runner.plans.base import PlannedContainer, PlannedMount
from runner.plans.container.argv import Caller, launch_command, mount_text, passed_on, run_argv
from runner.runs.folder import RunFolder
from runner.supervisor.execute.docker import container_name
from tests.engines.sft.tiny import plan_of

TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1)
CALLER = Caller(
    uid=1000,
    gid=1001,
    groups=(1001, 44),
    name="ann",
    variables=frozenset(
        ["HF_ENDPOINT", "HF_TOKEN", "NCCL_DEBUG", "https_proxy", "AWS_SECRET_ACCESS_KEY", "MINE"]
    ),
    folders={"RUNNER_CACHE": "/home/ann/.cache/runner"},
)


def container(**changes: Any) -> PlannedContainer:
    settings: dict[str, Any] = {
        "program": "docker",
        "image": "runner-train:1",
        "image_id": "sha256:" + "0" * 64,
        "native": True,
        "network": "none",
        "shm_bytes": 1 << 30,
        "pids": 100,
        **changes,
    }
    return PlannedContainer(**settings)


def argv(box: PlannedContainer | None = None, caller: Caller = CALLER, **more: Any) -> list[str]:
    given: dict[str, Any] = {
        "program": "docker",
        "name": "runner-x",
        "labels": {},
        "mounts": [],
        "command": ["bash", "-c", "true"],
        "workdir": "/run",
        **more,
    }
    return run_argv(box or container(), caller, **given)


def after(words: list[str], flag: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == flag]


@given(TEXT, TEXT, st.booleans())
def test_a_mount_reads_back_whatever_its_path(source: str, target: str, readonly: bool) -> None:
    mount = PlannedMount(source=f"/{source}", target=f"/{target}", readonly=readonly)
    (parts,) = csv.reader(io.StringIO(mount_text(mount), newline=""), strict=True)
    assert parts[:3] == ["type=bind", f"source=/{source}", f"target=/{target}"]
    assert (parts[3:] == ["readonly"]) == readonly


def test_what_closes_the_container_is_always_there() -> None:
    words = argv()
    assert words[:3] == ["docker", "run", "--rm"]
    assert after(words, "--user") == ["1000:1001"]
    assert after(words, "--group-add") == ["44"]
    assert after(words, "--cap-drop") == ["ALL"]
    assert after(words, "--security-opt") == ["no-new-privileges"]
    assert "--read-only" in words and "--privileged" not in words
    assert after(words, "--network") == ["none"]
    assert after(words, "--pull") == ["never"]
    assert "NVIDIA_VISIBLE_DEVICES=void" in after(words, "--env")


def test_variables_are_passed_by_name_and_secrets_not_at_all() -> None:
    box = container(environment=["MINE"], secrets=["OTHER"])
    without = passed_on(box, CALLER.variables, with_network=False)
    assert without == ["HF_ENDPOINT", "MINE", "NCCL_DEBUG"]
    online = container(network="bridge", environment=["HF_TOKEN", "MINE"])
    assert passed_on(online, CALLER.variables, with_network=True) == [
        *("HF_ENDPOINT", "MINE", "NCCL_DEBUG", "https_proxy")
    ]
    values = [word for word in after(argv(online), "--env") if "=" in word]
    assert {value.split("=")[0] for value in values} == {
        *("HOME", "USER", "LOGNAME", "RUNNER_CACHE", "NVIDIA_VISIBLE_DEVICES")
    }


def test_limits_and_cards() -> None:
    box = container(memory_bytes=1 << 30, ulimits={"memlock": -1, "stack": 5})
    words = argv(box, gpu_uuids=["GPU-1", "GPU-2"], gpu_limit_bytes=16 << 30)
    assert after(words, "--memory") == after(words, "--memory-swap") == [f"{1 << 30}b"]
    assert after(words, "--ulimit") == ["memlock=-1:-1", "stack=5:5"]
    assert after(words, "--gpus") == ['"device=GPU-1,GPU-2","capabilities=compute,utility"']
    assert not any("NVIDIA_GPU_MEMORY" in word for word in words)  # cgroup v1: the start would fail
    able = Caller(uid=1, gid=1, limits_gpus=True)
    limited = after(argv(box, able, gpu_uuids=["G"], gpu_limit_bytes=16 << 30), "--env")
    assert {"NVIDIA_GPU_MEMORY_LIMIT=16384", "NVIDIA_GPU_MEMORY_REQUEST=16384"} <= set(limited)


def test_who_one_is_inside_depends_on_whose_daemon_it_is() -> None:
    assert after(argv(caller=Caller(uid=7, gid=8, rootless=True)), "--user") == ["0:0"]
    podman = argv(caller=Caller(uid=7, gid=8, podman=True, by_cdi=True), gpu_uuids=["G"])
    assert after(podman, "--userns") == ["keep-id"]
    assert after(podman, "--device") == ["nvidia.com/gpu=G"]


def test_a_foreign_image_gets_an_init_and_our_shell() -> None:
    words = argv(container(native=False, arguments=["--hostname", "x"]))
    place = words.index("sha256:" + "0" * 64)
    assert words[place - 5 : place] == ["--hostname", "x", "--init", "--entrypoint", "bash"]
    assert words[place + 1 :] == ["-c", "true"]


@given(TEXT, st.lists(TEXT))
def test_values_are_words_of_their_own(path: str, arguments: list[str]) -> None:
    command = launch_command(Path("/r") / path.replace("/", "_"), Path("/l"), arguments)
    words = argv(command=command, labels={"dev.runner.job": path})
    assert words[-len(command) :] == command
    assert f"dev.runner.job={path}" in words


def script_plan(path: str, **changes: Any) -> ScriptPlan:
    record: dict[str, Any] = {
        "job": "x",
        "description": "",
        "variant": "train",
        "engine": "script",
        "script": {"path": path, "kind": "file", "sha256": "0" * 64},
        "runs_with": "bash",
        "arguments": [],
        "environment": {},
        "inputs": [],
        "workdir": "output",
        "launch": {
            "device": "cpu",
            "num_processes": 1,
            "deepspeed": "none",
            "threads_per_process": 1,
        },
        "budget": {"kind": "none"},
        "timeout_minutes": None,
        "python": "python3",
        **changes,
    }
    return ScriptPlan.model_validate(record)


def test_a_scripts_folder_is_not_laid_over_one_of_the_containers_own() -> None:
    cache = Path("/home/ann/.cache/runner")

    def targets(plan: ScriptPlan) -> dict[str, bool]:
        mounts = plan_mounts(plan, Path("/r"), cache)
        return {mount.target: mount.readonly for mount in mounts}

    assert targets(script_plan("/work/me/train.sh")) == {"/r": False, "/work/me": True}
    assert targets(script_plan("/tmp/train.sh")) == {"/r": False, "/tmp/train.sh": True}
    there = script_plan("/work/me/train.sh", workdir="source")
    assert targets(there) == {"/r": False, "/work/me": False}


def test_weights_come_whole_however_they_lie(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    disk, folder = tmp_path / "disk", tmp_path / "model"
    disk.mkdir()
    folder.mkdir()
    (disk / "shard").write_text("x")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").symlink_to("../disk/shard")

    def targets(**model: Any) -> dict[str, str]:
        plan = plan_of()
        plan = plan.model_copy(update={"model": plan.model.model_copy(update=model)})
        return {mount.target: mount.source for mount in plan_mounts(plan, None, cache)}

    linked = targets(kind="folder", folder=str(folder))
    assert linked[str(folder)] == str(folder)
    assert linked[str(disk / "shard")] == str(disk / "shard")
    # a snapshot of the hub's cache is links into blobs/ beside it
    hub = targets(kind="hub", folder="/hub/models--a--b/snapshots/c0ffee")
    assert "/hub/models--a--b" in hub and "/hub/models--a--b/snapshots/c0ffee" not in hub
    # what runner itself made lies in its cache, which comes whole
    own = targets(kind="standin", folder=str(cache / "standins" / "x"))
    assert [target for target in own if "standins" in target] == []
    assert str(cache) in own


def test_what_a_script_reads_of_the_cache_is_there(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "mgm").mkdir(parents=True)
    inputs = [{"path": str(cache / "mgm"), "kind": "folder"}]
    mounts = plan_mounts(script_plan("/work/me/train.sh", inputs=inputs), None, cache)
    assert str(cache / "mgm") in [mount.target for mount in mounts]


def test_runs_of_one_name_in_two_places_are_two_containers(tmp_path: Path) -> None:
    """Of two that began in one second the later was refused, and told to stop the other."""
    name = 'a job\'s "own"/20260101-000000-0123456'
    folders = [RunFolder(tmp_path / place / name) for place in ("ann", "bea")]
    names = [container_name(folder) for folder in folders]
    assert names == [container_name(folder) for folder in folders]
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", each) for each in names)
