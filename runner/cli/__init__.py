"""The `runner` command: parse, call one function, print; nothing else.

At import: typer and the standard library. Signatures are in *_commands.py, printing in a file for
each command, and the work in runner.launch.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from runner.cli import job_commands, machine_commands, result_commands, run_commands
from runner.cli.complete import ASKED, rejoin_words
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
for _command in (
    job_commands.jobs,
    job_commands.show,
    job_commands.check,
    job_commands.vram,
    job_commands.fit,
    job_commands.data,
    job_commands.fetch,
    job_commands.render,
    run_commands.train,
    run_commands.smoke,
    run_commands.monitor,
    result_commands.chat,
    result_commands.evaluate,
    result_commands.merge,
    run_commands.ps,
    run_commands.logs,
    run_commands.attach,
    run_commands.wait,
    run_commands.stop,
    run_commands.rm,
    run_commands.prune,
    result_commands.report,
    result_commands.verify,
    result_commands.diff,
    result_commands.reproduce,
    result_commands.bundle,
    result_commands.unbundle,
    machine_commands.doctor,
):
    app.command()(_command)
app.add_typer(machine_commands.image)


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
