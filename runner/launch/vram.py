"""Predict the memory of a job or plan, correct it by measurements, compare it with what there is.

Starts nothing and downloads no weights. On a machine without a GPU the figures are for a GPU with
bf16, and the output says so. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from runner.common.errors import RefusedError
from runner.common.output import Output
from runner.common.units import format_bytes
from runner.engines.sft.facts import Facts, gather
from runner.engines.sft.job import sft_job
from runner.engines.sft.memory.ask import (
    PACKAGES,
    Batch,
    corrected,
    keep,
    kept,
    plan_key,
    write_request,
)
from runner.engines.sft.packages import require_training_stack
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.jobs.load import LoadedJob
from runner.launch.ask_engine import ask_engine
from runner.plans.facts import Gpu
from runner.plans.placement import Placement
from runner.vram.prediction import Prediction

ASSUMED_CAPABILITY = 9.0
"""Compute capability of the GPU that is assumed where there is none: it has bf16."""


def vram_plan(loaded: LoadedJob) -> tuple[SftPlan, Facts, str | None]:
    """The plan of a GPU run, on an assumed GPU where there is none; what is assumed in words.

    A job with launch.device cpu stays a CPU run.
    """
    facts = gather(loaded)
    job = sft_job(loaded)
    require_training_stack(place=facts.place)
    assumed = None
    if job.launch.device != "cpu":
        wanted = job.launch.num_processes
        cuda = facts.torch_version is not None and "+cpu" not in facts.torch_version
        if len(facts.gpus) < wanted or not cuda:
            assumed = f"{wanted} NVIDIA GPU(s) with bf16, assumed: " + (
                facts.gpu_absence or "torch here is a build without CUDA"
            )
            facts = with_assumed_gpus(facts, wanted)
    return make_plan(loaded, facts, "train"), facts, assumed


def with_assumed_gpus(facts: Facts, count: int) -> Facts:
    """The host with so many GPUs that have bf16 and a torch that can use them."""
    gpus = tuple(
        Gpu(number, f"assumed-{number}", "", None, ASSUMED_CAPABILITY) for number in range(count)
    )
    version = (facts.torch_version or "").removesuffix("+cpu")
    return replace(facts, gpus=gpus, gpu_absence="", torch_version=version, quantizes=None)


def device_line(plan: SftPlan, facts: Facts) -> str:
    """The GPUs, or the CPU, that the plan trains on."""
    if plan.launch.device == "cpu":
        return f"CPU, {plan.launch.num_processes} process(es)"
    named = {gpu.uuid: gpu for gpu in facts.gpus}
    cards = [named[uuid] for uuid in plan.launch.gpu_uuids if uuid in named]
    return ", ".join(
        f"GPU {card.index} ({card.name}, {format_bytes(card.total_bytes)})" for card in cards
    )


def device_name(plan: SftPlan, facts: Facts) -> str:
    """What measurements of this plan are kept under: the GPU's name, or "cpu"."""
    if plan.launch.device == "cpu":
        return "cpu"
    named = {gpu.uuid: gpu.name for gpu in facts.gpus}
    return next((named[uuid] for uuid in plan.launch.gpu_uuids if named.get(uuid)), "gpu")


def versions_at(place: Placement) -> dict[str, str | None]:
    """The packages that decide what a step takes, where it trains."""
    return {name: place.version(name) for name in PACKAGES}


def predict_plan(
    plan: SftPlan, facts: Facts, out: Output, batches: Sequence[Batch] | None = None
) -> Prediction:
    """The prediction of a plan, corrected by measurements.

    Raises:
        EngineRefused, RefusedError: it can't be predicted.
    """
    name = plan_key(plan, versions_at(facts.place)) if batches is None else None
    found = kept(name) if name else None
    if found is None:
        record = ask_engine(
            plan,
            out,
            lambda folder: write_request(folder, plan, batches),
            failed="the memory could not be predicted",
        )
        found = Prediction.model_validate(record)
        if name:
            keep(name, found)
    return correct(found, plan, facts)


def correct(prediction: Prediction, plan: SftPlan, facts: Facts) -> Prediction:
    """The prediction as measurements of this device, stack and method correct it."""
    return corrected(
        prediction,
        device=device_name(plan, facts),
        method=plan.method,
        versions=versions_at(facts.place),
    )


def over_budget(prediction: Prediction, plan: SftPlan) -> str | None:
    """That a run which starts all the same is predicted over its budget, in words; else None.

    A GPU run of which that is sure is refused (require_fits). On a CPU it starts: the guard ends it
    where it does pass its budget.
    """
    limit = plan.budget.limit_bytes
    if prediction.device == "cuda" or limit is None or prediction.low_bytes <= limit:
        return None
    return (
        f"predicted over its budget: at least {format_bytes(prediction.low_bytes)} of "
        f"{format_bytes(limit)}; a CPU run starts all the same, and is ended (over_budget) once it "
        "holds more"
    )


def require_fits(
    prediction: Prediction, plan: SftPlan, facts: Facts, *, recovers: bool = False
) -> None:
    """Refuse a GPU run that surely does not fit its budget, its GPU, or the host's memory.

    One that `recovers` by itself may start, whatever its first attempt takes of the GPU.

    Raises RefusedError with the figures and the way out.
    """
    import psutil

    host = prediction.host
    if host is not None:
        there = psutil.virtual_memory().total
        if host.needed_bytes > there:
            raise RefusedError(
                f"the run needs about {format_bytes(host.needed_bytes)} of host memory "
                f"({format_bytes(host.loading_bytes)} to load, {format_bytes(host.offload_bytes)} "
                f"offloaded); this machine has {format_bytes(there)}",
                "fewer processes (launch.num_processes), launch.offload=none, or method qlora",
            )
    if prediction.device != "cuda" or recovers:
        return
    totals = [gpu.total_bytes for gpu in facts.gpus if gpu.uuid in plan.launch.gpu_uuids]
    card = min((total for total in totals if total), default=None)
    budget = plan.budget.limit_bytes
    limit = min((one for one in (card, budget) if one), default=None)
    if limit is None or prediction.low_bytes <= limit:
        return
    what = "the budget" if limit == budget else "the GPU"
    raise RefusedError(
        f"predicted {format_bytes(prediction.process_bytes)} (at least "
        f"{format_bytes(prediction.low_bytes)}), {what} has {format_bytes(limit)}",
        f"runner fit {plan.job} finds a plan that fits; runner vram {plan.job} says what takes it",
    )
