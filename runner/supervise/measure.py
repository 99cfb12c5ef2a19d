"""What measures a run's memory, chosen by its plan, and how strongly its budget is enforced."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Protocol

from runner.execute import Executor, Tree
from runner.folder import RunFolder
from runner.guard.nvml import Nvml, NvmlUnavailable, unified_cgroup
from runner.guard.records import Attribution, Sample
from runner.guard.sampler import HostSampler, NvmlSampler, take_baseline
from runner.plan_base import PlanBase
from runner.supervise.engines import reported_bytes
from runner.supervise.record import Record
from runner.units import format_bytes


class Sampler(Protocol):
    """HostSampler, NvmlSampler, or Blind."""

    def sample(self) -> Sample: ...


def choose_sampler(
    plan: PlanBase, tree: Tree, folder: RunFolder, record: Record, stack: contextlib.ExitStack
) -> tuple[Sampler, Nvml | None, str]:
    """What measures this run, and the level of enforcement in words."""
    budget = plan.budget
    limit = f"budget {format_bytes(budget.limit_bytes)}" if budget.limit_bytes else "no budget"
    if plan.launch.device == "cpu":
        return HostSampler(tree.members), None, f"host memory of the process tree, {limit}"
    try:
        nvml = stack.enter_context(Nvml())
        baseline = take_baseline(nvml, plan.launch.gpu_indices)
    except NvmlUnavailable as error:
        # a GPU run is never measured by host memory instead: it goes on, said to be unguarded
        record.event(
            "warning",
            f"NVML can't be used ({error}): the budget is NOT enforced by the "
            "guard; torch's own cap stays",
        )
        return Blind(str(error)), None, f"unenforced (no NVML), {limit}"
    for index, reading in baseline.items():
        for process in reading.processes or ():
            record.event(
                "notice",
                f"GPU {index} is shared: pid {process.pid} holds "
                f"{format_bytes(process.used_bytes)}",
            )
    sampler = NvmlSampler(
        nvml,
        plan.launch.gpu_indices,
        tree.members,
        baseline,
        reported=lambda: reported_bytes(folder),
    )
    return sampler, nvml, f"torch's cap and the NVML watchdog, {limit}"


class Blind:
    """A GPU run without NVML: nothing is known, and no figure is made up."""

    def __init__(self, why: str) -> None:
        self._why = why

    def sample(self) -> Sample:
        return Sample(
            time.time(),
            time.monotonic(),
            "gpu",
            None,
            Attribution.NONE,
            None,
            None,
            (),
            0,
            self._why,
            None,
        )


def with_driver_limit(
    enforcement: str, plan: PlanBase, nvml: Nvml | None, executor: Executor
) -> str:
    """The level of enforcement; the driver's own limit counts only where it is read back."""
    members = executor.tree.members()
    if nvml is None or plan.container is None or plan.budget.limit_bytes is None or not members:
        return enforcement
    try:
        cgroup = unified_cgroup(Path(f"/proc/{members[0].pid}/cgroup").read_text())
    except OSError:
        return enforcement
    limit = nvml.limit_in_force(plan.launch.gpu_indices, cgroup) if cgroup else None
    if limit is None or limit > plan.budget.limit_bytes:
        return enforcement
    return f"driver limit {format_bytes(limit)} (read back), {enforcement}"
