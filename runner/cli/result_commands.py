"""Declare the commands for runs that have ended: chat, evaluate, merge, report, verify, diff, ...

Signatures and help; each command imports what it needs when it is called, so that `runner --help`
costs a bare Typer app's time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.cli.arguments import (
    AsJson,
    Other,
    Run,
    Runs,
    Sets,
    TrustRemoteCode,
    Unsafe,
)
from runner.cli.complete import complete_jobs, complete_runs


def chat(
    run: Run,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Ask this and exit; - reads stdin.")
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Ask the base model too, side by side.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    thinking: Annotated[
        str, typer.Option(metavar="show|strip", help="Show think blocks, or strip them.")
    ] = "show",
    trust_remote_code: TrustRemoteCode = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Talk to the model that a run trained."""
    from runner.cli.chat import talk

    raise typer.Exit(
        talk(
            run,
            prompt,
            base=base,
            max_new_tokens=max_new_tokens,
            thinking=thinking,
            trust_code=trust_remote_code,
            runs=runs,
            as_json=as_json,
        )
    )


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run, or with --job a model.",
            autocompletion=complete_runs,
        ),
    ] = "@last",
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            metavar="JOB",
            help="The job whose rows and task are used.",
            autocompletion=complete_jobs,
        ),
    ] = None,
    sets: Sets = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FILE", help="Rows to evaluate on; may be repeated."),
    ] = None,
    base: Annotated[
        bool, typer.Option(help="Measure the base model beside the trained one.")
    ] = True,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, help="At most this many rows of each set.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the results are written.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Measure a trained model on held-out rows: figures with 95 % intervals, answers row by row."""
    from runner.cli.evaluate import evaluate_run

    code = evaluate_run(
        target,
        job=job,
        sets=sets or [],
        data=data or [],
        base=base,
        max_rows=max_rows,
        trust_code=trust_remote_code,
        runs=runs,
        out=out,
        as_json=as_json,
    )
    raise typer.Exit(code)


def merge(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The new model folder [RUN/merged].")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="bf16, fp16 or fp32 [the base's own].")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Merge a run's adapter into its base weights, as one model folder, and compare both."""
    from runner.cli.merge import merge_run

    raise typer.Exit(
        merge_run(
            run, out=out, dtype=dtype, trust_code=trust_remote_code, runs=runs, as_json=as_json
        )
    )


def report(run: Run = "@last", runs: Runs = None, as_json: AsJson = False) -> None:
    """Say what a run did, how it ended and why."""
    from runner.cli.report import report_run

    report_run(run, runs=runs, as_json=as_json)


def verify(run: Run, other: Other, runs: Runs = None, as_json: AsJson = False) -> None:
    """Say whether two runs are identical, or the first thing that differs; exit code 1 then."""
    from runner.cli.verify import verify_runs

    raise typer.Exit(verify_runs(run, other, runs=runs, as_json=as_json))


def diff(run: Run, other: Other, runs: Runs = None, as_json: AsJson = False) -> None:
    """Explain two runs' differences: files, versions, settings, results, machine."""
    from runner.cli.verify import diff_runs

    raise typer.Exit(diff_runs(run, other, runs=runs, as_json=as_json))


def reproduce(
    run: Run = "@last",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="End after so many; compare these.")
    ] = None,
    on: Annotated[str | None, typer.Option("--on", help="local or docker [where it ran].")] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="PART=PATH",
            help="Where an input is now: data.train=FILE, model=FOLDER; may be repeated.",
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    unsafe: Unsafe = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Repeat a run from its manifest, in a new folder, and verify the two."""
    from runner.cli.reproduce import reproduce_run

    raise typer.Exit(
        reproduce_run(
            run,
            steps=steps,
            on=on,
            at=at or [],
            trust_code=trust_remote_code,
            unsafe=unsafe,
            runs=runs,
            as_json=as_json,
        )
    )


def bundle(
    run: Run = "@last",
    include: Annotated[
        str | None,
        typer.Option(
            "--with", metavar="PARTS", help="Of data, model and adapter, joined by commas."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help=".tar or .tar.gz [./JOB-TIME-HASH...]."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Pack a run into one file, from which another machine reproduces it.

    \b
    runner bundle @last                       what it takes, but for weights and data
    runner bundle @last --with data,model     all of it: reproduces without a network
    runner bundle @last --with adapter        with what was trained
    """
    from runner.cli.bundle import bundle_run

    raise typer.Exit(
        bundle_run(run, include or "", out=out, force=force, runs=runs, as_json=as_json)
    )


def unbundle(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `bundle` wrote.")],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="A new folder [under --runs, by the run's name]."),
    ] = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Unpack a bundle as a run of this machine; check every file, list what is missing.

    \b
    runner unbundle demo-identity-20261125-182705-36a7434.tar
    runner reproduce demo-identity/20261125-182705-36a7434
    """
    from runner.cli.unbundle import unbundle_file

    raise typer.Exit(unbundle_file(file, folder, runs=runs, as_json=as_json))
