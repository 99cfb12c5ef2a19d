"""Figures equal scikit-learn's, and their differences are paired."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from runner.engines.sft.inside.evaluate import metrics
from runner.engines.sft.inside.evaluate.metrics import UNPARSEABLE
from runner.report.evaluation import _counted

LABELS = ["a", "b", "c"]
ANSWERS = st.sampled_from([*LABELS, None])
ROWS = st.lists(st.tuples(st.sampled_from(LABELS), ANSWERS, ANSWERS), min_size=2, max_size=40)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_classification_is_scikit_learns_with_unparseable_answers_wrong(rows: Any) -> None:
    expected, model, base = (list(column) for column in zip(*rows, strict=True))
    record = metrics.classification(expected, model, base, LABELS)
    for who, told in (("model", model), ("base", base)):
        given_ = [UNPARSEABLE if answer is None else answer for answer in told]
        accuracy = sklearn.accuracy_score(expected, given_)
        assert record["accuracy"][who]["value"] == accuracy
        counted = [one for one in LABELS if one in {*expected, *told}]
        assert record["counted"][who] == counted
        options = {"labels": counted, "zero_division": 0}
        for name, function in (
            ("macro_precision", sklearn.precision_score),
            ("macro_recall", sklearn.recall_score),
            ("macro_f1", sklearn.f1_score),
        ):
            value = function(expected, given_, average="macro", **options)
            figure = record[name][who]
            assert figure["value"] == value  # to the last digit
            if None not in told:
                assert value == function(expected, given_, average="macro", zero_division=0)
            assert figure["low"] is None or figure["low"] <= figure["high"]
        each = sklearn.f1_score(expected, given_, labels=LABELS, average=None, zero_division=0)
        assert [c["f1"]["value"] for c in record["classes"][who]] == pytest.approx(list(each))
        matrix = sklearn.confusion_matrix(expected, given_, labels=[*LABELS, UNPARSEABLE])
        assert record["confusion"][who] == matrix.tolist()
        assert sum(map(sum, record["confusion"][who])) == len(rows)  # no row is dropped
        assert record["unparseable"][who]["value"] == told.count(None) / len(rows)
    gap = record["accuracy"]["model"]["value"] - record["accuracy"]["base"]["value"]
    assert record["accuracy"]["difference"]["value"] == pytest.approx(gap)
    gap = record["macro_f1"]["model"]["value"] - record["macro_f1"]["base"]["value"]
    assert record["macro_f1"]["difference"]["value"] == pytest.approx(gap)


def test_a_declared_class_that_occurs_nowhere_counts_nowhere() -> None:
    expected = ["negative", "positive"] * 4
    record = metrics.classification(expected, expected, None, ["negative", "positive", "neutral"])
    for name in ("accuracy", "macro_precision", "macro_recall", "macro_f1"):
        assert record[name]["model"]["value"] == 1.0
    assert record["macro_f1"]["model"]["low"] is None or record["macro_f1"]["model"]["low"] == 1.0
    assert record["counted"] == {"model": ["negative", "positive"]}
    lines = "\n".join(_counted(record, "trained"))
    assert "trained: means over 2 classes (negative, positive)" in lines
    assert "neither rows nor answers have neutral" in lines
    # answered though no row expects it: a class with precision 0, as scikit-learn has it
    told = ["neutral", *expected[1:]]
    record = metrics.classification(expected, told, expected, ["negative", "positive", "neutral"])
    value = sklearn.f1_score(expected, told, average="macro", zero_division=0)
    assert record["macro_f1"]["model"]["value"] == value
    assert record["counted"]["model"] == ["negative", "positive", "neutral"]
    assert record["counted"]["base"] == ["negative", "positive"]
    assert record["macro_f1"]["difference"]["value"] == pytest.approx(value - 1)


def test_the_bootstrap_of_macro_f1_agrees_with_resampled_rows() -> None:
    draw = random.Random(4)  # noqa: S311 - no secret
    expected = draw.choices(LABELS, [6, 3, 1], k=150)
    told = [one if draw.random() < 0.7 else draw.choice(LABELS) for one in expected]
    record = metrics.classification(expected, told, None, LABELS)
    scores = []
    for _ in range(400):
        at = draw.choices(range(150), k=150)
        ours, theirs = [expected[i] for i in at], [told[i] for i in at]
        scores.append(
            sklearn.f1_score(ours, theirs, labels=LABELS, average="macro", zero_division=0)
        )
    low, high = np.percentile(scores, [2.5, 97.5])
    figure = record["macro_f1"]["model"]
    assert abs(figure["low"] - low) < 0.03
    assert abs(figure["high"] - high) < 0.03


def test_a_paired_difference_is_surer_than_two_models_apart() -> None:
    model = [True] * 60 + [False] * 20 + [True] * 20
    base = [True] * 60 + [False] * 40
    record = metrics.share(model, base)
    gap = record["difference"]
    assert gap["value"] == pytest.approx(0.2)
    assert gap["low"] > 0.1
    apart = record["model"]["low"] - record["base"]["high"]
    assert gap["low"] > apart
    assert record["mcnemar_p"] == pytest.approx(2 * 0.5**20)


def test_equal_models_have_no_invented_certainty() -> None:
    record = metrics.share([True, False] * 5, [True, False] * 5)
    assert record["difference"] == {"value": 0.0, "low": None, "high": None}
    assert record["mcnemar_p"] == 1.0


def test_loss_weighs_tokens_and_perplexity_is_its_exponential() -> None:
    model, base = [(10.0, 5), (1.0, 1), (8.0, 4)], [(20.0, 5), (2.0, 1), (16.0, 4)]
    loss, perplexity = metrics.losses(model, base)
    assert loss["model"]["value"] == pytest.approx(1.9)
    assert loss["base"]["value"] == pytest.approx(3.8)
    assert loss["difference"]["value"] == pytest.approx(-1.9)
    for who in ("model", "base"):
        for end in ("value", "low", "high"):
            assert perplexity[who][end] == pytest.approx(math.exp(loss[who][end]))
    gap = math.exp(1.9) - math.exp(3.8)
    assert perplexity["difference"]["value"] == pytest.approx(gap)


def test_what_is_not_finite_is_null_and_not_nan() -> None:
    loss, perplexity = metrics.losses([(math.nan, 1), (1.0, 1)])
    assert loss["model"]["value"] is None
    assert perplexity["model"]["value"] is None
    loss, perplexity = metrics.losses([(9000.0, 1), (9001.0, 1)])
    assert loss["model"]["value"] == pytest.approx(9000.5)
    assert perplexity["model"]["value"] is None


def test_the_majority_baseline_is_the_training_rows() -> None:
    record = metrics.majority({"a": 3, "b": 5}, ["a", "a", "a", "b"], "the training rows")
    assert record["label"] == "b"
    assert record["accuracy"]["value"] == 0.25
    assert record["share_there"] == 5 / 8


def test_the_macro_average_counts_every_set_alike() -> None:
    record = metrics.mean_share(
        [[True] * 90 + [False] * 10, [False] * 4], [[False] * 100] * 1 + [[False] * 4]
    )
    assert record["model"]["value"] == pytest.approx(0.45)
    assert record["base"]["value"] == 0
    assert record["base"]["high"] > 0.1  # all wrong, of four rows: not sure at all
    assert record["difference"]["value"] == pytest.approx(0.45)
