"""Run the container program (docker, or podman by a setting) as a process, and explain its errors.

Standard library and runner.common.errors only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from runner.common.errors import RefusedError

PROGRAM_VARIABLE = "RUNNER_CONTAINER_CLI"
"""Names another program than docker: podman, or a path."""
ASK_SECONDS = 20.0  # a daemon that is busy unpacking layers can take this long for an answer
TIMED_OUT = 124


@dataclass(frozen=True)
class Answer:
    """What one call of the program came to."""

    code: int
    """Its exit code; 124 where it did not answer in time."""
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The last line of what it said on stderr, without docker's own prefix."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        told = [line for line in lines if not line.startswith("See '")]
        last = told[-1] if told else f"exit code {self.code}"
        return re.sub(r"^(docker|Error response from daemon|Error|ERROR): ", "", last)


@dataclass(frozen=True)
class ContainerCli:
    """docker or podman, by its path."""

    program: str

    @property
    def is_podman(self) -> bool:
        return "podman" in os.path.basename(self.program)  # noqa: PTH119 - a name, not a file

    @property
    def name(self) -> str:
        """For messages."""
        return "podman" if self.is_podman else "docker"

    def argv(self, *arguments: str) -> list[str]:
        """The command line of a call."""
        return [self.program, *arguments]

    def ask(self, *arguments: str, timeout_seconds: float = ASK_SECONDS) -> Answer:
        """Run it and hand back what it said; no exit code raises."""
        try:
            done = subprocess.run(
                self.argv(*arguments),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired:
            return Answer(TIMED_OUT, "", f"no answer in {timeout_seconds:.0f} s")
        except OSError as error:
            return Answer(127, "", f"{self.program}: {error.strerror}")
        return Answer(done.returncode, done.stdout, done.stderr)

    def require(self, *arguments: str, timeout_seconds: float = ASK_SECONDS) -> str:
        """Its stdout. Raises RefusedError, with the way out, where the call fails."""
        answer = self.ask(*arguments, timeout_seconds=timeout_seconds)
        if answer.code:
            raise explain(self, answer)
        return answer.out


def find_cli() -> ContainerCli | None:
    """The program that $RUNNER_CONTAINER_CLI names, else docker; None where there is none.

    Podman is never taken unasked: its rootless containers map users and cgroups in another way.
    """
    wanted = os.environ.get(PROGRAM_VARIABLE) or "docker"
    path = shutil.which(wanted)
    return ContainerCli(path) if path else None


def require_cli() -> ContainerCli:
    """As find_cli. Raises RefusedError where there is none."""
    cli = find_cli()
    if cli is not None:
        return cli
    wanted = os.environ.get(PROGRAM_VARIABLE)
    if wanted:
        raise RefusedError(
            f"{PROGRAM_VARIABLE} is {wanted!r}, and there is no such program",
            f"unset {PROGRAM_VARIABLE} to use docker",
        )
    raise RefusedError(
        "Docker is not installed: there is no docker on PATH",
        "https://docs.docker.com/engine/install; or podman with "
        f"{PROGRAM_VARIABLE}=podman; or run on this machine itself: --on local",
    )


def explain(cli: ContainerCli, answer: Answer) -> RefusedError:
    """The refusal for a call that failed because the daemon can't be used, or for its own reason.

    The wordings are those of Docker 20.10 to 28 and Podman 4.
    """
    said = answer.err.lower()
    host = os.environ.get("DOCKER_HOST")
    at = f" at {host} (DOCKER_HOST)" if host and not cli.is_podman else ""
    if answer.code == TIMED_OUT:
        return RefusedError(
            f"{cli.name}{at} does not answer", "look at it: systemctl status docker"
        )
    if "permission denied" in said and ("docker.sock" in said or "daemon socket" in said):
        return RefusedError(
            f"no permission to use the Docker daemon{at}",
            "sudo usermod -aG docker $USER, then log in again; or rootless Docker; or --on local",
        )
    if "cannot connect" in said or "is the docker daemon running" in said or "no such host" in said:
        return RefusedError(
            f"the Docker daemon{at} is not running",
            ("check DOCKER_HOST" if at else "sudo systemctl start docker") + "; or --on local",
        )
    if "no space left on device" in said:
        return RefusedError(
            f"the disk of {cli.name}'s images is full: {answer.reason}",
            f"{cli.name} system df shows what takes it; {cli.name} image prune frees it",
        )
    return RefusedError(f"{cli.name}: {answer.reason}")
