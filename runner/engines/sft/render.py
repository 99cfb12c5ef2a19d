"""Plan of the native engine -> launch.sh, accelerate.yaml, deepspeed.json, and lines for people.

Pure: returns texts, writes nothing. Imports pyyaml, and jinja2 by way of runner.plans.render.
"""

from __future__ import annotations

import json

import yaml

from runner import __version__
from runner.engines.sft.plan import PlannedModel, SftPlan
from runner.jobs.training import TrainingSettings
from runner.plans.base import PlannedLaunch
from runner.plans.render import BlockDumper, budget_line, templates, title
from runner.plans.rows import PlannedData
from runner.vram.sharding import BUCKET_VALUES

_ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


def launch_script(plan: SftPlan) -> str:
    """launch.sh: what runs, for people to read and for bash to run."""
    rows = [source for training in plan.trainings for source in training.rows.each]
    models = [plan.model, *([plan.vision.model] if plan.vision else [])]
    return (
        templates()
        .get_template("launch.sh.j2")
        .render(
            plan=plan,
            version=__version__,
            title=title(plan),
            model_line=model_line(plan),
            method_line=method_line(plan),
            data_line=data_line(plan),
            steps_line=steps_line(plan),
            budget_line=budget_line(plan),
            offline=all(model.folder is not None for model in models)
            and all(source.path is not None for source in rows),
        )
    )


def model_line(plan: SftPlan) -> str:
    line = _model_text(plan.model)
    if plan.vision is not None and plan.model.kind != "standin":
        line += f" behind {_model_text(plan.vision.model)}"
    return line


def _model_text(model: PlannedModel) -> str:
    name = f"{model.id}@{model.revision[:12]}" if model.revision else model.id
    if model.kind == "standin":
        return f"stand-in for {name}: tiny random {model.model_type}"
    if model.kind == "modelscope":
        return f"modelscope:{name}"
    return f"{name} (built in)" if model.kind == "builtin" else name


def method_line(plan: SftPlan) -> str:
    if plan.method == "full":
        return "full: every weight is trained"
    if plan.method == "prefix":
        return f"prefix of {plan.prefix.num_virtual_tokens} virtual tokens"
    modules = plan.lora.target_modules
    shown = modules if isinstance(modules, str) else ",".join(modules)
    kind = {(True, True): "DoRA+rsLoRA", (True, False): "DoRA", (False, True): "rsLoRA"}.get(
        (plan.lora.use_dora, plan.lora.use_rslora), ""
    )
    bits = f" on a {plan.quantization.bits}-bit base" if plan.method == "qlora" else ""
    return f"{plan.method}{bits} r {plan.lora.r} alpha {plan.lora.lora_alpha:g} on {shown}" + (
        f", {kind}" if kind else ""
    )


def data_line(plan: SftPlan) -> str:
    return "; ".join(
        (f"{each.phase}: " if each.phase else "")
        + " + ".join(map(source_text, (each.rows.train, *each.rows.mixed)))
        for each in plan.trainings
    )


def source_text(rows: PlannedData) -> str:
    return str(rows.path) if rows.kind == "file" else f"{rows.kind}:{rows.id}"


def steps_line(plan: SftPlan) -> str:
    shown = "; ".join(
        (f"{each.phase}: " if each.phase else "") + _training_text(each.training, plan.launch)
        for each in plan.trainings
    )
    kernels = ", deterministic" if plan.deterministic else ""
    return f"{shown}, {plan.precision} on {plan.launch.device}{kernels}"


def _training_text(training: TrainingSettings, launch: PlannedLaunch) -> str:
    length = (
        f"{training.max_steps} steps"
        if training.max_steps is not None
        else f"{training.num_train_epochs:g} epochs"
    )
    batch = (
        training.per_device_train_batch_size
        * training.gradient_accumulation_steps
        * launch.num_processes
    )
    rate = (
        ", then ".join(f"{each.max_steps} at {each.learning_rate:g}" for each in training.stages)
        if training.stages
        else f"learning rate {training.learning_rate:g}"
    )
    return (
        f"{length}, batch {training.per_device_train_batch_size} x accumulation "
        f"{training.gradient_accumulation_steps} x processes {launch.num_processes} = {batch}, "
        f"{rate}"
    )


def accelerate_config(plan: SftPlan) -> str:
    """accelerate's config file for this plan (the keys of accelerate 1.x)."""
    launch = plan.launch
    kind = "NO"
    if launch.deepspeed != "none":
        kind = "DEEPSPEED"
    elif launch.num_processes > 1:
        # ranks on CPU too: with ACCELERATE_USE_CPU=true the multi-GPU launcher keeps them all,
        # where accelerate's own CPU launcher needs MPI and otherwise starts a single process
        kind = "MULTI_GPU"
    record: dict[str, object] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": kind,
        "downcast_bf16": "no",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}[plan.precision],
        "num_machines": 1,
        "num_processes": launch.num_processes,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": launch.device == "cpu" and kind == "NO",
    }
    if kind == "DEEPSPEED":
        del record["mixed_precision"]  # deepspeed.json says it; said twice, accelerate refuses
    if launch.num_processes > 1 or kind == "DEEPSPEED":
        record["main_process_port"] = 0  # a free port, so that two runs never meet
    return yaml.dump(record, Dumper=BlockDumper, sort_keys=False)


def deepspeed_config(plan: SftPlan) -> str:
    """DeepSpeed's config: "auto" values are filled in by transformers from the plan.

    There is no "optimizer" block: torch's AdamW is wrapped, so that nothing has to be compiled.
    """
    stage = _ZERO_STAGES[plan.launch.deepspeed]
    zero: dict[str, object] = {
        "stage": stage,
        "overlap_comm": plan.launch.device == "cuda",
        "contiguous_gradients": True,
        # DeepSpeed's own 500 M would take 1 GiB of every GPU, twice over, for any adapter
        "reduce_bucket_size": BUCKET_VALUES,
    }
    if plan.launch.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": plan.launch.device == "cuda"}
    if plan.launch.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": plan.launch.device == "cuda"}
    if stage == 3:
        # 0: every parameter is sharded; "auto" sizes come out fractional and newer DeepSpeed
        # refuses them
        zero |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    record = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": 1_000_000,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": plan.precision == "bf16"},
        "fp16": {"enabled": plan.precision == "fp16"},
        "zero_optimization": zero,
    }
    return json.dumps(record, indent=2) + "\n"
