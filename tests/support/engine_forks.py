"""The command line in this process, its engine forked from it: 0.3 s in place of 14.

With `preloaded()` in force, `python -m MODULE` of a module of the engine that a call starts is a
fork (tests/support/forked.py, which says what that can't show). All else is started as ever.
`call_here` is the command line in this process, its output and its children's caught alike.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import forks_for_modules
from tests.support.workplace import Finished

ENGINE = "runner.engines.sft.inside"
"""And what is below it."""


@contextlib.contextmanager
def preloaded() -> Iterator[None]:
    """Import what trains, and fork from here."""
    for name in ("torch", "transformers", "peft", "trl"):
        pytest.importorskip(name)
    with forks_for_modules(ENGINE):
        yield


def call_here(folder: Path, *arguments: str, **variables: str) -> Finished:
    """`runner ARGUMENTS` in `folder`, in this process; what its children write is caught, too."""
    from runner.cli import main

    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(folder)
        patch.setenv("COLUMNS", "160")
        patch.delenv("RUNNER_RUNS", raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["runner", *arguments])
        with _streams_to(out, err, patch):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        texts = [stream.seek(0) or stream.read().decode() for stream in (out, err)]
    assert "Traceback" not in texts[1], texts[1]
    return Finished(code, *texts)


@contextlib.contextmanager
def _streams_to(out: Any, err: Any, patch: pytest.MonkeyPatch) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    try:
        for number, (name, stream) in enumerate((("stdout", out), ("stderr", err)), start=1):
            os.dup2(stream.fileno(), number)
            patch.setattr(
                sys,
                name,
                open(number, "w", encoding="utf-8", buffering=1, closefd=False),  # noqa: SIM115
            )
        yield
    finally:
        for number, name in enumerate(("stdout", "stderr"), start=1):
            getattr(sys, name).flush()
            os.dup2(kept[number - 1], number)
            os.close(kept[number - 1])


def train_here(folder: Path, job: str, *sets: str) -> Path:
    """Train a job without a supervisor, as its launch.sh does by hand; its run folder."""
    from runner.common.own_python import module_argv, safe_environment
    from runner.engines.load import load_job
    from runner.engines.sft.facts import gather
    from runner.engines.sft.resolve import make_plan
    from runner.launch.train import prepare_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loaded = load_job(job, list(sets))
        plan = make_plan(loaded, gather(loaded), "train", None)
        run = prepare_folder(loaded, plan, folder / "runs")
        for words in ([str(run.path), "--prepare"], [str(run.path)]):
            done = subprocess.run(
                module_argv(ENGINE, *words),
                capture_output=True,
                encoding="utf-8",
                env=safe_environment(),
            )
            assert done.returncode == 0, done.stderr
    return run.path
