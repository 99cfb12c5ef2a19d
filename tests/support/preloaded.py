"""Ranks of the real engine without their imports: forked from a process that has done them once.

A launch.sh whose Python is `Preloaded.python` is the real one to its last line, and so are the
engine, its ranks and what accelerate's launcher tells them. Only what torchrun would start, an
interpreter a rank, is a fork of one that has imported the training stack: 4 CPU-seconds in place of
16. Nothing of it is below the launch script in the tree of processes: not for what a supervisor
watches or signals.

`python -m tests.support.preloaded FOLDER` is the process that forks.
"""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.testbed import REPOSITORY

STACK = ("torch", "transformers", "datasets", "peft", "trl", "accelerate", "deepspeed")
_SHIM = """#!/bin/bash
[[ ${{3-}} == accelerate.commands.launch ]] || exec {python} "$@"
cd {folder}
env -0 >env
printf '%s\\0' "${{@:4}}" >words
echo >asked
read -r code <answered
cat out
exit "$code"
"""


@contextmanager
def preloaded(folder: Path) -> Iterator[Path]:
    """An interpreter for launch scripts, one at a time; `folder` is for what they say."""
    folder.mkdir()
    for name in ("asked", "answered"):
        os.mkfifo(folder / name)
    python = folder / "python"
    python.write_text(
        _SHIM.format(python=shlex.quote(sys.executable), folder=shlex.quote(str(folder)))
    )
    python.chmod(0o755)
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    deepspeed = {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.preloaded", str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **alone, **deepspeed},
    )
    try:
        yield python
    finally:
        process.kill()
        process.wait()


def _serve(folder: Path) -> None:
    for name in STACK:
        __import__(name)
    import runner.engines.sft.inside.train.train
    import runner.engines.sft.inside.train.trainer  # noqa: F401

    while True:
        (folder / "asked").read_text()  # waits for who asks
        child = os.fork()
        if child == 0:
            os._exit(_answer(folder))
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        (folder / "answered").write_text(f"{code if code >= 0 else 128 - code}\n")


def _answer(folder: Path) -> int:
    """The exit code of accelerate's launcher, called as the launch script would."""
    import torch.distributed.run
    from accelerate.commands.launch import launch_command, launch_command_parser

    with (folder / "out").open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    variables = (folder / "env").read_bytes().decode().split("\0")[:-1]
    os.environ.clear()
    os.environ.update(text.partition("=")[::2] for text in variables)
    words = (folder / "words").read_bytes().decode().split("\0")[:-1]
    torch.distributed.run.run = _fork_ranks
    try:
        launch_command(launch_command_parser().parse_args(words))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _fork_ranks(arguments: Any) -> None:
    """What torchrun does: so many ranks, of which the first that fails ends the others."""
    count = int(arguments.nproc_per_node)
    ranks: dict[int, int] = {}
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os._exit(_be_rank(rank, count, arguments))
        ranks[child] = rank
    failed = 0
    while ranks:
        child, status = os.wait()
        del ranks[child]
        if os.waitstatus_to_exitcode(status) and not failed:
            failed = 1
            for other in ranks:
                os.kill(other, 15)
    if failed:
        raise SystemExit(failed)


def _be_rank(rank: int, count: int, arguments: Any) -> int:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(number) for name, number in place.items()})
    os.environ.setdefault("MASTER_PORT", str(arguments.master_port))
    sys.argv = [arguments.training_script, *arguments.training_script_args]
    try:
        runpy.run_module(arguments.training_script, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
