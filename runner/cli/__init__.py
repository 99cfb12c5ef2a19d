"""The `runner` command: parse, call one function, print; nothing else.

At import: typer and the standard library. Each command imports what it needs when it is called, so
that `runner --help` costs a bare Typer app's time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="runner",
    help="Declare a fine-tuning job once; check, render, run, guard and report it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Job = Annotated[str, typer.Argument(metavar="JOB", help="A name in jobs/, or a YAML file.")]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, name, unique prefix, or @last.")
]
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
MaxSteps = Annotated[
    int | None, typer.Option("--max-steps", min=1, help="Stop after this many optimizer steps.")
]


@app.command()
def jobs(as_json: AsJson = False) -> None:
    """List the jobs: those in jobs/ here, and the built-in ones."""
    from runner.cli.jobs import list_all

    list_all(as_json=as_json)


@app.command()
def show(job: Job, sets: Sets = None, as_json: AsJson = False) -> None:
    """Print a job whole: every field, its value, and where the value comes from."""
    from runner.cli.jobs import show_job

    show_job(job, sets or [], as_json=as_json)


@app.command()
def check(
    job: Job,
    sets: Sets = None,
    samples: Annotated[int, typer.Option(min=0, help="Rows to show decoded.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Check a job without training: fields, data, masks, model, machine."""
    from runner.cli.check import check_job

    raise typer.Exit(check_job(job, sets or [], samples=samples, as_json=as_json))


@app.command()
def render(
    job: Job,
    sets: Sets = None,
    max_steps: MaxSteps = None,
    smoke: Annotated[bool, typer.Option(help="Render the job's smoke instead.")] = False,
    name: Annotated[
        str, typer.Option("--file", help="plan.yaml, accelerate.yaml or deepspeed.json instead.")
    ] = "launch.sh",
    as_json: AsJson = False,
) -> None:
    """Print the launch script of a job; starts nothing, writes nothing."""
    from runner.cli.jobs import render_job

    render_job(job, sets or [], max_steps=max_steps, smoke=smoke, name=name, as_json=as_json)


@app.command()
def train(
    job: Job,
    sets: Sets = None,
    max_steps: MaxSteps = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Train a job under its memory budget; Ctrl-C saves and stops, twice kills."""
    from runner.cli.train import train_job

    raise typer.Exit(train_job(job, sets or [], max_steps=max_steps, runs=runs, as_json=as_json))


@app.command()
def smoke(
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="[JOB]...", help="Jobs to smoke [all].")
    ] = None,
    max_steps: MaxSteps = None,
    sets: Sets = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Run each job for a few steps, end to end, with stand-ins for what is not here."""
    from runner.cli.smoke import smoke_jobs

    raise typer.Exit(
        smoke_jobs(jobs or [], sets or [], max_steps=max_steps, runs=runs, as_json=as_json)
    )


@app.command()
def monitor(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Follow one run.")] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two views.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Print one view and end.")] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Show GPUs and their processes, or the host where there is no GPU."""
    from runner.cli.monitor import watch

    raise typer.Exit(watch(run, interval=interval, once=once, runs=runs, as_json=as_json))


@app.command()
def chat(
    run: Run,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Ask this and end; - reads stdin.")
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Ask the base model, without the adapter.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Talk to the model that a run trained."""
    from runner.cli.chat import talk

    raise typer.Exit(
        talk(run, prompt, base=base, max_new_tokens=max_new_tokens, runs=runs, as_json=as_json)
    )


@app.command()
def report(run: Run = "@last", runs: Runs = None, as_json: AsJson = False) -> None:
    """Say what a run did, how it ended and why."""
    from runner.cli.report import report_run

    report_run(run, runs=runs, as_json=as_json)


@app.command()
def doctor(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the report is written.")
    ] = Path("validation_report.json"),
    as_json: AsJson = False,
) -> None:
    """Check this machine: Python, packages, GPU, driver, Docker, disk, network."""
    from runner.cli.doctor import examine

    raise typer.Exit(examine(out, as_json=as_json))


def _version(value: bool) -> None:
    if value:
        from runner import __version__

        print(f"runner {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Declare a fine-tuning job once; check, render, run, guard and report it."""


def main() -> None:
    """Entry point: errors become a few lines and an exit code, never a traceback."""
    from runner.errors import EXIT_INTERRUPTED, RunnerError

    try:
        app()
    except RunnerError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # the reader went away (`runner jobs | head`): nothing is left to say, nor to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        _report_bug(error)
        sys.exit(1)


def _report_bug(error: Exception) -> None:
    """A defect of ours: the traceback goes to a file, the user gets its name."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="runner-bug-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        traceback.print_exception(error, file=log)
    print(
        f"error: this is a bug in runner: {type(error).__name__}: {error}\n  details   {log.name}",
        file=sys.stderr,
    )
