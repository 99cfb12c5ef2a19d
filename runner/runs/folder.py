"""RunFolder: one run's folder, and what is written and asked in it by the names of its files.

Imports the standard library, runner.common and this package's `origin` and `paths`; judges nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.common import durable, locks
from runner.runs import origin
from runner.runs.paths import RunPaths

_NUMBER = re.compile(r"^[1-9][0-9]{0,8}$")


@dataclass(frozen=True)
class RunFolder(RunPaths):
    """One run's folder and the names of all that lies in it; what is written in it, by them."""

    def is_ended(self) -> bool:
        """Whether nothing more comes of it: an outcome is there, or it ended on another machine."""
        return durable.is_there(self.termination) or durable.is_there(self.bundle)

    def is_supervised(self) -> bool:
        """Whether a supervisor holds the lock, in whatever container or namespace this is asked."""
        return locks.is_locked(self.lock)

    def try_lock(
        self, *, patience_seconds: float = 0.0, on_lost: Callable[[str], None] | None = None
    ) -> locks.Held | None:
        """Take the lock, as runner.common.locks.try_lock does; None where another has it.

        What was put in its place and is none is moved aside. Raises OSError.
        """
        if self.is_there(self.lock_lease) and not self.is_folder(self.lock_lease):
            self.remove(self.lock_lease)
        return locks.try_lock(
            self.lock,
            opening=lambda: self.open_lock(self.lock),
            patience_seconds=patience_seconds,
            on_lost=on_lost,
        )

    def write_rendered(self, files: Mapping[str, str]) -> None:
        """Write the files that a plan was rendered to, each whole; the plan itself last, sealed.

        Where no seal can be made (runner.runs.origin), the run is foreign from then on. Raises
        OSError.
        """
        if self.plan.name in files:
            with contextlib.suppress(origin.SealError):
                origin.seal(self.path, files[self.plan.name].encode())
        for name in sorted(files, key=lambda one: one == self.plan.name):
            mode = 0o755 if name.endswith(".sh") else 0o644
            self.write_file(self.path / name, files[name], mode=mode)

    def set_aside(self, paths: Iterable[Path]) -> Path | None:
        """Move an earlier start's files to earlier/N, so that nothing is overwritten.

        Returns that folder, or None where there was nothing to move.
        """
        existing = [path for path in paths if self.is_there(path) and not self._is_bare(path)]
        if not existing:
            return None
        self.make_folder(self.earlier)
        target = self.earlier / str(1 + max(numbers(self.names(self.earlier)), default=0))
        self.make_new_folder(target)
        for path in existing:
            self.move(path, target / path.name)
        return target

    def _is_bare(self, path: Path) -> bool:
        return self.is_folder(path) and not self.names(path)


def numbers(names: Iterable[str]) -> list[int]:
    """Those of a folder's names that runner gave: 1, 2, ..., in no order."""
    return [int(name) for name in names if _NUMBER.match(name)]
