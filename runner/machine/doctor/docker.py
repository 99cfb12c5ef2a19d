"""The Docker client, its daemon, and what hands GPUs to containers.

Imports the standard library, runner.containers and the doctor's own modules.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from runner.containers import cli as cli_module
from runner.containers import ready
from runner.containers.cli import ContainerCli
from runner.machine.doctor.check import Check
from runner.machine.doctor.gpus import Gpus
from runner.machine.doctor.host import Host
from runner.machine.doctor.masking import mask_url
from runner.machine.doctor.programs import VERSION_SECONDS, ask_program, find_version, last_line

DOCKER_SECONDS = 5.0


@dataclass(frozen=True)
class Docker:
    """The Docker client, its daemon, and what hands GPUs to containers."""

    client: str | None
    """Where the client is; None where there is none."""
    server: str | None = None
    """The daemon's version; None where it was not reached."""
    failure: str = ""
    """Why the daemon was not reached, in the client's words; "timeout" where it said nothing."""
    address: str | None = None
    """DOCKER_HOST, masked; None where it is not set."""
    rootless: bool = False
    nvidia: bool = False
    """A runtime, a CDI device or the prestart hook of NVIDIA's toolkit was found."""
    toolkit: str | None = None
    """The version of nvidia-container-toolkit on this machine."""
    is_podman: bool = False
    """`docker` is podman's stand-in."""


def ask_docker() -> Docker:
    """One question to the daemon, of at most DOCKER_SECONDS."""
    client = shutil.which("docker")
    toolkit = _toolkit()
    address = os.environ.get("DOCKER_HOST")
    masked = None if address is None else mask_url(address)
    if client is None:
        return Docker(None, toolkit=toolkit, address=masked)
    cli = ContainerCli(client)
    answer = ask_program(cli.argv(*ready.INFO), DOCKER_SECONDS)
    if answer.timed_out:
        return Docker(client, failure="timeout", address=masked, toolkit=toolkit)
    code = 127 if answer.code is None else answer.code
    told = ready.parse_info(cli_module.Answer(code, answer.out, answer.err))
    if isinstance(told, cli_module.Answer):
        said = last_line(told.err) or f"exit code {answer.code}, without a word"
        return Docker(client, failure=said, address=masked, toolkit=toolkit)
    daemon = ready.look_around(cli, *told)
    if daemon.is_podman:
        return Docker(client, server="podman", address=masked, toolkit=toolkit, is_podman=True)
    return Docker(
        client=client,
        server=daemon.version,
        address=masked,
        rootless=daemon.rootless,
        nvidia=daemon.nvidia != "none" and (daemon.nvidia != "unknown" or toolkit is not None),
        toolkit=toolkit,
    )


def _toolkit() -> str | None:
    program = shutil.which("nvidia-ctk")
    if program is None:
        return None
    return find_version(ask_program([program, "--version"], VERSION_SECONDS).out)


def docker_check(docker: Docker, host: Host) -> Check:
    if docker.client is None:
        if host.container:
            return Check("docker", "skipped", f"this is inside a container ({host.container})")
        advice = "jobs run as local processes; for containers: https://docs.docker.com/engine"
        return Check("docker", "warning", "no client on PATH", advice)
    at = f" at {docker.address} (DOCKER_HOST)" if docker.address else ""
    if docker.server and docker.is_podman:
        return Check("docker", "ok", "podman's stand-in for docker")
    if docker.server:
        kind = ", rootless" if docker.rootless else ""
        return Check("docker", "ok", f"daemon {docker.server}{at}{kind}")
    said = docker.failure.lower()
    if docker.failure == "timeout":
        found = f"the daemon{at} did not answer in {DOCKER_SECONDS:.0f} s"
        advice = "look at it: systemctl status docker"
    elif "permission denied" in said:
        found = f"no permission to use the daemon{at}"
        advice = "sudo usermod -aG docker $USER, then log in again; or rootless Docker"
    elif "cannot connect" in said or "is the docker daemon running" in said:
        found = f"the daemon{at} is not running"
        advice = "check DOCKER_HOST" if at else "sudo systemctl start docker"
    else:
        found = f"the daemon{at} can't be used: {docker.failure}"
        advice = "look at `docker info`"
    return Check("docker", "warning", found, advice)


def docker_gpu_check(docker: Docker, gpus: Gpus) -> Check:
    if not gpus.cards:
        return Check("docker gpu", "skipped", "no GPU to hand to containers")
    if not docker.server or docker.is_podman:
        return Check("docker gpu", "skipped", "no Docker daemon to ask")
    version = f"nvidia-container-toolkit {docker.toolkit}" if docker.toolkit else "NVIDIA's runtime"
    if docker.nvidia:
        return Check("docker gpu", "ok", version)
    found = "the daemon knows neither NVIDIA's runtime nor its devices"
    advice = "install nvidia-container-toolkit; sudo nvidia-ctk runtime configure; restart docker"
    return Check("docker gpu", "warning", found, advice)
