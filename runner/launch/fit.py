"""Find the fastest plan of a job under a memory budget, and write it into the job's file.

Nothing is started, no weights are fetched; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.common import durable
from runner.common.errors import RefusedError, UsageError
from runner.common.output import Output, field
from runner.common.packaged import jobs_folder
from runner.common.units import format_bytes, parse_bytes
from runner.common.yaml_edit import NotEdited, set_fields
from runner.common.yaml_text import shown_path
from runner.engines.sft.facts import Facts
from runner.engines.sft.job import SftJob, sft_job
from runner.engines.sft.memory.ask import correction_of, write_request
from runner.engines.sft.memory.messages import FitAnswer, FitAsked
from runner.engines.sft.plan import SftPlan
from runner.jobs.load import LoadedJob
from runner.launch.ask_engine import ask_engine, read_answer
from runner.launch.vram import device_name, versions_at, vram_plan

TOTAL_SHARE = 0.95
"""Of a GPU's memory, what a budget may be where none is given: the driver keeps some of it."""


@dataclass(frozen=True)
class Fitted:
    """The ladder of a job under a budget."""

    job: SftJob
    plan: SftPlan
    facts: Facts
    assumed: str | None
    """The GPUs that were assumed, in words, where there are none."""
    limit_bytes: int
    record: FitAnswer
    """As the engine answered: `trainings`, each with its ladder and its choice, and `overrides`."""

    @property
    def fits(self) -> bool:
        """Whether there is a plan for each training that the job allows."""
        return all(part["chosen"] is not None for part in self.record["trainings"])

    @property
    def overrides(self) -> dict[str, object]:
        """Field -> value by which the job fits; the budget among them."""
        found = self.record["overrides"]
        if not self.fits:
            return found
        kind = "gpu_memory" if self.plan.launch.device == "cuda" else "host_memory"
        return {**found, f"budget.{kind}": exact_size(self.limit_bytes)}


def fit(loaded: LoadedJob, out: Output, *, budget: str | None, gpu_total: str | None) -> Fitted:
    """Ask the engine for the fastest plan under a budget.

    Args:
        budget: memory on each GPU, such as "16GiB"; None is the job's own.
        gpu_total: what the GPU has in all.

    Raises:
        UsageError: there is no budget, or it is more than the GPU has.
        EngineRefused, RefusedError: no plan could be worked out.
    """
    job = sft_job(loaded)
    plan, facts, assumed = vram_plan(loaded)
    limit = _limit(budget, gpu_total, plan.budget.limit_bytes)
    found = correction_of(
        device=device_name(plan, facts), method=plan.method, versions=versions_at(facts.place)
    )
    asked: FitAsked = {
        "budget_bytes": limit,
        "allow": job.fit.allow,
        "models": job.fit.models,
        "correction": None if found is None else found.model_dump(),
    }
    failed = "no plan could be fitted"
    answer = ask_engine(
        plan, out, lambda folder: write_request(folder, plan, fit=asked), failed=failed
    )
    record = read_answer(answer, FitAnswer, failed=failed)
    return Fitted(job, plan, facts, assumed, limit, record)


def _limit(budget: str | None, gpu_total: str | None, own: int | None) -> int:
    """The budget in bytes. Raises UsageError where none is given, or it is above the GPU's."""
    total = _bytes("--gpu-total", gpu_total)
    limit = _bytes("--budget", budget) or own
    if limit is None:
        if total is None:
            raise UsageError(
                "there is no budget to fit", "give --budget 16GiB, or budget.gpu_memory in the job"
            )
        return int(total * TOTAL_SHARE)
    if total is not None and limit > total:
        if budget is None:
            return int(total * TOTAL_SHARE)
        raise UsageError(
            f"--budget {budget} is more than the GPU has (--gpu-total {gpu_total})",
            f"at most about {format_bytes(int(total * TOTAL_SHARE))}: the driver keeps some of it",
        )
    return limit


def _bytes(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}", "for example 16GiB") from None


def exact_size(limit: int) -> str:
    """Bytes as a job says them, exactly."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if limit % size == 0:
            return f"{limit // size}{unit}"
    return f"{limit}B"


def apply(loaded: LoadedJob, overrides: Mapping[str, object], out: Output) -> str:
    """Set the fields in the job's file; where that is runner's own, in a copy under jobs/.

    Raises RefusedError where the file can't be edited so; it is as it was then.
    """
    source = loaded.path
    target = source
    here = Path.cwd().resolve() in source.parents
    if not here and source.parent == jobs_folder().resolve():
        target = Path("jobs") / source.name
        if target.exists():
            raise RefusedError(
                f"{target} is there already, and {source.name} of runner's own would replace it",
                f"runner fit {target} --apply edits that one",
            )
    text = source.read_text(encoding="utf-8")
    try:
        edited = set_fields(text, overrides)
    except NotEdited as error:
        raise RefusedError(f"{shown_path(source)}: {error}", "set the fields by hand") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(target, edited)
    out.say(field("applied", ", ".join(f"{key}: {overrides[key]}" for key in overrides)))
    return shown_path(target)
