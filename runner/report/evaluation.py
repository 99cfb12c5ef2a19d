"""An evaluation in words, from its evaluation.json alone.

Imports the standard library and runner.common.terminal, units only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.common.terminal import clean_line, indented
from runner.common.units import format_duration

Record = Mapping[str, Any]

_LABEL = 12
_PERCENTS = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "exact_match": "exact match",
    "exact_match_raw": "to the letter",
    "valid_json": "valid JSON",
    "key_accuracy": "keys right",
    "unparseable": "unparseable",
    "unclosed_thinking": "cut in thinking",
    "unfinished": "cut at the end",
}
"""Figures that are shares, in the order they are shown, with their names for people."""
_TESTED = ("accuracy", "exact_match")
"""Figures whose difference is tested."""
_NUMBERS = {"loss": "loss", "perplexity": "perplexity"}
_MOST_CLASSES = 12
_MOST_KEYS = 20


def evaluation_lines(record: Record, folder: Path | None = None) -> list[str]:
    """What `runner evaluate` prints: the conditions, and figures with their 95 % intervals.

    `folder` is where all of it was written.
    """
    sets: Sequence[Record] = record["sets"]
    settings, held = record["settings"], record["conditions"]
    who = f"run {record['run']}" if record["run"] else record["target"]
    lines = [_field("evaluated", f"{who}, job {record['job']}")]
    lines += [_field("rows" if each is sets[0] else "", _rows_line(each)) for each in sets]
    how = f"{record['task']}, "
    if record["task"] != "loss":
        how += f"greedy answers of at most {settings['max_new_tokens']} tokens, "
    how += f"{held['precision']} on {held['device']}, {format_duration(record['seconds'])}"
    lines.append(_field("task", how))
    lines += [_field("note", text) for text in record["notes"]]
    head = "trained" if record["run"] else "model"
    if len(sets) > 1:
        lines += ["", *_sets_table(record, head)]
    else:
        lines += ["", *_figures_table(sets[0], head)]
        lines += _counted(sets[0], head)
        lines += _baselines(sets[0])
        if "classes" in sets[0]:
            lines += _classes(sets[0], head)
        if "keys" in sets[0]:
            lines += _keys(sets[0], head)
    if folder is not None:
        lines += [
            "",
            _field("written", f"{folder}: predictions.jsonl, evaluation.json{_drawn(sets)}"),
        ]
    lines += ["", "Brackets hold 95 % intervals: Wilson's for shares of rows, else bootstrapped."]
    return lines


def _drawn(sets: Sequence[Record]) -> str:
    pictures = [each.get("confusion", {}).get("picture") for each in sets]
    return "".join(f", {picture['file']}" for picture in pictures if picture)


def _rows_line(each: Record) -> str:
    places = ", ".join(source["place"] for source in each["sources"])
    text = f"{each['rows']:,}"
    if each["available_rows"] != each["rows"]:
        text += f" of {each['available_rows']:,}"
    text += f" {each['name']} rows of {places}"
    seen = [
        f"{one['seen_prompts']} of {one['rows']:,} were trained on"
        + (f" in {one['training']}" if one["training"] else "")
        for one in each["trained_on"]
    ]
    return text + (f" ({'; '.join(seen)})" if seen else "")


def _figures_table(each: Record, head: str) -> list[str]:
    names = [*_PERCENTS, *_NUMBERS]
    shown = [name for name in names if each.get(name) is not None]
    based = any(each[name].get("base") for name in shown)
    tested = based and any(name in shown for name in _TESTED)
    header = ["", head, *(["base", "difference"] if based else [])]
    header += ["McNemar p"] if tested else []
    rows = []
    for name in shown:
        percent = name in _PERCENTS
        figure = each[name]
        row = [_PERCENTS.get(name) or _NUMBERS[name], _cell(figure["model"], percent)]
        if based:
            row += [_cell(figure["base"], percent), _gap(figure["difference"], percent)]
        if tested:
            row.append(_p_value(figure["mcnemar_p"]) if name in _TESTED else "")
        rows.append(row)
    return _table(header, rows)


def _sets_table(record: Record, head: str) -> list[str]:
    """One line a set for the task's main figure, then their average."""
    sets = record["sets"]
    name = next((name for name in ("accuracy", "exact_match") if name in sets[0]), None)
    based = bool(sets[0][name]["base"]) if name else bool((sets[0]["loss"] or {}).get("base"))
    header = ["set", "rows"]
    if name:
        header += [f"{_PERCENTS[name]}, {head}", *(["base", "difference"] if based else [])]
    chance = any(each.get("chance") for each in sets)
    header += ["chance"] if chance else []
    header += ["unparseable"] if "unparseable" in sets[0] else []
    header += [f"loss, {head}", *(["base"] if based else [])]
    rows = []
    for each in sets:
        row = [each["name"], f"{each['rows']:,}"]
        if name:
            row.append(_cell(each[name]["model"], True))
            if based:
                row += [_cell(each[name]["base"], True), _gap(each[name]["difference"], True)]
        if chance:
            row.append(_percent(each["chance"]) if each["chance"] else "unknown")
        if "unparseable" in each:
            row.append(_percent(each["unparseable"]["model"]["value"]))
        loss = each["loss"] or {}
        row += [_cell(loss.get("model"), False), *([_cell(loss.get("base"), False)] * based)]
        rows.append(row)
    if name and record["macro"]:
        figure = record["macro"][name]
        row = ["macro average", f"{sum(each['rows'] for each in sets):,}"]
        row.append(_cell(figure["model"], True))
        if based:
            row += [_cell(figure["base"], True), _gap(figure["difference"], True)]
        if chance and all(each["chance"] for each in sets):
            row.append(_percent(sum(each["chance"] for each in sets) / len(sets)))
        rows.append(row + [""] * (len(header) - len(row)))
    return _table(header, rows)


