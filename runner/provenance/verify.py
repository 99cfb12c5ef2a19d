"""Whether a run folder still holds what its manifest says. Reads files; changes nothing."""

from __future__ import annotations

from pathlib import Path

from runner.plans.inputs import FileRecord
from runner.provenance.compare import Difference, Side
from runner.provenance.hashes import Hasher
from runner.provenance.image_list import read_hashes
from runner.provenance.inputs import phase_of
from runner.provenance.manifest import Manifest, read_manifest
from runner.provenance.results import logged_steps, losses_of
from runner.runs.folder import RunFolder

_WEIGHTS = "adapter_model.safetensors"


def read_side(folder: RunFolder) -> Side:
    """A run for `compare`, its steps included where its metrics are here.

    Raises RunnerError as read_manifest.
    """
    manifest = read_manifest(folder.manifest)
    steps = logged_steps(folder.metrics) if folder.metrics.is_file() else None
    images = {
        each.what: read_hashes(_list_of(folder, each))
        for each in manifest.files
        if each.kind == "images"
    }
    return Side(manifest, steps, images)


def _list_of(folder: RunFolder, images: FileRecord) -> Path:
    return folder.images(phase_of(images))


def changed_since(folder: RunFolder, side: Side, hasher: Hasher) -> list[Difference]:
    """What of the run's records was changed after its end; files that are gone are passed over."""
    manifest = side.manifest
    if not manifest.complete:
        return []
    found = []
    for name, digest in _promised(folder, manifest).items():
        path = folder.path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            text = f"{manifest.run}: its manifest names {name!a}, which is outside of the run"
            found.append(Difference("record", name, digest, None, text))
        elif path.is_file() and (now := hasher.file(path)) != digest:
            text = f"{manifest.run}: {name} was changed after the run: {digest[:12]} → {now[:12]}"
            found.append(Difference("record", name, digest, now, text))
    said = manifest.results.losses if manifest.results else None
    if side.steps is not None and losses_of(side.steps) != said:
        text = f"{manifest.run}: {folder.metrics.name} was changed after the run"
        found.append(Difference("record", folder.metrics.name, said and said.sha256, None, text))
    return found


def _promised(folder: RunFolder, manifest: Manifest) -> dict[str, str]:
    """Name in the run folder to sha256."""
    promised = dict(manifest.rendered)
    for each in manifest.files:
        if each.kind == "images" and each.sha256:
            promised[_list_of(folder, each).name] = each.sha256
    results = manifest.results
    if results and results.adapter_sha256 and results.result == folder.adapter.name:
        promised[f"{folder.adapter.name}/{_WEIGHTS}"] = results.adapter_sha256
    return promised
