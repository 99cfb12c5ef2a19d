"""What `runner evaluate` prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from runner.engines.sft.inside.evaluate import metrics
from runner.report.evaluation import evaluation_lines


def record(sets: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    common = {
        "sources": [{"place": "rows.jsonl", "sha256": "0"}],
        "available_rows": 8,
        "rows": 8,
        "trained_on": [{"training": "", "rows": 8, "seen_prompts": 0, "seen_rows": 0}],
        "loss": None,
        "perplexity": None,
    }
    return {
        "run": "job/20260101-000000-abcdef0",
        "target": "@last",
        "job": "job",
        "task": "classification",
        "settings": {"max_new_tokens": 8},
        "conditions": {"precision": "fp32", "device": "cpu"},
        "seconds": 61.0,
        "notes": [],
        "macro": None,
        "sets": [{"name": "test", **common, **each} for each in sets],
        **changes,
    }


def labelled(base: bool = True) -> dict[str, Any]:
    expected = ["bad"] * 4 + ["good"] * 4
    told: list[str | None] = [*expected[:6], "bad", None]
    figures = metrics.classification(expected, told, ["bad"] * 8 if base else None, ["bad", "good"])
    return {
        **figures,
        "majority": metrics.majority({"good": 3, "bad": 2}, expected, "the training rows"),
    }


def test_a_run_is_told_beside_its_base_and_the_majority() -> None:
    text = "\n".join(evaluation_lines(record([labelled()]), Path("/runs/e")))
    assert "8 test rows of rows.jsonl (0 of 8 were trained on)" in text
    squeezed = re.sub(" +", " ", text)
    assert "accuracy 75.0 % [40.9, 92.9] 50.0 % [21.5, 78.5] +25.0 [+0.0, +62.5] 0.500" in squeezed
    assert "McNemar p" in text
    assert "50.0 % [21.5, 78.5] by answering good always" in text
    assert "(unparseable)" in text
    assert "written     /runs/e: predictions.jsonl, evaluation.json" in text


def test_a_model_alone_has_no_empty_columns() -> None:
    lines = evaluation_lines(record([labelled(base=False)], run=None))
    text = "\n".join(lines)
    assert "base" not in text and "difference" not in text and "McNemar" not in text
    assert all(line == line.rstrip() for line in lines)


def test_wide_labels_keep_the_columns_straight() -> None:
    expected = ["\u8d1f\u9762", "\u6b63\u9762"] * 4
    figures = metrics.classification(expected, expected, None, ["\u8d1f\u9762", "\u6b63\u9762"])
    figures["majority"] = metrics.majority({"\u6b63\u9762": 1}, expected, "the training rows")
    lines = evaluation_lines(record([figures], run=None))
    start = next(i for i, line in enumerate(lines) if line.startswith("class"))
    heads = lines[start]
    row = lines[start + 1]
    assert heads.index("rows") == row.index("4") + 2  # two wide characters before it


def test_several_sets_have_a_line_each_and_an_average() -> None:
    def choice(right: int) -> dict[str, Any]:
        told = [True] * right + [False] * (8 - right)
        return {
            "accuracy": metrics.share(told),
            "unparseable": metrics.share([False] * 8),
            "chance": 0.25,
        }

    sets = [{**choice(2), "name": "piqa"}, {**choice(6), "name": "boolq"}]
    macro = {"accuracy": metrics.mean_share([[True] * 2 + [False] * 6, [True] * 6 + [False] * 2])}
    text = "\n".join(evaluation_lines(record(sets, run=None, task="multiple_choice", macro=macro)))
    assert "piqa" in text and "boolq" in text
    assert "macro average  16    50.0 % [" in text
    assert "25.0 %" in text
