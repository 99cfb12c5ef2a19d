"""Index: what index.json says, the first file of a bundle; after unbundling, RUN/bundle.json.

Imports pydantic, runner.jobs.model, runner.common.errors and this package. What an index may say is
decided here, before anything is written by it: it may come from anyone. How much memory it may
take is decided in `bounded`, what a file may be called in `members`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from runner.common import durable
from runner.common.errors import UsageError
from runner.jobs.model import JobModel
from runner.provenance.bundle import bounded, members

SCHEMA_VERSION = 1
NAME = "index.json"
MAX_INDEX_BYTES = bounded.MAX_BYTES
"""About 200,000 files; a larger one is not read, whatever it claims to be."""
MAX_NAME_BYTES = 3000
"""Below PATH_MAX (4096), so that there is room for the folder it is unpacked in."""
_MAX_COMPONENT_BYTES = 255
_SHA256 = r"^[0-9a-f]{64}$"
_MAX_SIZE = 1 << 62
_MAX_WORDS = 1000

Part = Literal["data", "model", "adapter"]


class Member(JobModel):
    """A file of the bundle, in the order in which they come."""

    path: str
    size_bytes: int = Field(ge=0, le=_MAX_SIZE)
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
    size_bytes: int | None = Field(None, ge=0, le=_MAX_SIZE)


class MissingInput(JobModel):
    """An input that the bundle lacks."""

    what: str = Field(description="The plan's field, by which --at names it")
    group: Literal["data", "model", "code"]
    id: str | None = Field(None, description="On a hub; None of files of the user's own")
    revision: str | None = None
    files: list[Known] = Field([])


class Index(JobModel):
    """What a bundle holds, and what it lacks."""

    schema_version: Literal[1] = 1
    made_by: str = Field(max_length=_MAX_WORDS, description="The runner that made it")
    run: str = Field(max_length=_MAX_WORDS, description="JOB/TIME-HASH")
    plan_hash: str = Field(max_length=_MAX_WORDS)
    manifest_sha256: str = Field(pattern=_SHA256)
    contains: list[Part] = Field([], description="Of what --with can ask for")
    image: str | None = Field(
        None, max_length=_MAX_WORDS, description="Of a run in a container: NAME sha256:ID"
    )
    places: dict[str, Placed] = Field({}, description="Input to where it is in the bundle")
    lacks: list[MissingInput] = Field([])
    notes: list[str] = Field([], description="What could not be taken along, and why")
    members: list[Member]
    index_sha256: str = Field(
        "", description="Over this index without this field: keys sorted, no white space"
    )

    def sealed(self) -> Index:
        """The same with its own hash."""
        return self.model_copy(update={"index_sha256": self._digest()})

    def _digest(self) -> str:
        """Over its canonical text, which is never in memory as a whole."""
        record = self.model_dump(mode="json", exclude={"index_sha256", "members"})
        whole = hashlib.sha256()
        for number, key in enumerate(sorted([*record, "members"])):
            whole.update((f"{',' if number else '{'}{_CANONICAL.encode(key)}:").encode())
            if key != "members":
                whole.update(_CANONICAL.encode(record[key]).encode())
                continue
            for count, member in enumerate(self.members):
                text = _CANONICAL.encode(member.model_dump(mode="json"))
                whole.update((("," if count else "[") + text).encode())
            whole.update(b"]" if self.members else b"[]")
        whole.update(b"}")
        return whole.hexdigest()

    def content(self) -> bytes:
        """As index.json holds it."""
        head = self.model_dump(mode="json", exclude={"members"})
        parts = []
        for key in type(self).model_fields:
            if key != "members":
                text = json.dumps(head[key], indent=1, ensure_ascii=False).replace("\n", "\n ")
                parts.append(f' "{key}": {text}'.encode())
                continue
            shown = (_member_text(member) for member in self.members)
            inner = b",\n".join(shown)
            parts.append(b' "members": [\n' + inner + b"\n ]" if inner else b' "members": []')
        return b"{\n" + b",\n".join(parts) + b"\n}\n"

    @property
    def size_bytes(self) -> int:
        """Of all members."""
        return sum(member.size_bytes for member in self.members)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _member_text(member: Member) -> bytes:
    text = json.dumps(member.model_dump(mode="json"), indent=1, ensure_ascii=False)
    return ("  " + text.replace("\n", "\n  ")).encode()


def parse(content: bytes, where: str) -> Index:
    """The index, known to name only files that stay in the folder it is unpacked in.

    Raises UsageError where it is damaged, of a newer schema_version, or names anything else.
    """
    found: list[Member] = []
    head: dict[str, object] = {}
    try:
        reader = bounded.Reader(content)
        for key, value in reader.items(each_of="members"):
            if key != "members":
                head[key] = value
                continue
            if not found:
                _refuse_newer(head, where)
            found.append(Member.model_validate(value))
        _refuse_newer(head, where)
        index = Index.model_validate({**head, "members": []} if reader.had_list else head)
    except bounded.Malformed as error:
        raise UsageError(f"{where}: {NAME} is damaged: {error}", COPY_AGAIN) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        above = () if error.title == Index.__name__ else ("members", len(found))
        place = ".".join(_told(str(step)) for step in (*above, *first["loc"]))
        raise UsageError(
            f"{where}: {NAME} is damaged, or no bundle's: {place}: {first['msg'][:200]}", COPY_AGAIN
        ) from None
    index = index.model_copy(update={"members": found})
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
    if not name.isprintable():
        return "holds control characters"
    if size > MAX_NAME_BYTES or any(len(step.encode()) > _MAX_COMPONENT_BYTES for step in steps):
        return "is too long"
    return None


def _refuse_newer(head: dict[str, object], where: str) -> None:
    version = head.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise UsageError(
            f"{where} is a bundle of a newer runner: schema_version {str(version)[:20]}, this one "
            f"reads up to {SCHEMA_VERSION}",
            f"it was made by {_told(head.get('made_by'))}; take that one, or a later",
        )


def _problems(index: Index) -> Iterator[str]:
    for text in _texts(index):
        if not text.isprintable():
            yield f"{text[:80]!a} holds control characters"
    for place in index.places.values():
        problem = name_problem(place.path) or members.place_problem(place.path)
        if problem:
            yield f"{_told(place.path)} {problem}"
    files = {place.path for place in index.places.values() if place.kind == "file"}
    inputs = {place.path for place in index.places.values() if place.kind == "folder"}
    seen: set[str] = set()
    folders: set[str] = set()
    for member in index.members:
        path = member.path
        problem = name_problem(path) or members.member_problem(path, member.size_bytes)
        if problem:
            yield f"{_told(path)} {problem}"
        if path in seen:
            yield f"{_told(path)} comes twice"
        seen.add(path)
        above = _above(path)
        folders.update(above)
        inside = path in files or not inputs.isdisjoint(above)
        if path.startswith(f"{members.INPUTS}/") and not inside:
            yield f"{_told(path)} belongs to no input that it names"
    for path in sorted(files - seen):
        yield f"{path} is named as an input, and is not in it"
    for path in inputs:
        folders.update((path, *_above(path)))
    for both in sorted(seen & folders):
        yield f"{both} is a file and a folder"


def _above(path: str) -> list[str]:
    """The folders that a file lies in, the nearest first."""
    found = []
    while (cut := path.rfind("/")) > 0:
        path = path[:cut]
        found.append(path)
    return found


def _texts(index: Index) -> Iterable[str]:
    """What of it is shown to people; a terminal obeys control characters."""
    yield from (index.made_by, index.run, index.plan_hash, index.image or "", *index.notes)
    yield from index.places
    for lacking in index.lacks:
        yield from (lacking.what, lacking.id or "", lacking.revision or "")
        yield from (known.name for known in lacking.files)


BESIDE = "bundle.json"
"""What the index is called in a run folder."""


def read_beside(path: Path) -> Index | None:
    """The index that unbundling left in a run folder; None where the run was never in a bundle.

    Raises UsageError where it is damaged.
    """
    try:
        content = durable.read_record(path, MAX_INDEX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(
            f"{path} can't be read: {error.strerror}", "a copy of the bundle may have it whole"
        ) from None
    return parse(content, str(path.parent))


def maker_beside(path: Path) -> str:
    """Which runner the bundle says made it, of which that is left in a run folder; for people."""
    try:
        content = durable.read_record(path, MAX_INDEX_BYTES)
        for key, value in bounded.Reader(content).items(each_of="members"):
            if key == "made_by":
                return _told(value)
    except (OSError, bounded.Malformed):
        return "nobody knows whom: it is damaged"
    return _told(None)


def _told(value: object) -> str:
    """A text of somebody else's, for a message: short, and nothing that a terminal obeys."""
    if not isinstance(value, str):
        return "a runner it does not name"
    text = value if len(value) <= 200 else value[:197] + "..."
    return text if text.isprintable() else ascii(text)
