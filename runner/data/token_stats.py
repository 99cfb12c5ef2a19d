"""Count encoded rows as they go by, and say what was met in their text.

Counted while the rows go by, so that their number does not matter. Imports the standard library,
`runner.common.errors` and this package's `encoded` and `decoded`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from runner.common.errors import Problem, SpecError
from runner.data.decoded import MOST_LOST
from runner.data.encoded import Encoded, Line

LOST_SHOWN = 10

NAMES_SHOWN = 5


@dataclass
class TokenStats:
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
        bits = bits_of(length)
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

    def counted(self) -> dict[str, object]:
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

    def record(self) -> dict[str, object]:
        """The counts as JSON-serialisable values, for `from_record`."""
        return asdict(self)

    @staticmethod
    def from_record(record: dict[str, Any]) -> TokenStats:
        """The counts that `record` wrote. JSON has turned the keys of its buckets into text."""
        buckets = {int(bits): rows for bits, rows in record["buckets"].items()}
        return TokenStats(**{**record, "buckets": buckets})


def bits_of(length: int) -> int:
    """2 ** bits is the least power of two that is not below `length`."""
    return max(0, length - 1).bit_length()
