"""`runner image build|list|save|load|verify`: manage the images that jobs run in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from runner.common.copy_progress import LiveLine
from runner.common.errors import RefusedError, UsageError
from runner.common.output import Output, field, table
from runner.common.units import format_bytes, format_duration
from runner.containers import archive, context
from runner.containers.build import Request, Step, build
from runner.containers.cli import require_cli
from runner.containers.images import (
    Image,
    Verification,
    default_name,
    image_facts,
    list_images,
    require_image,
    stale,
    verify,
)

_FIRST = 10  # differences that verify names


def build_image(request: Request, *, as_json: bool) -> int:
    """0 once the image is there; a failure raises RefusedError."""
    out = Output(as_json=as_json)
    cli = require_cli()
    view = _BuildView(out)
    begun = time.monotonic()
    try:
        image = build(cli, request, view)
    finally:
        view.close()
    seconds = time.monotonic() - begun
    try:
        facts = image_facts(cli, image)
        holds = _holds(facts.system, facts.python, facts.packages.get("torch"), facts.cuda)
    except RefusedError as error:  # it is built all the same
        holds = f"not known, since no container can be started: {error.message}"
    lines = [
        field("image", f"{image.name}  {image.short_id}"),
        field("size", f"{format_bytes(image.size_bytes)}, built in {format_duration(seconds)}"),
        field("holds", holds),
        *(field("label", f"{name}={value}") for name, value in _ours(image)),
        field("next", f"runner image verify {image.name}"),
    ]
    out.result(_record(image) | {"schema_version": 1, "seconds": round(seconds, 1)}, lines)
    return 0


def list_all(*, as_json: bool) -> int:
    """0; prints the images that runner built."""
    out = Output(as_json=as_json)
    cli = require_cli()
    images = list_images(cli)
    records = [_record(image) for image in images]
    rows = [
        [
            str(record["name"]),
            image.short_id,
            str(record["kind"]),
            format_bytes(image.size_bytes),
            image.created[:16].replace("T", " "),
            _state(image),
        ]
        for image, record in zip(images, records, strict=True)
    ]
    lines = table(["IMAGE", "ID", "KIND", "SIZE", "CREATED", "STATE"], rows)
    if not rows:
        lines = ["no images of runner's here; runner image build makes one"]
    out.result({"schema_version": 1, "images": records}, lines)
    return 0


def save_image(path: Path, name: str | None, *, force: bool, as_json: bool) -> int:
    """0 once image and checksum are written whole; what stands in the way raises."""
    out = Output(as_json=as_json)
    cli = require_cli()
    image = require_image(cli, name or default_name("train"))
    line = LiveLine()
    try:
        saved = archive.save(
            cli,
            image,
            path,
            force=force,
            progress=line.bytes("saving", image.size_bytes),
        )
    finally:
        line.clear()
    record = {
        "schema_version": 1,
        **_record(image),
        "path": str(saved.path),
        "file_bytes": saved.size_bytes,
        "sha256": saved.sha256,
    }
    lines = [
        field("saved", f"{image.name} to {saved.path}, {format_bytes(saved.size_bytes)}"),
        field("sha256", f"{saved.sha256}, also in {archive.checksum_file(saved.path).name}"),
        field("next", f"copy both files, then: runner image load {saved.path.name}"),
    ]
    out.result(record, lines)
    return 0


def load_image(path: Path, *, as_json: bool) -> int:
    """0 once the image is loaded; a damaged file raises RefusedError before anything is loaded."""
    out = Output(as_json=as_json)
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    cli = require_cli()
    size = path.stat().st_size
    line = LiveLine()
    try:
        checked = archive.check(path, line.bytes("checking", size))
        names = archive.load(cli, path, line.bytes("loading", None))
    finally:
        line.clear()
    images = [require_image(cli, name) for name in names]
    if checked is None:
        out.say(f"note: no {archive.checksum_file(path).name} beside it: loaded unchecked")
    lines = [
        field("loaded", f"{image.name}  {image.short_id}  {_state(image)}") for image in images
    ]
    record = {
        "schema_version": 1,
        "path": str(path),
        "sha256": checked,
        "images": [_record(image) for image in images],
    }
    out.result(record, lines)
    return 0


def verify_image(name: str | None, *, as_json: bool) -> int:
    """0 where the image is what this runner's lock and code say, else 1."""
    out = Output(as_json=as_json)
    cli = require_cli()
    image = require_image(cli, name or default_name("train"))
    found = verify(cli, image)
    record = _record(image) | {
        "schema_version": 1,
        "ok": found.ok,
        "compared_packages": found.packages,
        "differences": list(found.differences),
    }
    out.result(record, _verification_lines(found))
    return 0 if found.ok else 1


def _verification_lines(found: Verification) -> list[str]:
    image = found.image
    if found.ok:
        lock = image.labels.get(context.LOCK_FILE)
        told = f"{found.packages} packages as {lock} says" if found.packages else "labels"
        return [field("ok", f"{image.name}  {image.short_id}: {told}; code and recipe as here")]
    lines = [field("differs", f"{image.name}  {image.short_id}")]
    lines += [field("", difference) for difference in found.differences[:_FIRST]]
    if len(found.differences) > _FIRST:
        lines.append(field("", f"and {len(found.differences) - _FIRST} more (--json has all)"))
    if image.kind in context.KINDS:
        how = " --cpu" if image.labels.get(context.LOCK_FILE) == "train-cpu.lock" else ""
        if index := image.labels.get(context.TORCH_INDEX):
            how = f" --torch-index {index}"
        lines.append(field("next", f"runner image build {image.kind}{how}"))
    return lines


def _record(image: Image) -> dict[str, Any]:
    return {
        "name": image.name,
        "id": image.id,
        "kind": image.kind,
        "size_bytes": image.size_bytes,
        "created": image.created,
        "stale": stale(image),
        "labels": dict(_ours(image)),
    }


def _state(image: Image) -> str:
    reason = stale(image)
    return f"stale: {reason}" if reason else "ok"


def _ours(image: Image) -> list[tuple[str, str]]:
    prefixes = ("dev.runner.", "org.opencontainers.image.")
    return sorted((k, v) for k, v in image.labels.items() if k.startswith(prefixes))


def _holds(system: str | None, python: str | None, torch: str | None, cuda: str | None) -> str:
    parts = [system or "", f"Python {python}" if python else "", f"torch {torch}" if torch else ""]
    parts.append(f"CUDA {cuda}" if cuda else "CPU only" if torch else "")
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
