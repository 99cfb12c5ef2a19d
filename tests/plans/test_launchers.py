"""What other launchers set outside reaches no training process."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

from runner.common import own_python
from runner.common.launchers import is_of_launcher, of_launchers, without_launchers
from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.resolve import make_any_plan
from tests.support.command import REPOSITORY

OUTSIDE = {  # a few of each launcher
    "WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "10.255.255.1",
    "MASTER_PORT": "29500",
    "GROUP_RANK": "1",
    "NODE_RANK": "1",
    "TORCHELASTIC_RUN_ID": "x",
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "8",
    "PET_MASTER_ADDR": "10.255.255.1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "77",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "PMI_SIZE": "2",
    "PMI_RANK": "1",
    "MV2_COMM_WORLD_SIZE": "2",
    "I_MPI_INFO_STATE": "1",
    "MPI_LOCALRANKID": "1",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "NCCL_COMM_ID": "10.255.255.1:1",
    "SMDATAPARALLEL_LOCAL_RANK": "0",
    "PYTHON_EXEC": "/no",
}
INNOCENT = {"NCCL_DEBUG": "INFO", "TORCH_DISTRIBUTED_DEBUG": "INFO", "HOME": "/", "RANKING": "1"}
VOCABULARY = re.compile(
    r"(^|_)(RANK|RANKID|WORLD|MASTER|NNODES|NODE|NPROC|RDZV|LAUNCHED|SIZE)(_|$)|^(SLURM|PMI|PMIX|"
    r"OMPI|MV2|I_MPI|MPI|TORCHELASTIC|TORCH_ELASTIC|PET|ACCELERATE|FSDP|MEGATRON_LM|SM|AZ|AZUREML|"
    r"PARALLELISM_CONFIG|SMDATAPARALLEL|HOROVOD|FP8|DLTS)_|ADDR$|COMM_ID$|^PYTHON_EXEC$"
)
LEFT_ALONE = {
    "SIZE_BASED_WRAP": "a value, no variable",
    **dict.fromkeys(
        ("EXPERT_MODEL_PARALLEL_SIZE", "CONTEXT_PARALLEL_SIZE", "EXPERT_TENSOR_PARALLEL_SIZE"),
        "read behind MEGATRON_LM_ alone",
    ),
    **dict.fromkeys(
        ("SM_FRAMEWORK_MODULE", "SM_NUM_GPUS", "SM_NUM_CPUS"), "for the hub's user agent"
    ),
    **dict.fromkeys(
        (
            *("DS_DC_OFFLOAD_ACT_MIN_SIZE_MB", "TORCH_FR_BUFFER_SIZE"),
            *("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_DISTRIBUTED_COMPILE_ON_ONE_RANK"),
        ),
        "a tuning of the user's own",
    ),
}
"""Names of that kind which the libraries read and which stay as they are, with the reason."""
PACKAGES = ("accelerate", "deepspeed", "transformers", "trl", "peft", "torch/distributed")


def names_read(package: str) -> dict[str, str]:
    """Name -> file of every variable of a launcher's kind that a package's sources ask for."""
    root, _, inner = package.partition("/")
    spec = importlib.util.find_spec(root)
    if spec is None or spec.origin is None:
        pytest.skip(f"{root} is not installed")
    found: dict[str, str] = {}
    asks = re.compile(r"environ|getenv|_from_env|env_vars|\benv\b")
    literal = re.compile(r"""["']([A-Z][A-Z0-9_]{2,})["']""")
    for path in sorted((Path(spec.origin).parent / inner).rglob("*.py")):
        if {"testing", "test_utils", "models", "tests"} & set(path.parts):
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines):
            # a list of names may begin a line after the call
            if asks.search("\n".join(lines[max(0, number - 3) : number + 1])):
                for name in literal.findall(line):
                    if VOCABULARY.search(name):
                        found.setdefault(name, f"{package}: {path.name}:{number + 1}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_variable_of_its_kind_that_a_library_reads_is_known(package: str) -> None:
    read = names_read(package)
    unknown = {
        name: where
        for name, where in read.items()
        if not is_of_launcher(name) and name not in LEFT_ALONE
    }
    assert unknown == {}


def test_the_look_at_the_libraries_finds_what_is_there() -> None:
    accelerate = names_read("accelerate")
    assert {"WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"} <= {
        *accelerate
    }
    assert {"TORCHELASTIC_RUN_ID", "MASTER_ADDR", "RANK"} <= {*names_read("torch/distributed")}


def test_what_is_a_launchers_is_told_from_what_is_the_users() -> None:
    assert of_launchers(OUTSIDE) == sorted(OUTSIDE)
    assert without_launchers({**OUTSIDE, **INNOCENT}) == INNOCENT


def test_no_process_of_the_engine_is_given_any(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {**OUTSIDE, **INNOCENT}.items():
        monkeypatch.setenv(name, text)
    given = own_python.safe_environment()
    assert not set(given) & set(OUTSIDE)
    assert set(given) >= set(INNOCENT)


def left_by_script(script: str, environment: dict[str, str]) -> tuple[dict[str, str], str]:
    """The environment behind the block of a launch script that leaves variables out, and what the
    block says."""
    begin = script.index("left_out=()")
    block = script[begin : script.index("\nfi\n", begin) + 4]
    told = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{block}\nenv -0"],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (entry.split("=", 1) for entry in told.stdout.split("\0") if entry)
    return {name: text for name, text in pairs if name in environment}, told.stderr


def script_of(engine: str, tmp_path: Path) -> str:
    if engine == "script":
        (tmp_path / "train.sh").write_text("true\n")
        (tmp_path / "job.yaml").write_text("engine: script\nscript: train.sh\n")
        loaded = load_job(str(tmp_path / "job.yaml"))
    else:
        name = {"sft": "demo-identity", "mgm": "mgm-10k-lora"}[engine]
        loaded = load_job(str(REPOSITORY / "jobs" / f"{name}.yaml"), ["launch.device=cpu"])
    return render(make_any_plan(loaded)[0])["launch.sh"]


@pytest.mark.parametrize("engine", ["sft", "script"])
def test_a_launch_script_leaves_them_out_and_says_so_once(engine: str, tmp_path: Path) -> None:
    script = script_of(engine, tmp_path)
    kept, said = left_by_script(script, {**OUTSIDE, **INNOCENT})
    slurm = {name: text for name, text in OUTSIDE.items() if name.startswith("SLURM_")}
    # a user's own script may look at its allocation; nothing of ours does
    expected = {**INNOCENT, **(slurm if engine == "script" else {})}
    assert kept == expected
    assert said.count("\n") == 1
    assert all(name in said for name in OUTSIDE if name not in expected)
    assert left_by_script(script, INNOCENT) == (INNOCENT, "")
    assert left_by_script(script, {"WORLD_SIZE": ""})[0] == {}


def test_mgms_launch_script_leaves_them_out() -> None:
    template = (REPOSITORY / "shell" / "mgm.sh.j2").read_text()
    assert "{{ leave_out(true) }}" in template


def test_what_a_script_job_sets_itself_counts(tmp_path: Path) -> None:
    (tmp_path / "train.sh").write_text("true\n")
    job = tmp_path / "job.yaml"
    job.write_text('engine: script\nscript: train.sh\nenvironment: {WORLD_SIZE: "1"}\n')
    script = render(make_any_plan(load_job(str(job)))[0])["launch.sh"]
    assert script.index("left_out=()") < script.index("export WORLD_SIZE=1")


def test_a_command_that_asks_the_engine_names_them_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runner.launch.left_out import say_left_out

    for name in of_launchers(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    say_left_out()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    say_left_out()
    said = capsys.readouterr().err
    assert "WORLD_SIZE" in said and "SLURM" not in said
