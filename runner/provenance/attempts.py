"""The attempts that a recovery left behind, as the manifest names them. Reads attempts/N only.

Imports runner.runs.folder, runner.runs.records and the manifest's models.
"""

from __future__ import annotations

from runner.common import durable
from runner.common.errors import RunnerError
from runner.engines.render import read_any_plan
from runner.plans.base import Plan
from runner.provenance.compare import settings_of
from runner.provenance.manifest import Attempt
from runner.runs.folder import RunFolder
from runner.runs.records import read_outcome


def attempts_of(folder: RunFolder, last: Plan, notes: list[str]) -> list[Attempt]:
    """Every attempt before the last, in order: its plan, what was changed after it, its end.

    What of it can't be read becomes a note.
    """
    plans: list[tuple[int, Plan]] = []
    for number in _numbers(folder):
        try:
            plans.append((number, read_any_plan(RunFolder(folder.attempt(number)).plan)))
        except RunnerError as error:
            notes.append(f"attempt {number} is not known: {error.message}")
    nexts = [*(plan for _, plan in plans[1:]), last]
    found = []
    for (number, plan), then in zip(plans, nexts, strict=False):
        end = read_outcome(RunFolder(folder.attempt(number))) or {}
        found.append(
            Attempt(
                number=number,
                plan_hash=plan.hash,
                changed=_changed(plan, then),
                reason=str(end.get("reason") or "not known"),
                message=str(end.get("message") or ""),
                steps=end.get("steps") or 0,
                checkpoint=end.get("checkpoint"),
                peak_bytes=end.get("peak_bytes"),
            )
        )
    return found


def _numbers(folder: RunFolder) -> list[int]:
    found = durable.entries(folder.attempts)
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def _changed(plan: Plan, then: Plan) -> dict[str, list[object]]:
    """Dotted field to what it was and what it became."""
    ours, theirs = (settings_of(each.model_dump(mode="json")) for each in (plan, then))
    names = dict.fromkeys([*ours, *theirs])
    return {
        name: [ours.get(name), theirs.get(name)]
        for name in names
        if ours.get(name) != theirs.get(name)
    }
