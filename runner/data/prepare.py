"""From a plan's sources to prepared rows: read, clean, split, check for leaks, mix, write.

Imports the standard library and this package; duckdb and pyarrow when rows are prepared. No torch
and no tokenizer: what is prepared serves any model. Memory does not grow with the rows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from runner.common import durable
from runner.common.caches import cache_folder
from runner.common.errors import Problem, SpecError
from runner.data.account import (
    MOST_STRATA,
    labels_record,
    lengths_record,
    mix_record,
    source_record,
    split_record,
)
from runner.data.cache import MANIFEST, lock_of, make_once, no_room, tells_full
from runner.data.formats import FormatOptions
from runner.data.image_files import open_images
from runner.data.ingest import IngestResult, ingest
from runner.data.intake import Intake
from runner.data.llava import read_questions
from runner.data.near import near_duplicates
from runner.data.prepared import LEFT_OUT, REPORT, SPLITS, Prepared, hashes_name
from runner.data.row_index import EVAL, TEST, TRAIN, RowIndex
from runner.data.rows_plan import RowsPlan
from runner.data.settle import require_splits, settle_leaks, settle_mix
from runner.data.sources import Source, identity_of, image_root, rows_of, sources_of, table_of
from runner.data.write_splits import content_file, write_splits

PIPELINE_VERSION = 5
"""Raised with every change that gives other rows, so that no cache of before is reused."""


def prepare(plan: RowsPlan, *, say: Callable[[str], None]) -> Prepared:
    """The rows of a plan's (last) training, prepared; made once and then reused.

    Args:
        plan: a plan of one training (see SftPlan.trainings).
        say: gets a line now and then while many rows are read.

    Raises:
        SpecError: unreadable rows, rows that don't fit their format, a split without rows, a leak
            that the job refuses, images that can't be read.
        RefusedError: rows that changed since the plan was made, a hub that can't be reached, a
            cache folder that is full or can't be written.
    """
    sources = sources_of(plan)
    root = cache_folder() / "prepared"
    contents = [identity_of(plan, source) for source in sources]
    try:
        if None in contents:
            return _with_images(plan, _prepare_unnamed(plan, sources, root, say), say)
        folder = root / _key(plan, sources, contents)

        def make(staging: Path) -> None:
            _make(plan, sources, staging, say)

        make_once(folder, make)
    except OSError as error:
        raise no_room(root, error) from error
    # the same rows may have been prepared from another place
    prepared = Prepared(folder, tuple(source.place for source in sources))
    return _with_images(plan, prepared, say)


def _with_images(plan: RowsPlan, prepared: Prepared, say: Callable[[str], None]) -> Prepared:
    """The rows with every image of theirs opened, where the model takes images."""
    if plan.vision is None:
        return prepared
    cache = cache_folder() / "prepared"
    return replace(prepared, images=open_images(prepared, plan.data.image_background, cache, say))


def _key(plan: RowsPlan, sources: list[Source], contents: list[list[object] | None]) -> str:
    settings = plan.data.model_dump(
        mode="json",
        exclude={
            "train",
            "eval",
            "test",
            "sample",
            "questions",
            "hub",
            "image_folder",
            "mix",
            "image_background",
            "special_tokens",  # of ids, not of rows
        },
    )
    mix, questions = plan.data.mix, plan.rows.questions
    record = {
        "version": PIPELINE_VERSION,
        "sources": [
            [source.role, source.ratio, content]
            for source, content in zip(sources, contents, strict=True)
        ],
        "settings": settings,
        "mix": [mix.fit, mix.seed] if mix else None,
        "questions": questions.sha256 or questions.path if questions else None,
        "vision": plan.vision is not None,
    }
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _prepare_unnamed(
    plan: RowsPlan, sources: list[Source], root: Path, say: Callable[[str], None]
) -> Prepared:
    """Prepare rows whose content no hash tells beforehand: they are named once they are read."""
    reading = root / f"reading-{uuid.uuid4().hex}"
    digests: list[str] = []

    def make(staging: Path) -> None:
        digests.extend(_make(plan, sources, staging, say))

    def move(staging: Path) -> None:
        for path in reading.iterdir():
            if path.name != MANIFEST:
                path.rename(staging / path.name)

    try:
        make_once(reading, make)
        folder = root / _key(plan, sources, [[digest] for digest in digests])
        make_once(folder, move)
    finally:
        shutil.rmtree(reading, ignore_errors=True)
        lock_of(reading).unlink(missing_ok=True)
    return Prepared(folder)


def _make(
    plan: RowsPlan, sources: list[Source], folder: Path, say: Callable[[str], None]
) -> list[str]:
    """Fill `folder`; the digest of each source's content."""
    import duckdb
    import pyarrow

    work = folder / "work"
    work.mkdir()
    try:
        with RowIndex(work) as row_index:
            return _run(plan, sources, folder, work, row_index, say)
    except (duckdb.Error, pyarrow.ArrowException) as error:
        # both say in words of their own that they found no room
        if not tells_full(error, folder):
            raise
        raise OSError(errno.ENOSPC, str(error).splitlines()[0]) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(
    plan: RowsPlan,
    sources: list[Source],
    folder: Path,
    work: Path,
    row_index: RowIndex,
    say: Callable[[str], None],
) -> list[str]:
    started = time.monotonic()
    settings = plan.data
    ingested = _ingest_all(plan, sources, work, row_index, say)
    large = sum(one.read for one in ingested) >= 1_000_000
    tell = say if large else lambda _: None

    tell("looking for duplicates and conflicts")
    duplicates = row_index.leave_out_duplicates() if settings.clean.duplicates == "drop" else {}
    conflicts = row_index.leave_out_conflicts() if settings.clean.conflicts == "drop" else {}
    if settings.split is not None:
        tell("splitting")
        if settings.split.stratify and (number := row_index.strata()) > MOST_STRATA:
            raise SpecError(
                [
                    Problem(
                        sources[0].place,
                        "data.split.stratify",
                        f"the rows have {number:,} different values",
                        settings.split.stratify,
                        f"a key with few values, {MOST_STRATA:,} at most",
                    )
                ]
            )
        row_index.hold_out(settings.split.eval, settings.split.test)
    row_index.place([source.split for source in sources])
    leakage, leaked = settle_leaks(plan, sources, row_index)
    places = [source.place for source in sources]
    left_out = row_index.write_left_out(folder / LEFT_OUT, places)
    counts = row_index.counts()
    require_splits(plan, sources, ingested, counts, [duplicates, conflicts, leaked])
    drawn = settle_mix(plan, sources, counts)
    record = {
        "schema_version": 1,
        "pipeline_version": PIPELINE_VERSION,
        "sources": [
            source_record(
                source,
                ingested[index],
                [one.get(index) for one in (duplicates, conflicts, leaked)],
                {SPLITS[split]: counts.get((index, split), 0) for split in (TRAIN, EVAL, TEST)},
                drawn.get(index),
                table_of(plan, source),
            )
            for index, source in enumerate(sources)
        ],
        "split": split_record(plan, row_index),
        "compared": {"ignore": list(settings.clean.ignore), "rule": leakage["rule"]},
        "left_out": {"rows": left_out, "file": LEFT_OUT},
        "leakage": leakage,
        "mix": mix_record(plan, drawn),
        "labels": labels_record(row_index),
        "characters": lengths_record(row_index),
    }
    row_index.decide({index: (share.times, share.more) for index, share in drawn.items()})
    tell("writing the prepared rows")
    written = write_splits(folder, work, ingested, row_index)
    record["sides"] = written
    for split, name in enumerate(SPLITS):
        row_index.write_hashes(split, folder / hashes_name(name))
    record["near_duplicates"] = near_duplicates(Prepared(folder), written, tell)
    record["seconds"] = round(time.monotonic() - started, 3)
    durable.write_json(folder / REPORT, record)
    Prepared(folder).keep_split_hashes()
    return [one.digest for one in ingested]


