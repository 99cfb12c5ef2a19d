"""What every job says whatever trains it: processes, memory, container, time.

Imports pydantic and the parts' common ground only. The jobs themselves lie with their engines
(runner/engines/NAME/job.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from runner.jobs.model import ByteSize, ConflictError, JobModel

EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_RLIMITS = (
    *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile"),
    *("nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
)


class LaunchSettings(JobModel):
    """Where a run runs, how many processes train, and who shards the state."""

    on: Literal["auto", "local", "docker"] = Field(
        "auto",
        description="Where the launch script runs: local (processes of this machine), docker (a "
        "container of container.image), or auto: docker where a Docker daemon has that image.",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="Where training runs; auto is cuda if there is a GPU and a CUDA torch."
    )
    num_processes: int = Field(
        1, ge=1, le=64, description="Training processes; one a GPU, or several CPU ranks (gloo)."
    )
    deepspeed: Literal["none", "zero1", "zero2", "zero3"] = Field(
        "none", description="DeepSpeed ZeRO stage that shards optimizer, gradients, weights."
    )
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none",
        description="What DeepSpeed keeps in host memory: the optimizer's states (zero2, zero3), "
        "or weights too (parameters; zero3).",
    )
    threads_per_process: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="CPU threads of each process (OMP_NUM_THREADS); without it, the cores shared "
        "out among the processes.",
    )
    share: bool = Field(
        False,
        description="Share its GPUs with other runs, where all budgets fit; needs "
        "budget.gpu_memory.",
    )


class BudgetSettings(JobModel):
    """How much memory the run may take; the guard enforces it."""

    gpu_memory: ByteSize | None = Field(
        None, description="Memory on each GPU, with unit, e.g. 12GiB; enforced in GPU runs."
    )
    host_memory: ByteSize | None = Field(
        None,
        description="Host memory of the run's processes together, with unit; enforced in CPU runs.",
    )
    grace_seconds: float = Field(
        60.0, ge=0, le=3600, description="Seconds between the request to end and the kill."
    )
    oom_snapshot: bool = Field(
        False,
        description="Keep PyTorch's record of every allocation (a pickle of some MB for "
        "pytorch.org/memory_viz) where a GPU run is out of memory.",
    )


class MountSettings(JobModel):
    """A folder or file of the host that the container sees."""

    source: str = Field(
        min_length=1, description="Path on the host, or relative to the current folder."
    )
    target: str | None = Field(
        None, pattern=r"^/", description="Path in the container; without it, the same path."
    )
    readonly: bool = Field(True, description="The container can't write to it.")


class ContainerSettings(JobModel):
    """The container of a run on docker. Nothing here matters to a run on local."""

    image: str | None = Field(
        None,
        min_length=1,
        pattern=r"^[A-Za-z0-9]",
        description="Image to run in; without it, the one that `runner image build` makes.",
    )
    network: Literal["auto", "none", "bridge", "host"] = Field(
        "auto", description="auto is none, unless a tracker has to reach its server."
    )
    memory: ByteSize | None = Field(
        None, description="Host memory the container may take, no swap; without it, all there is."
    )
    shm_size: ByteSize | None = Field(
        None,
        description="Size limit of /dev/shm, through which data loaders and NCCL pass data; "
        "without it 8GiB, of which only what is used takes memory.",
    )
    pids: int = Field(
        4096, ge=16, le=4_194_304, description="Processes and threads the container may have."
    )
    ulimits: dict[str, int] = Field(
        {}, description="Resource limits by name, e.g. memlock: -1; -1 is unlimited."
    )
    mounts: list[MountSettings] = Field(
        [], description="Further paths of the host, besides those that the job names anyway."
    )
    environment: list[EnvironmentName] = Field(
        [], description="Names of further variables that are passed on from the caller."
    )
    secrets: list[EnvironmentName] = Field(
        [],
        description="Names of variables whose values reach the container as files in memory, "
        "never in a command line; no other secret does.",
    )
    arguments: list[str] = Field(
        [],
        description="Further arguments of `docker run`, word by word; those that are not known to "
        "leave the container closed need --unsafe-container on the command line.",
    )

    @model_validator(mode="after")
    def _known(self) -> ContainerSettings:
        for name, value in self.ulimits.items():
            if name not in _RLIMITS:
                raise ConflictError(
                    f"ulimits.{name}", f"is no resource limit; there are {', '.join(_RLIMITS)}"
                )
            if value < -1:
                raise ConflictError(f"ulimits.{name}", "must be -1 (unlimited) or more")
        return self


class JobHead(JobModel):
    """What stands first in every job. A kind's own fields come between this and Job's."""

    description: str = Field("", description="What the job is for, in a line.")

    if TYPE_CHECKING:

        @property
        def engine(self) -> str:
            """What trains; each kind of job has it as a field."""


class Job(JobHead):
    """What every job says."""

    launch: LaunchSettings = Field(LaunchSettings(), description="Processes and devices.")
    container: ContainerSettings = Field(
        ContainerSettings(), description="The container of a run on docker."
    )
    budget: BudgetSettings = Field(BudgetSettings(), description="Memory the run may take.")
    timeout_minutes: float | None = Field(
        None,
        gt=0,
        le=1e7,
        description="The run is ended, with a checkpoint, after this many minutes.",
    )
    on_end: str | None = Field(
        None,
        min_length=1,
        description="Command for bash, run in the run's folder once it has ended; it is given the "
        "outcome as JSON on stdin, and 60 seconds.",
    )

    def shown_values(self) -> dict[str, object]:
        """Every field with its value, JSON-ready."""
        return self.model_dump(mode="json")

    def own_risks(self) -> list[str]:
        """Each field of this kind of job by which its author has code run, in words."""
        return []

    @model_validator(mode="after")
    def _shares_by_budget(self) -> Job:
        if self.launch.share and self.budget.gpu_memory is None:
            raise ConflictError(
                "launch.share", "needs budget.gpu_memory, by which it is known what fits"
            )
        return self

    @model_validator(mode="after")
    def _offload_fits_stage(self) -> Job:
        offload, stage = self.launch.offload, self.launch.deepspeed
        if offload == "optimizer" and stage not in ("zero2", "zero3"):
            raise ConflictError("launch.offload", "optimizer needs launch.deepspeed zero2 or zero3")
        if offload == "parameters" and stage != "zero3":
            raise ConflictError("launch.offload", "parameters needs launch.deepspeed zero3")
        return self

    @model_validator(mode="after")
    def _budget_fits_device(self) -> Job:
        budget = self.budget
        if self.launch.device == "cpu" and budget.gpu_memory and not budget.host_memory:
            raise ConflictError(
                "budget.gpu_memory",
                "can't be enforced where launch.device is cpu; give budget.host_memory",
            )
        return self
