"""What a plan of the native engine reads: rows, weights, images; as files, parts and mounts.

Reads rows for the images that they name; opens no image. Imports no training library.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from runner.common.caches import cache_folder
from runner.common.errors import SpecError
from runner.data.read import read_rows
from runner.data.row_images import image_names
from runner.data.sources import image_root, reading_of, sources_of
from runner.engines.sft.plan import PlannedModel, SftPlan
from runner.plans.inputs import IMAGES, FileRecord, ImageNames, Key, Part, is_here, model_files
from runner.plans.rows import PlannedData
from runner.plans.sources import find_data, find_model

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def input_files(plan: SftPlan) -> list[FileRecord]:
    """Rows, images and weights of a plan; what the plan does not know by hash has none yet."""
    return [*_row_files(plan), *_model_records(plan)]


def parts(plan: SftPlan) -> list[Part]:
    """Everything that a plan reads by a path, each part once."""
    return [*_row_parts(plan), *_model_parts(plan)]


def named_images(plan: SftPlan, phase: str) -> list[ImageNames]:
    """The images of a training, source by source. Raises RunnerError as read_rows."""
    (training,) = (each for each in plan.trainings if each.phase == phase)
    found = []
    for source in sources_of(training):
        if source.planned.path is None:
            continue
        root = image_root(training, source)
        rows = read_rows(Path(source.planned.path), source.field, reading_of(training.data))
        names = {
            name
            for _, row in islice(rows, training.data.max_rows)
            for name in image_names(row) or ()
        }
        there = [name for name in sorted(names) if (root / name).is_file()]
        found.append(ImageNames(source.field, root, there))
    return found


def first_root(training: SftPlan) -> Path | None:
    """The folder that the names in a training's own rows start from; None of rows on a hub."""
    own = sources_of(training)[0]
    return image_root(training, own) if own.planned.path is not None else None


def found_here(plan: SftPlan) -> dict[str, str]:
    """Part -> path, of what comes from a hub and does not lie where it lay."""
    places = {}
    for part in parts(plan):
        if is_here(part.path):
            continue
        found = _weights_here(part) if part.group == "model" else _rows_here(plan, part)
        if found is not None:
            places[part.what] = str(found)
    here = Path(plan.model.folder or "", "config.json")
    if plan.model.kind == "standin" and not is_here(here):
        # made here, as it was there: in the cache and nowhere else, whatever the record says
        name = _UNSAFE.sub("_", Path(plan.model.folder or "").name).strip("._-") or "standin"
        places["model"] = str(cache_folder() / "standins" / name)
    return places


def paths_read(plan: SftPlan) -> list[Path]:
    """The paths that a run reads: weights, rows, images."""
    models = [plan.model, *([plan.vision.model] if plan.vision else [])]
    paths = [place for model in models if (place := _weights_path(model)) is not None]
    for training in plan.trainings:
        for rows in training.rows.each:
            if rows.path is not None:
                path = Path(rows.path)
                paths.append(path)
                folder = training.data.image_folder
                # images that rows name lie beside them, or in the folder that the job names
                place = path.parent / folder if folder else path.parent
                if plan.vision is not None and place.is_dir():
                    paths.append(Path(os.path.normpath(place)))
    return paths


def links_out(model: PlannedModel) -> Iterator[tuple[Path, Path]]:
    """(where it leads, what is there) of links in a model folder that lead out of it.

    A folder of links to shards on another disk is whole only with them.
    """
    folder = Path(model.folder or "")
    if model.kind != "folder" or not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.is_symlink() and entry.exists():
            link = Path(os.path.normpath(folder / entry.readlink()))
            if folder not in link.parents:
                yield link, entry.resolve()


def _weights_path(model: PlannedModel) -> Path | None:
    if model.folder is None:
        return None
    folder = Path(model.folder)
    if model.kind == "hub" and folder.parent.name == "snapshots":
        return folder.parents[1]  # a snapshot is links into blobs/ beside it
    return folder


def _row_files(plan: SftPlan) -> Iterator[FileRecord]:
    for training in plan.trainings:
        prefix = f"{training.phase}: " if training.phase else ""
        rows = training.rows
        named: list[tuple[str, PlannedData | None]] = [("data.train", rows.train)]
        named += [(f"data.mix.sources.{i}.rows", each) for i, each in enumerate(rows.mixed)]
        named += [("data.eval", rows.eval), ("data.test", rows.test)]
        named += [("data.questions", rows.questions)]
        for what, each in named:
            if each is None:
                continue
            if each.path is None:
                yield FileRecord(
                    what=prefix + what,
                    path=f"{each.kind}:{each.id}@{each.revision or 'main'}",
                    kind="remote",
                )
                continue
            yield FileRecord(
                what=prefix + what,
                path=each.path,
                kind="file",
                sha256=each.sha256,
                size_bytes=each.size_bytes,
            )
        if plan.vision is not None and (root := first_root(training)) is not None:
            yield FileRecord(what=prefix + IMAGES, path=str(root), kind="images")


