"""The report's records: how many rows of each source were kept, and why others were not.

Pure, but for asking the ledger.

Imports the standard library and this package.
"""

from __future__ import annotations

from typing import Any

from runner.data.ingest import Taken
from runner.data.ledger import EVAL, TEST, TRAIN, Ledger, LeftOut
from runner.data.mix import Portion
from runner.data.prepared import SIDES
from runner.data.rows_plan import RowsPlan
from runner.data.sources import Source

MOST_STRATA = 1000
MOST_LABELS = 50


def source_record(
    source: Source,
    taken: Taken,
    left_out: list[LeftOut | None],
    sides: dict[str, int],
    portion: Portion | None,
    table: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A source's way through, and what of its rows is not used.

    read = empty + untrained + duplicates + conflicts + leaked + the three sides.
    """
    none = LeftOut(0, [])
    duplicates, conflicts, leaked = (one or none for one in left_out)
    return {
        "role": source.role,
        "field": source.field,
        "place": source.place,
        "sha256": source.planned.sha256,
        "format": taken.detection.format,
        "because": taken.detection.because,
        "read": taken.read,
        "empty": taken.empties().record(),
        "untrained": taken.without_answer().record(),
        "duplicates": duplicates.record(),
        "conflicts": conflicts.record(),
        "leaked": leaked.record(),
        **sides,
        "drawn": portion.drawn if portion else sides["train"],
        **taken.notes.record(),
        "table": table,
    }


def split_record(plan: RowsPlan, ledger: Ledger) -> dict[str, Any] | None:
    split = plan.data.split
    if split is None:
        return None
    return {
        **split.model_dump(mode="json"),
        "strata": _by_side(ledger.values("stratum", MOST_STRATA)) if split.stratify else None,
    }


def mix_record(plan: RowsPlan, drawn: dict[int, Portion]) -> dict[str, Any] | None:
    mix = plan.data.mix
    if mix is None:
        return None
    return {
        "fit": mix.fit,
        "seed": mix.seed,
        "ratio": ratio_words([mix.ratio, *(source.ratio for source in mix.sources)]),
        "portions": [
            {
                "source": index,
                "rows": portion.rows,
                "drawn": portion.drawn,
                "times": portion.times,
                "once_more": portion.more,
                "words": portion.words(),
            }
            for index, portion in drawn.items()
        ],
    }


def labels_record(ledger: Ledger) -> dict[str, dict[str, int]] | None:
    """Label -> side -> rows; None where there are no labels, or too many to be a class each."""
    return _by_side(ledger.values("label", MOST_LABELS))


def lengths_record(ledger: Ledger) -> dict[str, list[list[int]]]:
    """Side -> [low, high, rows]: rows of so many characters, both ends included."""
    return {
        SIDES[side]: [[2 ** (bits - 1) + 1 if bits else 0, 2**bits, rows] for bits, rows in found]
        for side, found in sorted(ledger.lengths().items())
    }


def ratio_words(ratios: list[float]) -> str:
    """As a person writes it: 3:1."""
    return ":".join(f"{ratio:g}" for ratio in ratios)


def _by_side(found: dict[str, dict[int, int]] | None) -> dict[str, dict[str, int]] | None:
    if found is None:
        return None
    return {
        value: {SIDES[side]: sides.get(side, 0) for side in (TRAIN, EVAL, TEST)}
        for value, sides in found.items()
    }
