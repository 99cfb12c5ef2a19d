"""What the rows of both trainings have to have, looked at before the start, row by row.

The pretraining's are data-juicer's, a JSON object a line: an id, a text and its images, under these
names or those that pretrain.columns says. The finetuning's are LLaVA's, a JSON array, which the
toolkit reads itself. Standard library only; Python 3.10.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

if __package__:
    from .finding import Finding
else:  # in a run folder the scripts lie beside each other
    from finding import Finding  # type: ignore[import-not-found, no-redef]

_MARKS = ("weight", "loss", "loss_weight", "mask", "train", "trainable", "train_on_input")
"""Keys by which other tools say what of a row is trained; the toolkit would train it all."""
_ROW_KEYS = {"pretrain": {"id", "text", "images"}, "finetune": {"id", "image", "conversations"}}
_TURN_KEYS = {"from", "value"}
_SHOWN = 8


class Rows(NamedTuple):
    """A training's rows, as far as preflight looks."""

    total: int
    images: list[str]
    """Each that a row names, once, in the order of the rows."""
    findings: list[Finding]
    unused: list[str]
    """Keys of rows and turns that nothing reads."""
    unseen: int
    """Rows with an image and no <image> in their text, whose image the model never sees."""


def numbered_rows(stage: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Where it is ("line 3", "row 3") and each row. Raises OSError, ValueError (no JSON)."""
    with path.open(encoding="utf-8") as stream:
        if stage == "finetune":  # whole in memory, as upstream reads it
            rows = json.load(stream)
            if not isinstance(rows, list):
                raise ValueError("it is no JSON array of rows")
            yield from ((f"row {number}", row) for number, row in enumerate(rows))
            return
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
                yield f"line {number}", row


def look_at_rows(stage: str, path: Path, columns: Mapping[str, str]) -> Rows:
    """Read a training's rows and say what is wrong: each kind once, with its first row."""
    field, images = f"{stage}.data_path", dict[str, None]()
    flaws: dict[str, Finding] = {}
    unused: dict[str, None] = {}
    count = unseen = 0
    form = "a JSON array of LLaVA's rows" if stage == "finetune" else "data-juicer's rows (JSONL)"
    try:
        for place, row in numbered_rows(stage, path):
            count += 1
            flaw = row_flaw(stage, row, columns)
            if flaw is not None:
                flaws.setdefault(flaw[1], Finding(field, f"{path}, {place}: {flaw[0]},", flaw[1]))
                continue
            unused.update(dict.fromkeys(unused_keys(stage, row, columns)))
            named = row_images(stage, row, columns)
            images.update(dict.fromkeys(named))
            unseen += bool(named) and not shows_image(stage, row)
    except (OSError, ValueError) as error:
        flaws[form] = Finding(field, f"{path} ({error})", form)
    findings = list(flaws.values())
    if not count and not findings:
        findings.append(Finding(field, f"{path}, which has no rows,", form))
    marks = [key for key in unused if key.rpartition(".")[2] in _MARKS]
    if marks:
        findings.append(
            Finding(
                field,
                f"{path}: the key {marks[0]}, which the toolkit does not heed,",
                "rows without it: every answer of theirs is trained alike",
            )
        )
    return Rows(count, list(images), findings, [key for key in unused if key not in marks], unseen)


def row_flaw(stage: str, row: Any, columns: Mapping[str, str]) -> tuple[str, str] | None:
    """What is wrong with a row, and what is expected; None where it can be trained."""
    if not isinstance(row, dict):
        return f"{json.dumps(row)[:40]}", "an object"
    if stage == "finetune":
        return _conversation_flaw(row)
    for name in ("id", "text"):
        key = columns.get(name, name)
        if key not in row:
            has = ", ".join(map(str, list(row)[:_SHOWN]))
            way = f"pretrain.columns {{{name}: KEY}} names another"
            return f"no {key} (its keys: {has})", f"a row's {name} ({way})"
    key = columns.get("text", "text")
    if not isinstance(row[key], str):
        return f"{key} is {json.dumps(row[key])[:40]}", "text"
    key = columns.get("images", "images")
    images = row.get(key) or []
    if not isinstance(images, list) or not all(isinstance(each, str) for each in images):
        return f"{key} is {json.dumps(images)[:40]}", "a list of the images' paths"
    if len(set(images)) > 1:
        return f"{len(set(images))} different images", "one at most"
    return None


def _conversation_flaw(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """As preprocess_gemma reads a row: human and gpt in turn, the first skipped if it is gpt's."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        has = ", ".join(map(str, list(row)[:_SHOWN]))
        return f"no conversations (its keys: {has})", "a list of turns {from, value}"
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return f"turn {number} has no text as its value", "turns {from, value}"
        if turn.get("from") not in ("human", "gpt"):
            return f"turn {number} is from {turn.get('from')!r}", "turns from human and gpt"
    asked = turns[1:] if turns[0]["from"] == "gpt" else turns
    if any(turn["from"] != ("human", "gpt")[number % 2] for number, turn in enumerate(asked)):
        return "two turns after another are from the same side", "turns from human and gpt in turn"
    if len(asked) < 2:
        return "no answer of gpt's to a human", "an answer that is trained"
    image = row.get("image")
    names = image if isinstance(image, list) else [image]
    if "image" in row and not all(isinstance(each, str) for each in names):
        return f"image is {json.dumps(image)[:40]}", "an image's path, or no such key"
    return None


def unused_keys(stage: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """Keys of a row, and of its turns as "conversations.KEY", that nothing reads."""
    known = {columns.get(name, name) for name in _ROW_KEYS[stage]}
    yield from (key for key in row if key not in known)
    if stage == "finetune":
        for turn in row["conversations"]:
            yield from (f"conversations.{key}" for key in turn if key not in _TURN_KEYS)


def row_images(stage: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    """The images that a row names."""
    named = row.get("image" if stage == "finetune" else columns.get("images", "images")) or []
    return [named] if isinstance(named, str) else [str(each) for each in named]


def shows_image(stage: str, row: Mapping[str, Any]) -> bool:
    """Whether the model sees a row's image: the finetuning's rows say where, by <image>."""
    if stage == "pretrain":
        return True  # convert.py's question has the mark
    return any("<image>" in turn["value"] for turn in row["conversations"])
