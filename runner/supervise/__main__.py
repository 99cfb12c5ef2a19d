"""Command line of the supervisor: one at a time in a folder, and a verdict whatever happens."""

from __future__ import annotations

import argparse
import fcntl
import sys
import time
import traceback
from pathlib import Path

from runner import durable
from runner.errors import RunnerError
from runner.folder import RunFolder
from runner.guard.enforcer import ProcessTree
from runner.outcome import Outcome, Reason
from runner.render import read_plan
from runner.supervise.run import supervise


def main() -> int:
    """Exit code of the run, as in termination.json."""
    parser = argparse.ArgumentParser(prog="python -m runner.supervise", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    folder = RunFolder(arguments.folder.absolute())
    with (folder.path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"error: {folder.name} already has a supervisor", file=sys.stderr)
            return 3
        started = time.time()
        try:
            outcome = supervise(folder, read_plan(folder.plan), resume=arguments.resume)
        except RunnerError as error:  # before anything was started; an old verdict stays as it is
            print("\n".join(error.lines()), file=sys.stderr)
            return error.exit_code
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome(
                Reason.FAILED,
                1,
                f"the supervisor failed: {error}",
                started_unix_seconds=started,
                ended_unix_seconds=time.time(),
            )
            ProcessTree().kill_all()
        try:
            durable.write_json(folder.termination, outcome.to_record())
        except OSError as error:
            print(f"error: termination.json can't be written: {error}", file=sys.stderr)
        return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
