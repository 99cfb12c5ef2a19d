"""What the shell completes: names of jobs and of runs. Nothing slow is imported or read."""

from __future__ import annotations

from pathlib import Path

import typer


def complete_jobs(incomplete: str) -> list[str]:
    """The jobs in ./jobs and the packaged ones; the shell itself completes paths."""
    from runner.packaged import jobs_folder

    found = {
        path.stem
        for folder in (jobs_folder(), Path("jobs"))
        for pattern in ("*.yaml", "*.yml")
        for path in folder.glob(pattern)
    }
    return sorted(name for name in found if name.startswith(incomplete))


def complete_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """@last and the runs under --runs, newest first, by their names or without the job's."""
    from runner.folder import all_runs, default_root

    root = ctx.params.get("runs") or default_root()
    runs = list(reversed(all_runs(Path(root))))
    names = [run.name for run in runs]
    if incomplete[:1].isdigit():
        names += [run.path.name for run in runs]
    words = ["@last", *names] if runs else []
    return [word for word in words if word.startswith(incomplete)]
