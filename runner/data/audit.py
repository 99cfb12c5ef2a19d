"""Count and show the labels of encoded rows, so that a person can check them.

Counted while the rows go by, so that their number does not matter. Imports the standard library and
this package's `masks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runner.common.errors import Problem, RefusedError, SpecError
from runner.data.decoded import MOST_LOST
from runner.data.masks import Encoded, Line, Segment, segments
from runner.data.messages import Tools
from runner.data.template import (
    Turn,
    template_name,
    template_notes,
    template_record,
    tokenizer_name,
)

SCHEMA_VERSION = 1
LOST_SHOWN = 10
NAMES_SHOWN = 5


class UnsteadyRowError(RefusedError, RuntimeError):
    """A row that is encoded to other ids the second time."""


@dataclass(frozen=True)
class Bucket:
    """Rows whose length in tokens is from `low` to `high`, both included."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True)
class Sample:
    """One row, as text: the segments joined are all of it that is kept."""

    line: Line
    tokens: int
    supervised: int  # tokens that carry loss
    segments: list[Segment]


@dataclass(frozen=True)
class Audit:
    """The figures of an encoded set. Lengths are in tokens, truncation applied."""

    rows: int  # rows kept
    tokens: int
    supervised_tokens: int
    longest: int
    longest_line: Line  # where the longest row comes from
    lengths: list[Bucket]
    max_length: int | None
    truncated: int  # rows cut, the lost ones included
    lost: int  # rows dropped, since truncation left nothing to train on, or part of an image
    lost_lines: list[Line]  # the first LOST_SHOWN of them
    end_of_turn_id: int | None
    end_of_turn_text: str | None
    end_of_turn_trained: bool  # in at least one row
    end_of_turn_rows: int  # rows in which it is
    skipped_turns: int  # assistant turns left untrained, see masks.Encoded
    counted: dict[str, Any]  # what else was met in the rows, see Tally.counted
    template: dict[str, Any]  # what the chat template reads besides the rows; in words: notes
    notes: list[str]
    samples: list[Sample]

    @property
    def supervised_share(self) -> float:
        """Trained tokens over all tokens, 0 to 1."""
        return self.supervised_tokens / self.tokens if self.tokens else 0.0

    def to_record(self) -> dict[str, Any]:
        """The audit as JSON-serialisable values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "rows": self.rows,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "supervised_share": round(self.supervised_share, 6),
            "longest": {"tokens": self.longest, "line": self.longest_line},
            "lengths": [[bucket.low, bucket.high, bucket.rows] for bucket in self.lengths],
            "max_length": self.max_length,
            "truncated": self.truncated,
            "lost": {"rows": self.lost, "first_lines": self.lost_lines},
            "end_of_turn": {
                "trained": self.end_of_turn_trained,
                "id": self.end_of_turn_id,
                "text": self.end_of_turn_text,
                "rows": self.end_of_turn_rows,
            },
            "skipped_turns": self.skipped_turns,
            **self.counted,
            "template": self.template,
            "notes": list(self.notes),
            "samples": [
                {
                    "line": sample.line,
                    "tokens": sample.tokens,
                    "supervised": sample.supervised,
                    "segments": [[segment.text, segment.trained] for segment in sample.segments],
                }
                for sample in self.samples
            ],
        }


@dataclass
class Tally:
    """Counts encoded rows as they go by. All figures are of rows kept, but where said otherwise."""

    max_length: int | None
    rows: int = 0
    tokens: int = 0
    supervised: int = 0
    longest: int = 0
    longest_line: Line = 0
    longest_at: int = 0  # which of the rows kept, from 0
    buckets: dict[int, int] = field(default_factory=dict)  # see _bits
    truncated: int = 0  # lost rows included
    lost: int = 0
    lost_lines: list[Line] = field(default_factory=list)
    ended: int = 0
    end_of_turn_id: int | None = None
    skipped_turns: int = 0  # see masks.Encoded; lost rows included, as in the next three
    straddled_turns: int = 0
    unended_turns: int = 0
    reread_turns: int = 0
    opened_turns: int = 0
    empty_think: int = 0  # rows with an empty think block in what is trained
    special_texts: int = 0  # special tokens that rows' own text spells out
    special_rows: int = 0
    special_names: list[str] = field(default_factory=list)  # the first NAMES_SHOWN of them
    left_out: dict[str, int] = field(default_factory=dict)  # part of a row -> how often
    characters: int = 0  # white space apart
    lost_characters: int = 0  # that the ids do not decode to
    undecoded_rows: int = 0  # rows with any of these
    undecoded_lines: list[Line] = field(default_factory=list)  # the first LOST_SHOWN of them
    longest_prompt: int = 0
    shortest_prompt: int | None = None

    def add(self, line: Line, row: Encoded, *, whole: bool = True) -> bool:
        """Count a row; whether it is kept. `whole`: all that its text stands for is still there."""
        self.truncated += row.truncated
        self.skipped_turns += row.skipped_turns
        self.straddled_turns += row.straddled_turns
        self._count_text(line, row)
        prompt = row.prompt_tokens
        self.longest_prompt = max(self.longest_prompt, prompt)
        if self.shortest_prompt is None or prompt < self.shortest_prompt:
            self.shortest_prompt = prompt
        if not (row.supervised and whole):
            self.lost += 1
            if self.lost <= LOST_SHOWN:
                self.lost_lines.append(line)
            return False
        length = len(row.input_ids)
        if length > self.longest:
            self.longest, self.longest_line, self.longest_at = length, line, self.rows
        bits = _bits(length)
        self.buckets[bits] = self.buckets.get(bits, 0) + 1
        self.rows += 1
        self.tokens += length
        self.supervised += row.supervised
        self.ended += row.end_of_turn_trained
        if self.end_of_turn_id is None:
            self.end_of_turn_id = row.end_of_turn_id
        return True

    def _count_text(self, line: Line, row: Encoded) -> None:
        """What the row's text met in the template and the tokenizer."""
        self.unended_turns += row.unended_turns
        self.reread_turns += row.reread_turns
        self.opened_turns += row.opened_turns
        self.empty_think += row.empty_think > 0
        self.special_texts += len(row.special_texts)
        self.special_rows += bool(row.special_texts)
        for name in row.special_texts:
            if name not in self.special_names and len(self.special_names) < NAMES_SHOWN:
                self.special_names.append(name)
        for part in row.left_out:
            self.left_out[part] = self.left_out.get(part, 0) + 1
        self.characters += row.characters
        self.lost_characters += row.lost_characters
        if row.lost_characters:
            self.undecoded_rows += 1
            if self.undecoded_rows <= LOST_SHOWN:
                self.undecoded_lines.append(line)

    def require_text(self, tokenizer: str) -> None:
        """Raise SpecError where too much of the rows' text is lost on the tokenizer's way."""
        if self.characters and self.lost_characters > MOST_LOST * self.characters:
            shown = ", ".join(map(str, self.undecoded_lines))
            raise SpecError(
                [
                    Problem(
                        f"the tokenizer {tokenizer}",
                        "model",
                        f"loses {self.lost_characters / self.characters:.0%} of the rows' text: "
                        f"the ids of {self.undecoded_rows:,} rows do not decode to what they say",
                        f"rows {shown}",
                        f"at most {MOST_LOST:.0%}, normalisation apart; a tokenizer with its "
                        "vocabulary, made for this language",
                    )
                ]
            )

    def require_rows(self) -> None:
        """Raise SpecError where no row was kept."""
        if not self.rows and not self.lost:
            raise SpecError([Problem("data", "data.train", "no rows to train on")])
        if not self.rows:
            raise SpecError(
                [
                    Problem(
                        "data",
                        "training.max_length",
                        f"truncation removes every answer: none of {self.lost} rows has a token "
                        "left to train on",
                        f"max_length {self.max_length}",
                        f"more than {self.longest_prompt}, the longest prompt's tokens "
                        f"(the shortest has {self.shortest_prompt})",
                    )
                ]
            )

    def notes(self, template: str) -> list[str]:
        """Sentences for the user; `template` is how they name the chat template."""
        notes = []
        if self.skipped_turns:
            notes.append(
                f"{self.skipped_turns} earlier assistant turns are not trained: {template} "
                "writes them differently once others follow"
            )
        if self.unended_turns:
            notes.append(
                f"{self.unended_turns} earlier assistant turns are trained without their end: "
                f"{template} writes it differently once others follow"
            )
        if self.reread_turns:
            notes.append(
                f"WARNING: in {self.reread_turns} rows the last answer alone is trained, after "
                f"another text than it would be asked with: {template} rewrites earlier turns "
                "(their thinking) once an answer follows"
            )
        if self.opened_turns:
            notes.append(
                f"WARNING: {self.opened_turns} turns lack the think mark that {template} puts "
                "after the generation prompt: when the model is asked it has to think first, "
                "which these rows do not train"
            )
        if self.empty_think:
            notes.append(
                f"WARNING: an empty think block is trained in {self.empty_think} rows: the model "
                "learns to think nothing (rows with reasoning_content have one that is not empty)"
            )
        for part, number in self.left_out.items():
            notes.append(
                f"WARNING: {template} leaves {part} of the rows out of the text ({number}): they "
                "are not trained on"
            )
        if self.undecoded_rows:
            shown = ", ".join(map(str, self.undecoded_lines))
            notes.append(
                f"WARNING: the ids of {self.undecoded_rows} rows do not decode to all of their "
                f"text: {self.lost_characters:,} of {self.characters:,} characters are lost: "
                f"rows {shown}"
            )
        if self.straddled_turns:
            notes.append(
                f"in {self.straddled_turns} turns the first token mixes header and answer, and is "
                "not trained"
            )
        if self.rows and self.end_of_turn_id is None:
            notes.append(
                f"{template} ends no assistant turn with a special token: the model will not "
                "learn to stop"
            )
        return notes

    def special_note(self, policy: str) -> list[str]:
        """What became of the special tokens that rows spell out, where any do."""
        if not self.special_texts:
            return []
        names = ", ".join(map(repr, self.special_names))
        return [
            f"{self.special_texts} special tokens in the text of {self.special_rows} rows "
            f"({names}) are "
            + (
                "left special tokens, trained as such in answers (data.special_tokens: allow)"
                if policy == "allow"
                else "encoded as text"
            )
        ]

    def counted(self) -> dict[str, Any]:
        """What was met in the rows' text, for the record."""
        return {
            "unended_turns": self.unended_turns,
            "reread_turns": self.reread_turns,
            "opened_turns": self.opened_turns,
            "empty_think_rows": self.empty_think,
            "special_tokens_in_text": {
                "tokens": self.special_texts,
                "rows": self.special_rows,
                "names": self.special_names,
            },
            "left_out_by_template": self.left_out,
            "undecoded": {
                "rows": self.undecoded_rows,
                "first_lines": self.undecoded_lines,
                "characters": self.characters,
                "lost_characters": self.lost_characters,
            },
        }

    def record(self) -> dict[str, Any]:
        """The tally as JSON-serialisable values, for `from_record`."""
        return asdict(self)

    @staticmethod
    def from_record(record: dict[str, Any]) -> Tally:
        """The tally that `record` wrote. JSON has turned the keys of its buckets into text."""
        buckets = {int(bits): rows for bits, rows in record["buckets"].items()}
        return Tally(**{**record, "buckets": buckets})


