"""Complete names of jobs and runs in the shell. Imports and reads nothing slow."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import typer

ASKED = "_RUNNER_COMPLETE"
"""Set where a shell asks for completions, by Typer's script."""

_SIGNS = frozenset("_./@+=,:-")


def _is_plain(word: str) -> bool:
    """Whether a shell takes the word as it is, where `;` ends a command.

    Letters and digits of any script, with the marks that combine with them: "é" is one character or
    two, by the keyboard and by the file system, and vowel signs of Hindi are characters of their
    own.
    """
    return bool(word) and all(
        sign in _SIGNS or unicodedata.category(sign)[0] in "LNM" for sign in word
    )


def rejoin_words() -> None:
    """Make one word of the two that bash hands over for "@la": "@" ends a word to it.

    In COMP_WORDS and COMP_CWORD, before Typer reads them; what is completed then is "@last" as it
    was typed, which is also what bash replaces.
    """
    text, place = os.environ.get("COMP_WORDS", ""), os.environ.get("COMP_CWORD", "")
    if not place.isdigit():
        return
    gap, index = "\n" if "\n" in text else " ", int(place)
    words = text.split(gap)
    number = 0
    while number + 1 < len(words):
        if words[number] == "@" and words[number + 1] and number < index:
            words[number : number + 2] = ["@" + words[number + 1]]
            index -= 1
        number += 1
    os.environ |= {"COMP_WORDS": gap.join(words), "COMP_CWORD": str(index)}


def complete_jobs(incomplete: str) -> list[str]:
    """The jobs in ./jobs and the packaged ones; the shell itself completes paths."""
    from runner.common.packaged import jobs_folder

    found = {
        path.stem
        for folder in (jobs_folder(), Path("jobs"))
        for pattern in ("*.yaml", "*.yml")
        for path in folder.glob(pattern)
    }
    return sorted(name for name in found if name.startswith(incomplete) and _is_plain(name))


def complete_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """@last and the runs under --runs, newest first, by their names or without the job's."""
    from runner.runs.find import all_runs, default_root

    root = ctx.params.get("runs") or default_root()
    runs = list(reversed(all_runs(Path(root))))
    names = [run.name for run in runs]
    if incomplete[:1].isdigit():
        names += [run.path.name for run in runs]
    words = ["@last", *names] if runs else []
    return [word for word in words if word.startswith(incomplete) and _is_plain(word)]
