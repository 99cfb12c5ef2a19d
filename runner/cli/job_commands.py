"""Declare the commands that read a job and train nothing: jobs, show, check, vram, fit, data, ...

Signatures and help; each command imports what it needs when it is called, so that `runner --help`
costs a bare Typer app's time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.cli.arguments import (
    AsJson,
    Job,
    MaxSteps,
    Method,
    On,
    Sets,
    overrides,
)


def jobs(as_json: AsJson = False) -> None:
    """List the jobs: those in jobs/ here, and the built-in ones."""
    from runner.cli.jobs import list_all

    list_all(as_json=as_json)


def show(job: Job, sets: Sets = None, as_json: AsJson = False) -> None:
    """Print a complete job: every field, its value, and where the value comes from."""
    from runner.cli.jobs import show_job

    show_job(job, sets or [], as_json=as_json)


def check(
    job: Job,
    sets: Sets = None,
    method: Method = None,
    on: On = None,
    samples: Annotated[int, typer.Option(min=0, help="Rows to show decoded.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Check a job without training: fields, data, masks, model, machine."""
    from runner.cli.check import print_check

    raise typer.Exit(
        print_check(job, overrides(sets, method=method, on=on), samples=samples, as_json=as_json)
    )


def vram(
    job: Job, sets: Sets = None, method: Method = None, on: On = None, as_json: AsJson = False
) -> None:
    """Predict a job's memory without weights or a GPU: how much, for what, how sure."""
    from runner.cli.vram import show_vram

    raise typer.Exit(show_vram(job, overrides(sets, method=method, on=on), as_json=as_json))


def fit(
    job: Job,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="SIZE", help="Memory on each GPU [budget.gpu_memory]."),
    ] = None,
    gpu_total: Annotated[
        str | None, typer.Option("--gpu-total", metavar="SIZE", help="The GPU's total memory.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the choice into the job's file.")
    ] = False,
    sets: Sets = None,
    method: Method = None,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Find the fastest plan under a memory budget that gives the same result."""
    from runner.cli.fit import fit_job

    raise typer.Exit(
        fit_job(
            job,
            overrides(sets, method=method, on=on),
            budget=budget,
            gpu_total=gpu_total,
            apply=apply,
            as_json=as_json,
        )
    )


def data(
    job: Job,
    sets: Sets = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Take the job's sample rows instead of its own.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the splits there as JSONL.")
    ] = None,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Clean, split and mix a job's rows, and report the result."""
    from runner.cli.data import data_job

    raise typer.Exit(data_job(job, overrides(sets, on=on), sample=sample, out=out, as_json=as_json))


def fetch(job: Job, sets: Sets = None, on: On = None, as_json: AsJson = False) -> None:
    """Download a job's weights and rows in advance, and check their hashes."""
    from runner.cli.fetch import fetch_inputs

    raise typer.Exit(fetch_inputs(job, overrides(sets, on=on), as_json=as_json))


def render(
    job: Job,
    sets: Sets = None,
    method: Method = None,
    on: On = None,
    max_steps: MaxSteps = None,
    smoke: Annotated[bool, typer.Option(help="Render the job's smoke instead.")] = False,
    name: Annotated[
        str, typer.Option("--file", help="plan.yaml, accelerate.yaml or deepspeed.json instead.")
    ] = "launch.sh",
    as_json: AsJson = False,
) -> None:
    """Print the launch script of a job; starts nothing, writes nothing."""
    from runner.cli.jobs import render_job

    render_job(
        job,
        overrides(sets, method=method, on=on),
        max_steps=max_steps,
        smoke=smoke,
        name=name,
        as_json=as_json,
    )