def _ingest_all(
    plan: RowsPlan,
    sources: list[Source],
    work: Path,
    row_index: RowIndex,
    say: Callable[[str], None],
) -> list[IngestResult]:
    data = plan.data
    questions = None
    if plan.rows.questions is not None and plan.rows.questions.path:
        questions = read_questions(Path(plan.rows.questions.path))
    options = FormatOptions(
        data.system,
        data.prompt,
        data.labels,
        data.placeholders,
        vision=plan.vision is not None,
        questions=questions,
        ignored=frozenset(data.ignore_keys),
    )
    ingested: list[IngestResult] = []
    next_id = 0
    for index, source in enumerate(sources):
        split_settings = data.split if source.role == "train" else None
        mix_settings = data.mix if source.split == TRAIN else None
        read = frozenset(
            [split_settings.stratify] if split_settings and split_settings.stratify else []
        )
        intake = Intake(
            index=index,
            field=source.field,
            place=source.place,
            format=data.format,
            options=replace(options, read_otherwise=read),
            image_root=image_root(plan, source),
            max_rows=data.max_rows,
            stratify=split_settings.stratify if split_settings else None,
            split_seed=split_settings.seed if split_settings else None,
            mix_seed=mix_settings.seed if mix_settings else None,
            ignore=tuple(data.clean.ignore),
        )
        rows = rows_of(plan, source)
        one = ingest(intake, rows, content_file(work, index), row_index, next_id, say)
        if one.empty + one.untrained == one.read:
            text = f"all {one.read} rows have an empty prompt or answer"
            if one.untrained:
                text += f", or are marked as not trained ({one.untrained})"
            raise SpecError([Problem(source.place, source.field, text)])
        ingested.append(one)
        next_id = one.stop_id
    return ingested
