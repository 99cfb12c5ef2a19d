"""Find two runs, read and compare their manifests, and check these against their folders."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from runner.common.caches import cache_folder
from runner.common.errors import UsageError
from runner.provenance.compare import Difference, Side, differences, first_of
from runner.provenance.hashes import Hasher
from runner.provenance.verify import changed_since, read_side
from runner.runs.find import find_run
from runner.runs.folder import RunFolder


@dataclass(frozen=True)
class Compared:
    """Two runs, and in what they differ."""

    one: Side
    other: Side
    found: list[Difference]
    steps: int | None = None
    """Only so far; None is the whole run."""

    @property
    def first(self) -> Difference | None:
        return first_of(self.found)

    def record(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "schema_version": 1,
            "run": self.one.manifest.run,
            "other": self.other.manifest.run,
            "identical": self.first is None,
            "steps": self.steps,
            "first": asdict(self.first) if self.first else None,
            "differences": [asdict(each) for each in self.found],
        }


def manifest_folder(text: str, root: Path) -> RunFolder:
    """The folder of a RUN, or one that holds a manifest.json and nothing else, or that file."""
    path = Path(text)
    if path.is_file() and path.name == "manifest.json":
        return RunFolder(path.absolute().parent)
    if text != "@last" and (path / "manifest.json").is_file():
        return RunFolder(path.absolute())
    return find_run(text, root)


def compare(one: RunFolder, other: RunFolder, *, steps: int | None = None) -> Compared:
    """Both runs, and whether their folders still hold what they promise.

    Raises RunnerError where a manifest is missing or damaged, UsageError where both are one.
    """
    if one.path.resolve() == other.path.resolve():
        raise UsageError(f"{one.name} is compared with itself", "name another run")
    sides = read_side(one), read_side(other)
    hasher = Hasher(cache_folder() / "hashes")
    changed = [
        each
        for folder, side in zip((one, other), sides, strict=True)
        for each in changed_since(folder, side, hasher)
    ]
    return Compared(*sides, [*changed, *differences(*sides, steps=steps)], steps)
