"""Make sure before each start that a run executes what its plan renders to.

Launch script and stage scripts are in a folder that a container, or the author of a copy, could
write; so they are compared with the plan's rendering, and files beside a stage script, which Python
would import before its packages, are removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from runner.common import durable
from runner.engines.render import MAX_PLAN_BYTES, render
from runner.plans.base import Plan
from runner.runs.folder import RunFolder


def render_anew(folder: RunFolder, plan: Plan) -> list[str]:
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
    wrong = differing(folder, files)
    if wrong:
        folder.write_rendered({name: files[name] for name in wrong})
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


def differing(folder: RunFolder, files: Mapping[str, str]) -> list[str]:
    """Names of those that are not in the folder as they are in `files`: a link is no file."""
    found = []
    for name, text in files.items():
        try:
            if durable.read_record(folder.path / name, MAX_PLAN_BYTES) == text.encode():
                continue
        except OSError:  # a link, a pipe or a folder in its place, or nothing
            pass
        found.append(name)
    return found
