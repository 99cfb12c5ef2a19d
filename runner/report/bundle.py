"""What a bundle holds and what it lacks, in words. Pure."""

from __future__ import annotations

from runner.common.output import field
from runner.common.units import format_bytes
from runner.provenance.bundle.index import Index, MissingInput


def what_it_holds(index: Index) -> str:
    """The run's records, data.train: 12 files, 3.1 MiB."""
    inputs = sorted({what.rpartition(": ")[2] for what in index.places})
    parts = ["the run's records", *inputs, *(["adapter"] if "adapter" in index.contains else [])]
    size = format_bytes(index.size_bytes)
    return f"{', '.join(parts)}: {len(index.members)} files, {size}"


def what_is_lacking(index: Index) -> list[str]:
    """What a person has to bring, a line each."""
    lines = [field("lacks", lacking_line(lacking)) for lacking in index.lacks]
    if index.image is not None:
        name, _, digest = index.image.partition(" ")
        lines.append(
            field("image", f"{name} {digest[:19]}: runner image save and load bring it along")
        )
    return lines


def lacking_line(lacking: MissingInput) -> str:
    """data.train: rows.jsonl, 12 KiB, sha256 0123456789ab."""
    known = lacking.files
    name = lacking.id and lacking.id + (f"@{lacking.revision}" if lacking.revision else "")
    largest = max(known, key=lambda each: each.size_bytes or 0, default=None)
    if largest is None:
        return f"{lacking.what}: {name or 'not hashed by the run'}"
    size = sum(each.size_bytes or 0 for each in known)
    few = len(known) == 1
    parts = [name] if name else []
    parts.append(largest.name if few and not name else f"{len(known)} files" if not few else "")
    parts.append(format_bytes(size))
    digest = (largest.sha256 or "unknown")[:12]
    parts.append(f"sha256 {digest}" if few else f"{largest.name} sha256 {digest}")
    return f"{lacking.what}: {', '.join(part for part in parts if part)}"
