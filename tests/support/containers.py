"""A place to run scripts in real containers, and what such tests do again and again.

Fixtures `docker_daemon`, `gpu_daemon`, `train_image` and `bench` are tests/conftest.py's, so that
each worker has one of each; a test that uses one of them is marked `container` there.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.containers.private import SHARED_MEMORY
from tests.support.workplace import Finished, Workplace
from tests.testbed.docker import Daemon, build_base

FIXTURES = frozenset({"docker_daemon", "gpu_daemon"})
"""Who uses one of these needs Docker, and is marked `container`."""
PATIENCE_SECONDS = 600.0
"""How long something is waited for that takes a second: only what has failed takes as long."""
LONG = 3000
"""Ticks of a script that a test ends itself: ten minutes, for a machine that is busy."""

TICKS = """
trap 'echo "saved at $i"; exit 143' TERM
for ((i = 0; i < COUNT; i++)); do
  echo "tick $i"
  [[ ${GO-} && -e $GO ]] && break
  sleep 0.2 &
  wait $!
done
echo "done" | tee result.txt
"""


def pytest_itemcollected(item: pytest.Item) -> None:
    if FIXTURES & set(getattr(item, "fixturenames", ())):
        item.add_marker("container")


def ticks(count: int) -> str:
    """A script that ticks five times a second, and says what it saved when it is asked to end.

    Where its environment names a file as GO, it is done once that file is there.
    """
    return TICKS.replace("COUNT", str(count))


@dataclass(frozen=True)
class Bench:
    """A folder to call `runner` in, a daemon, and the image that scripts run in."""

    place: Workplace
    daemon: Daemon
    image: str

    def docker(self, *arguments: str) -> str:
        """The stdout of a docker command on the daemon."""
        host = ["--host", self.daemon.host] if self.daemon.host else []
        done = subprocess.run(["docker", *host, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def containers(self, run: Path) -> list[str]:
        """Ids of what is left of a run, in whatever state."""
        listed = self.docker("ps", "--all", "--quiet", "--filter", f"label=dev.runner.run={run}")
        return listed.split()

    def inspect(self, run: Path) -> dict[str, Any]:
        """The one container of a run."""
        (found,) = json.loads(self.docker("inspect", *self.containers(run)))
        return dict(found)

    def script(self, body: str, *, name: str = "job", **more: Any) -> str:
        """A job that runs `body` in bash; its file."""
        program = self.place.folder / f"{name}.sh"
        program.write_text(body)
        record = {
            "engine": "script",
            "script": program.name,
            "container": {"image": self.image, **more.pop("container", {})},
            "launch": {"on": "docker", "device": "cpu"},
            **more,
        }
        job = self.place.folder / f"{name}.yaml"
        job.write_text(json.dumps(record))
        return str(job)

    def clear(self) -> None:
        """Wait until no container of a run is left here: the last is removed after the verdict."""
        for run in (self.place.folder / "runs").glob("*/*"):
            wait_until(lambda run=run: self.containers(run.absolute()) == [])


@pytest.fixture
def bench(docker_daemon: Daemon, tmp_path: Path) -> Iterator[Bench]:
    """On the daemon that is there, with the bare base image; nothing of a run is left after it."""
    # a name with what shells and docker's CSV mounts take for their own
    folder = tmp_path / 'it\'s, "a" $(touch pwned) place'
    folder.mkdir()
    made = Bench(Workplace(folder), docker_daemon, build_base(docker_daemon))
    yield made
    for run in (folder / "runs").glob("*/*"):
        assert made.containers(run.absolute()) == [], "a container is left"


def wait_until(check: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)


def started(bench: Bench, job: str, *sets: str) -> tuple[subprocess.Popen[str], Path]:
    """A run whose script ticks, and its folder."""
    process = bench.place.start("train", job, *(part for text in sets for part in ("--set", text)))
    runs = bench.place.folder / "runs"
    found: list[Path] = []

    def begun() -> bool:
        found[:] = runs.glob("*/*")
        if found and "tick" in log(found[0]):
            return True
        assert process.poll() is None, process.communicate()
        return False

    wait_until(begun)
    return process, found[0]


def ended(process: subprocess.Popen[str], seconds: float = PATIENCE_SECONDS) -> Finished:
    """What a command said that ends by itself."""
    out, err = process.communicate(timeout=seconds)
    assert "Traceback" not in err, err
    return Finished(process.returncode, out, err)


def log(run: Path) -> str:
    path = run / "logs" / "train.log"
    return path.read_text() if path.exists() else ""


def events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def private_of(run: Path) -> list[Path]:
    """Folders in memory that the run's supervisor has made; other tests' lie beside them."""
    return private_by(json.loads((run / "supervisor.json").read_text())["pid"])


def private_by(pid: int) -> list[Path]:
    """Folders in memory that a process has made."""
    made = SHARED_MEMORY.glob(f"runner-{os.geteuid()}-*")
    return [path for path in made if path.name.split("-")[3] == str(pid)]


def supervisor_of(run: Path) -> psutil.Process:
    return psutil.Process(json.loads((run / "supervisor.json").read_text())["pid"])
