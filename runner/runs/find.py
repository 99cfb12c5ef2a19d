"""Where runs lie, and which of them a RUN means.

Imports the standard library, runner.common and this package's `folder`, `create` and `job_folders`;
changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from pathlib import Path

from runner.common import durable
from runner.common.errors import UsageError, nearest
from runner.runs.create import SUFFIXES
from runner.runs.folder import RunFolder
from runner.runs.job_folders import earlier_job_folder, job_folder

_STAMP = re.compile(r"^\d{8}-\d{6}-[0-9a-f]{7}")


def default_root() -> Path:
    """Where runs go unless --runs says otherwise: $RUNNER_RUNS, else ./runs."""
    return Path(os.environ.get("RUNNER_RUNS") or "runs")


def all_runs(root: Path) -> list[RunFolder]:
    """Every run under `root`, oldest first."""
    found = [
        RunFolder(path.absolute())
        for job in durable.entries(root)
        for path in durable.entries(job)
        if _STAMP.match(path.name) and not job.name.startswith(".") and durable.is_folder(path)
    ]
    return sorted(found, key=lambda run: (run.path.name[:15], _created(run.path), run.name))


def is_run_name(name: str) -> bool:
    """Whether a folder is called as `create` calls them."""
    return _STAMP.match(name) is not None


def runs_of(root: Path, job: str, short_hash: str) -> list[RunFolder]:
    """The trainings of a job whose plan's hash starts so, oldest first; smokes are left out.

    Those in a folder of an earlier runner's naming too, which other jobs may share: the plan's
    hash, which is also of the job's name, tells them apart.
    """
    names = {job_folder(job), earlier_job_folder(job)}
    return [
        run
        for run in all_runs(root)
        if run.path.parent.name in names
        and run.path.name[16:].startswith(short_hash)
        and not run.path.name[16 + len(short_hash) :].startswith(tuple(SUFFIXES.values()))
    ]


def _created(path: Path) -> float:
    for file in (path / "plan.yaml", path):
        with contextlib.suppress(OSError):  # it may be removed while it is looked at
            return file.stat().st_mtime
    return 0.0


def find_run(text: str, root: Path) -> RunFolder:
    """The run that a RUN argument means: its folder, name, a unique prefix, or @last.

    Raises UsageError naming what there is and the nearest.
    """
    path = Path(text)
    if text != "@last" and (path / "plan.yaml").is_file():
        return RunFolder(path.absolute())
    runs = all_runs(root)
    text = unicodedata.normalize("NFC", text)  # as folders are named, however it was typed
    if text == "@last":
        if not runs:
            raise UsageError(
                f"there is no run under {root}", "runner train demo-identity makes one"
            )
        return runs[-1]
    matches = [run for run in runs if text in (run.name, run.path.name)] or [
        run for run in runs if run.name.startswith(text) or run.path.name.startswith(text)
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(run.name for run in matches[-5:])
        raise UsageError(f"{text!r} fits {len(matches)} runs: {names}", "give more of the name")
    near = nearest(text, [run.name for run in runs] + [run.path.name for run in runs])
    raise UsageError(
        f"no run {text!r} under {root} ({len(runs)} there)",
        f"nearest: {near}" if near else "a RUN is a folder, a name, a unique prefix, or @last",
    )
