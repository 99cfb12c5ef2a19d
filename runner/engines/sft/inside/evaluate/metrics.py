"""Figures from judged answers, each with its interval, for a model and its base. Pure.

Imports numpy and `intervals`; scikit-learn when classes are counted. A figure's record is {"model":
{value, low, high}, "base": the same or null, "difference": model - base with a paired interval or
null}; for answers that are right or wrong also "mcnemar_p". Values are shares from 0 to 1; losses
are in nats.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from runner.engines.sft.inside.evaluate.intervals import (
    Figure,
    Floats,
    OfSums,
    bootstrap,
    mcnemar,
    mean_proportion,
    proportion,
    ratio,
)

UNPARSEABLE = "(unparseable)"
"""Stands for an answer that is none of the labels, in confusion matrices."""
LARGEST_EXPONENT = 700.0
"""e to more than this is no float (the largest is e^709.78)."""
Record = dict[str, Any]


def share(model: Sequence[bool], base: Sequence[bool] | None = None) -> Record:
    """Share of rows that are true, by Wilson; the difference by paired bootstrap, and McNemar's p.

    Raises ValueError for no rows.
    """
    record: Record = {
        "model": asdict(proportion(sum(model), len(model))),
        "base": None,
        "difference": None,
        "mcnemar_p": None,
    }
    if base is not None:
        gap = [[int(one) - int(two), 1] for one, two in zip(model, base, strict=True)]
        record["base"] = asdict(proportion(sum(base), len(base)))
        record["difference"] = asdict(bootstrap([gap], ratio))
        record["mcnemar_p"] = mcnemar(model, base)
    return record


def mean_share(
    model: Sequence[Sequence[bool]], base: Sequence[Sequence[bool]] | None = None
) -> Record:
    """The macro average over several sets: every set counts the same, whatever its rows."""
    record: Record = {"model": _mean(model), "base": None, "difference": None}
    if base is not None:
        record["base"] = _mean(base)
        gaps = [
            [[int(one) - int(two), 1] for one, two in zip(ours, theirs, strict=True)]
            for ours, theirs in zip(model, base, strict=True)
        ]
        record["difference"] = asdict(bootstrap(gaps, ratio))
    return record


def _mean(sets: Sequence[Sequence[bool]]) -> Record:
    return asdict(mean_proportion([(sum(right), len(right)) for right in sets]))


def ratio_of(
    model: Sequence[tuple[float, int]], base: Sequence[tuple[float, int]] | None = None
) -> Record:
    """Sum of the firsts by sum of the seconds over the rows, by bootstrap over the rows."""
    record: Record = {
        "model": _finite(bootstrap([model], ratio)),
        "base": None,
        "difference": None,
    }
    if base is not None:
        gap = [(one[0] - two[0], one[1]) for one, two in zip(model, base, strict=True)]
        record["base"] = _finite(bootstrap([base], ratio))
        record["difference"] = _finite(bootstrap([gap], ratio))
    return record


def losses(
    model: Sequence[tuple[float, int]], base: Sequence[tuple[float, int]] | None = None
) -> tuple[Record, Record]:
    """Mean loss a supervised token, and perplexity, from each row's (nats, tokens).

    Tokens count, not rows: a long answer weighs as much as it has tokens, as in training.
    Perplexity is e to the loss, and its interval's ends are those of the loss.
    """
    loss = ratio_of(model, base)
    perplexity: Record = {"model": _exp(loss["model"]), "base": None, "difference": None}
    if base is not None:
        sums = [(one[0], two[0], one[1]) for one, two in zip(model, base, strict=True)]
        perplexity["base"] = _exp(loss["base"])
        perplexity["difference"] = _finite(bootstrap([sums], _perplexity_gap))
    return loss, perplexity


def classification(
    expected: Sequence[str],
    model: Sequence[str | None],
    base: Sequence[str | None] | None,
    labels: Sequence[str],
) -> Record:
    """Accuracy, precision, recall, F1 and the confusion matrix; None is an unparseable answer.

    Macro figures are scikit-learn's: unweighted means over the classes that some row expects or
    some answer gives (`counted`, for the model and for its base), where one without answers has
    precision 0 and one without rows recall 0 (zero_division=0). A label that occurs in neither
    counts nowhere. Unparseable answers are wrong everywhere and no class; they stand in the last
    row and column of the matrix (its row is all zero: no row expects them).
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    ours = [UNPARSEABLE if told is None else told for told in model]
    theirs = None if base is None else [UNPARSEABLE if told is None else told for told in base]
    both = [(ours, "model")] + ([] if theirs is None else [(theirs, "base")])
    record: Record = {
        "accuracy": share(*_right(expected, ours, theirs)),
        "unparseable": share(
            [told is None for told in model],
            None if base is None else [told is None for told in base],
        ),
    }
    counted = {who: counted_classes(expected, told, labels) for told, who in both}
    precision_of, recall_of, f1_of = _macro(len(labels))
    for index, (name, figure) in enumerate(
        (("macro_precision", precision_of), ("macro_recall", recall_of), ("macro_f1", f1_of))
    ):
        record[name] = {"model": None, "base": None, "difference": None}
        for told, who in both:
            value = precision_recall_fscore_support(
                expected, told, labels=counted[who], average="macro", zero_division=0
            )[index]
            interval = bootstrap([_counts(expected, told, labels)], figure)
            record[name][who] = asdict(Figure(float(value), interval.low, interval.high))
        if theirs is not None:
            pair = np.hstack([_counts(expected, told, labels) for told in (ours, theirs)])
            record[name]["difference"] = asdict(bootstrap([pair], _gap(figure)))
    record["classes"] = {who: _classes(expected, told, labels) for told, who in both}
    record["labels"] = list(labels)
    record["counted"] = counted
    record["confusion"] = {
        "labels": [*labels, UNPARSEABLE],
        "rows_are": "expected",
        "columns_are": "answered",
        **{
            who: confusion_matrix(expected, told, labels=[*labels, UNPARSEABLE]).tolist()
            for told, who in both
        },
    }
    return record


