"""Choose by the plan what measures a run's memory, and say how its budget is enforced."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from runner.common.errors import RefusedError
from runner.common.units import format_bytes
from runner.engines.registry import engine_of
from runner.machine.host_sampler import HostSampler
from runner.machine.nvml import NvmlFailed, NvmlUnavailable, unified_cgroup
from runner.machine.nvml_sampler import NvmlSampler, take_baseline
from runner.machine.nvml_timeout import NvmlWithTimeout
from runner.machine.process_tree import confirm_left_device
from runner.machine.readings import DeviceReading, DeviceSource, Sample
from runner.plans.base import Plan
from runner.runs.folder import RunFolder
from runner.supervisor.event_log import HIGH_WATER, EventLog, Peak
from runner.supervisor.execute import Executor
from runner.supervisor.guard import policy
from runner.supervisor.ranks import reported_bytes

STUCK_CONTEXT_SECONDS = 5.0
# What a GPU lists is looked up by itself, however new it is: the others are counted only.
SEARCH_SECONDS = 5.0


class Sampler(Protocol):
    """HostSampler or NvmlSampler."""

    def sample(self) -> Sample: ...


def choose_sampler(
    plan: Plan,
    executor: Executor,
    folder: RunFolder,
    record: EventLog,
    stack: contextlib.ExitStack,
) -> tuple[Sampler, NvmlWithTimeout | None, str]:
    """What measures this run, and the level of enforcement in words.

    Raises RefusedError where there is a driver that does not work: training would not, either.
    """
    budget = plan.budget
    limit = f"budget {format_bytes(budget.limit_bytes)}" if budget.limit_bytes else "no budget"
    if plan.launch.device == "cpu":
        return HostSampler(executor.tree.watched), None, f"host memory of the process tree, {limit}"
    capped = engine_of(plan).caps_memory and budget.limit_bytes is not None
    nvml: NvmlWithTimeout | None = None
    source: DeviceSource
    try:
        source = nvml = stack.enter_context(NvmlWithTimeout())
        enforcement = ("torch's cap and the" if capped else "the") + f" NVML watchdog, {limit}"
    except NvmlUnavailable as error:
        if error.fatal:
            raise RefusedError(
                f"the NVIDIA driver does not work: {error}",
                "where it was updated while it ran: restart the machine, or reload the driver's "
                "modules; runner doctor says more",
            ) from error
        record.event(
            "warning",
            f"NVML can't be used ({error}): the budget is NOT enforced by the "
            "guard" + ("; torch's own cap stays" if capped else ""),
        )
        source = NoNvml(str(error))
        enforcement = f"unenforced but for what the trainer says (no NVML), {limit}"
    began = time.monotonic()
    baseline = take_baseline(source, plan.launch.gpu_indices)
    for index, reading in baseline.items():
        for process in reading.processes or ():
            record.event(
                "notice",
                f"GPU {index} is shared: pid {process.pid} holds "
                f"{format_bytes(process.used_bytes)}",
            )
    sampler = NvmlSampler(
        source,
        plan.launch.gpu_indices,
        lambda: executor.tree.watched(SEARCH_SECONDS),
        baseline,
        container_id=lambda: executor.container_id,
        reported=lambda: reported_bytes(folder, time.time() - (time.monotonic() - began)),
        member=executor.tree.member,
    )
    return sampler, nvml, enforcement


class NoNvml:
    """A DeviceSource that knows nothing: of the ladder only the trainer's own figures are left, and
    host memory never stands in for a GPU's.
    """

    def __init__(self, why: str) -> None:
        self._why = why

    def devices(self) -> list[tuple[int, str | None]]:
        """None can be counted. Raises NvmlFailed."""
        raise NvmlFailed(self._why)

    def read(self, index: int) -> DeviceReading:
        """Nothing can be read. Raises NvmlFailed."""
        raise NvmlFailed(f"GPU {index}: {self._why}")


def with_driver_limit(
    enforcement: str, plan: Plan, nvml: NvmlWithTimeout | None, executor: Executor
) -> str:
    """The level of enforcement; the driver's own limit counts only where it is read back."""
    members = executor.tree.members()
    if nvml is None or plan.container is None or plan.budget.limit_bytes is None or not members:
        return enforcement
    try:
        cgroup = unified_cgroup(Path(f"/proc/{members[0].pid}/cgroup").read_text())
        limit = nvml.limit_in_force(plan.launch.gpu_indices, cgroup) if cgroup else None
    except (OSError, NvmlFailed):
        return enforcement
    if limit is None or limit > plan.budget.limit_bytes:
        return enforcement
    return f"driver limit {format_bytes(limit)} (read back), {enforcement}"


def with_blindness(enforcement: str, state: policy.State) -> str:
    """The level of enforcement, with what it was at the end where the guard saw nothing then."""
    return f"unenforced at the end, {enforcement}" if state.unenforced else enforcement


def say_unseen_peak(
    peak: Peak, limit_bytes: int | None, cause: policy.Cause | None, record: EventLog
) -> None:
    """Warn of a peak over the budget that no sample saw, so that nobody was stopped for it."""
    unseen = peak.source is not None and peak.source.endswith(f":{HIGH_WATER}")
    if not unseen or cause is policy.Cause.OVER_BUDGET or limit_bytes is None:
        return
    if peak.value is not None and peak.value > limit_bytes:
        record.event(
            "warning",
            f"it held {format_bytes(peak.value)} between two samples, over its budget of "
            f"{format_bytes(limit_bytes)}: the kernel's high-water mark says so, no sample did",
        )


def take_leave(
    sampler: Sampler,
    nvml: NvmlWithTimeout | None,
    indices: Iterable[int],
    peak: Peak,
    record: EventLog,
) -> None:
    """Once the run's processes are gone: see that the GPUs know it, and what the driver has kept.

    A pid that stays on a GPU is a stuck context, which only an administrator can clear.
    """
    if nvml is None or not isinstance(sampler, NvmlSampler) or not sampler.seen:
        return
    indices = tuple(indices)
    stuck = confirm_left_device(nvml, sampler.seen, STUCK_CONTEXT_SECONDS, indices)
    if stuck:
        record.event("warning", f"pids {stuck} still hold GPU memory: a stuck context")
    elif stuck is None:
        record.event("notice", "NVML does not say whether the run has left its GPUs")
    for index in indices:
        with contextlib.suppress(NvmlFailed):
            kept = [nvml.accounting_peak(index, pid) for pid in sampler.seen]
            peak.account([size for size in kept if size is not None])
