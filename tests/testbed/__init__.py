"""Fakes that stand in for hardware: an NVML as a real shared library, and "hardware" in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
STUB_SOURCE = Path(__file__).with_name("nvml_stub.c")
H100 = "81559 20000 87 61 452000 0 NVIDIA H100 80GB HBM3"


def build_nvml(folder: Path, *defines: str) -> Path:
    """Compile the stub into `folder` as libnvidia-ml.so.1; the folder, for LD_LIBRARY_PATH."""
    library = folder / "libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{library.name}"]
    command += [f"-D{define}" for define in defines]
    subprocess.run([*command, "-o", str(library), str(STUB_SOURCE)], check=True)
    return folder


@dataclass
class FakeNvml:
    """A built stub with its state file."""

    library_folder: Path
    state: Path

    def set(self, *lines: str) -> None:
        """Replace the hardware; seen by programs that run already."""
        temporary = self.state.with_suffix(".new")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(self.state)

    def environment(self) -> dict[str, str]:
        """The environment in which a program finds this NVML."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.library_folder),
            "NVML_STUB": str(self.state),
            "PYTHONPATH": str(REPOSITORY),
        }

    def probe(self, body: str) -> Any:
        """Run `body` in a Python of its own; what it passed to `tell(...)`, through JSON.

        pynvml loads the library by name and once, so the process under test can't be this one.
        """
        program = (
            "import json\n"
            "from dataclasses import asdict\n"
            "from runner.machine.nvml import Nvml, NvmlFailed, NvmlUnavailable\n"
            "def tell(value): print(json.dumps(value))\n" + body
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])