def audit(tokenizer: Any, tally: Tally, samples: list[Sample]) -> Audit:
    """What a tally amounts to, with samples of the rows."""
    ending, record = tally.end_of_turn_id, template_record(tokenizer)
    return Audit(
        rows=tally.rows,
        tokens=tally.tokens,
        supervised_tokens=tally.supervised,
        longest=tally.longest,
        longest_line=tally.longest_line,
        lengths=_buckets(tally.buckets),
        max_length=tally.max_length,
        truncated=tally.truncated,
        lost=tally.lost,
        lost_lines=tally.lost_lines,
        end_of_turn_id=ending,
        end_of_turn_text=None if ending is None else str(tokenizer.decode([ending])),
        end_of_turn_trained=tally.ended > 0,
        end_of_turn_rows=tally.ended,
        skipped_turns=tally.skipped_turns,
        counted=tally.counted(),
        template={**record, "notes": template_notes(tokenizer)},
        notes=[
            *tally.notes(template_name(tokenizer)),
            *tally.special_note(record["special_tokens"]),
        ],
        samples=samples,
    )


def sample(
    tokenizer: Any,
    line: Line,
    messages: Sequence[Turn],
    max_length: int | None,
    input_ids: Sequence[int],
    tools: Tools | None = None,
) -> Sample:
    """A row as text. It is encoded a second time to get at that.

    UnsteadyRowError is raised if this gives other ids than `input_ids`, which it was encoded to:
    with another tokenizer, or by a template that does not write the same twice.
    """
    row, shown = segments(tokenizer, messages, max_length, tools)
    if row.input_ids != list(input_ids):
        raise UnsteadyRowError(
            f"row {line} encodes otherwise than it did: {template_name(tokenizer)}, or the "
            f"tokenizer {tokenizer_name(tokenizer)}, does not give the same twice",
            "give the tokenizer a template that reads the conversation alone",
        )
    return Sample(line, len(row.input_ids), row.supervised, shown)


def sample_places(rows: int, longest: int, wanted: int) -> list[int]:
    """Which of `rows` rows to show: the longest and others spread evenly, in order, each once."""
    wanted = min(wanted, rows)
    if wanted <= 0:
        return []
    chosen = {longest}
    spread = [step * rows // wanted for step in range(wanted)]
    for index in [*spread, *range(rows)]:
        if len(chosen) == wanted:
            break
        chosen.add(index)
    return sorted(chosen)


def _bits(length: int) -> int:
    """2 ** bits is the least power of two that is not below `length`."""
    return max(0, length - 1).bit_length()


def _buckets(counts: dict[int, int]) -> list[Bucket]:
    """Counts between powers of two, from the shortest row to the longest."""
    if not counts:
        return []
    return [
        Bucket(2 ** (bits - 1) + 1 if bits else 0, 2**bits, counts.get(bits, 0))
        for bits in range(min(counts), max(counts) + 1)
    ]
