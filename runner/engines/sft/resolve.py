"""Job -> Plan: all that a run does on this host, decided; what was substituted and is warned of.

The native engine's. Pure: values in, values out (imports runner.engines.sft.job,
runner.engines.sft.plan, what all engines decide alike from runner.plans.resolve, and the records of
runner.plans.facts).
"""

from __future__ import annotations

from typing import Literal

from runner.common.errors import RefusedError
from runner.engines.sft.facts import Facts
from runner.engines.sft.job import ResolvedPhase, SftJob, resolved_phases, sft_job
from runner.engines.sft.plan import PlannedModel, PlannedPhase, PlannedVision, SftPlan
from runner.jobs.data import DataSettings, SplitSettings
from runner.jobs.load import LoadedJob
from runner.jobs.method import Method
from runner.jobs.training import TrackingSettings, TrainingSettings, beyond_the_end
from runner.plans.base import Variant
from runner.plans.resolve import (
    device_of,
    gpu_warnings,
    planned_budget,
    planned_container,
    planned_launch,
)
from runner.plans.rows import PlannedData, PlannedRows
from runner.plans.sources import DataSource, ModelSource

SMOKE_DEFAULT_STEPS = 5
SMOKE_ACCUMULATION = 2
"""Forward passes in a smoke's step at most: more of them take no more memory and show no more."""
FP16_OVERFLOWS = ("qwen2", "qwen2_5_vl", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "t5")
"""Architectures trained in bf16 whose activations leave fp16's range (65,504): transformers#22817,
LlamaFactory#7263, and Gemma's model cards."""


def make_plan(
    loaded: LoadedJob, facts: Facts, variant: Variant = "train", max_steps: int | None = None
) -> SftPlan:
    """Decide everything a run of this job does on this host.

    Raises:
        RefusedError: the job asks for devices that the host lacks.
    """
    job = sft_job(loaded)
    substitutions: list[str] = []
    device = device_of(job, facts, substitutions)
    method = _method(job, facts, substitutions)
    absent = _absent_rows(job, facts) if variant == "smoke" else []
    phases = [
        PlannedPhase(
            name=phase.name,
            trains=phase.trains,
            data=_planned_data(phase) if absent else phase.data,
            rows=_planned_rows(phase, facts, samples=bool(absent)),
            training=_training(phase.training, variant, max_steps),
        )
        for phase in resolved_phases(job)
    ]
    model, vision = _model(facts.model), None
    if job.vision is not None and facts.vision is not None:
        vision = PlannedVision(
            model=_model(facts.vision),
            feature_layer=job.vision.feature_layer,
            feature_select=job.vision.feature_select,
            projector_act=job.vision.projector_act,
        )
    if variant == "smoke":
        stand_in = _stand_in(job, facts, phases[0].rows.train, substitutions)
        model = stand_in or model
        if stand_in and vision:
            vision = vision.model_copy(update={"model": stand_in})
        substitutions += _lost_warm_ups(job, phases)
    substitutions += absent
    precision = _precision(job.training.precision, device, facts, substitutions)
    last = phases[-1]
    return SftPlan(
        job=loaded.name,
        description=job.description,
        variant=variant,
        engine=job.engine,
        model=model,
        vision=vision,
        trust_remote_code=job.trust_remote_code,
        method=method,
        lora=job.lora,
        quantization=job.quantization,
        prefix=job.prefix,
        earlier=phases[:-1],
        phase=last.name,
        trains=last.trains,
        data=last.data,
        rows=last.rows,
        training=last.training,
        evaluation=job.evaluation,
        tracking=_tracking(job.tracking, variant),
        precision=precision,
        deterministic=job.deterministic,
        on_oom=job.on_oom,
        template_date=None if model.kind == "standin" else facts.template_date,
        launch=planned_launch(job, facts, device),
        budget=planned_budget(job, device, substitutions),
        container=planned_container(job, facts, online=_online(job.tracking, variant)),
        timeout_minutes=job.timeout_minutes,
        on_end=job.on_end,
        substitutions=substitutions,
        warnings=[
            *_warnings(job, facts, phases, precision, model),
            *gpu_warnings(job, facts, device),
        ],
        python=facts.python,
    )


def _method(job: SftJob, facts: Facts, substitutions: list[str]) -> Method:
    if job.method != "qlora" or facts.quantizes is None:
        return job.method
    if not job.quantization.or_lora:
        raise RefusedError(
            f"method qlora: {facts.quantizes}",
            "pip install bitsandbytes; --method lora trains on unquantized weights, which takes "
            "more memory; quantization.or_lora: true lets a job do so by itself",
        )
    substitutions.append(f"plain LoRA in place of QLoRA: {facts.quantizes}")
    return "lora"


