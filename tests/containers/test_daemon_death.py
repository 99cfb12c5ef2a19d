"""dockerd is killed under a run: what is known of the run stays known, and nothing is left of it.

On a daemon that is there for this alone, so that nobody else's containers are touched, and a
restart that fails fails here only.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.containers.images import find_image
from tests.support.containers import LONG, Bench, ended, events, log, started, ticks, wait_until
from tests.support.workplace import Workplace, termination
from tests.testbed.docker import (
    FOLDER,
    Daemon,
    bring,
    build_base,
    kill_daemon,
    own_daemon,
    start_again,
)

MORTAL = FOLDER.with_name(f"{FOLDER.name}-mortal")

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def mortal(docker_daemon: Daemon) -> Iterator[tuple[Daemon, str]]:
    """The daemon that is killed, with the base image."""
    image = find_image(docker_daemon.cli, build_base(docker_daemon))
    assert image is not None
    with own_daemon(MORTAL) as daemon:
        bring(image, daemon)
        yield daemon, image.name


@pytest.fixture
def far(
    mortal: tuple[Daemon, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A bench on it; it is there again afterwards."""
    daemon, name = mortal
    daemon.use(monkeypatch)
    bench = Bench(Workplace(tmp_path), daemon, name)
    yield bench
    if daemon.cli.ask("version").code:
        start_again(MORTAL)
    for run in (tmp_path / "runs").glob("*/*"):
        wait_until(lambda run=run: bench.containers(run.absolute()) == [])


def test_a_run_outlives_the_death_of_dockerd(far: Bench) -> None:
    go = far.place.folder / "go"
    process, run = started(far, far.script(ticks(LONG), environment={"GO": str(go)}))
    kill_daemon(MORTAL)
    go.touch()
    ended(process)
    end = termination(run)
    # the script did all it had to, but nobody was there to hear its exit code
    assert log(run).splitlines()[-1] == "done"
    assert (run / "output" / "result.txt").exists()
    assert end["reason"] == "failed" and "daemon was gone" in end["message"]
    told = " ".join(str(event["text"]) for event in events(run) if event["kind"] == "warning")
    assert "lost its container" in told
    assert "could not be removed" in told and "runner doctor --fix" in told


def test_a_run_can_be_stopped_while_dockerd_is_dead(far: Bench) -> None:
    process, run = started(far, far.script(ticks(LONG)))
    kill_daemon(MORTAL)
    process.send_signal(signal.SIGINT)
    done = ended(process)
    end = termination(run)
    assert (end["reason"], done.code) == ("stopped", 130)
    assert log(run).splitlines()[-1].startswith("saved at ")


def test_a_restarted_dockerd_ends_the_run_and_the_verdict_says_so(far: Bench) -> None:
    process, run = started(far, far.script(ticks(LONG)))
    kill_daemon(MORTAL)
    start_again(MORTAL)
    ended(process)
    end = termination(run)
    assert end["reason"] == "failed"
    assert log(run).splitlines()[-1].startswith(("tick ", "saved at "))
    assert json.loads((run / "container.json").read_text())["name"]
