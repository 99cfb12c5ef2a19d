"""Plan: what every plan has, whatever trains. Frozen; its hash names what will run.

Imports pydantic and the parts' common ground only. The plans themselves lie with their engines
(runner/engines/NAME/plan.py).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from runner.jobs.model import JobModel

SCHEMA_VERSION = 1
Variant = Literal["train", "smoke", "dry_run"]


class PlannedLaunch(JobModel):
    """Processes and devices, decided."""

    device: Literal["cuda", "cpu"]
    num_processes: int
    deepspeed: Literal["none", "zero1", "zero2", "zero3"]
    threads_per_process: int
    offload: Literal["none", "optimizer", "parameters"] = "none"
    gpu_indices: list[int] = Field([])
    gpu_uuids: list[str] = Field([])
    share: bool = Field(False, description="Share the GPUs with other runs, where all budgets fit")


class PlannedBudget(JobModel):
    """The memory that the guard enforces: on each GPU, or of the process tree on the host."""

    kind: Literal["gpu", "host", "none"]
    limit_bytes: int | None = None
    grace_seconds: float = 60.0
    oom_snapshot: bool = False


class PlannedMount(JobModel):
    """A path of the host that a container sees."""

    source: str
    target: str
    readonly: bool = True


class PlannedContainer(JobModel):
    """The container that the launch script runs in; plans/container/argv.py makes the command."""

    program: str = Field(description="Path of docker or podman")
    image: str
    image_id: str = Field(description="sha256:..., by which it is started")
    native: bool = Field(description="runner's own image, whose entrypoint is tini")
    network: Literal["none", "bridge", "host"]
    memory_bytes: int | None = None
    shm_bytes: int
    pids: int
    ulimits: dict[str, int] = Field({})
    mounts: list[PlannedMount] = Field([])
    environment: list[str] = Field([], description="Names of variables passed on")
    secrets: list[str] = Field([], description="Names of variables passed as files")
    arguments: list[str] = Field([])


class PlanHead(JobModel):
    """What stands first in every plan."""

    schema_version: int = SCHEMA_VERSION
    job: str

    if TYPE_CHECKING:

        @property
        def engine(self) -> str:
            """What trains; each kind of plan has it as a field."""

    description: str
    variant: Variant


class Plan(PlanHead):
    """What every plan has, whatever trains."""

    launch: PlannedLaunch
    budget: PlannedBudget
    container: PlannedContainer | None = Field(None, description="None: processes of this machine")
    timeout_minutes: float | None
    on_end: str | None = Field(
        None, description="Command that gets the outcome on stdin once the run has ended"
    )
    substitutions: list[str] = Field([], description="What was taken in place of something else")
    warnings: list[str] = Field([], description="What is likely to go wrong, though allowed")
    python: str = Field(description="The interpreter whose packages train")

    def deciding(self) -> dict[str, Any]:
        """What decides the outcome, JSON-ready: not where files lie, nor which GPU is taken."""
        record = self.model_dump(
            mode="json", exclude={"python", "description", "warnings", "on_end"}
        )
        for key in ("gpu_indices", "gpu_uuids", "share"):  # the same run on another GPU
            record["launch"].pop(key)
        record["budget"].pop("oom_snapshot")
        if self.container is None:
            record.pop("container")
        else:
            record["container"] = self.container.image_id
        return record

    def on_gpus(self, launch: PlannedLaunch) -> Self:
        """The same plan with the devices of `launch`."""
        return self.model_copy(update={"launch": launch})

    @property
    def hash(self) -> str:
        """sha256 over `deciding`."""
        canonical = json.dumps(
            self.deciding(), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def short_hash(self) -> str:
        return self.hash[:7]

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps of the whole run; None where they are not known beforehand."""
        return None
