"""The smallest image there is, one static program, for tests that need a container and no more."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runner.containers.cli import ContainerCli

SOURCE = Path(__file__).with_name("tiny.c")
IMAGE = f"runner-test-tiny:{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
TEST_LABEL = "dev.runner-test.session"


def build_tiny(cli: ContainerCli, folder: Path) -> str:
    """The image's name. It stays, since a test in another process may use it; 700 KiB."""
    if cli.ask("image", "inspect", IMAGE).code == 0:
        return IMAGE
    program = folder / "tiny"
    subprocess.run(["cc", "-static", "-Os", "-s", "-o", str(program), str(SOURCE)], check=True)
    archive = folder / "tiny.tar"
    subprocess.run(["tar", "-C", str(folder), "-cf", str(archive), "tiny"], check=True)
    cli.require("import", "--change", 'ENTRYPOINT ["/tiny"]', str(archive), IMAGE)
    return IMAGE


@dataclass
class Testbed:
    """A daemon shared with other tests, of which this one sees its own containers only."""

    __test__ = False
    real: ContainerCli
    folder: Path
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def cli(self) -> ContainerCli:
        """The real program, but that `ps` lists no container of anybody else: a test that removes
        what it finds must not find its neighbour's.
        """
        wrapper = self.folder / "only-mine" / self.real.name
        if not wrapper.exists():
            wrapper.parent.mkdir()
            wrapper.write_text(
                f'#!/bin/sh\ncase "$1" in\nps) exec {self.real.program} "$@" '
                f"--filter label={TEST_LABEL}={self.session} ;;\n"
                f'*) exec {self.real.program} "$@" ;;\nesac\n'
            )
            wrapper.chmod(0o755)
        return ContainerCli(str(wrapper))

    def run(self, labels: Mapping[str, str], *command: str, verb: str = "run") -> str:
        """Start (or only create) a container with these labels; its id."""
        options = ["--detach"] if verb == "run" else []
        options += ["--network", "none", "--label", f"{TEST_LABEL}={self.session}"]
        for name, value in labels.items():
            options += ["--label", f"{name}={value}"]
        found = self.real.require(verb, *options, IMAGE, *command).strip()
        if verb == "run" and command[:1] != ("exit",):
            self.wait_for_log(found, "running")
        return found

    def wait_for_log(self, container: str, text: str) -> None:
        deadline = time.monotonic() + 600
        while text not in self.real.require("logs", container):
            assert time.monotonic() < deadline, "the container said nothing"
            time.sleep(0.02)

    def exists(self, container: str) -> bool:
        return self.real.ask("inspect", "--type", "container", container).code == 0

    def clear(self) -> None:
        """Remove what is left of this test's."""
        left = self.real.ask(
            "ps", "-aq", "--no-trunc", "--filter", f"label={TEST_LABEL}={self.session}"
        )
        for container in left.out.split():
            self.real.ask("rm", "--force", container)
        shutil.rmtree(self.folder / "only-mine", ignore_errors=True)
