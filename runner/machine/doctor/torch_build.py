"""Whether this build of torch fits the GPUs and their driver.

torch is asked in a process of its own and never imported here. Imports the standard library,
runner.common and the doctor's own modules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runner.common import cuda_builds
from runner.common.own_python import code_argv
from runner.common.packages import package_version
from runner.machine.doctor.check import Check
from runner.machine.doctor.gpus import Gpus
from runner.machine.doctor.programs import ask_program, last_json, last_line

TORCH_SECONDS = 60.0  # a first import from a network disk takes this long

_ASK_TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import torch
    available = torch.cuda.is_available()
    print("\\n" + json.dumps({
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "devices": torch.cuda.device_count() if available else 0,
        "architectures": torch.cuda.get_arch_list() if available else [],
        "said": [str(w.message) for w in seen if "CUDA" in str(w.message)],
    }))
"""


@dataclass(frozen=True)
class Torch:
    """torch as a fresh process sees it; `failure` says why it could not be asked."""

    version: str = ""
    cuda: str | None = None
    """The CUDA version that it was built for; None for a CPU (or ROCm) build."""
    hip: str | None = None
    devices: int = 0
    architectures: tuple[str, ...] = ()
    """Of its kernels: "sm_90", "compute_90"; empty where torch sees no GPU."""
    said: str = ""
    """torch's own warning about CUDA."""
    failure: str = ""


def ask_torch() -> Torch | None:
    """None where torch is not installed."""
    if package_version("torch") is None:
        return None
    answer = ask_program(code_argv(_ASK_TORCH), TORCH_SECONDS)
    if answer.timed_out:
        return Torch(failure=f"its import took over {TORCH_SECONDS:.0f} s")
    told = last_json(answer.out)
    if answer.code != 0 or told is None:
        said = last_line(answer.err) or f"exit code {answer.code}, without a word"
        return Torch(failure=f"it can't be imported: {said}")
    return Torch(
        version=str(told.get("version")),
        cuda=_text(told.get("cuda")),
        hip=_text(told.get("hip")),
        devices=int(str(told.get("devices") or 0)),
        architectures=_texts(told.get("architectures")),
        said=" ".join(_texts(told.get("said"))[:1]),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def torch_check(gpus: Gpus, torch: Torch | None) -> Check:
    """Whether this build of torch fits the GPUs and their driver."""
    name = "torch build"
    if torch is None:
        found = "torch is not installed"
        best = cuda_builds.best_build(cuda_builds.parse_version(gpus.driver) or ())
        if gpus.cards and best is not None:
            found += f"; driver {gpus.driver} takes {best.tag}"
        return Check(name, "skipped", found)
    if torch.failure:
        advice = "reinstall torch, or look for what its message names"
        return Check(name, "problem", f"torch can't be asked: {torch.failure}", advice)
    built = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.hip}" if torch.hip else "CPU only"
    found = f"{torch.version}, {built}"
    if not gpus.cards:
        if torch.devices:
            found += f"; sees {torch.devices} GPU(s) that NVML does not list"
            return Check(name, "warning", found, "without NVML only torch's own cap guards them")
        return Check(name, "ok", found)
    if torch.cuda is None:
        advice = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        return Check(name, "problem", f"{found}: it can't use the GPU", advice)
    if old := cuda_builds.too_old(gpus.driver, torch.cuda):
        said = f": {torch.said}" if torch.said and not torch.devices else ""
        return Check(name, "problem", f"{found}: {old}{said}", _other_build(gpus, torch))
    if not torch.devices and gpus.visible is not None:
        found += f"; CUDA_VISIBLE_DEVICES={gpus.visible!r} hides the GPUs"
        return Check(name, "warning", found, "unset CUDA_VISIBLE_DEVICES")
    if not torch.devices:
        said = f": {torch.said}" if torch.said else ""
        found += f"; it can't use the GPU with driver {gpus.driver}{said}"
        advice = "renew the driver, or install a torch built for an older CUDA"
        return Check(name, "problem", found, advice)
    strange = [
        f"{card.name} ({card.compute_capability})"
        for card in gpus.cards
        if not _has_kernels(torch.architectures, card.compute_capability)
    ]
    if strange:
        found += f"; it has no kernels for {', '.join(strange)}"
        return Check(name, "problem", found, "install a torch built for this GPU")
    seen = f"; sees {torch.devices} of {len(gpus.cards)} GPU(s)"
    if gpus.visible is not None:
        seen += f" (CUDA_VISIBLE_DEVICES={gpus.visible!r})"
    return Check(name, "ok", found + seen)


def _other_build(gpus: Gpus, torch: Torch) -> str:
    """How to come by the build of the same torch that this driver takes."""
    version = torch.version.partition("+")[0]
    pip = f"pip install --force-reinstall --extra-index-url {{index}} 'torch=={version}'"
    checkout = f"in a checkout {cuda_builds.INDEX_VARIABLE}={{index}} ./just setup"
    return cuda_builds.way_out(gpus.driver, f"{pip}, {checkout}")


def _has_kernels(architectures: tuple[str, ...], capability: float | None) -> bool:
    """Binaries serve their major version from their minor on; PTX all that is newer."""
    if capability is None or not architectures:
        return True
    card = round(capability * 10)
    for architecture in architectures:
        match = re.match(r"(sm|compute)_(\d+)", architecture)
        number = int(match[2]) if match else card + 1
        newer_by_ptx = match is not None and match[1] == "compute"
        if number <= card and (newer_by_ptx or number // 10 == card // 10):
            return True
    return False
