"""What an evaluation leaves: a line for each row, evaluation.json, and the picture.

Imports this package and package metadata; hashes files.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from runner import __version__
from runner.common.caches import file_sha256
from runner.data.messages import compared_texts, tools_text
from runner.engines.sft.inside.evaluate import metrics, picture
from runner.engines.sft.inside.evaluate.generate import Generated
from runner.engines.sft.inside.evaluate.measure import Answer, Material
from runner.engines.sft.inside.evaluate.request import EvaluationFolder
from runner.engines.sft.inside.evaluate.rows import RowSet
from runner.engines.sft.inside.evaluate.tasks import Judgement, Row, Task
from runner.engines.sft.plan import SftPlan

PROMPT_TAIL = 240
"""Characters of a prompt's end that a prediction shows: enough to know the row by."""
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "bitsandbytes",
    "numpy",
    "scikit-learn",
    "scipy",
)

Told = dict[str, Answer]
"""The answers to one row, by "model" and "base"."""


def prediction(set_name: str, row: Row, expected: str, told: Told) -> dict[str, Any]:
    """A line of predictions.jsonl: the row, what the model said to it, what its base said."""
    turns = [f"{turn['role']}: {' '.join(compared_texts(turn))}" for turn in row.prompt]
    text = "\n".join([*([tools_text(row.tools)] if row.tools else []), *turns])
    base = told.get("base")
    return {
        "set": set_name,
        "source": row.source,
        "line": row.line,
        "prompt_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "prompt_tail": row.question[-PROMPT_TAIL:],
        **({"images": list(row.images)} if row.images else {}),
        "expected": expected,
        **told["model"].record(),
        **({"base": base.record()} if base else {}),
    }


def figures(
    sets: Sequence[RowSet], starts: Sequence[int], told: Sequence[Told], task: Task | None
) -> list[dict[str, Any]]:
    """The record of each set; `told` holds all rows, each set's from its place in `starts` on."""
    out = []
    for each, start in zip(sets, starts, strict=True):
        own = told[start : start + len(each.rows)]
        record: dict[str, Any] = {
            "name": each.name,
            "side": each.side,
            "sources": each.sources,
            "rows": len(each.rows),
            "available_rows": each.available,
            "trained_on": each.trained_on,
        }
        if task is not None:
            record |= task.figures(each.rows, *_judged(own))
            record["unfinished"] = metrics.share(
                _unfinished(own, "model"), _unfinished(own, "base") if _has_base(own) else None
            )
            record |= _thinking(own)
        out.append(record | _losses(own))
    return out


def macro(
    sets: Sequence[RowSet], starts: Sequence[int], told: Sequence[Told], task: Task | None
) -> dict[str, Any] | None:
    """The averages over several sets; None for one set, or where nothing is generated."""
    if task is None or len(sets) < 2:
        return None
    judged = [
        _judged(told[start : start + len(each.rows)])
        for each, start in zip(sets, starts, strict=True)
    ]
    bases = [base for _, base in judged if base is not None]
    return task.macro([model for model, _ in judged], bases if len(bases) == len(judged) else None)


def conditions(
    plan: SftPlan, result: Path | None, material: Material, tokenizer: Any
) -> dict[str, Any]:
    """What the figures hold for: model, weights, device, precision, packages."""
    import torch

    template = str(tokenizer.chat_template or "")
    return {
        "model": plan.model.model_dump(mode="json"),
        "method": plan.method,
        "plan_hash": plan.hash,
        "weights": [] if result is None else _weights(result),
        "device": torch.cuda.get_device_name() if plan.launch.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": plan.precision,
        "decoding": "greedy",
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "rows_cut_for_loss": material.truncated,
        "substitutions": list(plan.substitutions),
        "packages": {
            "python": platform.python_version(),
            "runner": __version__,
            **{name: version for name in PACKAGES if (version := _version(name))},
        },
    }


def draw_confusion(
    folder: EvaluationFolder, record: dict[str, Any], sets: Sequence[dict[str, Any]], head: str
) -> list[str]:
    """confusion.png for each set that has a matrix; lines about what could not be drawn."""
    notes = []
    names = {"model": head, "base": "base"}
    for index, each in enumerate(sets):
        if "confusion" not in each:
            continue
        path = folder.confusion
        if len(sets) > 1:
            path = path.with_stem(f"confusion-{index + 1}")
        title = f"{record['job']}: {each['rows']} {each['name']} rows"
        labels = each["confusion"]["labels"]
        shown = picture.draw(each["confusion"], path, title, names)
        if shown is None:
            notes.append(f"no picture of {len(labels) - 1} classes; the matrix is in the JSON")
            continue
        each["confusion"]["picture"] = {
            "file": path.name,
            "labels_drawn_as": picture.legend(labels, shown),
        }
        if shown[0] == "1" and labels[0] != "1":
            notes.append(
                "no font here has the labels' characters: the picture numbers the classes, "
                "evaluation.json names them (install fonts-noto-cjk to see them)"
            )
    return notes


def write_predictions(folder: EvaluationFolder, lines: Sequence[dict[str, Any]]) -> None:
    """All lines in the rows' order, whole, in place of those appended while measuring."""
    import json

    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    folder.write_file(folder.predictions, text)


def _judged(told: Sequence[Told]) -> tuple[list[Judgement], list[Judgement] | None]:
    def of(who: str) -> list[Judgement]:
        return [each[who].judgement or Judgement(correct=False) for each in told]

    return of("model"), of("base") if _has_base(told) else None


def _has_base(told: Sequence[Told]) -> bool:
    return bool(told) and "base" in told[0]


def _unfinished(told: Sequence[Told], who: str) -> list[bool]:
    return [not (g := each[who].generated) or not g.finished for each in told]


def _thinking(told: Sequence[Told]) -> dict[str, Any]:
    """How many answers came with a think block, and were cut in it; nothing where none did."""

    def of(who: str) -> list[Generated]:
        return [g for each in told if (g := each[who].generated) is not None]

    sides = {who: of(who) for who in (("model", "base") if _has_base(told) else ("model",))}
    if all(each.thinking is None for made in sides.values() for each in made):
        return {}
    unclosed = {who: [not each.closed for each in made] for who, made in sides.items()}
    return {
        "answers_with_thinking": {
            who: sum(each.thinking is not None for each in made) for who, made in sides.items()
        },
        "unclosed_thinking": metrics.share(unclosed["model"], unclosed.get("base")),
    }


def _losses(told: Sequence[Told]) -> dict[str, Any]:
    """Loss and perplexity over the rows that have a loss; null where none has."""
    own = [each for each in told if each["model"].tokens]
    record: dict[str, Any] = {"loss": None, "perplexity": None, "rows_with_loss": len(own)}
    if own:
        model = [(each["model"].nats, each["model"].tokens) for each in own]
        base = [(each["base"].nats, each["base"].tokens) for each in own if "base" in each]
        record["loss"], record["perplexity"] = metrics.losses(model, base or None)
    return record


def _weights(result: Path) -> list[dict[str, str]]:
    """The file of an adapter, or every weight file of a model that was trained whole."""
    files = [result] if result.suffix == ".safetensors" else result.parent.glob("*.safetensors")
    return [{"file": str(path), "sha256": file_sha256(path)} for path in sorted(files)]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
