"""How many rows of each source make up a mix. Pure; standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal


@dataclass(frozen=True)
class MixShare:
    """What a mix takes of one source."""

    rows: int  # distinct rows there are
    drawn: int  # rows in the mix, repeats counted

    @property
    def times(self) -> int:
        """Every row is drawn this often, `more` of them once more."""
        return self.drawn // self.rows if self.rows else 0

    @property
    def more(self) -> int:
        return self.drawn % self.rows if self.rows else 0

    def words(self) -> str:
        """How often each row is drawn, in words; empty where each is drawn once."""
        if self.drawn < self.rows:
            return f"drawn from {self.rows:,}"
        if self.more:
            return f"each {self.times} or {self.times + 1} times"
        return "" if self.times == 1 else f"each {self.times} times"


def mix_shares(
    rows: Sequence[int], ratios: Sequence[float], fit: Literal["repeat", "cut"]
) -> list[MixShare]:
    """The mix of sources with `rows` rows each, in proportion to `ratios`, to the nearest row.

    repeat: the source that is largest for its ratio is taken once, others are repeated. cut: the
    source that is smallest for its ratio is taken whole, others are cut.

    Raises ValueError where a source has no rows.
    """
    if min(rows) < 1:
        raise ValueError("a source has no rows")
    # as written: 0.1 means a tenth, not the nearest binary number
    parts = [Fraction(str(ratio)) for ratio in ratios]
    each = [count / part for count, part in zip(rows, parts, strict=True)]
    unit = max(each) if fit == "repeat" else min(each)
    return [MixShare(count, round(unit * part)) for count, part in zip(rows, parts, strict=True)]
