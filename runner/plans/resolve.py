"""What every plan decides alike: device, GPUs, budget, container.

Pure: values in, values out. Imports runner.jobs.base, runner.plans.base, the records of
runner.plans.facts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from runner.common.errors import RefusedError
from runner.common.units import GIB
from runner.jobs.base import Job
from runner.machine.visible_devices import VARIABLE
from runner.plans.base import PlannedBudget, PlannedContainer, PlannedLaunch, PlannedMount
from runner.plans.facts import HostFacts, emptiest_first

Device = Literal["cuda", "cpu"]
SHM_BYTES = 8 * GIB
"""Of /dev/shm, where the job says no size: Docker's own 64 MiB fails data loaders and NCCL
(torchx#428, pytorch#5040)."""


def device_of(job: Job, facts: HostFacts, substitutions: list[str]) -> Device:
    """Where it trains; what is substituted is added to `substitutions`.

    Raises:
        RefusedError: launch.device is cuda, and there is no usable GPU; or it is auto, and the
            driver is broken.
    """
    refuse_broken_driver(job, facts)
    wanted = job.launch.device
    cuda_torch = facts.torch_version is not None and "+cpu" not in facts.torch_version
    if wanted == "cuda":
        if not facts.gpus:
            raise RefusedError(
                f"launch.device is cuda, but {facts.gpu_absence}",
                "runner doctor says more; --set launch.device=cpu trains on CPU",
            )
        if not cuda_torch:
            raise RefusedError(
                f"launch.device is cuda, but torch {facts.torch_version} {facts.place.short} has "
                "no CUDA",
                "install torch's CUDA build (plain `pip install torch==2.13.0` from the index)"
                if facts.place.container is None
                else "runner image build makes the image with CUDA",
            )
        return "cuda"
    if wanted == "auto" and facts.gpus:
        if cuda_torch:
            return "cuda"
        substitutions.append(
            f"CPU in place of {len(facts.gpus)} GPU(s): torch {facts.torch_version} "
            f"{facts.place.short} has no CUDA"
        )
    return "cpu"


def refuse_broken_driver(job: Job, facts: HostFacts) -> None:
    """Nothing, unless a job that takes a GPU finds a driver that does not work, or the caller has
    named a part of a GPU: the CPU is no stand-in for either.

    Raises:
        RefusedError: it does.
    """
    if job.launch.device != "cpu" and facts.mig_named and not facts.gpus:
        raise RefusedError(
            f"{facts.gpu_absence}, and runner takes whole GPUs only: a budget and the guard are "
            "of whole GPUs",
            "name a GPU that is not split (nvidia-smi -L), or --set launch.device=cpu trains on "
            "the CPU",
        )
    if job.launch.device != "cpu" and facts.driver_broken and not facts.gpus:
        raise RefusedError(
            f"the NVIDIA driver does not work: {facts.gpu_absence}",
            "restart the machine or reload the driver's modules; runner doctor says more; --set "
            "launch.device=cpu trains on the CPU",
        )


def gpu_warnings(job: Job, facts: HostFacts, device: Device) -> list[str]:
    """What is to be known of how CUDA_VISIBLE_DEVICES was read, where it decides something."""
    if device == "cuda":
        return list(facts.gpu_notes)
    hidden = facts.gpu_absence.startswith(VARIABLE) and job.launch.device == "auto"
    return [f"trains on the CPU: {facts.gpu_absence}"] if hidden else []


def planned_launch(job: Job, facts: HostFacts, device: Device) -> PlannedLaunch:
    """Processes and cards.

    Raises:
        RefusedError: more processes than GPUs.
    """
    processes = job.launch.num_processes
    if device == "cuda" and processes > len(facts.gpus):
        raise RefusedError(
            f"launch.num_processes is {processes}, but this machine has {len(facts.gpus)} GPU(s)",
            "one training process takes one GPU; lower launch.num_processes",
        )
    gpus = emptiest_first(facts.gpus)[:processes] if device == "cuda" else []
    return PlannedLaunch(
        device=device,
        num_processes=processes,
        deepspeed=job.launch.deepspeed,
        offload=job.launch.offload,
        threads_per_process=job.launch.threads_per_process or max(1, facts.cores // processes),
        gpu_indices=[gpu.index for gpu in gpus],
        gpu_uuids=[gpu.uuid for gpu in gpus],
        share=job.launch.share and device == "cuda",
    )


def planned_budget(job: Job, device: Device, substitutions: list[str]) -> PlannedBudget:
    """The memory that is enforced: of each GPU in a GPU run, else of the host."""
    budget = job.budget
    limit = budget.gpu_memory if device == "cuda" else budget.host_memory
    if device == "cpu" and budget.gpu_memory and not budget.host_memory:
        substitutions.append("no memory budget in place of budget.gpu_memory: this is a CPU run")
    kind: Literal["gpu", "host", "none"] = (
        "none" if limit is None else "gpu" if device == "cuda" else "host"
    )
    return PlannedBudget(
        kind=kind,
        limit_bytes=limit,
        grace_seconds=budget.grace_seconds,
        oom_snapshot=budget.oom_snapshot and device == "cuda",
    )


def planned_container(job: Job, facts: HostFacts, *, online: bool) -> PlannedContainer | None:
    """The container, where the run runs in one; `online` is whether it needs the network."""
    there, said = facts.place.container, job.container
    if there is None:
        return None
    network = said.network
    return PlannedContainer(
        program=there.cli.program,
        image=there.image.name,
        image_id=there.image.id,
        native=there.native,
        network=network if network != "auto" else "bridge" if online else "none",
        memory_bytes=said.memory,
        shm_bytes=said.shm_size or SHM_BYTES,
        pids=said.pids,
        ulimits=dict(said.ulimits),
        mounts=[
            PlannedMount(
                source=(source := str(Path(mount.source).expanduser().absolute())),
                target=mount.target or source,
                readonly=mount.readonly,
            )
            for mount in said.mounts
        ],
        environment=list(said.environment),
        secrets=list(said.secrets),
        arguments=list(said.arguments),
    )
