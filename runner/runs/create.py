"""Make the folder of a new run.

Imports the standard library, runner.common and this package's `folder` and `job_folders`.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from runner.common.errors import RunnerError
from runner.common.shared_folder import require_own_way
from runner.runs.folder import RunFolder
from runner.runs.job_folders import job_folder

SUFFIXES = {"smoke": "-smoke", "dry_run": "-dry", "replay": "-replay"}
"""Endings of the names of runs that `runner train` never resumes, by kind."""


def create_run(
    root: Path,
    job: str,
    short_hash: str,
    variant: str,
    files: Mapping[str, str],
    now: float | None = None,
) -> RunFolder:
    """Make the folder of a new run and write the rendered files into it.

    The folder's name is new: where two runs start in one second, the second gets "-2".
    Raises RunnerError where the disk refuses.
    """
    slug = job_folder(job)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    base = f"{stamp}-{short_hash}" + SUFFIXES.get(variant, "")
    made: Path | None = None
    try:
        (root / slug).mkdir(parents=True, exist_ok=True)
        require_own_way(root / slug)
        for attempt in itertools.count(1):
            path = (root / slug / (base if attempt == 1 else f"{base}-{attempt}")).absolute()
            try:
                path.mkdir()
                made = path
                break
            except FileExistsError:
                continue
        folder = RunFolder(path)
        folder.write_rendered(files)
        for inner in (folder.logs, folder.checkpoints, folder.engine):
            folder.make_folder(inner)
    except OSError as error:
        if made is not None:  # half a run folder would be listed as a run
            shutil.rmtree(made, ignore_errors=True)
        raise RunnerError(
            f"the run folder can't be made under {root}: {error.strerror}",
            "free disk space or give another place with --runs DIR",
        ) from None
    return folder
