"""What is asked of an answer: each task judges texts and turns the judgements into figures. Pure.

Imports this package's `answers` and `metrics`. A task is made for the rows that it judges, and
refuses rows that it can't judge before anything is loaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from runner.common.errors import Problem, SpecError
from runner.data.keys import normalised
from runner.data.messages import Message, Tools
from runner.engines.sft.inside.evaluate import answers, metrics

MAX_PROBLEMS = 5


@dataclass(frozen=True)
class Row:
    """One conversation to measure: the turns before its last answer, and that answer."""

    number: int  # over all sets, from 0
    source: str  # the file, or hub id
    line: int  # line or row number in it
    prompt: list[Message]
    expected: str
    choice: str | None = None  # the row's own `answer` key, where it has one
    images: tuple[str, ...] = ()  # image files, in the order of the prompt's "<image>" marks
    tools: Tools | None = None  # definitions of what the assistant may call
    answer: Message | None = None  # the last answer whole; None: it is `expected` alone

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, as it is trained."""
        plain: Message = {"role": "assistant", "content": self.expected}
        return [*self.prompt, self.answer or plain]

    @property
    def question(self) -> str:
        """The last user turn."""
        return next((m["content"] for m in reversed(self.prompt) if m["role"] == "user"), "")


@dataclass(frozen=True)
class Judgement:
    """What a generated text was taken for."""

    correct: bool
    parsed: str | None = None  # None: the text gives no answer of the asked kind
    detail: Mapping[str, Any] = field(default_factory=dict)  # more, for predictions.jsonl

    def record(self) -> dict[str, Any]:
        return {"parsed": self.parsed, "correct": self.correct, **self.detail}


class Task(Protocol):
    """A way to judge answers."""

    @property
    def name(self) -> str:
        """As evaluation.task has it."""

    def expected(self, row: Row) -> str:
        """What `judge` compares with."""

    def judge(self, row: Row, text: str) -> Judgement:
        """Whether `text` answers `row`."""

    def figures(
        self, rows: Sequence[Row], model: Sequence[Judgement], base: Sequence[Judgement] | None
    ) -> dict[str, Any]:
        """The task's figures over the rows of one set."""

    def macro(
        self, model: Sequence[Sequence[Judgement]], base: Sequence[Sequence[Judgement]] | None
    ) -> dict[str, Any]:
        """Averages over several sets."""


@dataclass(frozen=True)
class Classification:
    """The answer is one of a few labels."""

    labels: list[str]
    majority_of: Mapping[str, int]  # rows of each label, whose most frequent is the baseline
    majority_from: str  # whose those are
    name: str = "classification"

    def expected(self, row: Row) -> str:
        told = answers.parse_label(row.expected, self.labels)
        return row.expected if told is None else told

    def judge(self, row: Row, text: str) -> Judgement:
        label = answers.parse_label(text, self.labels)
        return Judgement(label == self.expected(row), label)

    def figures(
        self, rows: Sequence[Row], model: Sequence[Judgement], base: Sequence[Judgement] | None
    ) -> dict[str, Any]:
        expected = [self.expected(row) for row in rows]
        return {
            **metrics.classification(expected, _parsed(model), _parsed(base), self.labels),
            "majority": metrics.majority(self.majority_of, expected, self.majority_from),
        }

    def macro(
        self, model: Sequence[Sequence[Judgement]], base: Sequence[Sequence[Judgement]] | None
    ) -> dict[str, Any]:
        return {"accuracy": metrics.mean_share(*_each_right(model, base))}


@dataclass(frozen=True)
class ExactMatch:
    """The answer is one text: to the letter, and after normalising width, case and white space."""

    name: str = "exact_match"

    def expected(self, row: Row) -> str:
        return row.expected

    def judge(self, row: Row, text: str) -> Judgement:
        told, wanted = normalised(text), normalised(row.expected)
        # templates differ in the space that they write around an answer
        to_the_letter = text.strip() == row.expected.strip()
        return Judgement(told == wanted, told, {"correct_raw": to_the_letter})

    def figures(
        self, rows: Sequence[Row], model: Sequence[Judgement], base: Sequence[Judgement] | None
    ) -> dict[str, Any]:
        return {
            "exact_match": metrics.share(*_right(model, base)),
            "exact_match_raw": _detail_share(model, base, "correct_raw"),
        }

    def macro(
        self, model: Sequence[Sequence[Judgement]], base: Sequence[Sequence[Judgement]] | None
    ) -> dict[str, Any]:
        return {"exact_match": metrics.mean_share(*_each_right(model, base))}


