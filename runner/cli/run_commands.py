"""Declare the commands that start, watch and end runs: train, smoke, monitor, ps, logs, attach, ...

Signatures and help; each command imports what it needs when it is called, so that `runner --help`
costs a bare Typer app's time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.cli.arguments import (
    AsJson,
    Gpus,
    Job,
    MaxSteps,
    Method,
    On,
    Run,
    Runs,
    Sets,
    SomeRuns,
    Unsafe,
    Wait,
    Yes,
    overrides,
)
from runner.cli.complete import complete_jobs, complete_runs


def train(
    job: Job,
    sets: Sets = None,
    method: Method = None,
    on: On = None,
    max_steps: MaxSteps = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the unfinished run of this plan.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start a new run, whatever runs of this plan exist.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do all but train, with the real weights.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", "-d", help="Print the run's name once it has started, and exit."),
    ] = False,
    gpus: Gpus = None,
    wait: Wait = False,
    unsafe: Unsafe = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Train a job under its memory budget; Ctrl-C saves and stops, twice kills.

    The same command again resumes the latest unfinished run of the same plan.
    """
    from runner.cli.train import train_job
    from runner.common.errors import UsageError

    if resume and fresh:
        raise UsageError("--resume and --fresh exclude each other")
    code = train_job(
        job,
        overrides(sets, method=method, on=on, gpus=gpus),
        max_steps=max_steps,
        runs=runs,
        wait=wait,
        choice="resume" if resume else "fresh" if fresh else None,
        dry_run=dry_run,
        detach=detach,
        unsafe=unsafe,
        as_json=as_json,
    )
    raise typer.Exit(code)


def smoke(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JOB]...", help="Jobs to smoke [all].", autocompletion=complete_jobs
        ),
    ] = None,
    max_steps: MaxSteps = None,
    sets: Sets = None,
    method: Method = None,
    on: On = None,
    gpus: Gpus = None,
    wait: Wait = False,
    unsafe: Unsafe = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Run each job for a few steps, end to end, with stand-ins for what is missing."""
    from runner.cli.smoke import smoke_jobs

    raise typer.Exit(
        smoke_jobs(
            jobs or [],
            overrides(sets, method=method, on=on, gpus=gpus),
            max_steps=max_steps,
            runs=runs,
            wait=wait,
            unsafe=unsafe,
            as_json=as_json,
        )
    )


def monitor(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Follow one run.", autocompletion=complete_runs),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two views; samples are taken within.")
    ] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Print one view and exit.")] = False,
    runs: Runs = None,
    as_json: AsJson = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a line for each GPU and view, a header first.")
    ] = False,
    prometheus: Annotated[
        str | None,
        typer.Option(metavar="[ADDRESS:]PORT", help="Serve metrics [address: 127.0.0.1]."),
    ] = None,
    textfile: Annotated[
        Path | None,
        typer.Option(metavar="FILE.prom", help="Write metrics for node-exporter's textfiles."),
    ] = None,
) -> None:
    """Show GPUs, their runs and processes, or the host where there is no GPU."""
    from runner.cli.monitor import How, watch

    how = How(once, as_json, as_csv, prometheus, textfile)
    raise typer.Exit(watch(run, interval=interval, how=how, runs=runs))


def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="List ended runs too.")] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """List active (queued, running) and lost runs; --all: ended ones too."""
    from runner.cli.ps import list_runs

    list_runs(everything=everything, runs=runs, as_json=as_json)


def logs(
    run: Run = "@last",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print what is added, until the run has ended.")
    ] = False,
    supervisor: Annotated[
        bool, typer.Option("--supervisor", help="What the guard printed, not the trainer.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="The bytes unchanged, escape sequences included: for a pipe.",
        ),
    ] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of a run's trainer, safe for a terminal."""
    from runner.cli.logs import show_log

    raise typer.Exit(
        show_log(run, follow=follow, supervisor=supervisor, raw=raw, runs=runs, as_json=as_json)
    )


def attach(run: Run = "@last", runs: Runs = None, as_json: AsJson = False) -> None:
    """Follow a run that was started elsewhere, to its outcome; Ctrl-C leaves it alone."""
    from runner.cli.attach import attach_run

    raise typer.Exit(attach_run(run, runs=runs, as_json=as_json))


def wait(run: SomeRuns, runs: Runs = None, as_json: AsJson = False) -> None:
    """Block until runs have ended; exit code of the run, of several the first that is not 0."""
    from runner.cli.wait import wait_for

    raise typer.Exit(wait_for(run, runs=runs, as_json=as_json))


def stop(
    run: Run = "@last",
    now: Annotated[bool, typer.Option("--now", help="Kill it; no checkpoint is saved.")] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Stop a run: it saves a checkpoint first, and can be resumed later."""
    from runner.cli.stop import stop_run

    raise typer.Exit(stop_run(run, now=now, runs=runs, as_json=as_json))


def rm(run: SomeRuns, yes: Yes = False, runs: Runs = None, as_json: AsJson = False) -> None:
    """Remove runs that have ended, with all that is in their folders."""
    from runner.cli.rm import remove_runs

    raise typer.Exit(remove_runs(run, yes=yes, runs=runs, as_json=as_json))


def prune(
    keep_checkpoints: Annotated[
        int | None,
        typer.Option("--keep-checkpoints", min=1, metavar="N", help="Keep each run's N newest."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", metavar="AGE", help="Only runs that ended so long ago: 12h, 30d."
        ),
    ] = None,
    smokes: Annotated[bool, typer.Option("--smokes", help="Smokes and dry runs.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="Runs that failed or were lost.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it, remove nothing.")] = False,
    yes: Yes = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Remove old checkpoints and runs by rule; never of an active run, nor the best checkpoint.

    It shows what goes and asks. --older-than narrows the other rules; alone it means whole runs.
    """
    from runner.cli.prune import prune_runs, rules_of

    rules = rules_of(keep_checkpoints, older_than, smokes=smokes, failed=failed)
    raise typer.Exit(prune_runs(rules, yes=yes, dry_run=dry_run, runs=runs, as_json=as_json))
