"""Python processes that begin with the training stack imported: forks of this one.

A process of its own costs two to nine CPU-seconds before its first line where it imports torch,
transformers and trl; a fork of the test process, which has them, costs a few hundredths of one. It
has a pid, an environment, arguments, a working folder and file descriptors of its own, and ends as
a process does. What it shares with a real one is everything but the start of Python:

- What a library read from the environment when it was imported stays as it is in this process
  (HF_HOME, CUDA_VISIBLE_DEVICES ...): a test of that needs a real process.
- Its memory begins with this process's: a test of memory needs a real process.
- What a test has patched in this process is patched there too.
- torch keeps to one thread: a pool of threads does not outlive a fork, and is waited for for ever.

May import the standard library and pytest; the stack when called.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import gc
import io
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest


@functools.cache
def preload() -> None:
    """Import what the engine's modules need, the dear part of it, and keep torch to one thread."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    import torch._dynamo
    import transformers.models.llama.modeling_llama  # noqa: F401
    import trl.trainer.utils  # noqa: F401

    from runner.engines.sft.inside.memory import step
    from runner.engines.sft.inside.train import trainer

    assert trainer and step
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    code: int
    """Exit code; -N where signal N ended it."""
    out: str
    err: str


def run_module(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    seconds: float | None = None,
) -> Ended:
    """`python -m MODULE ARGUMENTS` in a fork: its exit code and what it printed.

    Raises subprocess.TimeoutExpired after `seconds`, when it has been killed.
    """
    process = _start([module, *arguments], environment, folder)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, out, err)


def _start(
    command: list[str], environment: Mapping[str, str] | None, folder: Path | None
) -> ForkedPopen:
    return ForkedPopen(
        [sys.executable, "-m", *command],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )


def run_ranks(module: str, *arguments: str, ranks: int) -> list[Ended]:
    """The same module in so many forks at once that find each other as torchrun's do; by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    started = []
    for rank in range(ranks):
        place = {**together, "RANK": rank, "LOCAL_RANK": rank}
        variables = {name: str(number) for name, number in place.items()}
        environment = {**os.environ, **variables, "MASTER_ADDR": "127.0.0.1"}
        started.append(_start([module, *arguments], environment, None))
    with ThreadPoolExecutor(ranks) as readers:
        outs = list(readers.map(lambda process: process.communicate(), started))
    return [Ended(process.returncode, *said) for process, said in zip(started, outs, strict=True)]


@contextlib.contextmanager
def forks_for_modules(*packages: str) -> Iterator[None]:
    """Within it whatever starts `python -m MODULE` through subprocess gets a fork of this process.

    Other programs, and Python's other ways (-c, a file), start as ever.

    Args:
        packages: those that modules are forked of; all where none is named.
    """
    forking = type("ForkedPopen", (ForkedPopen,), {"packages": packages})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", forking)
        yield


def module_of(argv: Any) -> list[str] | None:
    """Module and arguments of a command line of this Python's -m; None of any other command."""
    if isinstance(argv, str | bytes | os.PathLike):
        return None
    words = [os.fspath(one) for one in argv]
    if words[:1] != [sys.executable]:
        return None
    rest = words[1:]
    while rest and rest[0] in ("-P", "-u", "-B"):
        rest = rest[1:]
    return rest[1:] if rest[:1] == ["-m"] and len(rest) > 1 else None


class ForkedPopen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen, but a module of this very Python runs in a fork; all else is as ever."""

    packages: tuple[str, ...] = ()
    """Those that modules are forked of; none: all."""

    def _is_forked(self, module: str) -> bool:
        return not self.packages or any(f"{module}.".startswith(f"{p}.") for p in self.packages)

    def _execute_child(
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: Any,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        startupinfo: Any,
        creationflags: Any,
        shell: Any,
        *rest: Any,
    ) -> None:
        command = None if shell or executable else module_of(args)
        if command is None or not self._is_forked(command[0]):
            given = (args, executable, preexec_fn, close_fds, pass_fds, cwd, env)
            super()._execute_child(*given, startupinfo, creationflags, shell, *rest)  # type: ignore[misc]
            return
        pipes, start_new_session = rest[:6], rest[11]
        child_ends = (pipes[0], pipes[3], pipes[5])  # of stdin, stdout, stderr; -1: this process's
        preload()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be(command, child_ends, set(pass_fds), cwd, env, start_new_session, preexec_fn)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _be(
    command: list[str],
    ends: tuple[int, int, int],
    kept: set[int],
    folder: Any,
    environment: Mapping[str, str] | None,
    own_session: bool,
    preexec: Any,
) -> NoReturn:
    """Become the process of a command; never returns to what was forked."""
    code = 1
    try:
        gc.freeze()  # what the parent holds stays: a file object that went would close our files
        atexit._clear()
        _take_signals()
        if own_session:
            os.setsid()
        _take_files(ends, kept)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
            tempfile.tempdir = None  # by its own TMPDIR
        if folder is not None:
            os.chdir(folder)
        if preexec is not None:
            preexec()
        _take_voice()
        _forget_ranks()
        sys.argv = command
        sys.path[:] = [place for place in sys.path if place]
        code = _run(command[0])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(code)


def _run(module: str) -> int:
    """The exit code of a module run as a program."""
    if not hasattr(sys.modules.get(module), "__path__"):
        sys.modules.pop(module, None)  # of which runpy would warn
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def _take_signals() -> None:
    """As a new Python has them, whatever pytest and tests handle."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _take_files(ends: tuple[int, int, int], kept: set[int]) -> None:
    """stdin, stdout and stderr from these ends; every other file of the parent is closed here."""
    faulthandler.disable()
    for target, end in enumerate(ends):
        if end == target:
            os.set_inheritable(end, True)
        elif end != -1:
            os.dup2(end, target)
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if number > 2 and number not in kept:
            with contextlib.suppress(OSError):  # of the listing itself
                os.close(number)


def _take_voice() -> None:
    """Streams, loggers and warnings that speak to this process's own stdout and stderr."""
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")[0] or "utf-8"
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = open(number, "wb", closefd=False)  # noqa: SIM115 - for the process's life
        errors = "backslashreplace" if number == 2 else "strict"
        stream = io.TextIOWrapper(raw, encoding, errors, line_buffering=number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stdin = sys.__stdin__ = open(0, encoding=encoding, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    loggers = [one for one in logging.root.manager.loggerDict.values() if hasattr(one, "handlers")]
    for handler in (each for one in loggers for each in one.handlers):
        vars(handler).pop("flush", None)  # transformers' is that of the stream it began with
        with contextlib.suppress(AttributeError):  # logging's own looks sys.stderr up each time
            handler.stream = sys.stderr
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    warnings.showwarning = _show_warning


def _forget_ranks() -> None:
    """accelerate remembers for the whole process whether it is one of several."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _show_warning(message: Any, category: Any, name: str, line: int, *_: Any) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, name, line))