def _training(training: TrainingSettings, variant: Variant, steps: int | None) -> TrainingSettings:
    """The settings with their length decided, and for a smoke the same few events always."""
    stages = training.stages
    if variant == "smoke":
        steps = steps or SMOKE_DEFAULT_STEPS
        changes: dict[str, object] = {"save_from_step": 1, "early_stopping_patience": None}
        if steps == 1:
            changes["warmup_ratio"] = 0.0  # the only step would have a learning rate of 0
        if stages:
            lengths = shrunk([stage.max_steps for stage in stages], steps)
            changes["stages"] = [
                stage.model_copy(
                    update={
                        "max_steps": length,
                        "warmup_steps": min(stage.warmup_steps, max(0, length - 1)),
                    }
                )
                for stage, length in zip(stages, lengths, strict=True)
                if length
            ]
        # with the best kept, one evaluation and save in the middle of it all, at the last step
        every = steps if training.load_best_model_at_end else None
        return training.model_copy(
            update={
                **changes,
                "max_steps": steps,
                "gradient_accumulation_steps": min(
                    training.gradient_accumulation_steps, SMOKE_ACCUMULATION
                ),
                "global_batch_size": None,
                "logging_steps": 1,
                "save_steps": steps,
                "eval_steps": every,
            }
        )
    if stages:
        total = sum(stage.max_steps for stage in stages)
        return training.model_copy(update={"max_steps": min(steps or total, total)})
    return training if steps is None else training.model_copy(update={"max_steps": steps})


def _lost_warm_ups(job: SftJob, phases: list[PlannedPhase]) -> list[str]:
    """A substitution line for each warm-up that a smoke is too short for."""
    lines = []
    for asked, taken in zip(resolved_phases(job), phases, strict=True):
        before, after = asked.training, taken.training
        if before.warmup_ratio and not after.warmup_ratio:
            lines.append(
                f"no warm-up in place of {asked.field}training.warmup_ratio "
                f"{before.warmup_ratio:g}: the only step would have rate 0"
            )
        # of the stages, a smoke keeps the first ones
        for number, (old, new) in enumerate(zip(before.stages, after.stages, strict=False)):
            if new.warmup_steps < old.warmup_steps:
                count = (
                    f"a warm-up of {new.warmup_steps} steps" if new.warmup_steps else "no warm-up"
                )
                lines.append(
                    f"{count} in place of {asked.field}training.stages.{number}.warmup_steps "
                    f"{old.warmup_steps}: the stage has {new.max_steps} "
                    f"{'step' if new.max_steps == 1 else 'steps'} here"
                )
    return lines


def _tracking(tracking: TrackingSettings, variant: Variant) -> TrackingSettings:
    """No server hears of a smoke, and nobody of a dry run, which has no figures."""
    if variant == "train":
        return tracking
    silent: dict[str, object] = {"report_to": []} if variant == "dry_run" else {}
    return tracking.model_copy(update={"offline": True, **silent})


def _online(tracking: TrackingSettings, variant: Variant) -> bool:
    """Whether a tracker reaches for its server while the run runs."""
    planned = _tracking(tracking, variant)
    return not planned.offline and bool({"wandb", "mlflow"} & set(planned.report_to))


def shrunk(lengths: list[int], total: int) -> list[int]:
    """`lengths` scaled to sum to `total`: in proportion, at least 1 each where `total` allows."""
    if total <= len(lengths):
        return [1] * total + [0] * (len(lengths) - total)
    spare, whole = total - len(lengths), sum(lengths)
    exact = [spare * length / whole for length in lengths]
    out = [1 + int(part) for part in exact]
    by_rest = sorted(range(len(lengths)), key=lambda i: (-(exact[i] - int(exact[i])), i))
    for index in by_rest[: total - sum(out)]:
        out[index] += 1
    return out


def _absent_rows(job: SftJob, facts: Facts) -> list[str]:
    """A substitution line for each source of rows that is not here; empty where all are.

    A smoke takes the samples of all sources or of none, so that they fit together.
    """
    lines = []
    complete = True
    for phase in resolved_phases(job):
        prefix = f"{phase.field}data."
        sources = [(f"{prefix}train", phase.data.train, f"{prefix}sample")]
        for index, mixed in enumerate(phase.data.mix.sources if phase.data.mix else []):
            name = f"{prefix}mix.sources.{index}."
            sources.append((f"{name}rows", mixed.rows, f"{name}sample"))
        here = [facts.rows[field].present for field, _, _ in sources]
        here += [
            facts.rows[prefix + name].present
            for name in ("eval", "test", "questions")
            if prefix + name in facts.rows
        ]
        complete = complete and all(here)
        for _, text, sample in sources:
            stand_in = facts.rows.get(sample)
            if stand_in is None or not stand_in.present or stand_in.path is None:
                return []  # nothing to take instead; what is absent is refused, or on the hub
            line = f"{stand_in.path.name} in place of {text}"
            if line not in lines:
                lines.append(line)
    return [] if complete else lines


