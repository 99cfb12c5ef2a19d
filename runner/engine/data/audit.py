"""What the labels of an encoded set amount to, shown so that a person can check it.

Imports the standard library and this package's `masks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner.engine.data.masks import EncodedSet, Segment, segments

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

    line: int  # line or row number in its source
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
    longest_line: int  # where the longest row comes from
    lengths: list[Bucket]
    max_length: int | None
    truncated: int  # rows cut, the lost ones included
    lost: int  # rows dropped, since truncation left nothing to train on
    lost_lines: list[int]  # the first LOST_SHOWN of them
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


def audit(tokenizer: Any, encoded_set: EncodedSet, samples: int = 3) -> Audit:
    """Audit a set; `samples` rows, the longest among them, are shown as text.

    Sampled rows are encoded a second time to get at their text; RuntimeError is raised if that
    gives other ids than the set holds (another tokenizer than the one it was encoded with).
    """
    rows = encoded_set.rows
    lengths = [len(row.input_ids) for row in rows]
    longest = max(range(len(rows)), key=lambda index: lengths[index])
    ending = encoded_set.end_of_turn_id
    ended = sum(row.end_of_turn_trained for row in rows)
    return Audit(
        rows=len(rows),
        tokens=sum(lengths),
        supervised_tokens=sum(row.supervised for row in rows),
        longest=lengths[longest],
        longest_line=encoded_set.lines[longest],
        lengths=_buckets(lengths),
        max_length=encoded_set.max_length,
        truncated=encoded_set.truncated_count,
        lost=len(encoded_set.lost),
        lost_lines=encoded_set.lost[:LOST_SHOWN],
        end_of_turn_id=ending,
        end_of_turn_text=None if ending is None else str(tokenizer.decode([ending])),
        end_of_turn_trained=ended > 0,
        end_of_turn_rows=ended,
        skipped_turns=encoded_set.skipped_turns,
        notes=list(encoded_set.notes),
        samples=[
            _sample(tokenizer, encoded_set, index)
            for index in _sample_indices(len(rows), longest, samples)
        ],
    )


def _sample(tokenizer: Any, encoded_set: EncodedSet, index: int) -> Sample:
    row, shown = segments(tokenizer, encoded_set.messages[index], encoded_set.max_length)
    if row != encoded_set.rows[index]:
        raise RuntimeError(f"row {encoded_set.lines[index]} encodes differently than it did")
    return Sample(encoded_set.lines[index], len(row.input_ids), row.supervised, shown)


def _sample_indices(rows: int, longest: int, wanted: int) -> list[int]:
    """The longest row and others spread evenly, in order, without repeats."""
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


def _buckets(lengths: list[int]) -> list[Bucket]:
    """Counts between powers of two, from the shortest row to the longest."""
    counts: dict[int, int] = {}
    for length in lengths:
        bits = max(0, length - 1).bit_length()  # 2 ** bits is the least power not below length
        counts[bits] = counts.get(bits, 0) + 1
    return [
        Bucket(2 ** (bits - 1) + 1 if bits else 0, 2**bits, counts.get(bits, 0))
        for bits in range(min(counts), max(counts) + 1)
    ]
