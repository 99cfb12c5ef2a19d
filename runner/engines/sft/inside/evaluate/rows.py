"""Which rows an evaluation measures: the job's test side, or files given by hand.

Imports runner.data; no torch. Every source goes through the job's own preparation, so that
a prompt is put together as it was for training, and by its hashes it can be shown whether a row was
trained on.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.common.caches import file_sha256
from runner.common.errors import Problem, SpecError
from runner.data.messages import Message
from runner.data.prepare import prepare
from runner.data.prepared import Overlap, Prepared, Split, hashes_name, proves_disjoint
from runner.data.read import read_rows
from runner.data.sources import reading_of
from runner.engines.sft.inside.evaluate.tasks import Row
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.render import source_text
from runner.jobs.data import CleanSettings
from runner.plans.rows import PlannedData, PlannedRows
from runner.runs.folder import RunFolder

DEFAULT_SEED = 42  # where no data.split has one


@dataclass(frozen=True)
class RowSet:
    """Rows that have figures of their own."""

    name: str
    side: str  # test, eval, or file
    sources: list[dict[str, Any]]  # place and sha256 of each file, or the hub's id
    rows: list[Row]
    available: int  # rows that `rows` were drawn from
    labelled: bool  # all are text_label rows
    trained_on: list[dict[str, Any]] = field(default_factory=list)  # one for each training
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """What is to be measured, as far as rows go."""

    plan: SftPlan  # of the last training: its data settings and sources
    files: Sequence[Path]  # none: the plan's own test rows
    run: RunFolder | None  # whose training rows are compared
    max_rows: int | None
    choices: bool  # read the rows' `answer` keys too
    say: Callable[[str], None]


def load_sets(question: Question) -> tuple[list[RowSet], Prepared | None]:
    """The sets, and the job's prepared rows where they had to be read.

    Raises SpecError: no held-out rows, files that can't be used; RefusedError as `prepare` does.
    """
    if not question.files:
        prepared = prepare(question.plan, say=question.say)
        return [_own_set(question, prepared)], prepared
    names = _names(question.files)
    return [
        _file_set(question, name, path) for name, path in zip(names, question.files, strict=True)
    ], None


def trained_answers(prepared: Prepared) -> Counter[str]:
    """How often each text is the last answer of a training row, repeats included."""
    return Counter(_parted(row.messages)[1]["content"] for row in prepared.rows("train"))


def draw(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """At most `count` rows, in their order; the same draw for the same rows and seed."""
    if count is None or count >= len(rows):
        return list(rows)
    chosen = random.Random(seed).sample(range(len(rows)), count)  # noqa: S311 - no secret
    return [rows[index] for index in sorted(chosen)]


def _own_set(question: Question, prepared: Prepared) -> RowSet:
    notes = []
    side: Split = "test"
    if not prepared.counts["test"]:
        side = "eval"
        notes.append(
            "the job has no test rows: its evaluation rows are measured, which training was "
            "watched by (data.split.test holds rows out for this alone)"
        )
    if not prepared.counts[side]:
        raise SpecError(
            [
                Problem(
                    f"job {question.plan.job}",
                    "data.split",
                    "no rows are held out, so there is nothing to measure that was not trained on",
                    expected="data.split or data.test in the job, or --data FILE",
                )
            ]
        )
    rows = _to_rows(prepared, side, _places(question.plan))
    return RowSet(
        name=side,
        side=side,
        sources=_used(rows, question.plan),
        rows=draw(rows, question.max_rows, _seed(question.plan)),
        available=len(rows),
        labelled=_labelled(prepared, rows),
        trained_on=_trained_on(question, prepared, side),
        notes=notes,
    )


def _file_set(question: Question, name: str, path: Path) -> RowSet:
    prepared = _prepare_file(question, path)
    rows = _to_rows(
        prepared,
        "train",
        [str(path)],
        _stated_choices(path, question.plan) if question.choices else None,
    )
    notes = []
    empty = sum(int(source["empty"]["rows"]) for source in prepared.report["sources"])
    if empty:
        notes.append(f"{path}: {empty} rows have no answer to compare with, and are left out")
    untrained = sum(int(source["untrained"]["rows"]) for source in prepared.report["sources"])
    if untrained:
        notes.append(f"{path}: {untrained} rows are marked as not trained, and are left out")
    return RowSet(
        name=name,
        side="file",
        sources=[{"place": str(path), "sha256": file_sha256(path)}],
        rows=draw(rows, question.max_rows, _seed(question.plan)),
        available=len(rows),
        labelled=_labelled(prepared, rows),
        trained_on=_trained_on(question, prepared, "train"),
        notes=notes,
    )


def _prepare_file(question: Question, path: Path) -> Prepared:
    """The file as if it were a job's only rows: converted and hashed, none left out or held out."""
    plan, data = question.plan, question.plan.data
    source = PlannedData(
        kind="file",
        path=str(path.absolute()),
        sha256=file_sha256(path),
        size_bytes=path.stat().st_size,
    )
    settings: dict[str, Any] = {
        "train": str(path),
        "eval": None,
        "test": None,
        "split": None,
        "mix": None,
        "max_rows": None,
        "clean": CleanSettings(duplicates="keep", conflicts="keep", ignore=data.clean.ignore),
        "leakage": "keep",
    }
    # a file of any layout can be given; the job's own is for rows that more than one layout fits
    formats = list(dict.fromkeys(("auto", data.format)))
    for name in formats:
        view = plan.model_copy(
            update={
                "data": data.model_copy(update={**settings, "format": name}),
                "rows": PlannedRows(train=source, questions=plan.rows.questions),
            }
        )
        try:
            return prepare(view, say=question.say)
        except SpecError as error:
            if name != formats[-1] and any(p.field == "data.format" for p in error.problems):
                continue
            raise SpecError(
                [
                    dataclasses.replace(p, field=p.field.replace("data.train", "--data"))
                    for p in error.problems
                ]
            ) from None
    raise AssertionError("one of the formats is tried last")


