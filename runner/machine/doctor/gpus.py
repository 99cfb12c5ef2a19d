"""The GPUs as NVML lists them, and the signs of one where it says nothing.

Imports the standard library, machine.nvml, units and the doctor's own `check`.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from runner.common.units import format_bytes
from runner.machine import nvml as nvml_module
from runner.machine.doctor.check import Check

NVML_SECONDS = 10.0

BF16_CAPABILITY = 8.0

_NVIDIA = "0x10de"  # PCI vendor

_DISPLAY = "0x03"  # PCI class of VGA and 3D controllers


@dataclass(frozen=True)
class Card:
    """One GPU as NVML lists it. Bytes are None where the driver does not tell."""

    index: int
    name: str
    total_bytes: int | None
    free_bytes: int | None
    compute_capability: float | None
    lost: bool


@dataclass(frozen=True)
class Gpus:
    """What NVML says, and the signs of a GPU where it says nothing."""

    cards: tuple[Card, ...]
    driver: str | None
    absence: str
    """Why `cards` is empty; empty text where it is not."""
    broken: bool
    """There is a driver and it does not work."""
    hardware: bool
    """The PCI bus lists an NVIDIA GPU."""
    module: str | None
    """The version of NVIDIA's kernel module, where it is loaded."""
    visible: str | None
    """CUDA_VISIBLE_DEVICES; None where it is not set."""


def read_gpus() -> Gpus:
    """What NVML lists. Without a bound of its own: see `stuck_gpus`."""
    if not nvml_module.library_present():
        return _no_gpus("no NVIDIA driver library (libnvidia-ml.so.1) on this machine", False)
    try:
        with nvml_module.Nvml() as nvml:
            cards = tuple(_card(nvml, index) for index, _ in nvml.devices())
            driver = nvml.driver_version()
    except nvml_module.NvmlUnavailable as error:
        return _no_gpus(f"NVML can't be used: {error.reason}", error.fatal)
    except nvml_module.NvmlFailed as error:
        return _no_gpus(f"NVML does not answer: {error}", True)
    if not cards:
        return _no_gpus("NVML lists no GPU", False, driver)
    return Gpus(cards, driver, "", False, True, _kernel_module(), _visible())


def describe_stuck_gpus() -> Gpus:
    """What is known where NVML did not come back in NVML_SECONDS."""
    return _no_gpus(f"NVML did not answer in {NVML_SECONDS:.0f} s: the driver hangs", True)


def _card(nvml: nvml_module.Nvml, index: int) -> Card:
    try:
        reading = nvml.read(index)
    except nvml_module.NvmlFailed:
        return Card(index, "unnamed GPU", None, None, None, lost=False)
    return Card(
        index,
        reading.name or "unnamed GPU",
        reading.total_bytes,
        reading.free_bytes,
        None if reading.lost else nvml.compute_capability(index),
        reading.lost,
    )


def _no_gpus(absence: str, broken: bool, driver: str | None = None) -> Gpus:
    module = _kernel_module()
    return Gpus((), driver or module, absence, broken, _hardware(), module, _visible())


def _visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _kernel_module() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text)
    return match[0] if match else None


def _hardware() -> bool:
    with contextlib.suppress(OSError):
        for device in Path("/sys/bus/pci/devices").iterdir():
            with contextlib.suppress(OSError):
                vendor = (device / "vendor").read_text().strip()
                kind = (device / "class").read_text().strip()
                if vendor == _NVIDIA and kind.startswith(_DISPLAY):
                    return True
    return False


def gpu_check(gpus: Gpus) -> Check:
    if gpus.broken:
        if "mismatch" in gpus.absence.lower():
            advice = "the driver was updated while it ran: reboot, or reload the nvidia modules"
        else:
            advice = "look at `nvidia-smi` and `dmesg`; in a container, start it anew"
        return Check("gpu", "problem", gpus.absence, advice)
    if not gpus.cards and gpus.module:
        found = f"the NVIDIA driver {gpus.module} is loaded, but {gpus.absence}"
        advice = "in a container: start it with --gpus all and the capability `utility`"
        return Check("gpu", "warning", found, advice + "; else install the driver's libraries")
    if not gpus.cards and gpus.hardware:
        found = f"an NVIDIA GPU is in this machine, but {gpus.absence}"
        return Check("gpu", "warning", found, "install NVIDIA's driver to train on it")
    if not gpus.cards:
        return Check("gpu", "skipped", f"{gpus.absence}; jobs run on the CPU")
    lost = [str(card.index) for card in gpus.cards if card.lost]
    cards = ", ".join(
        f"{card.index}: {card.name} "
        + ("(lost)" if card.lost else f"({format_bytes(card.total_bytes)})")
        for card in gpus.cards
    )
    found = f"driver {gpus.driver or 'of unknown version'}; {cards}"
    if lost:
        advice = f"GPU {', '.join(lost)} needs a reset or a reboot; see `dmesg | grep Xid`"
        return Check("gpu", "problem", found, advice)
    return Check("gpu", "ok", found)


def bf16_check(gpus: Gpus) -> Check:
    known = [c for c in gpus.cards if c.compute_capability is not None]
    if not known:
        return Check("bf16", "skipped", "no GPU whose compute capability is known")
    found = ", ".join(f"{card.index}: {card.compute_capability}" for card in known)
    found = f"compute capability {found}"
    without = [
        str(c.index)
        for c in known
        if c.compute_capability and c.compute_capability < BF16_CAPABILITY
    ]
    if without:
        found += f"; no bf16 on GPU {', '.join(without)}"
        advice = "train in fp32; fp16 gives NaN with some models (Qwen)"
        return Check("bf16", "warning", found, advice)
    return Check("bf16", "ok", found)
