"""What a plan wants of the GPUs, and the refusal where it can't have it. Pure."""

from __future__ import annotations

from runner.common.errors import RefusedError
from runner.machine.leases.schedule import Queued, Unsatisfiable
from runner.machine.leases.turn import GpuRequest
from runner.machine.leases.words import gpus
from runner.plans.base import Plan
from runner.runs.folder import RunFolder

WAYS_OUT = (
    "--wait queues for it; launch.share: true takes a GPU beside others, where the budgets fit "
    "(budget.gpu_memory); or run it on another machine"
)


def wish_of(plan: Plan, folder: RunFolder | None, *, share: bool) -> GpuRequest:
    """The wish of a run; `folder` is None where it has none yet."""
    return GpuRequest(
        run=plan.job if folder is None else folder.name,
        folder="" if folder is None else str(folder.path),
        count=len(plan.launch.gpu_uuids) or plan.launch.num_processes,
        budget_bytes=plan.budget.limit_bytes if plan.budget.kind == "gpu" else None,
        share=share,
        prefer=tuple(plan.launch.gpu_uuids),
    )


def refusal(answer: Queued | Unsatisfiable) -> RefusedError:
    """Why nothing is started, naming who is in the way and the ways out."""
    if isinstance(answer, Unsatisfiable):
        return RefusedError(answer.why, answer.hint)
    head = (
        "no GPU is free for it" if answer.count == 1 else f"no {gpus(answer.count)} are free for it"
    )
    ahead = f" ({answer.place - 1} waiting)" if answer.place > 1 else ""
    return RefusedError(f"{head}{ahead}: {'; '.join([*answer.reasons, *answer.notes])}", WAYS_OUT)