def _planned_data(phase: ResolvedPhase) -> DataSettings:
    """The settings without the evaluation and test files, which belong to the rows not here."""
    data = phase.data.model_copy(update={"eval": None, "test": None, "questions": None})
    if data.split is None and phase.data.eval is not None:
        data = data.model_copy(update={"split": SplitSettings(eval=0.1, seed=42)})
    return data


def _planned_rows(phase: ResolvedPhase, facts: Facts, *, samples: bool) -> PlannedRows:
    prefix, data = f"{phase.field}data.", phase.data
    mixed = range(len(data.mix.sources) if data.mix else 0)
    if samples:
        return PlannedRows(
            train=_rows(facts.rows[f"{prefix}sample"]),
            mixed=[_rows(facts.rows[f"{prefix}mix.sources.{i}.sample"]) for i in mixed],
        )

    def optional(name: str) -> PlannedData | None:
        source = facts.rows.get(prefix + name)
        return None if source is None else _rows(source)

    return PlannedRows(
        train=_rows(facts.rows[f"{prefix}train"]),
        mixed=[_rows(facts.rows[f"{prefix}mix.sources.{i}.rows"]) for i in mixed],
        eval=optional("eval"),
        test=optional("test"),
        questions=optional("questions"),
    )


def _warnings(
    job: SftJob, facts: Facts, phases: list[PlannedPhase], precision: str, model: PlannedModel
) -> list[str]:
    """What is allowed and still likely to disappoint; said before the start."""
    lines = []
    kind = facts.model_type or model.model_type or job.smoke.model_type
    if precision == "fp16" and kind in FP16_OVERFLOWS:
        lines.append(
            f"fp16 on {kind}: its activations are known to overflow in fp16 (NaN loss); take a "
            "GPU with bf16, or --set training.precision=fp32"
        )
    elif precision == "fp16" and facts.model_dtype == "bfloat16":
        lines.append("fp16 on weights published in bf16: large values can overflow")
    for phase in phases:
        training, place = phase.training, f"{phase.name}: " if phase.name else ""
        steps = training.max_steps
        if steps is None:
            continue
        if not training.stages:
            lines += [place + line for line in beyond_the_end(training, steps)]
    return lines


def _precision(
    wanted: str, device: str, facts: Facts, substitutions: list[str]
) -> Literal["bf16", "fp16", "fp32"]:
    has_bf16 = device == "cpu" or all((gpu.compute_capability or 0) >= 8.0 for gpu in facts.gpus)
    if wanted == "auto":
        return "fp32" if device == "cpu" else "bf16" if has_bf16 else "fp16"
    if wanted == "bf16" and not has_bf16:
        substitutions.append("fp32 in place of bf16: the GPU is older than compute capability 8.0")
        return "fp32"
    if wanted == "fp16" and device == "cpu":
        substitutions.append("fp32 in place of fp16: there is no fp16 training on CPU")
        return "fp32"
    return "bf16" if wanted == "bf16" else "fp16" if wanted == "fp16" else "fp32"


def _model(source: ModelSource) -> PlannedModel:
    return PlannedModel(
        kind=source.kind,
        id=source.id,
        revision=source.revision,
        folder=str(source.folder) if source.folder else None,
    )


def _rows(source: DataSource) -> PlannedData:
    return PlannedData(
        kind=source.kind,
        path=str(source.path) if source.path else None,
        id=source.id,
        revision=source.revision,
        sha256=source.sha256,
        size_bytes=source.size_bytes,
    )


def _stand_in(
    job: SftJob, facts: Facts, rows: PlannedData, substitutions: list[str]
) -> PlannedModel | None:
    """A tiny random model for a smoke whose weights, or image tower, are not on this machine."""
    absent = [source.id for source in (facts.model, facts.vision) if source and not source.present]
    if not absent:
        return None
    model_type = job.smoke.model_type or {"builtin": "llama"}.get(facts.model.kind)
    if model_type is None:
        raise RefusedError(
            f"the weights of {facts.model.id} are not on this machine, and the job does not "
            "say which architecture a stand-in has",
            "add `smoke: {model_type: qwen2}` (transformers' name of the architecture)",
        )
    kind = f"llava-{model_type}" if facts.vision else model_type
    substitutions.append(f"tiny random {kind} in place of {' and '.join(absent)}")
    # its tokenizer is trained on the rows, so another text gives another stand-in
    text = (rows.sha256 or "hub")[:12]
    return PlannedModel(
        kind="standin",
        id=facts.model.id,
        folder=str(facts.cache / "standins" / f"{kind}-{text}"),
        model_type=kind,
    )