@dataclass(frozen=True)
class JsonAnswer:
    """The answer is a JSON value, mostly an object; each of its keys is looked at too."""

    name: str = "json"

    def expected(self, row: Row) -> str:
        return answers.canonical_json(answers.parse_json(row.expected))

    def judge(self, row: Row, text: str) -> Judgement:
        wanted, told = answers.parse_json(row.expected), answers.parse_json(text)
        valid = told is not answers.INVALID
        detail: dict[str, Any] = {"valid_json": valid}
        if isinstance(wanted, dict):
            detail["keys"] = answers.keys_right(wanted, told)
            given = told if isinstance(told, dict) else {}
            detail["extra_keys"] = len(given.keys() - wanted.keys())
        parsed = answers.canonical_json(told) if valid else None
        return Judgement(valid and parsed == answers.canonical_json(wanted), parsed, detail)

    def figures(
        self, rows: Sequence[Row], model: Sequence[Judgement], base: Sequence[Judgement] | None
    ) -> dict[str, Any]:
        record: dict[str, Any] = {
            "exact_match": metrics.share(*_right(model, base)),
            "valid_json": _detail_share(model, base, "valid_json"),
        }
        names = list(dict.fromkeys(key for each in model for key in each.detail.get("keys", {})))
        if names:
            record["key_accuracy"] = metrics.ratio_of(_key_counts(model), _key_counts(base))
            record["keys"] = {
                name: metrics.share(_key(model, name), None if base is None else _key(base, name))
                for name in names
            }
            extra = sum(int(each.detail.get("extra_keys", 0)) > 0 for each in model)
            record["rows_with_extra_keys"] = extra
        return record

    def macro(
        self, model: Sequence[Sequence[Judgement]], base: Sequence[Sequence[Judgement]] | None
    ) -> dict[str, Any]:
        return {"exact_match": metrics.mean_share(*_each_right(model, base))}


@dataclass(frozen=True)
class MultipleChoice:
    """The answer mentions one of the choices that its question names."""

    pattern: re.Pattern[str] | None = None
    name: str = "multiple_choice"

    def choices(self, row: Row) -> list[str]:
        """What the question offers; empty where it does not say (then `pattern` decides)."""
        return answers.choices_in(row.question)

    def expected(self, row: Row) -> str:
        found = self.stated(row)
        return row.expected if found is None else found

    def stated(self, row: Row) -> str | None:
        """The right choice: the row's `answer` key, or what its answer mentions; None: neither."""
        choices = self.choices(row)
        if row.choice is None:
            return answers.parse_choice(row.expected, choices, self.pattern)
        return answers.parse_choice(row.choice, choices) if choices else normalised(row.choice)

    def judge(self, row: Row, text: str) -> Judgement:
        choice = answers.parse_choice(text, self.choices(row), self.pattern)
        return Judgement(choice == self.expected(row), choice)

    def figures(
        self, rows: Sequence[Row], model: Sequence[Judgement], base: Sequence[Judgement] | None
    ) -> dict[str, Any]:
        counts = [len(self.choices(row)) for row in rows]
        return {
            "accuracy": metrics.share(*_right(model, base)),
            "unparseable": metrics.share(
                [each.parsed is None for each in model],
                None if base is None else [each.parsed is None for each in base],
            ),
            "chance": sum(1 / count for count in counts) / len(counts) if all(counts) else None,
        }

    def macro(
        self, model: Sequence[Sequence[Judgement]], base: Sequence[Sequence[Judgement]] | None
    ) -> dict[str, Any]:
        return {"accuracy": metrics.mean_share(*_each_right(model, base))}


