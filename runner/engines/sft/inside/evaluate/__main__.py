"""One evaluation.

`python -m runner.engines.sft.inside.evaluate FOLDER`, where FOLDER holds request.json.

Progress and notes go to stderr; the result is evaluation.json in FOLDER. Ctrl-C leaves the rows
that were answered, and says so. Imports torch only after the signals are taken over.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from runner.common import terminal
from runner.common.errors import EXIT_INTERRUPTED, RunnerError, bug
from runner.common.tensors_only import load_tensors_only
from runner.engines.render import read_plan
from runner.engines.sft.inside.evaluate.request import EvaluationFolder, read_request
from runner.engines.sft.inside.evaluate.state import State
from runner.engines.sft.inside.quiet import silence_libraries


def main() -> int:
    """The exit code: 0 done, 2 or 3 refused, 130 stopped."""
    load_tensors_only()
    folder = EvaluationFolder(Path(sys.argv[1]).absolute())
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)  # a shell's background jobs start with it ignored
    state = State(folder, os.getppid())
    try:
        request = read_request(folder)
        plan = read_plan(request.plan)
        silence_libraries(plan)
        from runner.engines.sft.inside.evaluate.evaluation import evaluate

        evaluate(request, plan, folder, state)
    except RunnerError as error:
        state.leave_line()
        terminal.say("\n".join(error.lines()))
        return error.exit_code
    except OSError as error:  # a full disk, or a folder that went away
        state.leave_line()
        terminal.say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the rest takes no time
        state.leave_line()
        terminal.say(f"runner: {state.give_up()}")
        return EXIT_INTERRUPTED
    except Exception as error:
        state.leave_line()
        terminal.say("\n".join(bug(error).lines()))
        return 1
    return 0


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    terminal.guard_streams("stdout")
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # library threads can hang in their own clean-up; everything is on disk by now