def _model_records(plan: SftPlan) -> Iterator[FileRecord]:
    yield from _model_record("model", plan.model)
    if plan.vision is not None and plan.vision.model.folder != plan.model.folder:
        yield from _model_record("vision.model", plan.vision.model)


def _model_record(what: str, model: PlannedModel) -> Iterator[FileRecord]:
    if model.folder is None:
        name = f"{model.kind}:{model.id}@{model.revision or 'main'}"
        yield FileRecord(what=what, path=name, kind="remote")
    else:
        yield from model_files(what, Path(model.folder))


def _row_parts(plan: SftPlan) -> Iterator[Part]:
    for number, training in enumerate(plan.trainings):
        prefix = f"{training.phase}: " if training.phase else ""
        place: Key = ("earlier", number) if number < len(plan.earlier) else ()
        rows = training.rows
        named: list[tuple[str, PlannedData, Key]] = [("data.train", rows.train, ("train",))]
        named += [
            (f"data.mix.sources.{i}.rows", each, ("mixed", i)) for i, each in enumerate(rows.mixed)
        ]
        for side in ("eval", "test", "questions"):
            if (given := getattr(rows, side)) is not None:
                named.append((f"data.{side}", given, (side,)))
        for what, each, key in named:
            keys = ((*place, "rows", *key, "path"),)
            remote = f"{each.kind}:{each.id}" if each.kind != "file" else None
            yield Part(prefix + what, "data", each.path, keys, remote, each.revision)
        if plan.vision is not None:
            folder: Key = (*place, "data", "image_folder")
            yield Part(f"{prefix}{IMAGES}", "data", training.data.image_folder, (folder,))


def _model_parts(plan: SftPlan) -> Iterator[Part]:
    vision = plan.vision.model if plan.vision is not None else None
    keys = _model_keys(plan.model, ("model",))
    if vision is not None and vision.folder == plan.model.folder:  # one stand-in for both
        keys += _model_keys(vision, ("vision", "model"))
    yield _model_part("model", plan.model, keys)
    if vision is not None and vision.folder != plan.model.folder:
        yield _model_part("vision.model", vision, _model_keys(vision, ("vision", "model")))


def _model_part(what: str, model: PlannedModel, keys: tuple[Key, ...]) -> Part:
    known = model.kind in ("hub", "modelscope", "builtin")
    name = model.id if model.kind == "hub" else f"{model.kind}:{model.id}"
    return Part(what, "model", model.folder, keys, name if known else None, model.revision)


def _model_keys(model: PlannedModel, place: Key) -> tuple[Key, ...]:
    folder: Key = (*place, "folder")
    # of a folder of the user's own, the id is what the job called it: its path
    return (folder, (*place, "id")) if model.kind == "folder" else (folder,)


def _weights_here(part: Part) -> Path | None:
    """A hub's model in this machine's caches. Where another revision lies, its hashes say so."""
    if part.id is None:
        return None
    # ModelScope's are kept by the revision that was asked for, which may be none
    for revision in dict.fromkeys((part.revision, None)):
        text = f"{part.id}@{revision}" if revision else part.id
        with contextlib.suppress(SpecError):
            source = find_model(text, beside=None, where="the manifest")
            if source.present and source.folder is not None:
                return source.folder
    return None


def _rows_here(plan: SftPlan, part: Part) -> Path | None:
    """A hub's rows in this machine's cache, by what the job asked for."""
    if part.id is None:
        return None
    phase, _, what = part.what.rpartition(": ")
    (training,) = (each for each in plan.trainings if each.phase == phase)
    data, hub = training.data, training.data.hub
    asked = {
        "data.train": (data.train, hub.split),
        "data.eval": (data.eval, hub.eval_split),
        "data.test": (data.test, hub.test_split),
        **{
            f"data.mix.sources.{number}.rows": (source.rows, hub.split)
            for number, source in enumerate(data.mix.sources if data.mix else [])
        },
    }
    text, split = asked.get(what, (None, ""))
    if text is None or not text.startswith(("hub:", "modelscope:")):
        return None
    source = find_data(
        text, field=what, beside=None, where="the manifest", name=hub.name, split=split
    )
    return source.path if source.present else None
