"""What a plan of a user's own script reads: the script, and the inputs that the job names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runner.engines.script.plan import ScriptPlan
from runner.plans.base import PlannedMount
from runner.plans.container.mounts import TAKEN
from runner.plans.inputs import FileRecord, Key, Part


def input_files(plan: ScriptPlan) -> list[FileRecord]:
    """The script and its inputs; folders are known by their paths alone."""
    read = [("script", plan.script)]
    read += [(f"inputs.{i}", each) for i, each in enumerate(plan.inputs)]
    return [
        FileRecord(
            what=what,
            path=each.path,
            kind=each.kind,
            sha256=each.sha256,
            size_bytes=each.size_bytes,
        )
        for what, each in read
    ]


def parts(plan: ScriptPlan) -> list[Part]:
    """The script and its inputs by their paths."""
    found = [Part("script", "code", plan.script.path, (("script", "path"),))]
    for number, each in enumerate(plan.inputs):
        key: Key = ("inputs", number, "path")
        found.append(Part(f"inputs.{number}", "data", each.path, (key,)))
    return found


def mounts(plan: ScriptPlan) -> Iterator[PlannedMount]:
    """The script with what lies beside it, and its inputs."""
    script = Path(plan.script.path)
    # not where the container has a folder of its own at that place
    alone = str(script.parent) in TAKEN and plan.workdir != "source"
    place = str(script if alone else script.parent)
    yield PlannedMount(source=place, target=place, readonly=plan.workdir != "source")
    for source in plan.inputs:
        yield PlannedMount(source=source.path, target=source.path)
