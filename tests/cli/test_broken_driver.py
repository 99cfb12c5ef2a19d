"""A driver that does not work is never taken for a machine without a GPU: real commands, stub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.testbed import H100, FakeNvml

GPU = f"gpu 0 GPU-0 {H100}"
LOST = GPU.replace(" 0 NVIDIA", " 15 NVIDIA")


def render(nvml: FakeNvml, folder: Path, engine: str, device: str) -> tuple[int, str, str]:
    """`runner render` of a job: exit code, output, what it said."""
    job = folder / "job.yaml"
    if engine == "script":
        (folder / "train.sh").write_text("true\n")
        job.write_text("engine: script\nscript: train.sh\n")
    named = str(job) if engine == "script" else "demo-identity"
    done = subprocess.run(
        [sys.executable, "-m", "runner", "render", named, "--set", f"launch.device={device}"],
        env=nvml.environment(),
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("engine", ["native", "script"])
@pytest.mark.parametrize(
    ("hardware", "why"),
    [
        (("init 18", GPU), "mismatch"),
        (("code DeviceGetCount_v2 999", GPU), "does not answer"),
        ((LOST,), "has lost GPU 0"),
    ],
)
def test_it_is_refused_with_the_way_out_unless_the_job_says_cpu(
    fake_nvml: FakeNvml, tmp_path: Path, engine: str, hardware: tuple[str, ...], why: str
) -> None:
    fake_nvml.set(*hardware)
    for device in ("auto", "cuda"):
        code, out, said = render(fake_nvml, tmp_path, engine, device)
        assert (code, out) == (3, ""), said
        assert "the NVIDIA driver does not work" in said and why in said
        assert "reload the driver" in said and "--set launch.device=cpu" in said
    code, _, said = render(fake_nvml, tmp_path, engine, "cpu")
    assert (code, said) == (0, "")


@pytest.mark.parametrize("hardware", [("init 9",), ("driver 570.124.06",)])
def test_a_machine_without_a_driver_or_a_gpu_trains_on_the_cpu_and_refuses_cuda(
    fake_nvml: FakeNvml, tmp_path: Path, hardware: tuple[str, ...]
) -> None:
    fake_nvml.set(*hardware)
    assert render(fake_nvml, tmp_path, "script", "auto")[0] == 0
    code, _, said = render(fake_nvml, tmp_path, "script", "cuda")
    assert code == 3 and "launch.device is cuda, but NVML" in said
