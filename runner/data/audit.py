"""Count and show the labels of encoded rows, so that a person can check them.

Imports the standard library and this package's `masks`, `template` and `token_stats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.common.errors import RefusedError
from runner.data.encoded import Line, Segment
from runner.data.masks import segments
from runner.data.messages import Tools
from runner.data.template import (
    AuditedTemplate,
    Turn,
    template_name,
    template_notes,
    template_record,
    tokenizer_name,
)
from runner.data.token_stats import TokenStats
from runner.data.tokenizer_type import Tokenizer

SCHEMA_VERSION = 1


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
    counted: dict[str, object]  # what else was met in the rows, see TokenStats.counted
    template: AuditedTemplate  # what the chat template reads besides the rows; in words: notes
    notes: list[str]
    samples: list[Sample]

    @property
    def supervised_share(self) -> float:
        """Trained tokens over all tokens, 0 to 1."""
        return self.supervised_tokens / self.tokens if self.tokens else 0.0

    def to_record(self) -> dict[str, object]:
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


def audit(tokenizer: Tokenizer, stats: TokenStats, samples: list[Sample]) -> Audit:
    """What the counts amount to, with samples of the rows."""
    ending, record = stats.end_of_turn_id, template_record(tokenizer)
    return Audit(
        rows=stats.rows,
        tokens=stats.tokens,
        supervised_tokens=stats.supervised,
        longest=stats.longest,
        longest_line=stats.longest_line,
        lengths=buckets_of(stats.buckets),
        max_length=stats.max_length,
        truncated=stats.truncated,
        lost=stats.lost,
        lost_lines=stats.lost_lines,
        end_of_turn_id=ending,
        end_of_turn_text=None if ending is None else str(tokenizer.decode([ending])),
        end_of_turn_trained=stats.ended > 0,
        end_of_turn_rows=stats.ended,
        skipped_turns=stats.skipped_turns,
        counted=stats.counted(),
        template={**record, "notes": template_notes(tokenizer)},
        notes=[
            *stats.notes(template_name(tokenizer)),
            *stats.special_note(record["special_tokens"]),
        ],
        samples=samples,
    )


def sample(
    tokenizer: Tokenizer,
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


def buckets_of(counts: dict[int, int]) -> list[Bucket]:
    """Counts between powers of two, from the shortest row to the longest."""
    if not counts:
        return []
    return [
        Bucket(2 ** (bits - 1) + 1 if bits else 0, 2**bits, counts.get(bits, 0))
        for bits in range(min(counts), max(counts) + 1)
    ]