def counted_classes(
    expected: Sequence[str], told: Sequence[str], labels: Sequence[str]
) -> list[str]:
    """The labels that macro figures are means over: those that rows expect or answers give."""
    occurring = {*expected, *told}
    return [label for label in labels if label in occurring]


def majority(counts: Mapping[str, int], expected: Sequence[str], source: str) -> Record:
    """What answering the most frequent label always would score on `expected`.

    The first in the alphabet is taken where two are equally frequent. `source` says whose rows
    are in `counts`.
    """
    most = min(counts, key=lambda label: (-counts[label], label))
    right = [label == most for label in expected]
    return {
        "label": most,
        "from": source,
        "share_there": counts[most] / sum(counts.values()),
        "accuracy": asdict(proportion(sum(right), len(right))),
    }


def _right(
    expected: Sequence[str], ours: Sequence[str], theirs: Sequence[str] | None
) -> tuple[list[bool], list[bool] | None]:
    def compare(told: Sequence[str]) -> list[bool]:
        return [one == two for one, two in zip(expected, told, strict=True)]

    return compare(ours), None if theirs is None else compare(theirs)


def _counts(expected: Sequence[str], told: Sequence[str], labels: Sequence[str]) -> Floats:
    """For each row what it adds to each class's hits, answers and rows: (rows, 3 x classes)."""
    of = {label: index for index, label in enumerate(labels)}
    size = len(labels)
    out = np.zeros((len(expected), 3 * size))
    for row, (wanted, given) in enumerate(zip(expected, told, strict=True)):
        out[row, 2 * size + of[wanted]] = 1
        if given in of:
            out[row, size + of[given]] = 1
            out[row, of[given]] = wanted == given
    return out


def _macro(classes: int) -> tuple[OfSums, OfSums, OfSums]:
    """Macro precision, recall and F1 of the sums that `_counts` gives, over the classes in them."""

    def parts(sums: Floats) -> tuple[Floats, Floats, Floats]:
        return sums[:, :classes], sums[:, classes : 2 * classes], sums[:, 2 * classes :]

    def precision(sums: Floats) -> Floats:
        hits, answers, rows = parts(sums)
        return _quotient(hits, answers, answers + rows)

    def recall(sums: Floats) -> Floats:
        hits, answers, rows = parts(sums)
        return _quotient(hits, rows, answers + rows)

    def f1(sums: Floats) -> Floats:
        hits, answers, rows = parts(sums)
        return _quotient(2 * hits, answers + rows, answers + rows)

    return precision, recall, f1


def _quotient(above: Floats, below: Floats, occurring: Floats) -> Floats:
    """Mean of above / below over the classes that occur, 0 where one has nothing below."""
    each = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    out: Floats = each.sum(axis=1) / np.maximum(1, (occurring > 0).sum(axis=1))
    return out


def _gap(figure: OfSums) -> OfSums:
    def difference(sums: Floats) -> Floats:
        half = sums.shape[1] // 2
        out: Floats = figure(sums[:, :half]) - figure(sums[:, half:])
        return out

    return difference


def _classes(expected: Sequence[str], told: Sequence[str], labels: Sequence[str]) -> list[Record]:
    """Precision and recall of each class by Wilson, its F1 by bootstrap; null where undefined."""
    from sklearn.metrics import precision_recall_fscore_support

    precisions, recalls, scores, rows = precision_recall_fscore_support(
        expected, told, labels=list(labels), average=None, zero_division=0
    )
    hits = Counter(one for one, two in zip(expected, told, strict=True) if one == two)
    answered = Counter(told)
    counts = _counts(expected, told, labels)
    size = len(labels)
    out = []
    for index, label in enumerate(labels):
        own = counts[:, [index, size + index, 2 * size + index]]
        f1 = bootstrap([own], _macro(1)[2])
        out.append(
            {
                "label": label,
                "rows": int(rows[index]),
                "answered": answered[label],
                "precision": _of(float(precisions[index]), hits[label], answered[label]),
                "recall": _of(float(recalls[index]), hits[label], int(rows[index])),
                "f1": asdict(Figure(float(scores[index]), f1.low, f1.high)),
            }
        )
    return out


def _of(value: float, hits: int, rows: int) -> Record:
    if rows == 0:
        return asdict(Figure(value, None, None))
    interval = proportion(hits, rows)
    return asdict(Figure(value, interval.low, interval.high))


def _perplexity_gap(sums: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        out: Floats = np.exp(sums[:, 0] / sums[:, 2]) - np.exp(sums[:, 1] / sums[:, 2])
    return out


def _exp(record: Record) -> Record:
    return {
        key: None if value is None or value > LARGEST_EXPONENT else math.exp(value)
        for key, value in record.items()
    }


def _finite(figure: Figure) -> Record:
    """JSON has no infinity: null stands for what is not finite."""
    return {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in asdict(figure).items()
    }
