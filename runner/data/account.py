"""The report's records: how many rows of each source were kept, and why others were not.

Pure, but for asking the row index.

Imports the standard library and this package.
"""

from __future__ import annotations

from runner.data.ingest import IngestResult
from runner.data.mix import MixShare
from runner.data.prepared import SPLITS
from runner.data.report_types import MixRecord, SourceRecord, TableRecord
from runner.data.row_index import EVAL, TEST, TRAIN, RowIndex
from runner.data.row_table import LeftOut
from runner.data.rows_plan import RowsPlan
from runner.data.sources import Source

MOST_STRATA = 1000
MOST_LABELS = 50


def source_record(
    source: Source,
    result: IngestResult,
    left_out: list[LeftOut | None],
    splits: dict[str, int],
    share: MixShare | None,
    table: TableRecord | None = None,
) -> SourceRecord:
    """A source's way through, and what of its rows is not used.

    read = empty + untrained + duplicates + conflicts + leaked + the three splits.
    """
    none = LeftOut(0, [])
    duplicates, conflicts, leaked = (one or none for one in left_out)
    return {
        "role": source.role,
        "field": source.field,
        "place": source.place,
        "sha256": source.planned.sha256,
        "format": result.detection.format,
        "because": result.detection.because,
        "read": result.read,
        "empty": result.empties().record(),
        "untrained": result.without_answer().record(),
        "duplicates": duplicates.record(),
        "conflicts": conflicts.record(),
        "leaked": leaked.record(),
        "train": splits["train"],
        "eval": splits["eval"],
        "test": splits["test"],
        "drawn": share.drawn if share else splits["train"],
        **result.notes.record(),
        "table": table,
    }


def split_record(plan: RowsPlan, row_index: RowIndex) -> dict[str, object] | None:
    settings = plan.data.split
    if settings is None:
        return None
    return {
        **settings.model_dump(mode="json"),
        "strata": _by_split(row_index.values("stratum", MOST_STRATA))
        if settings.stratify
        else None,
    }


def mix_record(plan: RowsPlan, drawn: dict[int, MixShare]) -> MixRecord | None:
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
                "rows": share.rows,
                "drawn": share.drawn,
                "times": share.times,
                "once_more": share.more,
                "words": share.words(),
            }
            for index, share in drawn.items()
        ],
    }


def labels_record(row_index: RowIndex) -> dict[str, dict[str, int]] | None:
    """Label -> split -> rows; None where there are no labels, or too many to be a class each."""
    return _by_split(row_index.values("label", MOST_LABELS))


def lengths_record(row_index: RowIndex) -> dict[str, list[list[int]]]:
    """Side -> [low, high, rows]: rows of so many characters, both ends included."""
    return {
        SPLITS[split]: [[2 ** (bits - 1) + 1 if bits else 0, 2**bits, rows] for bits, rows in found]
        for split, found in sorted(row_index.lengths().items())
    }


def ratio_words(ratios: list[float]) -> str:
    """As a person writes it: 3:1."""
    return ":".join(f"{ratio:g}" for ratio in ratios)


def _by_split(found: dict[str, dict[int, int]] | None) -> dict[str, dict[str, int]] | None:
    if found is None:
        return None
    return {
        value: {SPLITS[split]: splits.get(split, 0) for split in (TRAIN, EVAL, TEST)}
        for value, splits in found.items()
    }
