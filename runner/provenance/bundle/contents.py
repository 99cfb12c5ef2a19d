"""What goes into a bundle: an allow-list of a run's records, and the inputs that were asked for.

Reads the run folder and hashes inputs; writes nothing. Imports runner.provenance, runs, plans and
this package. Every input is checked against the manifest: a bundle of other files would reproduce
another run. What may leave the machine: see `input_rules` and `gather_result`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from runner.engines.inputs import parts
from runner.plans.base import Plan
from runner.provenance.bundle.gather_inputs import gather_part
from runner.provenance.bundle.gather_records import gather_records
from runner.provenance.bundle.gather_result import gather_result
from runner.provenance.bundle.gathering import Gathering, Item, plain
from runner.provenance.bundle.index import Index
from runner.provenance.bundle.index import Part as Asked
from runner.provenance.bundle.remarks import add_remarks
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import Manifest
from runner.runs.folder import RunFolder
from runner.runs.origin import origin_of

ASKED: tuple[Asked, ...] = ("data", "model", "adapter")
"""What --with can ask for."""


@dataclass(frozen=True)
class Contents:
    """All of a bundle."""

    index: Index
    items: list[Item]
    """In the order of the index's members."""


def contents(
    folder: RunFolder,
    manifest: Manifest,
    plan: Plan,
    asked: Collection[Asked],
    hasher: Hasher,
    *,
    made_by: str,
    manifest_sha256: str,
) -> Contents:
    """The members of a run's bundle, hashed, and what it will lack.

    Raises RefusedError where an input that was asked for is missing or another than the run read,
    or looks like a file of secrets; OSError.
    """
    foreign = not origin_of(folder.path).is_own
    gathered = Gathering(manifest, plan, hasher, folder.path if foreign else None)
    gather_records(gathered, folder)
    for part in parts(plan):
        gather_part(gathered, part, wanted=part.group == "code" or part.group in asked)
    if "adapter" in asked:
        gather_result(gathered, folder)
    add_remarks(gathered)
    items = sorted(gathered.items.values(), key=lambda item: item.member.path)
    box = plan.container
    index = Index(
        made_by=made_by,
        run=manifest.run,
        plan_hash=manifest.plan_hash,
        manifest_sha256=manifest_sha256,
        contains=[one for one in ASKED if one in asked],
        image=f"{box.image} {box.image_id}" if box is not None else None,
        places=gathered.places,
        lacks=gathered.lacks,
        notes=[plain(note) for note in gathered.notes],
        members=[item.member for item in items],
    )
    return Contents(index.sealed(), items)
