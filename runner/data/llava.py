"""The questions of a LLaVA file, by the id of their row: what data-juicer's rows have lost.

Imports the standard library, `runner.common.errors` and this package's `read` and `formats`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from runner.common.errors import Problem, SpecError
from runner.data.formats import IMAGE_MARK
from runner.data.read import read_rows

FIELD = "data.questions"


def read_questions(path: Path) -> dict[str, str]:
    """Id -> the first human turn, image mark and all, of each row of a LLaVA JSON file.

    All of it is held in memory; its questions are few and each is held once. Raises SpecError for a
    row without an id, a first human turn or its one image mark, or an id that comes twice with
    different questions.
    """
    questions: dict[str, str] = {}
    for number, row in read_rows(path, FIELD):

        def problem(text: str, expected: str, line: int = number) -> SpecError:
            return SpecError([Problem(f"{path}:{line}", FIELD, text, None, expected)])

        identifier, turns = row.get("id"), row.get("conversations")
        if isinstance(identifier, bool) or not isinstance(identifier, str | int):
            raise problem("the row has no id", 'an "id", a string or a number')
        first = turns[0] if isinstance(turns, list) and turns else None
        if not isinstance(first, dict) or first.get("from") != "human":
            raise problem(
                "the first turn is not a human one",
                '"conversations": [{"from": "human", "value": ...}, ...]',
            )
        question = first.get("value")
        if not isinstance(question, str) or question.count(IMAGE_MARK) != 1:
            raise problem("the question is not about one image", f"a text with one {IMAGE_MARK}")
        known = questions.setdefault(str(identifier), sys.intern(question))
        if known != question:
            raise problem(f"the id {identifier} has another question before", "one for each id")
    return questions
