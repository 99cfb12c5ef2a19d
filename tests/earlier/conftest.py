"""Runs that commit 29e1337 made (data/README.md), laid out as a user has them who upgrades."""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from runner.provenance.environment import decides
from tests.support.command import Answer, run_cli
from tests.support.workplace import Finished, Workplace

DATA = Path(__file__).with_name("data")
MADE_IN, MADE_BY = "/home/ada/work", "/home/ada/venv/bin/python"
"""Where the records say that they were made, and by which interpreter."""
BY_HASH = ("checkpoints", "tiny")
"""Known by a hash over their bytes, or (the toolkit's plan) over their paths: never rewritten."""


@dataclass(frozen=True)
class EarlierWork:
    """A user's folder with the runs of an earlier runner, and the settings of his shell."""

    folder: Path

    @property
    def completed(self) -> Path:
        return self.folder / "runs/job/20261130-210255-563a57d"

    @property
    def stopped(self) -> Path:
        """Stopped in step 22 of 160, with a checkpoint."""
        return self.folder / "runs/job/20261130-210446-4255e16"

    @property
    def script(self) -> Path:
        return self.folder / "runs/script/20261130-210547-cd520c9"

    @property
    def mgm(self) -> Path:
        """Failed in its first training; two stages before it are done."""
        return self.folder / "runs/tiny/20261130-210830-b39e122"

    @property
    def runs(self) -> list[Path]:
        return [self.completed, self.stopped, self.script, self.mgm]

    def call(self, *arguments: str) -> Answer:
        """The command line in this process."""
        return run_cli(*arguments)

    def start(self, *arguments: str) -> Finished:
        """The command line in a process of its own, for what trains."""
        return Workplace(self.folder).call(*arguments, seconds=900)


Unpack = Callable[..., EarlierWork]


@pytest.fixture
def unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unpack]:
    """Lays the records out; `moved`: without a change, as copied from another machine.

    Else every record says that it was made where it lies now, as after an upgrade in place.
    """

    def lay_out(*, moved: bool = False) -> EarlierWork:
        folder = tmp_path / "work"
        folder.mkdir()
        with tarfile.open(DATA / "work.tar.gz") as archive:
            archive.extractall(folder, filter="tar")
        if not moved:
            _rewrite(folder)
        monkeypatch.chdir(folder)
        for name in [name for name in os.environ if decides(name)]:
            monkeypatch.delenv(name)  # an engine in this process has set it
        settings = {
            "RUNNER_CACHE": tmp_path / "cache",
            "RUNNER_STATE": tmp_path / "state",
            "HF_HOME": folder / "hf",
            "HF_HUB_CACHE": folder / "hf/hub",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.delenv("RUNNER_RUNS", raising=False)
        return EarlierWork(folder)

    return lay_out


def _rewrite(work: Path) -> None:
    """Say of every record that it was made in this folder, where no hash says otherwise.

    Manifests state the sha256 of some records; these are stated anew.
    """
    hashes: dict[str, str] = {}
    for path in sorted(_texts(work), key=lambda path: path.name == "manifest.json"):
        content, times = path.read_bytes(), path.stat()
        here = content.replace(MADE_IN.encode(), str(work).encode())
        here = here.replace(MADE_BY.encode(), sys.executable.encode())
        for before, now in hashes.items():
            here = here.replace(before.encode(), now.encode())
        hashes[sha256(content).hexdigest()] = sha256(here).hexdigest()
        path.write_bytes(here)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _texts(work: Path) -> Iterator[Path]:
    """The files that name the folder in which they were made."""
    for parent, _, names in os.walk(work):
        if set(BY_HASH).isdisjoint(Path(parent).parts):
            for path in (Path(parent) / name for name in names):
                if not path.is_symlink() and MADE_IN.encode() in path.read_bytes():
                    yield path