def _counted(each: Record, head: str) -> list[str]:
    """Which classes the macro figures are means over, and which declared ones they leave out."""
    counted = each.get("counted")
    if not counted:  # not a classification, or one of before this was said
        return []
    out: list[str] = []
    for who, labels in counted.items():
        if who == "base" and labels == counted["model"]:
            continue
        absent = [label for label in each["labels"] if label not in labels]
        shown = ", ".join(labels[:_MOST_CLASSES]) + (" ..." if len(labels) > _MOST_CLASSES else "")
        text = f"{head if who == 'model' else who}: means over {len(labels)} classes ({shown})"
        if absent:
            text += f"; neither rows nor answers have {', '.join(absent[:_MOST_CLASSES])}" + (
                " ..." if len(absent) > _MOST_CLASSES else ""
            )
        out.append(_field("" if out else "macro", text))
    return ["", *out]


def _baselines(each: Record) -> list[str]:
    lines = []
    if each.get("chance"):
        lines.append(_field("chance", f"{_percent(each['chance'])}, by guessing among the choices"))
    if "majority" in each:
        most = each["majority"]
        lines.append(
            _field(
                "majority",
                f"{_cell(most['accuracy'], True)} by answering {most['label']} always, the most "
                f"frequent label of {most['from']}",
            )
        )
    return ["", *lines] if lines else []


def _classes(each: Record, head: str) -> list[str]:
    labels = each["labels"]
    if len(labels) > _MOST_CLASSES:
        return ["", f"{len(labels)} classes: their figures and the matrix are in evaluation.json"]
    rows = [
        [one["label"], str(one["rows"]), str(one["answered"])]
        + [_cell(one[name], True) for name in ("precision", "recall", "f1")]
        for one in each["classes"]["model"]
    ]
    header = [f"class, {head}", "rows", "answered", "precision", "recall", "F1"]
    out = ["", *_table(header, rows)]
    sides = [who for who in ("model", "base") if who in each["confusion"]]
    columns = each["confusion"]["labels"]
    for who in sides:
        matrix = each["confusion"][who][:-1]  # no row expects an unparseable answer
        name = head if who == "model" else who
        rows = [[label, *map(str, counts)] for label, counts in zip(labels, matrix, strict=True)]
        out += ["", *_table([f"{name}: expected, then answered", *columns], rows)]
    return out


def _keys(each: Record, head: str) -> list[str]:
    names = list(each["keys"])
    based = bool(each["exact_match"]["base"])
    rows = []
    for name in names[:_MOST_KEYS]:
        figure = each["keys"][name]
        row = [name, _cell(figure["model"], True)]
        rows.append(row + ([_cell(figure["base"], True)] if based else []))
    out = ["", *_table(["key", head, *(["base"] if based else [])], rows)]
    if len(names) > _MOST_KEYS:
        out.append(f"and {len(names) - _MOST_KEYS} keys more, in evaluation.json")
    return out


def _cell(figure: Record | None, percent: bool) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    shown = _percent if percent else _number
    text = shown(figure["value"])
    if figure["low"] is None or figure["high"] is None:
        return text
    low, high = shown(figure["low"]), shown(figure["high"])
    return f"{text} [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"


def _gap(figure: Record | None, percent: bool) -> str:
    if figure is None or figure["value"] is None:
        return "-"

    def shown(part: float) -> str:
        return f"{100 * part:+.1f}" if percent else ("+" if part >= 0 else "") + _number(part)

    text = shown(figure["value"])
    if figure["low"] is None or figure["high"] is None:
        return text
    return f"{text} [{shown(figure['low'])}, {shown(figure['high'])}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float) -> str:
    size = abs(value)
    if size >= 100_000 or 0 < size < 0.001:
        return f"{value:.3g}"
    return f"{value:.1f}" if size >= 100 else f"{value:.3f}"


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _field(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{indented(text, _LABEL)}"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Left-aligned columns; wide characters count two places."""
    shown = [list(map(clean_line, row)) for row in [header, *rows]]
    widths = [max(_width(row[i]) for row in shown) for i in range(len(header))]
    return [
        "  ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in shown
    ]


def _width(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)
