"""Fixtures of the container tests: a daemon, images, and a place to call `runner` in."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.runs.conftest import (  # noqa: F401 - fixtures
    Workplace,
    identity_rows,
    small_job,
    stories,
)
from tests.testbed.docker import (  # noqa: F401 - fixtures
    Daemon,
    build_base,
    docker_daemon,
    gpu_daemon,
    train_image,
)


@pytest.fixture(scope="session", autouse=True)
def a_daemon(request: pytest.FixtureRequest) -> None:
    """Have a daemon answer to what only asks for one; without any, those tests skip themselves."""
    with contextlib.suppress(pytest.skip.Exception):
        request.getfixturevalue("docker_daemon")


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


@pytest.fixture
def bench(docker_daemon: Daemon, tmp_path: Path) -> Iterator[Bench]:  # noqa: F811
    """On the daemon that is there, with the bare base image; nothing of a run is left after it."""
    # a name with what shells and docker's CSV mounts take for their own
    folder = tmp_path / 'it\'s, "a" $(touch pwned) place'
    folder.mkdir()
    made = Bench(Workplace(folder), docker_daemon, build_base(docker_daemon))
    yield made
    for run in (folder / "runs").glob("*/*"):
        assert made.containers(run.absolute()) == [], "a container is left"
