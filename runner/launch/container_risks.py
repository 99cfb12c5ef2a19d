"""Find the settings of a job that weaken its container's protections; refuse them without
--unsafe-container. Looks where paths lead; starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.common.caches import cache_folder
from runner.common.errors import Problem, SpecError
from runner.containers.options import undoing_arguments
from runner.engines.mounts import plan_mounts
from runner.plans.base import Plan, PlannedMount
from runner.plans.container.host_paths import Host, exposed, this_host

FLAG = "--unsafe-container"
_WAY = f"{FLAG} on the command line, where that is what you want"


def undoing(
    plan: Plan, *, where: str, runs: Path, sources: Mapping[str, str] | None = None
) -> list[Problem]:
    """Each argument and mount of the plan's container that undoes what closes it; none without one.

    Args:
        where: the job's file, or the run, to be named.
        runs: the folder of the runs.
        sources: where each field was said, by its dotted name.
    """
    if plan.container is None:
        return []
    mounts = plan_mounts(plan, None, cache_folder())
    real = {mount.source: Path(os.path.realpath(mount.source)) for mount in mounts}
    host = this_host(runs, list(real.values()))
    told = sources or {}
    return [
        *_arguments(plan.container.arguments, _said("container.arguments", told, where)),
        *(
            _mount(mount, why, _field(mount, plan), told, where)
            for mount in mounts
            if not _whole_home(mount, plan)
            and (why := _why(mount, real[mount.source], host)) is not None
        ),
    ]


def seen_whole(plan: Plan) -> list[str]:
    """Home folders that a container reads whole since the script or the rows lie in them, in words.

    That is no trap of a job's author but a place that its user has chosen.
    """
    if plan.container is None:
        return []
    mounts = plan_mounts(plan, None, cache_folder())
    return [
        f"the container can read all of {mount.source}, where the "
        f"{'script lies' if _field(mount, plan) == 'script' else 'rows lie'}: a folder of its own "
        "keeps the rest from it"
        for mount in mounts
        if _whole_home(mount, plan)
    ]


def require_safe(
    plan: Plan,
    *,
    where: str,
    runs: Path,
    allowed: bool,
    sources: Mapping[str, str] | None = None,
) -> None:
    """Refuse a container that is not closed, unless this very command allows it.

    Raises:
        SpecError: with each argument and mount, what is harmless, and the way out.
    """
    found = [] if allowed else undoing(plan, where=where, runs=runs, sources=sources)
    if found:
        raise SpecError(found)


def _arguments(words: Sequence[str], where: str) -> list[Problem]:
    return [
        Problem(
            where,
            f"container.arguments.{one.position}",
            f"{one.why}; it needs {_WAY}",
            one.words,
            one.expected,
            one.nearest,
        )
        for one in undoing_arguments(words)
    ]


def _mount(
    mount: PlannedMount, why: str, field: str, told: Mapping[str, str], where: str
) -> Problem:
    return Problem(
        _said(field, told, where),
        field,
        f"{why}; the container would see it; it needs {_WAY}",
        f"{mount.source} ({'read-only' if mount.readonly else 'writable'})",
        "a folder of data, read-only where it is only read",
    )


def _whole_home(mount: PlannedMount, plan: Plan) -> bool:
    beside = mount.readonly and _field(mount, plan) in ("script", "data")
    return beside and os.path.realpath(mount.source) == os.path.realpath(Path.home())


def _why(mount: PlannedMount, real: Path, host: Host) -> str | None:
    own = Path(os.path.realpath(cache_folder()))
    if mount.readonly and (real == own or own in real.parents):
        return None  # it comes with every run, read-only
    return exposed(real, writable=not mount.readonly, host=host)


def _field(mount: PlannedMount, plan: Plan) -> str:
    """Of the job, by which the path came into the container."""
    named = plan.container.mounts if plan.container else []
    for number, one in enumerate(named):
        if one.source == mount.source and one.target == mount.target:
            return f"container.mounts.{number}"
    script = getattr(getattr(plan, "script", None), "path", "")
    if script and mount.source in (script, str(Path(script).parent)):
        return "workdir" if not mount.readonly else "script"
    for number, one in enumerate(getattr(plan, "inputs", [])):
        if one.path == mount.source:
            return f"inputs.{number}"
    return "data"


def _said(field: str, told: Mapping[str, str], where: str) -> str:
    while field:
        if field in told:
            return told[field]
        field = field.rpartition(".")[0]
    return where
