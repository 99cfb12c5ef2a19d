"""What the labels of encoded rows amount to, shown so that a person can check it.

Counted while the rows go by, so that their number does not matter. Imports the standard library and
this package's `masks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runner.engine.data.formats import Message
from runner.engine.data.masks import Encoded, Line, Segment, segments, template_name
from runner.engine.data.messages import Tools
from runner.errors import Problem, SpecError

SCHEMA_VERSION = 1
LOST_SHOWN = 10


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
    longest_prompt: int = 0
    shortest_prompt: int | None = None

    def add(self, line: Line, row: Encoded, *, whole: bool = True) -> bool:
        """Count a row; whether it is kept. `whole`: all that its text stands for is still there."""
        self.truncated += row.truncated
        self.skipped_turns += row.skipped_turns
        self.straddled_turns += row.straddled_turns
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
    ending = tally.end_of_turn_id
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
        notes=tally.notes(template_name(tokenizer)),
        samples=samples,
    )


def sample(
    tokenizer: Any,
    line: Line,
    messages: Sequence[Message],
    max_length: int | None,
    input_ids: Sequence[int],
    tools: Tools | None = None,
) -> Sample:
    """A row as text. It is encoded a second time to get at that.

    RuntimeError is raised if this gives other ids than `input_ids`, which it was encoded to (with
    another tokenizer).
    """
    row, shown = segments(tokenizer, messages, max_length, tools)
    if row.input_ids != list(input_ids):
        raise RuntimeError(f"row {line} encodes differently than it did")
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
