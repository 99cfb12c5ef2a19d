"""From the records in a run folder to what the manifest says of its end. Reads files only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runner.common import durable
from runner.engines.registry import engine_of
from runner.engines.sft.plan import SftPlan
from runner.plans.base import Plan
from runner.plans.inputs import FileRecord
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import Losses, Results, Rows
from runner.runs.folder import RunFolder
from runner.runs.metrics import loss_lines
from runner.runs.outcome import Outcome
from runner.runs.records import named_texts, object_at, valid_result, whole

OUTPUT_BYTES = 4 << 30
"""What a script wrote is hashed up to this size, so that no outcome waits for minutes."""


@dataclass(frozen=True)
class Step:
    """One logged step."""

    phase: str
    step: int
    loss: float | None


def logged_steps(metrics: Path) -> list[Step]:
    """The steps of metrics.jsonl that have a loss; lines that are no such thing are passed over."""
    return [
        Step(str(line.get("phase") or ""), line["step"], line["loss"])
        for line in loss_lines(metrics)
    ]


def losses_of(steps: Iterable[Step]) -> Losses | None:
    """Number, last step and hash of a sequence of losses; None of an empty one."""
    listed = list(steps)
    if not listed:
        return None
    text = "".join(f"{one.phase} {one.step} {json.dumps(one.loss)}\n" for one in listed)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Losses(count=len(listed), last_step=listed[-1].step, sha256=digest)


def results_of(
    folder: RunFolder, plan: Plan, outcome: Outcome, hasher: Hasher, notes: list[str]
) -> Results:
    """What the run gave. Raises OSError, GaveUp."""
    result = object_at(folder.engine_result)
    best = result.get("best")
    tokens = valid_result(result).get("tokens")
    return Results(
        reason=outcome.reason.value,
        exit_code=outcome.exit_code,
        message=outcome.message,
        steps=outcome.steps,
        max_steps=outcome.max_steps,
        tokens=tokens,
        losses=losses_of(logged_steps(folder.metrics)),
        first_loss=outcome.first_loss,
        last_loss=outcome.last_loss,
        eval_loss=outcome.eval_loss,
        best=best if isinstance(best, dict) else None,
        result=outcome.result,
        adapter_sha256=outcome.adapter_sha256,
        adapter_bytes=outcome.adapter_bytes,
        output=_output(engine_of(plan).output(folder), hasher, notes),
        peak_bytes=outcome.peak_bytes,
        peak_source=outcome.peak_source,
        peaks=dict(outcome.peaks),
        attempts=1 + len(outcome.attempts),
        started_unix_seconds=outcome.started_unix_seconds,
        ended_unix_seconds=outcome.ended_unix_seconds,
        seconds=round(outcome.seconds, 3),
    )


def rows_of(folder: RunFolder, plan: Plan) -> dict[str, Rows]:
    """Row counts and split hashes of each training, as the engine reported them."""
    native: SftPlan | None = engine_of(plan).surveyed(plan)
    found: dict[str, Rows] = {}
    for training in native.trainings if native else ():
        place = folder.data_report
        if native and training.phase != native.phase:
            place = folder.phase(training.phase) / folder.data_report.name
        report = object_at(place)
        if not report:
            continue
        sides = {side: report.get(f"{side}_rows") for side in ("train", "eval", "test")}
        found[training.phase] = Rows(
            counts={side: rows for side, rows in sides.items() if whole(rows)},
            split_sha256=_texts_by_name(report.get("split_sha256")),
        )
    return found


def executed(folder: RunFolder) -> list[str]:
    """The command that the last start executed."""
    argv: list[str] = []
    for event in durable.read_jsonl(folder.events):
        words = event.get("argv")
        if event.get("kind") == "started" and isinstance(words, list):
            argv = [str(word) for word in words]
    return argv


def _texts_by_name(value: object) -> dict[str, str]:
    return value if named_texts(value) else {}


def _output(place: Path | None, hasher: Hasher, notes: list[str]) -> FileRecord | None:
    if place is None or not place.is_dir():
        return None
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    record = FileRecord(what="output", path=place.name, kind="folder", size_bytes=size)
    if size > OUTPUT_BYTES:
        notes.append(f"output/ was not hashed: it holds {size >> 30} GiB")
        return record
    digest, count, size = hasher.folder(place)
    return record.model_copy(update={"sha256": digest, "files": count, "size_bytes": size})
