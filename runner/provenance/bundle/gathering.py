"""What a bundle is made of so far: its files, where inputs lie in it, and what it lacks.

Reads and hashes files; writes nothing. Imports runner.provenance, plans and this package's `index`
and `members`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from runner.common.errors import RefusedError
from runner.engines.registry import engine_of
from runner.plans.base import Plan
from runner.plans.inputs import FileRecord, Part
from runner.provenance.bundle import members
from runner.provenance.bundle.index import Known, Member, MissingInput, Placed, name_problem
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import Manifest

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Item:
    """A file on its way into a bundle."""

    member: Member
    source: Path
    content: bytes | None = None
    """In place of the source's, where secrets were struck out of it."""


@dataclass
class Gathering:
    """All that goes into a bundle, as it is gathered."""

    manifest: Manifest
    plan: Plan
    hasher: Hasher
    foreign: Path | None = None
    """The folder of a run that came in a bundle: who made that chose where its inputs lie."""
    items: dict[str, Item] = field(default_factory=dict)
    places: dict[str, Placed] = field(default_factory=dict)
    lacks: list[MissingInput] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    known: dict[tuple[str, str], Placed] = field(default_factory=dict)
    """(path here, kind) to where it already lies in the bundle."""

    def add(self, name: str, source: Path, *, content: bytes | None = None) -> Member:
        """Take a file along under `name`, hashed; `content` in place of what is in it.

        Raises RefusedError for a name that no bundle may hold; OSError.
        """
        if problem := name_problem(name):
            raise RefusedError(
                f"{source} can't go into a bundle: its name {problem}: {name!a}",
                "give it a plain name and run anew, or leave it out of --with",
            )
        if content is None:
            size, digest = source.stat().st_size, self.hasher.file(source)
        else:
            size, digest = len(content), hashlib.sha256(content).hexdigest()
        member = Member(
            path=name,
            size_bytes=size,
            sha256=digest,
            executable=self.starts(source),
        )
        self.items[name] = Item(member, source, content)
        return member

    def starts(self, source: Path) -> bool:
        """Whether the plan starts this very file; nothing else of a bundle is executable."""
        return engine_of(self.plan).starts(self.plan, source)

    def slot(self, what: str) -> str:
        """A new folder of the bundle for an input."""
        base = (
            f"{members.INPUTS}/{_UNSAFE.sub('_', what.replace(': ', '.')).strip('._-') or 'input'}"
        )
        taken = {"/".join(PurePosixPath(name).parts[:2]) for name in self.items}
        number, name = 1, base
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        return name

    def require(self, record: FileRecord, digest: str) -> None:
        """That a file is the one that the run read, where that is known."""
        if record.sha256 is None:
            self.notes.append(
                f"{record.what} was not hashed by the run; it is bundled as it is now"
            )
        elif record.sha256 != digest:
            raise RefusedError(
                f"{record.what}: {record.path} is another file than the run read: sha256 "
                f"{record.sha256[:12]} → {digest[:12]}",
                "put the file back as it was, or leave it out of --with",
            )

    def lack(self, part: Part) -> None:
        """Note a part that the bundle will lack, with all that is known of it."""
        record, files = record_of(self.manifest, part.what), []
        if record is not None:
            name = part.id or (Path(part.path).name if part.path else record.what)
            if record.kind == "images":
                name = "images that rows name"
            files = [Known(name=plain(name), sha256=record.sha256, size_bytes=record.size_bytes)]
        files += [
            Known(
                name=plain(each.what.removeprefix(part.what + "/")),
                sha256=each.sha256,
                size_bytes=each.size_bytes,
            )
            for each in self.manifest.files
            if each.what.startswith(part.what + "/")
        ]
        self.lacks.append(
            MissingInput(
                what=part.what,
                group=part.group,
                id=part.id,
                revision=part.revision,
                files=files,
            )
        )


def record_of(manifest: Manifest, what: str) -> FileRecord | None:
    """The manifest's record of an input; None where it has none."""
    return next((each for each in manifest.files if each.what == what), None)


def plain(text: str) -> str:
    """A text that a terminal shows and does not obey."""
    return text if text.isprintable() else ascii(text)
