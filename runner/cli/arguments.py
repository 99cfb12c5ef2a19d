"""Arguments and options that several commands share. Imports typer and the standard library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.cli.complete import complete_jobs, complete_runs

Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="A name in jobs/, or a YAML file.", autocompletion=complete_jobs
    ),
]
Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's folder, name, unique prefix, or @last.",
        autocompletion=complete_runs,
    ),
]
SomeRuns = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Runs, as folder, name, prefix or @last.",
        autocompletion=complete_runs,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Override a field of the job; may be repeated."
    ),
]
Runs = Annotated[
    Path | None,
    typer.Option("--runs", metavar="DIR", help="Where runs are kept [runs/, or $RUNNER_RUNS]."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Method = Annotated[
    str | None,
    typer.Option("--method", help="lora, qlora, prefix or full, in place of the job's own."),
]
MaxSteps = Annotated[
    int | None, typer.Option("--max-steps", min=1, help="Stop after this many optimizer steps.")
]
On = Annotated[
    str | None,
    typer.Option("--on", help="auto, local (this machine) or docker, in place of the job's own."),
]
Gpus = Annotated[
    int | None, typer.Option("--gpus", min=1, help="Train on so many GPUs, one process on each.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code that came with a run of somebody else's (docs/security.md).",
    ),
]
Wait = Annotated[
    bool, typer.Option("--wait", help="Queue for a GPU that others hold, in order of arrival.")
]
Unsafe = Annotated[
    bool,
    typer.Option(
        "--unsafe-container",
        help="Allow mounts and arguments that weaken the container's isolation.",
    ),
]
Other = Annotated[str, typer.Argument(metavar="OTHER", help="Another run, as RUN.")]


def overrides(
    sets: list[str] | None, *, method: str | None = None, on: str | None, gpus: int | None = None
) -> list[str]:
    """The overrides, --method, --on and --gpus among them."""
    given = {"method": method, "launch.on": on}
    named = [*(sets or []), *(f"{field}={value}" for field, value in given.items() if value)]
    if gpus is None:
        return named
    from runner.launch.gpus import gpu_settings

    return [*named, *gpu_settings(gpus, named)]