def classification_for(
    rows: Sequence[Row], stated: Mapping[str, str] | None, trained: Mapping[str, int] | None
) -> Classification:
    """The task over the labels of data.labels, or else of the training rows and these.

    Args:
        rows: the rows to be judged.
        stated: data.labels.
        trained: how often each answer stands in the training rows; None where they are not here,
            and the most frequent label of `rows` is the baseline.

    Raises SpecError for labels that can't be told apart, and rows whose answer is none of them.
    """
    wanted = Counter(row.expected.strip() for row in rows)
    told = Counter[str]()
    for text, count in (trained or {}).items():
        told[text.strip()] += count
    if stated:
        labels = list(dict.fromkeys(text.strip() for text in stated.values()))
    else:
        labels = sorted({*told, *wanted})
    answers.require_distinct(labels)
    by_key = {normalised(label): label for label in labels}
    problems = [
        Problem(
            f"{row.source}:{row.line}",
            "evaluation.task",
            "classification, but the row's answer is none of the labels",
            _short(row.expected),
            "one of " + _short(", ".join(labels)),
        )
        for row in rows
        if normalised(row.expected) not in by_key
    ]
    if problems:
        raise SpecError(problems[:MAX_PROBLEMS])
    counts = Counter[str]()
    for text, count in (told or wanted).items():
        if normalised(text) in by_key:
            counts[by_key[normalised(text)]] += count
    source = "the training rows" if told else "the evaluated rows (no training rows are here)"
    return Classification(labels, counts, source)


def json_for(rows: Sequence[Row]) -> JsonAnswer:
    """The task; SpecError naming the rows whose own answer is not JSON."""
    problems = [
        Problem(
            f"{row.source}:{row.line}",
            "evaluation.task",
            "json, but the row's answer is not JSON",
            _short(row.expected),
            "one JSON value and nothing else",
        )
        for row in rows
        if answers.parse_json(row.expected) is answers.INVALID
    ]
    if problems:
        raise SpecError(problems[:MAX_PROBLEMS])
    return JsonAnswer()


def multiple_choice_for(rows: Sequence[Row], pattern: str | None) -> MultipleChoice:
    """The task; SpecError naming rows that name no choices, or whose answer is none of them."""
    task = MultipleChoice(answers.answer_pattern(pattern))
    problems = []
    for row in rows:
        choices = task.choices(row)
        problem = None
        if not choices and task.pattern is None:
            problem = "multiple_choice, but the question names no choices"
        elif task.stated(row) is None:
            problem = "multiple_choice, but the row's answer is none of its choices"
        if problem:
            expected = (
                f"one of {', '.join(choices)}"
                if choices
                else '"Answer format: a/b/c" in the question, or evaluation.answer_pattern'
            )
            problems.append(
                Problem(
                    f"{row.source}:{row.line}",
                    "evaluation.task",
                    problem,
                    _short(row.expected),
                    expected,
                )
            )
            if len(problems) == MAX_PROBLEMS:
                break
    if problems:
        raise SpecError(problems)
    return task


def _parsed(judged: Sequence[Judgement] | None) -> Any:
    return None if judged is None else [each.parsed for each in judged]


def _right(
    model: Sequence[Judgement], base: Sequence[Judgement] | None
) -> tuple[list[bool], list[bool] | None]:
    return (
        [each.correct for each in model],
        None if base is None else [each.correct for each in base],
    )


def _each_right(
    model: Sequence[Sequence[Judgement]], base: Sequence[Sequence[Judgement]] | None
) -> tuple[list[list[bool]], list[list[bool]] | None]:
    def of(sets: Sequence[Sequence[Judgement]]) -> list[list[bool]]:
        return [[each.correct for each in judged] for judged in sets]

    return of(model), None if base is None else of(base)


def _detail_share(
    model: Sequence[Judgement], base: Sequence[Judgement] | None, key: str
) -> dict[str, Any]:
    def of(judged: Sequence[Judgement]) -> list[bool]:
        return [bool(each.detail[key]) for each in judged]

    return metrics.share(of(model), None if base is None else of(base))


def _key(judged: Sequence[Judgement], name: str) -> list[bool]:
    """Of the rows that have the key `name`: whether it is right."""
    keyed = [each.detail.get("keys", {}) for each in judged]
    return [bool(keys[name]) for keys in keyed if name in keys]


def _key_counts(judged: Sequence[Judgement] | None) -> Any:
    """(keys right, keys) of each row that expects an object."""
    if judged is None:
        return None
    keyed = [each.detail["keys"] for each in judged if each.detail.get("keys")]
    return [(sum(keys.values()), len(keys)) for keys in keyed]


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
