"""Engine processes forked from this one, where torch is imported already: 0.3 s in place of 14.

With `preloaded()` in force, `python -P -m MODULE` of a module of the engine that a call starts is a
fork of this process that runs MODULE as `__main__`, with the pipes, the environment and the working
folder that it was given. All else is started as ever. `call_here` is the command line in this
process, its output and its children's caught alike.

What only a new process shows (what a module imports, what an environment variable does at import,
signals to a whole group) is to be tested with one.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.workplace import Finished

MODULES = ("runner.engines.sft.inside",)
"""And what is below them."""


class ForkingPopen(subprocess.Popen[Any]):
    """subprocess.Popen, but an engine's module runs in a fork."""

    def _execute_child(self, args: Any, executable: Any, *rest: Any) -> None:
        words = list(args) if isinstance(args, list | tuple) else []
        if words[:3] != [sys.executable, "-P", "-m"] or not _is_ours(words[3]):
            super()._execute_child(args, executable, *rest)  # type: ignore[misc]
            return
        # as Popen hands them on: preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
        # creationflags, shell, the six ends of the pipes, restore_signals, ...
        cwd, env, pipes = rest[3], rest[4], rest[8:14]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _run(words[3:], cwd, env, pipes)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _is_ours(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in MODULES)


def _run(words: list[str], cwd: Any, env: Any, pipes: tuple[int, ...]) -> None:
    """The forked child: does not return."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stdin, _, _, stdout, _, stderr = pipes
        for wanted, number in ((stdin, 0), (stdout, 1), (stderr, 2)):
            if wanted != -1:
                os.dup2(wanted, number)
        os.closerange(3, 1024)
        if cwd is not None:
            os.chdir(cwd)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - descriptors
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(  # noqa: SIM115
            2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
        )
        sys.argv = list(words)
        for name in [name for name in sys.modules if name == words[0]]:
            if not hasattr(sys.modules[name], "__path__"):
                del sys.modules[name]  # else runpy warns
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def preloaded() -> Iterator[None]:
    """Import what trains, and fork from here."""
    for name in ("torch", "transformers", "peft", "trl"):
        pytest.importorskip(name)
    import torch

    torch.set_num_threads(1)  # a pool of threads does not live through a fork
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", ForkingPopen)
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
                module_argv("runner.engines.sft.inside", *words),
                capture_output=True,
                encoding="utf-8",
                env=safe_environment(),
            )
            assert done.returncode == 0, done.stderr
    return run.path
