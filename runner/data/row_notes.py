"""Count, while rows are read, which of their keys were not used and what their marks did.

Imports the standard library and this package's `marks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from runner.data.marks import kind_of
from runner.data.report_types import NotesRecord

MOST_KEYS = 500
"""Different keys that are counted by name; those beyond it are counted together."""
OTHERS = "(other keys)"


@dataclass
class RowNotes:
    """Counted over the rows of one source."""

    ignored: frozenset[str] = frozenset()  # keys that the job leaves unread (data.ignore_keys)
    read_otherwise: frozenset[str] = frozenset()  # keys of rows that the job reads by their name
    unused: Counter[str] = field(default_factory=Counter)  # key -> rows or turns that have it
    marks: Counter[tuple[str, bool]] = field(default_factory=Counter)  # (key, trained) -> answers
    untrained_turns: int = 0  # answers that a mark leaves untrained, in rows that are trained
    reasoning: int = 0  # answers with reasoning of their own
    tool_calls: int = 0  # answers that call tools
    tools: int = 0  # rows with tool definitions
    padded: int = 0  # rows whose calls or definitions a table had filled up with nulls

    def without_ignored(self, held: Mapping[str, object]) -> Mapping[str, object]:
        """A row or turn without the keys that the job leaves unread."""
        if self.ignored.isdisjoint(held):
            return held
        return {key: value for key, value in held.items() if key not in self.ignored}

    def count_unused(self, held: Mapping[str, object], used: Set[str], prefix: str = "") -> None:
        """Count the keys of a row or turn that nothing reads; null says nothing and counts not."""
        if held.keys() <= used and self.ignored.isdisjoint(held):
            return
        for key, value in held.items():
            if value is None:
                continue
            known = key in used or key in self.read_otherwise or kind_of(str(key))
            if key in self.ignored or not known:
                self._add(prefix + str(key))

    def count_mark(self, name: str, trained: bool) -> None:
        """Count an answer that the mark `name` says something of."""
        self.marks[name, trained] += 1

    def record(self) -> NotesRecord:
        """Its part of a source's record in the report."""
        marks: dict[str, dict[str, int]] = {}
        for (name, trained), number in sorted(self.marks.items()):
            counts = marks.setdefault(name, {"trained": 0, "untrained": 0})
            counts["trained" if trained else "untrained"] += number
        return {
            "unused": dict(sorted(self.unused.items(), key=lambda item: (-item[1], item[0]))),
            "marks": marks,
            "untrained_turns": self.untrained_turns,
            "reasoning_turns": self.reasoning,
            "tool_call_turns": self.tool_calls,
            "rows_with_tools": self.tools,
            "rows_filled_with_nulls": self.padded,
        }

    def _add(self, name: str) -> None:
        if name not in self.unused and len(self.unused) >= MOST_KEYS:
            name = OTHERS
        self.unused[name] += 1
