"""What a job would have done to this machine, in words: a job file is a program.

Pure: a job in, lines out; imports the jobs' common part. `check` and every start say these.
"""

from __future__ import annotations

from collections.abc import Collection

from runner.jobs.base import Job

KNOWN_SECRETS = ("HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "MODELSCOPE_API_TOKEN", "WANDB_API_KEY")
_NETWORKS = {
    "bridge": "the container reaches the network, and is given the proxies that are set here",
    "host": "the container shares this machine's network: what listens on 127.0.0.1 is open to it",
}


def job_warnings(job: Job) -> list[str]:
    """Each field by which the job's author has code run, or opens this machine to the container."""
    box = job.container
    lines = []
    if job.on_end is not None:
        lines.append(f"on_end is run by bash as you, when the run has ended: {job.on_end!r}")
    lines += job.own_risks()
    if box.image is not None:
        lines.append(f"container.image {box.image!r} is not runner's own: its code is run")
    for mount in box.mounts:
        target = f" at {mount.target!r}" if mount.target else ""
        how = "read" if mount.readonly else "read and WRITE"
        lines.append(f"container.mounts lets the container {how} {mount.source!r}{target}")
    if box.arguments:
        lines.append(f"container.arguments are given to docker run as they are: {box.arguments!r}")
    if box.network in _NETWORKS:
        lines.append(f"container.network is {box.network}: {_NETWORKS[box.network]}")
    if box.environment:
        lines.append(f"container.environment passes on your {', '.join(box.environment)}")
    if box.secrets:
        lines.append(f"container.secrets gives the container your {', '.join(box.secrets)}")
    return lines


def unnamed_secrets(job: Job, present: Collection[str], network: str) -> list[str]:
    """That a secret which is set here does not reach a container with a network, in a line.

    Args:
        present: names of the variables that are set.
        network: of the planned container.
    """
    named = {*job.container.secrets, *job.container.environment}
    kept = [name for name in KNOWN_SECRETS if name in present and name not in named]
    if network == "none" or not kept:
        return []
    names = ", ".join(kept)
    return [
        f"{names} set here, and not given to the container: only what container.secrets names is "
        f"(--set 'container.secrets=[{names}]')"
    ]
