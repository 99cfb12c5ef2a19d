"""What of the host a run's container sees: each path at its own place. Pure.

Every path has the same name inside as outside, so that the launch script is the very same.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from runner.plans.base import Plan, PlannedMount
from runner.plans.container.argv import HOME

TAKEN = ("/", "/tmp", "/opt", "/usr/bin", "/usr/local/bin", "/bin", HOME)  # noqa: S108
"""Folders that every container has itself: one of the host's is not laid over them."""


PREPARED = "prepared"
"""Of the cache: the rows that a training prepares, and all that it may write there."""


def run_mounts(
    plan: Plan,
    read: Iterable[PlannedMount],
    run_folder: Path | None,
    cache: Path,
    *,
    run_writable: bool = True,
    own_mounts: bool = True,
    prepares_rows: bool = False,
) -> list[PlannedMount]:
    """The mounts of a run, each target once; a run folder of None is for what runs before it.

    Args:
        read: what the run reads, as its engine says.
        cache: runner's cache, read-only but for the prepared rows of a run that is to write.
        run_writable: False for what only reads a run's result.
        own_mounts: whether container.mounts of the plan count; not those of a foreign record.
        prepares_rows: whether the run writes prepared rows into the cache.
    """
    found: dict[str, PlannedMount] = {}

    def add(path: Path, *, readonly: bool = True, target: str | None = None) -> None:
        mount = PlannedMount(source=str(path), target=target or str(path), readonly=readonly)
        earlier = found.get(mount.target)
        if earlier is None or (earlier.readonly and not readonly):
            found[mount.target] = mount

    for mount in read:
        add(Path(mount.source), readonly=mount.readonly, target=mount.target)
    if run_folder is not None:
        add(run_folder, readonly=not run_writable)
    for mount in plan.container.mounts if plan.container and own_mounts else []:
        add(Path(mount.source), readonly=mount.readonly, target=mount.target)
    mounts = {
        target: mount
        for target, mount in found.items()
        # what lies in the cache comes with it, where it comes at all
        if not mount.readonly or cache not in Path(target).parents or str(cache) not in found
    }
    if prepares_rows and run_folder is not None and run_writable:
        prepared = str(cache / PREPARED)
        mounts[prepared] = PlannedMount(source=prepared, target=prepared, readonly=False)
    return [mounts[target] for target in sorted(mounts)]
