"""Make a folder of runner's cache mgm/ in a temporary place and move it into place whole.

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from runner.common import durable, locks, staged_folder
from runner.common.errors import RefusedError
from runner.plans.sources import MANIFEST

_JOURNAL = ".runner-installing.json"


@contextlib.contextmanager
def alone(base: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One fetch into `base` at a time; the lock ends with its holder, however that ends."""
    base.mkdir(parents=True, exist_ok=True)
    busy = "another runner is fetching for the MGM toolkit; waiting for it"
    with locks.locked(base / ".fetch.lock", waiting=lambda: say(busy)):
        yield


@contextlib.contextmanager
def making(target: Path) -> Iterator[Path]:
    """An empty folder named as `target`, to be filled and installed; what is left of it goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.making-*"):  # of a fetch that was killed
        shutil.rmtree(left, ignore_errors=True)
    around = Path(tempfile.mkdtemp(prefix=f".{target.name}.making-", dir=target.parent))
    made = around / target.name
    made.mkdir()  # with the umask's rights: mkdtemp's own shut out a container's user
    try:
        yield made
    finally:
        shutil.rmtree(around, ignore_errors=True)


def require_free(target: Path, field: str) -> None:
    """Refuse (RefusedError) to replace a folder that no fetch has put there."""
    if target.exists() and not (target / MANIFEST).is_file():
        raise RefusedError(
            f"{target} is there, and not from runner fetch: it has no {MANIFEST}",
            f"name it in the job to use it as it is (--set {field}={target}), or move it away",
        )


def install(made: Path, target: Path, record: dict[str, object]) -> None:
    """`made` with its record becomes `target`, in place of what a fetch put there before."""
    durable.write_json(made / MANIFEST, record)
    os.sync()  # thousands of files: one call for all, before the name says that they are there
    staged_folder.replace(made, target, made.parent / "before")


def merge(made: Path, target: Path, record: dict[str, object], keep: frozenset[str]) -> None:
    """What `made` holds goes into `target`, which may hold files of other sources; record last.

    Args:
        keep: names in `target` that belong to other sources, and stay as they are.

    Raises:
        RefusedError: `target` holds something of that name that no fetch has put there.
    """
    names = sorted(entry.name for entry in made.iterdir())
    record = {**record, "entries": names}
    if not target.exists():
        install(made, target, record)
        return
    ours: set[str] = set()
    for file in (target / MANIFEST, target / _JOURNAL):
        said = durable.read_json(file)
        ours |= set(said.get("entries", [])) if isinstance(said, dict) else set()
    there = [name for name in names if (target / name).exists() and name not in keep]
    if strange := [name for name in there if name not in ours]:
        raise RefusedError(
            f"{target / strange[0]} is there, and not from runner fetch",
            "move it away, or name its folder in the job's image_folder to use it as it is",
        )
    # a kill from here on leaves some of the names: the journal lets the next fetch replace them
    durable.write_json(target / _JOURNAL, {"entries": sorted(ours | set(names))})
    (target / MANIFEST).unlink(missing_ok=True)
    os.sync()
    before = made.parent / "before"
    before.mkdir()
    for name in names:
        if name in keep and (target / name).exists():
            continue
        if (target / name).exists():
            (target / name).rename(before / name)
        (made / name).rename(target / name)
    durable.write_json(target / MANIFEST, record)
    (target / _JOURNAL).unlink()


def size_of(folder: Path) -> tuple[int, int]:
    """Files and bytes under `folder`, links not followed."""
    count = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            count += 1
            size += (Path(place) / name).lstat().st_size
    return count, size
