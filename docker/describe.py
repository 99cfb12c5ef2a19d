"""Prints what an image holds, as JSON: run once, while the image is built.

Standard library only, and no import of torch: its version file is read as text.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
import sys
from pathlib import Path


def torch_cuda() -> str | None:
    """The CUDA version that torch was built for ("13.0"); None for a CPU build, or no torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", text, re.MULTILINE)
    return match[1] if match else None


def system_packages() -> dict[str, str]:
    """Debian's or Ubuntu's packages and their versions."""
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${Version}\n"]
    listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in sorted(listed.splitlines()))


def main() -> None:
    packages = {
        re.sub(r"[-_.]+", "-", found.name).lower(): found.version
        for found in importlib.metadata.distributions()
    }
    release = platform.freedesktop_os_release()
    record = {
        "schema_version": 1,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": release.get("PRETTY_NAME", ""),
        "cuda": torch_cuda(),
        "packages": dict(sorted(packages.items())),
        "system_packages": system_packages(),
    }
    json.dump(record, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
