"""Decide which parts of a recorded plan a command trusts (docs/security.md).

Pure. Imports the plans and runner.runs.origin. The plan of a foreign run is only data: nothing in
it that would run programs, open this machine or send anything out is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from runner.common.errors import RefusedError
from runner.engines.base import CODE_FLAG
from runner.engines.registry import engine_of
from runner.plans.base import Plan
from runner.runs.origin import Origin

FLAG = CODE_FLAG


@dataclass(frozen=True)
class TakenPlan:
    """A recorded plan as a command uses it."""

    plan: Plan
    left_off: tuple[str, ...] = ()
    """What of it was not taken, in words."""


def take_plan(
    plan: Plan,
    origin: Origin,
    *,
    program: str | None,
    python: str,
    code: bool,
    whole: bool,
) -> TakenPlan:
    """The plan as far as its run's origin lets it be taken.

    Args:
        program: docker or podman of this machine, which starts any container.
        python: the interpreter for a foreign run without a container.
        code: this command says FLAG.
        whole: the run is to be repeated: an own run keeps its mounts and arguments. A command that
            only asks its result needs neither.
    """
    said: list[str] = []
    changes: dict[str, object] = {"on_end": None}
    box = plan.container
    if box is not None:
        keep = whole and origin.is_own
        if whole and not keep:
            said += [
                f"container.{name}: {', '.join(values)}"
                for name, values in (
                    ("mounts", [f"{one.source} at {one.target}" for one in box.mounts]),
                    ("arguments", box.arguments),
                    ("environment", box.environment),
                    ("secrets", box.secrets),
                )
                if values
            ]
            if box.network != "none":
                said.append(f"container.network: {box.network}, it is none")
        bare: dict[str, object] = {
            "mounts": [],
            "arguments": [],
            "environment": [],
            "secrets": [],
            "network": "none",
        }
        changes["container"] = box.model_copy(
            update={"program": program or box.program, **({} if keep else bare)}
        )
    if not origin.is_own:
        engine = engine_of(plan)
        if box is None and plan.python != python and not engine.has_own_python:
            changes["python"] = python
        left = engine.leave_off(plan, allows_code=code, whole=whole)
        changes |= left.changes
        said += left.said
    return TakenPlan(plan.model_copy(update=changes), tuple(said))


def require_code_allowed(plan: Plan, origin: Origin, name: str, *, code: bool) -> None:
    """Refuse to repeat a foreign run that is code itself, unless this command allows it.

    Raises RefusedError.
    """
    if origin.is_own or code:
        return
    runs = engine_of(plan).code_of(plan)
    if runs is not None:
        where = "with all that you may" if plan.container is None else "in a container"
        raise RefusedError(
            f"{name} {origin.why}, and reproducing it runs {runs}, {where}",
            f"read it first; {FLAG} then runs it",
        )
