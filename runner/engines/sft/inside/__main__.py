"""`python -m runner.engines.sft.inside RUN_FOLDER [--resume]`: one training process of a run.

`--prepare` only readies the folder (launch.sh calls it once before the processes start).
Imports torch only after the signals are taken over.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from runner.common import durable, terminal
from runner.common.errors import EXIT_REFUSED, RunnerError
from runner.common.tensors_only import load_tensors_only
from runner.common.units import MIB
from runner.engines.render import read_plan
from runner.engines.sft.inside.control import STOPPED_EXIT_CODE, Control, Stopped
from runner.engines.sft.inside.oom import keep_snapshot
from runner.engines.sft.unused_packages import leave_out_unused
from runner.runs import recover as unfinished
from runner.runs.folder import RunFolder
from runner.runs.protocol import SUPERVISOR_VARIABLE
from runner.runs.ranks import living_engines

RESERVE_BYTES = 16 * 1024
"""Given back before a failure is recorded, so that a full disk can not hide it."""
TIGHT_BYTES = 512 * MIB  # a GPU with less free was full, whatever the cap


def main() -> int:
    """The exit code: 0 completed, 143 stopped on request, 2 or 3 refused, 1 failed."""
    load_tensors_only()
    parser = argparse.ArgumentParser(
        prog="python -m runner.engines.sft.inside", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="the run's folder, with plan.yaml")
    parser.add_argument("--resume", action="store_true", help="resume from the newest checkpoint")
    parser.add_argument("--prepare", action="store_true", help="ready the folder, then end")
    arguments = parser.parse_args()
    folder = RunFolder(arguments.folder.absolute())
    if arguments.prepare:
        return _prepare(folder, resume=arguments.resume)
    rank = int(os.environ.get("RANK", "0"))
    control = Control(folder, rank)
    faulthandler.enable()  # a crash of native code leaves its stack in the log
    try:
        plan = read_plan(folder.plan)
        control.install()
        folder.write_file(_reserve(folder, rank), b"\0" * RESERVE_BYTES)
        leave_out_unused(plan)
        from runner.engines.sft.inside.train.train import train

        code = train(plan, folder, control, resume=arguments.resume)
        folder.remove(_reserve(folder, rank), as_far_as_possible=True)
        return code
    except Stopped:
        terminal.say("runner: stopped before the first step")
        return STOPPED_EXIT_CODE
    except RunnerError as error:
        _record_failure(folder, rank, "refused", error.message, error.exit_code)
        _print("\n".join(error.lines()))
        return error.exit_code
    except Exception as error:
        kind, message = _explain(error)
        if kind in ("cuda_oom", "over_budget"):
            kept = keep_snapshot(read_plan(folder.plan), folder)
            message += f"; snapshot {kept.name}" if kept else ""
        _record_failure(folder, rank, kind, message, 1)
        _print(traceback.format_exc())
        return 1


def _prepare(folder: RunFolder, *, resume: bool) -> int:
    try:
        plan = read_plan(folder.plan)
    except RunnerError as error:
        terminal.say("\n".join(error.lines()))
        return error.exit_code
    if not os.environ.get(SUPERVISOR_VARIABLE):
        living = living_engines(folder)
        if folder.is_supervised():
            terminal.say(f"error: a supervisor runs {folder.path} already")
            return EXIT_REFUSED
        if living:
            terminal.say(f"error: pids {living} train in {folder.path} already")
            return EXIT_REFUSED
        unfinished.clear(folder)
        moved = folder.set_aside(folder.verdicts() if resume else folder.results())
        if moved is not None:
            what = "outcome is" if resume else "results are"
            terminal.say(f"runner: the earlier {what} now in {moved}")
    for inner in (folder.logs, folder.checkpoints, folder.engine):
        folder.make_folder(inner)
    for line in plan.substitutions:
        terminal.say(f"runner: SUBSTITUTED {line}")
    return 0


def _explain(error: Exception) -> tuple[str, str]:
    """The failure's kind and a sentence, from the exception alone."""
    from runner.engines.sft.inside.train.loss_check import NonFiniteLoss

    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    if isinstance(error, NonFiniteLoss):
        return "non_finite_loss", first
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
        # torch names its own cap ("... allowed; ..."); with room left on the GPU it was the cap
        if " allowed; " in text and _free_gpu_bytes() > TIGHT_BYTES:
            return "over_budget", f"torch's cap held the budget: {first}"
        return "cuda_oom", first
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate" in text:
        return "host_oom", first
    if isinstance(error, OSError) and error.errno == 28:
        return "disk_full", f"the disk is full: {error.strerror}"
    return "failed", f"{type(error).__name__}: {first}"


def _free_gpu_bytes() -> int:
    """Free memory of this process's GPU; 0 where that can't be told."""
    import torch

    try:
        return int(torch.cuda.mem_get_info()[0])
    except (RuntimeError, AssertionError):  # no GPU, or a context that the error left unusable
        return 0


def _reserve(folder: RunFolder, rank: int) -> Path:
    return folder.engine / f".reserve-{rank}"


def _record_failure(folder: RunFolder, rank: int, kind: str, message: str, exit_code: int) -> None:
    """engine/failure.json: launchers turn every exit code into 1, so ours is written down.

    The first rank's word counts most, but for a lost connection to one that refused to continue.
    """
    folder.remove(_reserve(folder, rank), as_far_as_possible=True)
    before = durable.read_json(folder.engine_failure)
    refused = isinstance(before, dict) and before.get("kind") == "refused"
    if before is None or (rank == 0 and not (refused and kind == "failed")):
        try:
            folder.write_json(
                folder.engine_failure,
                {
                    "schema_version": 1,
                    "rank": rank,
                    "kind": kind,
                    "message": message,
                    "exit_code": exit_code,
                },
            )
        except OSError as error:
            _print(f"runner: the failure can't be recorded: {error}")


def _print(text: str) -> None:
    """To the log, which may lie on the disk that is full: then there is nothing to be said."""
    with contextlib.suppress(OSError):
        terminal.say(text)


def run() -> NoReturn:
    """Do `main`, and end this process with its exit code."""
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Not sys.exit: after an ordinary end of training, library threads and process groups can hang
    # in their own clean-up and hold the GPU; everything of ours is on disk by now.
    os._exit(code)


if __name__ == "__main__":
    run()
