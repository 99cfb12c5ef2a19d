"""Index: what index.json says, the first file of a bundle; after unbundling, RUN/bundle.json.

Imports pydantic, runner.job_model, runner.durable and runner.errors. What an index may say is
decided here, before anything is written by it: it may come from anyone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, ValidationError

from runner.errors import UsageError
from runner.job_model import JobModel

SCHEMA_VERSION = 1
NAME = "index.json"
MAX_INDEX_BYTES = 64 << 20
"""About 400,000 files; a larger one is not read, whatever it claims to be."""
MAX_NAME_BYTES = 3000
"""Below PATH_MAX (4096), so that there is room for the folder it is unpacked in."""
_MAX_COMPONENT_BYTES = 255
_SHA256 = r"^[0-9a-f]{64}$"

Part = Literal["data", "model", "adapter"]


class Member(JobModel):
    """A file of the bundle, in the order in which they come."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=_SHA256)
    executable: bool = False


class Placed(JobModel):
    """Where an input lies in the bundle."""

    path: str
    kind: Literal["file", "folder"]


class Known(JobModel):
    """One file of an input that the bundle lacks."""

    name: str = Field(description="In the input's folder; of a single file its name")
    sha256: str | None = Field(None, description="None: was not hashed")
    size_bytes: int | None = None


class Lacking(JobModel):
    """An input that the bundle lacks."""

    what: str = Field(description="The plan's field, by which --at names it")
    group: Literal["data", "model", "code"]
    id: str | None = Field(None, description="On a hub; None of files of the user's own")
    revision: str | None = None
    files: list[Known] = Field([])


class Index(JobModel):
    """What a bundle holds, and what it lacks."""

    schema_version: Literal[1] = 1
    made_by: str = Field(description="The runner that made it")
    run: str = Field(description="JOB/TIME-HASH")
    plan_hash: str
    manifest_sha256: str = Field(pattern=_SHA256)
    contains: list[Part] = Field([], description="Of what --with can ask for")
    image: str | None = Field(None, description="Of a run in a container: NAME sha256:ID")
    places: dict[str, Placed] = Field({}, description="Input to where it lies in the bundle")
    lacks: list[Lacking] = Field([])
    notes: list[str] = Field([], description="What could not be taken along, and why")
    members: list[Member]
    index_sha256: str = Field(
        "", description="Over this index without this field: keys sorted, no white space"
    )

    def sealed(self) -> Index:
        """The same with its own hash."""
        return self.model_copy(update={"index_sha256": self._digest()})

    def _digest(self) -> str:
        record = self.model_dump(mode="json", exclude={"index_sha256"})
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def content(self) -> bytes:
        """As index.json holds it."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        return (text + "\n").encode()

    @property
    def size_bytes(self) -> int:
        """Of all members."""
        return sum(member.size_bytes for member in self.members)


def parse(content: bytes, where: str) -> Index:
    """The index, known to name only files that stay in the folder it is unpacked in.

    Raises UsageError where it is damaged, of a newer schema_version, or names anything else.
    """
    try:
        record: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise UsageError(f"{where}: {NAME} is damaged: it is no JSON", COPY_AGAIN) from None
    version = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UsageError(
            f"{where} is a bundle of a newer runner: schema_version {version}, this one reads up "
            f"to {SCHEMA_VERSION}",
            f"it was made by {_told(record.get('made_by'))}; take that one, or a later",
        )
    try:
        index = Index.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise UsageError(
            f"{where}: {NAME} is damaged, or no bundle's: {place}: {first['msg']}", COPY_AGAIN
        ) from None
    try:
        sealed = index.sealed().index_sha256
    except UnicodeEncodeError:
        sealed = ""
    if sealed != index.index_sha256:
        raise UsageError(f"{where}: {NAME} is damaged: its sha256 is another", COPY_AGAIN)
    for problem in _problems(index):
        raise UsageError(f"{where}: {NAME}: {problem}", "it is no bundle that runner made")
    return index


COPY_AGAIN = "copy the bundle again; nothing was unpacked"


def name_problem(name: str) -> str | None:
    """Why a file of a bundle can't be called so; None where it can."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    steps = name.split("/")
    if name.startswith("/"):
        return "is an absolute path"
    if ".." in steps:
        return "leads out of the folder"
    if not name or any(step in ("", ".") for step in steps):
        return "is no plain path"
    if not all(letter.isprintable() for letter in name):
        return "holds control characters"
    if size > MAX_NAME_BYTES or any(len(step.encode()) > _MAX_COMPONENT_BYTES for step in steps):
        return "is too long"
    return None


def _problems(index: Index) -> Iterable[str]:
    for text in _texts(index):
        if not text.isprintable():
            yield f"{text[:80]!a} holds control characters"
    seen: set[str] = set()
    folders: set[str] = set()
    for member in index.members:
        if problem := name_problem(member.path):
            yield f"{member.path!a} {problem}"
        if member.path in seen:
            yield f"{member.path} comes twice"
        if member.path in _NEVER:
            yield f"{member.path} is nothing that a bundle holds"
        seen.add(member.path)
        folders.update(str(folder) for folder in PurePosixPath(member.path).parents)
    folders.discard(".")
    for place in index.places.values():
        if problem := name_problem(place.path):
            yield f"{place.path!a} {problem}"
        if place.kind == "file" and place.path not in seen:
            yield f"{place.path} is named as an input, and is not in it"
        if place.kind == "folder":
            folders.add(place.path)
            folders.update(str(each) for each in PurePosixPath(place.path).parents)
            folders.discard(".")
    for both in sorted(seen & folders):
        yield f"{both} is a file and a folder"


def _texts(index: Index) -> Iterable[str]:
    """What of it is shown to people; a terminal obeys control characters."""
    yield from (index.made_by, index.run, index.plan_hash, index.image or "", *index.notes)
    yield from index.places
    for lacking in index.lacks:
        yield from (lacking.what, lacking.id or "", lacking.revision or "")
        yield from (known.name for known in lacking.files)


BESIDE = "bundle.json"
"""What the index is called in a run folder."""
_NEVER = {BESIDE, ".lock", "supervisor.json", "queue.json", "container.id"}
"""Its own place, and the files by which runner finds processes to end."""


def read_beside(path: Path) -> Index | None:
    """The index that unbundling left in a run folder; None where the run was never in a bundle.

    Raises UsageError where it is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return parse(content, str(path.parent))


def _told(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else "a runner it does not name"
    return text[:100]
