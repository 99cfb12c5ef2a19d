"""From a plan's data to tokenized rows: read, convert, split, encode; counted at each step.

Imports runner.engine.data (no torch); the tokenizer is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from runner.engine.data.audit import Audit, audit
from runner.engine.data.formats import (
    Converted,
    Detection,
    FormatOptions,
    Message,
    convert_rows,
    detect,
)
from runner.engine.data.masks import EncodedSet, encode_all
from runner.engine.data.read import Row, read_hub, read_rows
from runner.engine.data.split import content_key, split
from runner.errors import Problem, RefusedError, SpecError
from runner.plan import Plan, PlannedData
from runner.sources import file_sha256

NAMED = 10  # line numbers that a message names


@dataclass(frozen=True)
class PreparedRows:
    """What is trained and evaluated on, and how it came about."""

    train: list[dict[str, Any]]
    """input_ids and labels, both of one length a row."""
    eval: list[dict[str, Any]]
    rows_read: int
    detection: Detection
    dropped_empty: list[int]
    train_set: EncodedSet
    eval_set: EncodedSet | None
    train_audit: Audit

    def lines(self) -> list[str]:
        """What a person is told."""
        audit_ = self.train_audit
        ending = audit_.end_of_turn_text
        out = [
            f"data {self.rows_read:,} rows ({self.detection.format}: {self.detection.because}) -> "
            f"{len(self.train):,} train / {len(self.eval):,} eval; "
            f"{audit_.supervised_share:.0%} of tokens supervised; longest {audit_.longest}"
            + (f" of {audit_.max_length}" if audit_.max_length else ""),
            f"end of turn {ending!r} is trained in {audit_.end_of_turn_rows} of {audit_.rows} rows"
            if audit_.end_of_turn_trained
            else "WARNING: no end of turn is trained, so the model will not learn to stop",
        ]
        if self.dropped_empty:
            out.append(
                f"{len(self.dropped_empty)} rows with an empty answer are left out: "
                f"{_named(self.dropped_empty)}"
            )
        for name, encoded in (("train", self.train_set), ("eval", self.eval_set)):
            if encoded is None:
                continue
            if encoded.truncated_count:
                out.append(
                    f"{encoded.truncated_count} {name} rows were cut to {encoded.max_length} tokens"
                )
            if encoded.lost:
                out.append(
                    f"WARNING: {len(encoded.lost)} {name} rows lost every trained token by "
                    f"that cut and are left out: {_named(encoded.lost)}"
                )
            out += encoded.notes
        return out

    def report(self) -> dict[str, Any]:
        """data.json."""
        return {
            "schema_version": 1,
            "rows_read": self.rows_read,
            "format": self.detection.format,
            "because": self.detection.because,
            "dropped_empty": {
                "rows": len(self.dropped_empty),
                "first_lines": self.dropped_empty[:NAMED],
            },
            "train_rows": len(self.train),
            "eval_rows": len(self.eval),
            "train": self.train_audit.to_record(),
            "eval_lost": len(self.eval_set.lost) if self.eval_set else 0,
        }


def prepare_rows(plan: Plan, tokenizer: Any, samples: int = 2) -> PreparedRows:
    """Everything between the data files and the trainer.

    Raises SpecError or RefusedError: unreadable or changed files, rows that don't fit their
    format, nothing left to train on.
    """
    settings = plan.data
    options = FormatOptions(
        settings.system, settings.prompt, settings.labels, settings.placeholders
    )
    rows_read, detection, converted = _convert(plan, plan.train_rows, "data.train", options)
    train_rows = converted.rows
    eval_rows: list[tuple[int, list[Message]]] = []
    if plan.eval_rows is not None:
        _, _, evaluation = _convert(plan, plan.eval_rows, "data.eval", options)
        eval_rows = evaluation.rows
    elif settings.split is not None:
        keys = [content_key(messages) for _, messages in train_rows]
        train_at, eval_at = split(keys, settings.split.eval, settings.split.seed)
        if not eval_at:
            raise SpecError(
                [
                    Problem(
                        _place(plan.train_rows),
                        "data.split",
                        "can't hold rows out: all rows are the same",
                        str(len(keys)) + " rows",
                    )
                ]
            )
        eval_rows = [train_rows[index] for index in eval_at]
        train_rows = [train_rows[index] for index in train_at]
    train_set = encode_all(tokenizer, train_rows, plan.training.max_length)
    eval_set = encode_all(tokenizer, eval_rows, plan.training.max_length) if eval_rows else None
    train = _features(train_set)
    if plan.variant == "smoke":
        train.sort(key=lambda row: -len(row["input_ids"]))
    return PreparedRows(
        train=train,
        eval=_features(eval_set) if eval_set else [],
        rows_read=rows_read,
        detection=detection,
        dropped_empty=converted.dropped_empty,
        train_set=train_set,
        eval_set=eval_set,
        train_audit=audit(tokenizer, train_set, samples),
    )


def _features(encoded: EncodedSet) -> list[dict[str, Any]]:
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in encoded.rows]


def _convert(
    plan: Plan, source: PlannedData, field: str, options: FormatOptions
) -> tuple[int, Detection, Converted]:
    place = _place(source)
    rows = list(islice(_read(plan, source, field), plan.data.max_rows))
    if not rows:
        raise SpecError([Problem(place, field, "holds no rows")])
    stated = plan.data.format
    try:
        detection = detect([row for _, row in rows], where=place)
    except SpecError:
        if stated == "auto":
            raise
        # more than one format fits, or none: the job says which; rows that don't fit it are named
        detection = Detection(stated, "the job says so")
    if stated not in ("auto", detection.format):
        raise SpecError(
            [
                Problem(
                    place,
                    "data.format",
                    f"the rows are {detection.format}: {detection.because}",
                    plan.data.format,
                    "the rows' own format, or auto",
                    detection.format,
                )
            ]
        )
    if detection.media:
        raise RefusedError(
            f"{place}: rows hold {', '.join(detection.media)}, which a text model can't read",
            "engine sft trains text here; image-text jobs are not supported by this version",
        )
    converted = convert_rows(rows, detection.format, options, source=place, field=field)
    if not converted.rows:
        raise SpecError([Problem(place, field, f"all {len(rows)} rows have an empty answer")])
    return len(rows), detection, converted


def _read(plan: Plan, source: PlannedData, field: str) -> Iterator[tuple[int, Row]]:
    if source.kind == "hub":
        hub = plan.data.hub
        split = hub.split if field == "data.train" else hub.eval_split
        return read_hub(source.id or "", source.revision, hub.name, split)
    path = Path(source.path or "")
    if source.sha256 is not None and path.is_file() and file_sha256(path) != source.sha256:
        raise RefusedError(
            f"{path} was changed since the plan was made (its sha256 is another)",
            "start the job anew, so that the plan names the rows it trains on",
        )
    return read_rows(path, field)


def _place(source: PlannedData) -> str:
    return str(source.path) if source.kind == "file" else f"hub:{source.id}"


def _named(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:NAMED]))
    return f"lines {shown}" + (f" and {len(lines) - NAMED} more" if len(lines) > NAMED else "")
