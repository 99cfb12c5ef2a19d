"""`runner image build|list|save|load|verify`: manage the images that jobs run in."""

from __future__ import annotations

import time
from pathlib import Path

from runner.common.copy_progress import LiveLine
from runner.common.output import Output, field, table
from runner.common.units import format_bytes, format_duration
from runner.launch import images
from runner.launch.images import BuiltImage, CheckedImage, KnownImage, Step

_FIRST = 10  # differences that verify names


def build_image(
    kind: str,
    *,
    base: str | None,
    cpu: bool,
    arguments: tuple[str, ...],
    no_cache: bool,
    network: str | None,
    toolkit: Path | None,
    torch_index: str | None,
    as_json: bool,
) -> int:
    """0 once the image is there; a failure raises RefusedError."""
    out = Output(as_json=as_json)
    view = _BuildView(out)
    try:
        built = images.build_image(
            kind,
            view,
            base=base,
            cpu=cpu,
            arguments=arguments,
            no_cache=no_cache,
            network=network,
            toolkit=toolkit,
            torch_index=torch_index,
        )
    finally:
        view.close()
    known, image = built.known, built.known.image
    size = format_bytes(image.size_bytes)
    lines = [
        field("image", f"{image.name}  {image.short_id}"),
        field("size", f"{size}, built in {format_duration(built.seconds)}"),
        field("holds", _holds(built)),
        *(field("label", f"{name}={value}") for name, value in known.labels),
        field("next", f"runner image verify {image.name}"),
    ]
    seconds = round(built.seconds, 1)
    out.result(known.to_record() | {"schema_version": 1, "seconds": seconds}, lines)
    return 0


def list_all(*, as_json: bool) -> int:
    """0; prints the images that runner built."""
    found = images.known_images()
    rows = [
        [
            one.image.name,
            one.image.short_id,
            str(one.image.kind),
            format_bytes(one.image.size_bytes),
            one.image.created[:16].replace("T", " "),
            _state(one),
        ]
        for one in found
    ]
    lines = table(["IMAGE", "ID", "KIND", "SIZE", "CREATED", "STATE"], rows)
    if not rows:
        lines = ["no images of runner's here; runner image build makes one"]
    record = {"schema_version": 1, "images": [one.to_record() for one in found]}
    Output(as_json=as_json).result(record, lines)
    return 0


def save_image(path: Path, name: str | None, *, force: bool, as_json: bool) -> int:
    """0 once image and checksum are written whole; what stands in the way raises."""
    line = LiveLine()
    try:
        saved = images.save_image(path, name, line.bytes, force=force)
    finally:
        line.clear()
    record = {
        "schema_version": 1,
        **saved.known.to_record(),
        "path": str(saved.path),
        "file_bytes": saved.size_bytes,
        "sha256": saved.sha256,
    }
    size = format_bytes(saved.size_bytes)
    lines = [
        field("saved", f"{saved.known.image.name} to {saved.path}, {size}"),
        field("sha256", f"{saved.sha256}, also in {saved.checksum_file.name}"),
        field("next", f"copy both files, then: runner image load {saved.path.name}"),
    ]
    Output(as_json=as_json).result(record, lines)
    return 0


def load_image(path: Path, *, as_json: bool) -> int:
    """0 once the image is loaded; a damaged file raises RefusedError before anything is loaded."""
    out = Output(as_json=as_json)
    line = LiveLine()
    try:
        loaded = images.load_image(path, line.bytes)
    finally:
        line.clear()
    if loaded.sha256 is None:
        out.say(f"note: no {loaded.checksum_file.name} beside it: loaded unchecked")
    lines = [
        field("loaded", f"{one.image.name}  {one.image.short_id}  {_state(one)}")
        for one in loaded.images
    ]
    record = {
        "schema_version": 1,
        "path": str(path),
        "sha256": loaded.sha256,
        "images": [one.to_record() for one in loaded.images],
    }
    out.result(record, lines)
    return 0


def verify_image(name: str | None, *, as_json: bool) -> int:
    """0 where the image is what this runner's lock and code say, else 1."""
    found = images.verify_image(name)
    record = found.known.to_record() | {
        "schema_version": 1,
        "ok": found.ok,
        "compared_packages": found.packages,
        "differences": list(found.differences),
    }
    Output(as_json=as_json).result(record, _verification_lines(found))
    return 0 if found.ok else 1


def _verification_lines(found: CheckedImage) -> list[str]:
    image = found.known.image
    if found.ok:
        told = f"{found.packages} packages as {found.lock} says" if found.packages else "labels"
        return [field("ok", f"{image.name}  {image.short_id}: {told}; code and recipe as here")]
    lines = [field("differs", f"{image.name}  {image.short_id}")]
    lines += [field("", difference) for difference in found.differences[:_FIRST]]
    if len(found.differences) > _FIRST:
        lines.append(field("", f"and {len(found.differences) - _FIRST} more (--json has all)"))
    if found.rebuild_command is not None:
        lines.append(field("next", found.rebuild_command))
    return lines


def _state(known: KnownImage) -> str:
    return f"stale: {known.stale}" if known.stale else "ok"


def _holds(built: BuiltImage) -> str:
    """Ubuntu 24.04.1 LTS, Python 3.12.3, torch 2.11.0, CUDA 12.8."""
    facts = built.facts
    if facts is None:
        return f"not known, since no container can be started: {built.why_unknown}"
    torch = facts.packages.get("torch")
    parts = [facts.system or "", f"Python {facts.python}" if facts.python else ""]
    parts.append(f"torch {torch}" if torch else "")
    parts.append(f"CUDA {facts.cuda}" if facts.cuda else "CPU only" if torch else "")
    return ", ".join(part for part in parts if part) or "unknown"


class _BuildView:
    """The steps of a build, a line each as it begins; on a terminal also what it says now."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._line = LiveLine()
        self._told: set[tuple[int, int]] = set()
        self._step = ""
        self._begun = time.monotonic()

    def __call__(self, step: Step | None, line: str) -> None:
        elapsed = format_duration(time.monotonic() - self._begun)
        if step is not None and (step.number, step.of) not in self._told:
            self._told.add((step.number, step.of))
            self._step = f"step {step.number}/{step.of}"
            self._line.clear()
            what = " ".join(step.what.split())
            shown = what if len(what) <= 70 else what[:67] + "..."
            self._out.say(f"{elapsed:>5}  {self._step:<10}  {shown}")
        elif line.strip():
            self._line.draw(f"{elapsed:>5}  {self._step:<10}  {line.strip()}")

    def close(self) -> None:
        self._line.clear()
