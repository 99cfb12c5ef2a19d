"""A run's inputs on their way into a bundle: one function a kind of part.

Imports runner.provenance, plans and this package. Every input is checked against the manifest.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from runner.common.errors import RefusedError
from runner.engines.registry import engine_of
from runner.plans.inputs import IMAGES, FileRecord, Part, is_here
from runner.provenance.bundle.gathering import Gathering, record_of
from runner.provenance.bundle.index import Placed
from runner.provenance.bundle.input_rules import require_input
from runner.provenance.hashes import files_in
from runner.provenance.image_list import hash_images


def gather_part(gathered: Gathering, part: Part, *, wanted: bool) -> None:
    """Take a part along, or say what is lacking of it.

    Raises RefusedError where a part that is wanted is not here, or another than the run read.
    """
    if part.what.endswith(IMAGES):
        _gather_images(gathered, part, wanted=wanted)
        return
    record = record_of(gathered.manifest, part.what)
    optional = record is None and part.what.startswith("infer.")
    if part.path is None or not wanted:
        if not (optional and part.path and not is_here(part.path)):
            gathered.lack(part)
        return
    path = Path(part.path)
    if not is_here(path):
        if optional:
            return
        if part.group == "code" and gathered.plan.container is not None:
            return  # it lies in the image
        raise _not_here(part, part.what, path)
    kind = "folder" if path.is_dir() else "file"
    key = (str(path.resolve()), kind)
    place = gathered.known.get(key)
    if place is None:
        listed = [each for each in gathered.manifest.files if each.what.startswith(part.what + "/")]
        if listed:
            place = _gather_listed(gathered, part, path, listed)
        elif kind == "folder":
            place = _gather_folder(gathered, part, path, record)
        else:
            place = _gather_file(gathered, part, path, record)
        gathered.known[key] = place
    gathered.places[part.what] = place


def _gather_listed(gathered: Gathering, part: Part, path: Path, listed: list[FileRecord]) -> Placed:
    """A folder of which the manifest lists file by file what the run read: a model's, say."""
    folder = gathered.slot(part.what)
    if engine_of(gathered.plan).keeps_path_ends:
        folder = "/".join([folder, *path.parts[-2:]])
    for each in listed:
        name = each.what.removeprefix(part.what + "/")
        if not (path / name).is_file():
            raise _not_here(part, each.what, path / name)
        require_input(gathered, part, path / name, path, each)
        gathered.require(each, gathered.add(f"{folder}/{name}", path / name).sha256)
    return Placed(path=folder, kind="folder")


def _gather_folder(
    gathered: Gathering, part: Part, path: Path, record: FileRecord | None
) -> Placed:
    """A folder whole, which the manifest knows by one hash over all of it."""
    folder = gathered.slot(part.what)
    whole = hashlib.sha256()
    for file in sorted(files_in(path)):
        require_input(gathered, part, file, path, record)
        name = file.relative_to(path).as_posix()
        member = gathered.add(f"{folder}/{name}", file)
        whole.update(f"{name}\0{member.sha256}\n".encode())
    if record is not None:
        gathered.require(record, whole.hexdigest())
    return Placed(path=folder, kind="folder")


def _gather_file(gathered: Gathering, part: Part, path: Path, record: FileRecord | None) -> Placed:
    """A single file."""
    require_input(gathered, part, path, path.parent, record)
    member = gathered.add(f"{gathered.slot(part.what)}/{path.name}", path)
    if record is not None:
        gathered.require(record, member.sha256)
    return Placed(path=member.path, kind="file")


def _gather_images(gathered: Gathering, part: Part, *, wanted: bool) -> None:
    """Those that rows name, by their names as written; all of a training in one folder."""
    phase = part.what.removesuffix(IMAGES).removesuffix(": ")
    record = record_of(gathered.manifest, part.what)
    if record is None and not wanted:
        return
    if not wanted:
        gathered.lack(part)
        return
    sources = engine_of(gathered.plan).images(gathered.plan, phase)
    if not any(each.names for each in sources):
        return
    if record is not None and record.sha256 is not None:
        gathered.require(record, hash_images(sources, gathered.hasher).sha256)
    roots = sorted({str(each.root) for each in sources})
    known = gathered.known.get(("\0".join(roots), "images"))
    place = known or Placed(path=gathered.slot("images"), kind="folder")
    gathered.known["\0".join(roots), "images"] = gathered.places[part.what] = place
    for root, name in ((each.root, name) for each in sources for name in each.names):
        file = root / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RefusedError(
                f"{part.what}: rows name an image {name}, by which no other machine can find "
                "it: only names below data.image_folder can be bundled",
                "name images so in the rows and run anew, or leave data out of --with",
            )
        require_input(gathered, part, file, root, record)
        inside = f"{place.path}/{os.path.normpath(name)}"
        earlier = gathered.items.get(inside)
        member = gathered.add(inside, file)
        if earlier is not None and earlier.member.sha256 != member.sha256:
            raise RefusedError(
                f"two sources of rows have another image under one name: {earlier.source} and "
                f"{file}",
                "give them one data.image_folder, or leave data out of --with",
            )


def _not_here(part: Part, what: str, path: Path) -> RefusedError:
    return RefusedError(
        f"{what}: {path} is not here", f"put it back, or leave {part.group} out of --with"
    )
