"""What a run executes is what its plan renders to: seen to before each start.

Imports runner.folder and render. Launch script and stage scripts lie in a folder that a container,
or whoever made a copy of it, could write; so they are compared with the plan's rendering, and
nothing beside a stage script, which Python would import before its packages, stays there.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from runner.folder import RunFolder
from runner.plan_base import PlanBase
from runner.render import render


def render_anew(folder: RunFolder, plan: PlanBase) -> list[str]:
    """Write what differs from the plan's rendering; in words, what was found to be another.

    The plan itself is left as it is: it was verified. Raises OSError.
    """
    files = {name: text for name, text in render(plan).items() if name != folder.plan.name}
    told = []
    foreign = list(_beside_scripts(folder.path, files))
    if foreign:
        moved = folder.set_aside(foreign)
        names = ", ".join(str(path.relative_to(folder.path)) for path in foreign)
        told.append(f"{names} belongs to no plan of runner's and is now in {moved}")
    wrong = {name: text for name, text in files.items() if not _is_file(folder.path / name, text)}
    if wrong:
        folder.write_rendered(wrong)
        told.append(f"rendered anew, since it was another than the plan's: {', '.join(wrong)}")
    return told


def _beside_scripts(run: Path, files: dict[str, str]) -> Iterator[Path]:
    """What lies in the folders of rendered files and was not rendered; byte code is deleted."""
    for folder in {(run / name).parent for name in files} - {run}:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            yield folder
            continue
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if path.name == "__pycache__" and not path.is_symlink():
                shutil.rmtree(path)
            elif path.relative_to(run).as_posix() not in files:
                yield path


def _is_file(path: Path, text: str) -> bool:
    """Whether it is a plain file with that content."""
    try:
        about = os.lstat(path)
        return stat.S_ISREG(about.st_mode) and path.read_bytes() == text.encode()
    except OSError:
        return False
