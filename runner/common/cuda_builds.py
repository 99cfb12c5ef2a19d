"""Which of torch's CUDA builds an NVIDIA driver takes, before anything of them is installed.

Standard library and runner.common.terminal only: `./just` asks it with whatever Python is there,
before .venv is. Nothing here is installed or fetched.

    python -m runner.common.cuda_builds ask LOCK INDEX    exit code 3, with the way out, for a
                                                          driver too old for the lock's torch
    python -m runner.common.cuda_builds driver            the driver's version, if there is one
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.common import terminal

INDEX_VARIABLE = "RUNNER_TORCH_INDEX"
"""Names an index of the user's own that has torch for another CUDA; PYPI: the lock's build."""
PYPI = "pypi"
PYTORCH = "https://download.pytorch.org/whl"

Version = tuple[int, ...]


@dataclass(frozen=True)
class Build:
    """A CUDA that torch is built for."""

    tag: str
    """As in torch's local versions and in the names of PyTorch's indexes: cu126."""
    cuda: Version
    own: Version
    """The driver that came with this CUDA; from it on everything of it works."""
    least: Version
    """The oldest driver of the same CUDA major version: what was compiled for the GPU runs
    ("minor version compatibility"), what the driver would have to compile from PTX does not."""

    @property
    def index(self) -> str:
        return f"{PYTORCH}/{self.tag}"


BUILDS = (
    Build("cu126", (12, 6), own=(560, 28, 3), least=(525, 60, 13)),
    Build("cu128", (12, 8), own=(570, 26), least=(525, 60, 13)),
    Build("cu130", (13, 0), own=(580, 65, 6), least=(580,)),
)
"""Drivers of Linux x86-64, by NVIDIA's CUDA Toolkit Release Notes.

`own`: the table "CUDA Toolkit and Corresponding Driver Versions" (3 in the notes of 13.2 Update 2),
whose lines are 12.6 GA >=560.28.03, 12.8 GA >=570.26 and 13.0 GA >=580.65.06. Updates of a release
name later ones (12.6 Update 3 560.35.05, 12.8 Update 1 570.124.06, 13.0 Update 2 580.95.05); within
one minor version the general release's driver runs them. 570.26 is that table's figure for 12.8;
the driver in 12.8.0's installer is 570.86.10.

`least`: the table "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version
Compatibility" (2 there): 12.x >=525 and 13.x >=580. The first driver of branch 525 with CUDA 12 is
the one of 12.0 GA, 525.60.13.

https://docs.nvidia.com/cuda/archive/13.2.2/cuda-toolkit-release-notes/index.html"""


def parse_version(text: str | None) -> Version | None:
    """ "570.124.06" as numbers; None for what is no version."""
    match = re.match(r"\d+(?:\.\d+)+", text or "")
    return tuple(int(part) for part in match[0].split(".")) if match else None


def best_build(driver: Version) -> Build | None:
    """The newest that `driver` takes whole, else the oldest that it runs; None for neither."""
    whole = [build for build in BUILDS if driver >= build.own]
    if whole:
        return whole[-1]
    return next((build for build in BUILDS if driver >= build.least), None)


def least_driver(cuda: Version) -> Version:
    """The oldest driver that runs what is built for `cuda`.

    A CUDA that BUILDS lacks has the least driver of its major version, where that is known; a newer
    major version needs at least the newest one that is.
    """
    same = [build.least for build in BUILDS if build.cuda[0] == cuda[0]]
    older = [build.least for build in BUILDS if build.cuda[0] < cuda[0]]
    return (same or older or [(0,)])[-1]


def too_old(driver: str | None, cuda: str | None) -> str | None:
    """Why this driver can't run torch built for this CUDA, in words; None where it can.

    Also None where either is not known: torch itself is asked then.
    """
    have, wanted = parse_version(driver), parse_version(cuda)
    if have is None or wanted is None or have >= least_driver(wanted):
        return None
    least = ".".join(str(part) for part in least_driver(wanted))
    return f"driver {driver} is too old for CUDA {cuda}, which needs {least} or newer"


def way_out(driver: str | None, command: str) -> str:
    """What fits this driver, and the call that takes it; `command` has {index} in it."""
    have = parse_version(driver)
    build = best_build(have) if have else None
    if build is None:
        oldest = ".".join(str(part) for part in BUILDS[0].least)
        return f"renew the driver: no build of torch fits this one ({oldest} or newer is needed)"
    cuda = ".".join(str(part) for part in build.cuda)
    part = "" if have and have >= build.own else ", by CUDA's minor version compatibility"
    return (
        f"{build.tag} fits it{part} (torch for CUDA {cuda}, the same versions): "
        f"{command.format(index=build.index)}; or renew the driver"
    )


def locked_cuda(lock: str) -> str | None:
    """The CUDA that a lock's torch is built for, such as "13.0"; None for a CPU lock."""
    match = re.search(r"^cuda-toolkit==(\d+\.\d+)", lock, re.MULTILINE)
    return match[1] if match else None


def driver_version() -> str | None:
    """The driver's version by NVML, else by its kernel module; None where there is none.

    A driver that hangs makes this hang: ask in a process with a limit.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0:
            text = ctypes.create_string_buffer(80)
            failed = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
            nvml.nvmlShutdown()
            if not failed:
                return text.value.decode("ascii", "replace")
    except (OSError, AttributeError):
        pass
    try:
        told = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", told)
    return match[0] if match else None


def refusal(driver: str | None, lock: str, index: str | None, command: str) -> list[str]:
    """The message and hints that refuse to install a lock's torch for this driver; none: install.

    Args:
        index: INDEX_VARIABLE's value or what was given in its place; its word counts, PYPI's too.
        command: how to take another index, with {index} in it.
    """
    found = too_old(driver, locked_cuda(lock)) if not index else None
    if found is None:
        return []
    return [
        f"{found}; the lock's torch is built for that",
        way_out(driver, command),
        f"to install it all the same: {command.format(index=PYPI)}",
    ]


def main(arguments: Sequence[str]) -> int:
    """0 where all is well; 3 with the reason on stderr; 2 for another command line."""
    match list(arguments):
        case ["ask", lock, index]:
            text = Path(lock).read_text(encoding="utf-8")
            command = f"{INDEX_VARIABLE}={{index}} ./just setup"
            said = refusal(driver_version(), text, index, command)
        case ["driver"]:
            terminal.put(driver_version() or "")
            return 0
        case _:
            terminal.say((__doc__ or "").strip())
            return 2
    for number, line in enumerate(said):
        terminal.say(f"runner: error: {line}" if number == 0 else f"runner:   {line}")
    return 3 if said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
