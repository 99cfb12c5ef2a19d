"""Make the command that resumes an unfinished run, from its sources.json.

Imports the standard library and runner.runs.folder, origin and records. Runs nothing.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from runner.runs.find import default_root
from runner.runs.folder import RunFolder
from runner.runs.origin import origin_of
from runner.runs.records import sources_of

_NOT_AGAIN = ("--fresh", "--resume", "--json")


def going_on(folder: RunFolder) -> str | None:
    """`runner train ... --resume` as it was typed, for a shell anywhere; None where it isn't known.

    Of a smoke, a dry run and a replay there is none, nor of a run that came in a bundle or is
    another user's: nothing resumes them, and a command that they state is not passed on.
    """
    if origin_of(folder.path).kind in ("bundle", "user"):
        return None
    said = sources_of(folder)
    argv, place = said.get("command", []), said.get("folder")
    if len(argv) < 3 or argv[1] != "train" or "--dry-run" in argv:
        return None
    words = ["runner", *(word for word in argv[1:] if word not in _NOT_AGAIN), "--resume"]
    runs = folder.path.parent.parent
    here = Path.cwd()
    there = Path(place) if place else here
    named = any(word.partition("=")[0] == "--runs" for word in words)
    if not named and (there / default_root()).absolute() != runs:
        words += ["--runs", str(runs)]
    command = shlex.join(words)
    return command if there == here else f"cd {shlex.quote(str(there))} && {command}"
