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

from runner.cli.complete import ASKED, complete_jobs, complete_runs, rejoin_words
from runner.common import terminal
from runner.common.own_python import speak_utf8

app = typer.Typer(
    name="runner",
    help="Declare a fine-tuning job once; check, render, run, guard and report it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

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
        "--unsafe-container", help="Take mounts and arguments that undo the container's closure."
    ),
]


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
    method: Method = None,
    on: On = None,
    samples: Annotated[int, typer.Option(min=0, help="Rows to show decoded.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Check a job without training: fields, data, masks, model, machine."""
    from runner.cli.check import check_job

    raise typer.Exit(
        check_job(job, overrides(sets, method=method, on=on), samples=samples, as_json=as_json)
    )


@app.command()
def vram(
    job: Job, sets: Sets = None, method: Method = None, on: On = None, as_json: AsJson = False
) -> None:
    """Predict a job's memory without weights or a GPU: how much, of what, how sure."""
    from runner.cli.vram import show_vram

    raise typer.Exit(show_vram(job, overrides(sets, method=method, on=on), as_json=as_json))


@app.command()
def fit(
    job: Job,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="SIZE", help="GPU memory a card [budget.gpu_memory]."),
    ] = None,
    gpu_total: Annotated[
        str | None, typer.Option("--gpu-total", metavar="SIZE", help="What the card has in all.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write what was found into the job's file.")
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


@app.command()
def data(
    job: Job,
    sets: Sets = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Take the job's sample rows instead of its own.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the sides there as JSONL.")
    ] = None,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Clean, split and mix a job's rows, and report what became of them."""
    from runner.cli.data import data_job

    raise typer.Exit(data_job(job, overrides(sets, on=on), sample=sample, out=out, as_json=as_json))


@app.command()
def fetch(job: Job, sets: Sets = None, on: On = None, as_json: AsJson = False) -> None:
    """Bring a job's weights and rows to this machine beforehand, checksummed."""
    from runner.cli.fetch import fetch_job

    raise typer.Exit(fetch_job(job, overrides(sets, on=on), as_json=as_json))


@app.command()
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


@app.command()
def train(
    job: Job,
    sets: Sets = None,
    method: Method = None,
    on: On = None,
    max_steps: MaxSteps = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished run of this plan.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew, whatever runs of this plan there are.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="The whole way with real weights, but no training.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the run's name once it lives, and end.")
    ] = False,
    gpus: Gpus = None,
    wait: Wait = False,
    unsafe: Unsafe = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Train a job under its memory budget; Ctrl-C saves and stops, twice kills.

    The same command again goes on with the latest unfinished run of the same plan.
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


@app.command()
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
    """Run each job for a few steps, end to end, with stand-ins for what is not here."""
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


@app.command()
def monitor(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Follow one run.", autocompletion=complete_runs),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two views; samples are taken within.")
    ] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Print one view and end.")] = False,
    runs: Runs = None,
    as_json: AsJson = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a line for each card and view, a header first.")
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


