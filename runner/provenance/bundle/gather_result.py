"""What a run trained, as far as it goes into a bundle.

Imports runner.provenance, runs and this package. A container wrote it: no link is followed out of a
result's folder, and no code leaves with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runner.common.errors import RefusedError
from runner.provenance.bundle import members
from runner.provenance.bundle.gathering import Gathering
from runner.provenance.bundle.input_rules import refuse_secrets
from runner.provenance.hashes import files_in
from runner.runs.folder import RunFolder

_PROJECTOR = "projector.safetensors"
"""What a training of an image-text model hands on, beside or before an adapter."""


def gather_result(gathered: Gathering, folder: RunFolder) -> None:
    """What was trained: adapter, model of method full, a script's output, projectors.

    A container wrote it: a link that leads out of it, and code among weights, stay here.
    """
    name = gathered.manifest.results.result if gathered.manifest.results else None
    place = folder.path / (name or "")
    inside = folder.path in place.parents and place.is_dir()
    files = dict.fromkeys(sorted(files_in(place)), place) if inside else {}
    single = [*folder.path.glob(_PROJECTOR), *folder.phases.glob(f"*/{_PROJECTOR}")]
    files |= {file: file for file in single}
    listed = [{"what": each.what} for each in gathered.manifest.files]
    known = {"files": listed, "plan": gathered.manifest.plan}
    taken = []
    for file, within in files.items():
        path = file.relative_to(folder.path).as_posix()
        refuse_secrets("adapter", "adapter", file, place)
        problem = _result_problem(folder, path, within, known)
        if problem is None:
            taken.append((path, file))
        else:
            gathered.notes.append(f"{path} {problem}: it is left out")
    if not taken:
        raise RefusedError(
            f"{gathered.manifest.run} has nothing here that it trained",
            "leave adapter out of --with",
        )
    for path, file in taken:
        gathered.add(path, file)


def _result_problem(
    folder: RunFolder, path: str, within: Path, manifest: Mapping[str, object]
) -> str | None:
    """Why a file of a result stays here; None where it is one and may go."""
    top = folder.path.resolve() / within.relative_to(folder.path)
    if not (folder.path / path).resolve().is_relative_to(top):
        return f"is a link that leads out of {within.name}"
    if members.is_left_out(path):
        return "is a pickle"
    if [*members.unlisted([path], {}, manifest)]:
        return "is code, and the manifest does not list it as the model's"
    return members.member_problem(path, 0)