def _stated_choices(path: Path, plan: SftPlan) -> dict[int, str]:
    """The `answer` key of each row that has one, by line: what is right in a multiple choice."""
    return {
        line: str(row["answer"])
        for line, row in read_rows(path, "--data", reading_of(plan.data))
        if isinstance(row.get("answer"), str | int) and str(row["answer"]).strip()
    }


def _to_rows(
    prepared: Prepared, side: Split, places: Sequence[str], choices: dict[int, str] | None = None
) -> list[Row]:
    out = []
    for number, row in enumerate(prepared.rows(side)):
        prompt, answer = _parted(row.messages)
        choice = (choices or {}).get(row.line)
        images = tuple(row.images)
        out.append(
            Row(
                number,
                places[row.source],
                row.line,
                prompt,
                answer["content"],
                choice,
                images,
                row.tools,
                answer if len(answer) > 2 else None,
            )
        )
    return out


def _parted(messages: list[Message]) -> tuple[list[Message], Message]:
    """The turns before the last answer, and that answer; a user turn behind it asks for none."""
    last = len(messages) - 1
    while messages[last]["role"] != "assistant":
        last -= 1
    return messages[:last], messages[last]


def _places(plan: SftPlan) -> list[str]:
    """How each of the prepared rows' sources is called: its file as this plan knows it.

    The report of prepared rows can name another: rows of the same content share a cache.
    """
    rows = plan.rows
    sources = [rows.train, *rows.mixed, *(each for each in (rows.eval, rows.test) if each)]
    return [source_text(each) for each in sources]


def _used(rows: Sequence[Row], plan: SftPlan) -> list[dict[str, Any]]:
    """The sources that `rows` come from."""
    places = {row.source for row in rows}
    return [
        {"place": source_text(each), "sha256": each.sha256}
        for each in plan.rows.each
        if source_text(each) in places
    ]


def _labelled(prepared: Prepared, rows: Sequence[Row]) -> bool:
    return bool(rows) and all(s["format"] == "text_label" for s in prepared.report["sources"])


def _trained_on(question: Question, prepared: Prepared, side: Split) -> list[dict[str, Any]]:
    """For each training of the run: how many rows of this side it was given."""
    if question.run is None:
        return []
    out = []
    for name, hashes in _trainings(question.run).items():
        overlap: Overlap = proves_disjoint(hashes, prepared, side)
        out.append({"training": name, **dataclasses.asdict(overlap)})
    return out


def _trainings(run: RunFolder) -> dict[str, Path]:
    """Name -> row hashes of each training of a run that kept them; "" where it is the only one."""
    name = hashes_name("train")
    folders = {"": run.row_hashes}
    if run.row_hashes.is_dir():
        folders |= {folder.name: folder for folder in sorted(run.row_hashes.iterdir())}
    return {phase: folder for phase, folder in folders.items() if (folder / name).is_file()}


def _seed(plan: SftPlan) -> int:
    return plan.data.split.seed if plan.data.split else DEFAULT_SEED


def _names(files: Sequence[Path]) -> list[str]:
    """File names without their ends; numbered where two are the same."""
    stems = [path.stem for path in files]
    often = Counter(stems)
    seen: Counter[str] = Counter()
    out = []
    for stem in stems:
        seen[stem] += 1
        out.append(f"{stem}-{seen[stem]}" if often[stem] > 1 else stem)
    return out