@app.command()
def chat(
    run: Run,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Ask this and end; - reads stdin.")
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Ask the base model too, side by side.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    thinking: Annotated[
        str, typer.Option(metavar="show|strip", help="What becomes of think blocks.")
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


@app.command()
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
            help="Whose rows and task are taken.",
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


@app.command()
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
    """Put a run's adapter into its base weights: one model folder, compared with the adapter."""
    from runner.cli.merge import merge_run

    raise typer.Exit(
        merge_run(
            run, out=out, dtype=dtype, trust_code=trust_remote_code, runs=runs, as_json=as_json
        )
    )


@app.command()
def ps(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Those that have ended, too.")
    ] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """List the runs that live (queued, running), and lost ones; --all: the ended too."""
    from runner.cli.ps import list_runs

    list_runs(everything=everything, runs=runs, as_json=as_json)


@app.command()
def logs(
    run: Run = "@last",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print what is added, until the run has ended.")
    ] = False,
    supervisor: Annotated[
        bool, typer.Option("--supervisor", help="What the guard said, not the trainer.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Its bytes as they are, escape sequences too, which a terminal obeys: for a pipe.",
        ),
    ] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Print what a run's trainer printed, as text that no terminal obeys."""
    from runner.cli.logs import show_log

    raise typer.Exit(
        show_log(run, follow=follow, supervisor=supervisor, raw=raw, runs=runs, as_json=as_json)
    )


@app.command()
def attach(run: Run = "@last", runs: Runs = None, as_json: AsJson = False) -> None:
    """Follow a run that was started elsewhere, to its verdict; Ctrl-C leaves it alone."""
    from runner.cli.attach import attach_run

    raise typer.Exit(attach_run(run, runs=runs, as_json=as_json))


@app.command()
def wait(run: SomeRuns, runs: Runs = None, as_json: AsJson = False) -> None:
    """Block until runs have ended; exit code of the run, of several the first that is not 0."""
    from runner.cli.wait import wait_for

    raise typer.Exit(wait_for(run, runs=runs, as_json=as_json))


@app.command()
def stop(
    run: Run = "@last",
    now: Annotated[bool, typer.Option("--now", help="Kill it; no checkpoint is saved.")] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """End a running run: it saves a checkpoint first, and can be gone on with later."""
    from runner.cli.stop import stop_run

    raise typer.Exit(stop_run(run, now=now, runs=runs, as_json=as_json))


@app.command()
def rm(run: SomeRuns, yes: Yes = False, runs: Runs = None, as_json: AsJson = False) -> None:
    """Remove runs that have ended, with all that is in their folders."""
    from runner.cli.rm import remove_runs

    raise typer.Exit(remove_runs(run, yes=yes, runs=runs, as_json=as_json))


@app.command()
def prune(
    keep_checkpoints: Annotated[
        int | None,
        typer.Option("--keep-checkpoints", min=1, metavar="N", help="Of each run the N newest."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Only what ended so long ago: 12h, 30d."),
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
    """Remove old checkpoints and runs by rule; never of a run that lives, nor the best checkpoint.

    It shows what goes and asks. --older-than narrows the other rules; alone it means whole runs.
    """
    from runner.cli.prune import prune_runs, rules_of

    rules = rules_of(keep_checkpoints, older_than, smokes=smokes, failed=failed)
    raise typer.Exit(prune_runs(rules, yes=yes, dry_run=dry_run, runs=runs, as_json=as_json))


@app.command()
def report(run: Run = "@last", runs: Runs = None, as_json: AsJson = False) -> None:
    """Say what a run did, how it ended and why."""
    from runner.cli.report import report_run

    report_run(run, runs=runs, as_json=as_json)


Other = Annotated[str, typer.Argument(metavar="OTHER", help="Another run, as RUN.")]


@app.command()
def verify(run: Run, other: Other, runs: Runs = None, as_json: AsJson = False) -> None:
    """Say whether two runs are identical, or the first thing that differs; exit code 1 then."""
    from runner.cli.verify import verify_runs

    raise typer.Exit(verify_runs(run, other, runs=runs, as_json=as_json))


@app.command()
def diff(run: Run, other: Other, runs: Runs = None, as_json: AsJson = False) -> None:
    """Explain two runs' differences: files, versions, settings, results, machine."""
    from runner.cli.verify import diff_runs

    raise typer.Exit(diff_runs(run, other, runs=runs, as_json=as_json))


@app.command()
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
            help="Where an input lies now: data.train=FILE, model=FOLDER; may be repeated.",
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    unsafe: Unsafe = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Run a run again from its manifest, in a new folder, and verify the two."""
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


@app.command()
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
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Put a run in one file, from which another machine reproduces it.

    \b
    runner bundle @last                       what it takes, but for weights and data
    runner bundle @last --with data,model     all of it: reproduces without a network
    runner bundle @last --with adapter        with what was trained
    """
    from runner.cli.bundle import bundle_run

    raise typer.Exit(
        bundle_run(run, include or "", out=out, force=force, runs=runs, as_json=as_json)
    )


@app.command()
def unbundle(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `bundle` wrote.")],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="A new folder [under --runs, by the run's name]."),
    ] = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Unpack a bundle as a run of this machine, every file checked; says what it lacks.

    \b
    runner unbundle demo-identity-20261125-182705-36a7434.tar
    runner reproduce demo-identity/20261125-182705-36a7434
    """
    from runner.cli.unbundle import unbundle_file

    raise typer.Exit(unbundle_file(file, folder, runs=runs, as_json=as_json))


@app.command()
def doctor(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the report is written.")
    ] = Path("validation_report.json"),
    fix: Annotated[
        bool, typer.Option("--fix", help="First end and remove containers that runs left behind.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine: Python, packages, GPU, driver, Docker, disk, network."""
    from runner.cli.doctor import examine

    raise typer.Exit(examine(out, as_json=as_json, fix=fix))


image = typer.Typer(
    name="image",
    help="Build, list, save, load and verify the images that jobs run in.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(image)

ImageName = Annotated[
    str | None, typer.Argument(metavar="[IMAGE]", help="Its name or id [the train image].")
]


@image.command("build")
def image_build(
    kind: Annotated[str, typer.Argument(metavar="[train|mgm]", help="Which image.")] = "train",
    base: Annotated[
        str | None, typer.Option("--base", metavar="REF", help="Build on this image instead.")
    ] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="torch's CPU build on Debian, without CUDA.")
    ] = False,
    build_arg: Annotated[
        list[str] | None,
        typer.Option("--build-arg", metavar="NAME=VALUE", help="As docker's; may be repeated."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Run every step again, whatever was kept.")
    ] = False,
    network: Annotated[
        str | None,
        typer.Option("--network", metavar="NAME", help="Of the build, as docker's; such as host."),
    ] = None,
    toolkit: Annotated[
        Path | None,
        typer.Option("--toolkit", metavar="DIR", help="mgm: this copy, instead of cloning it."),
    ] = None,
    torch_index: Annotated[
        str | None,
        typer.Option(
            "--torch-index",
            metavar="URL",
            help="train: the locked torch from this index, for a driver older than its CUDA "
            "[RUNNER_TORCH_INDEX]; pypi: the lock's own all the same.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build an image from its Dockerfile and lock; says what it holds and how it is labelled."""
    from runner.cli.image import build_image
    from runner.containers.build import Request

    request = Request(
        kind, base, cpu, tuple(build_arg or ()), no_cache, network, toolkit, torch_index
    )
    raise typer.Exit(build_image(request, as_json=as_json))


@image.command("list")
def image_list(as_json: AsJson = False) -> None:
    """List the images that runner built, and whether they are what it would build now."""
    from runner.cli.image import list_all

    raise typer.Exit(list_all(as_json=as_json))


@image.command("save")
def image_save(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".tar, .tar.gz or .tar.zst.")],
    name: ImageName = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an image to a file, its checksum beside it, for a machine without a registry."""
    from runner.cli.image import save_image

    raise typer.Exit(save_image(file, name, force=force, as_json=as_json))


@image.command("load")
def image_load(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `image save` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Load an image from a file, checked against the checksum beside it."""
    from runner.cli.image import load_image

    raise typer.Exit(load_image(file, as_json=as_json))


@image.command("verify")
def image_verify(name: ImageName = None, as_json: AsJson = False) -> None:
    """Say whether an image is what the lock and the code here say; exit code 1 where it is not."""
    from runner.cli.image import verify_image

    raise typer.Exit(verify_image(name, as_json=as_json))


def _version(value: bool) -> None:
    if value:
        from runner import __version__

        terminal.put(f"runner {__version__}")
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
    from runner.common.errors import EXIT_INTERRUPTED, RunnerError, bug

    speak_utf8()
    terminal.never_fail()
    if ASKED in os.environ:
        rejoin_words()
    try:
        app()
    except RunnerError as error:
        terminal.say("\n".join(error.lines()))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # the reader went away (`runner jobs | head`): nothing is left to say, nor to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except OSError as error:
        terminal.say(f"error: {error}")
        sys.exit(1)
    except Exception as error:
        terminal.say("\n".join(bug(error).lines()))
        sys.exit(1)
