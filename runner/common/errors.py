"""What can go wrong, as a user reads it. Imports only the standard library.

Exit codes (docs/exit-codes.md): 2 bad spec or usage, 3 refused before the start.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXIT_BAD_SPEC = 2
EXIT_REFUSED = 3
EXIT_GPU_LOST = 69
EXIT_OVER_BUDGET_WITH_CHECKPOINT = 75
EXIT_OVER_BUDGET_WITHOUT_CHECKPOINT = 76
EXIT_INTERRUPTED = 130


class RunnerError(Exception):
    """Something the user is told in a few lines, never as a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def lines(self) -> list[str]:
        """The error as printed: one line for what is wrong, then what to do."""
        lines = [f"error: {self.message}"]
        if self.hint:
            lines.append(f"  hint      {self.hint}")
        return lines


class UsageError(RunnerError):
    """The command line names something that does not exist or does not fit (exit 2)."""

    exit_code = EXIT_BAD_SPEC


class RefusedError(RunnerError):
    """The job is valid, but this machine can't run it now; nothing was started (exit 3)."""

    exit_code = EXIT_REFUSED


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a job file or an override."""

    where: str  # "jobs/x.yaml:7" or "--set training.max_steps"
    field: str  # dotted path, "" for the file as a whole
    problem: str  # what is wrong, in a few words
    value: str | None = None  # as the user wrote it
    expected: str | None = None
    nearest: str | None = None

    def lines(self) -> list[str]:
        head = f"error: {_one_line(self.where)}"
        if self.field:
            head += f"  {_one_line(self.field)}"
        out = [head, f"  problem   {_one_line(self.problem)}"]
        for label, text in (
            ("value", self.value),
            ("expected", self.expected),
            ("nearest", self.nearest),
        ):
            if text is not None:
                out.append(f"  {label:<9} {_one_line(text)}")
        return out


def _one_line(text: str) -> str:
    """Text of a job file, fit for a terminal: one line, no control characters, not endless."""
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= 400 else shown[:397] + "..."


class SpecError(RunnerError):
    """A job file, an override or a data file that can't be used as it is (exit 2)."""

    exit_code = EXIT_BAD_SPEC

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        told = "; ".join(f"{p.where} {p.field}: {p.problem}" for p in self.problems)
        super().__init__(_one_line(told))

    def lines(self) -> list[str]:
        return [line for problem in self.problems for line in problem.lines()]


def bug(error: BaseException) -> RunnerError:
    """A defect of ours as a user meets it: one line, and the file that the traceback went to."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="runner-bug-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        traceback.print_exception(error, file=log)
    return RunnerError(
        f"this is a bug in runner: {type(error).__name__}: {error}", f"details are in {log.name}"
    )


def nearest(word: str, candidates: Iterable[str], likeness: float = 0.5) -> str | None:
    """The candidate that `word` was most likely meant to be, or None.

    `likeness`, 0 to 1, is the share of letters that have to agree (difflib's ratio).
    """
    names = list(candidates)
    for name in names:  # letters in another order, which difflib takes for another word
        if sorted(name.lower()) == sorted(word.lower()):
            return name
    lowered = {name.lower(): name for name in names}
    # two letters resemble too much: "lr" is not meant to be "lora"
    if len(word) > 2:
        found = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=likeness)
        if found:
            return lowered[found[0]]
    # "lr" for "learning_rate", "steps" for "max_steps": initials, then a contained word
    initials = {"".join(part[:1] for part in name.split("_")): name for name in names}
    if word.lower() in initials:
        return initials[word.lower()]
    for name in names:
        if len(word) >= 3 and word.lower() in name.lower():
            return name
    return None
