"""Plan -> the files of a run: plan.yaml, launch.sh, accelerate.yaml, deepspeed.json.

Pure: returns texts, writes nothing. Imports pyyaml, the plans and what renders the other engines'.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from runner import __version__
from runner.common import durable
from runner.common.errors import RunnerError, UsageError
from runner.common.yaml_text import RecordLoader
from runner.engines.mgm.render import mgm_lines, render_mgm
from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.plan_kinds import PLANS
from runner.engines.script.plan import ScriptPlan
from runner.engines.script.render import script_launch, script_lines
from runner.engines.sft.plan import Plan, PlannedData, PlannedModel
from runner.jobs.training import TrainingSettings
from runner.plans.base import SCHEMA_VERSION as PLAN_VERSION
from runner.plans.base import PlanBase, PlannedLaunch
from runner.plans.render import BlockDumper, budget_line, templates, title
from runner.vram.sharding import BUCKET_VALUES

SCHEMA_VERSION = 1
MAX_PLAN_BYTES = 4 << 20
"""A plan has some ten KiB; its job file has at most one MiB."""
_ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


def render(plan: PlanBase) -> dict[str, str]:
    """Name -> text of every file that is rendered for `plan`."""
    files = {"plan.yaml": plan_yaml(plan)}
    match plan:
        case Plan():
            files["launch.sh"] = launch_script(plan)
            files["accelerate.yaml"] = accelerate_config(plan)
            if plan.launch.deepspeed != "none":
                files["deepspeed.json"] = deepspeed_config(plan)
        case ScriptPlan():
            files["launch.sh"] = script_launch(plan)
        case MgmPlan():
            files |= render_mgm(
                plan.mgm,
                title=title(plan),
                version=__version__,
                plan_hash=plan.hash,
                host_budget=plan.budget.limit_bytes if plan.budget.kind == "host" else None,
            )
        case _:
            raise TypeError(f"no rendering for {type(plan).__name__}")
    return files


def summary(plan: PlanBase) -> list[tuple[str, str]]:
    """Label and text of what a plan is, in the lines that a start and a report print."""
    match plan:
        case Plan():
            lines = [
                ("model", model_line(plan)),
                ("method", method_line(plan)),
                ("training", steps_line(plan)),
            ]
        case ScriptPlan():
            lines = script_lines(plan)
        case MgmPlan():
            lines = mgm_lines(plan.mgm)
        case _:
            raise TypeError(f"no summary for {type(plan).__name__}")
    lines.append(("memory", budget_line(plan)))
    if plan.container is not None:
        box = plan.container
        lines.append(("container", f"{box.image} {box.image_id[:19]}, network {box.network}"))
    return lines


def plan_yaml(plan: PlanBase) -> str:
    """The plan as YAML, its hash first."""
    record = {"plan_hash": plan.hash, **plan.model_dump(mode="json")}
    return yaml.dump(record, Dumper=BlockDumper, sort_keys=False, allow_unicode=True, width=100)


def read_plan(path: Path) -> Plan:
    """The native engine's plan that `plan_yaml` wrote.

    Raises:
        UsageError: it is a plan of another engine, of which rows and weights are not known.
        RunnerError: as read_any_plan.
    """
    plan = read_any_plan(path)
    if not isinstance(plan, Plan):
        raise UsageError(
            f"{path.parent.name} is a run of another engine than sft: runner knows neither its "
            "model nor its rows",
            "runner report says what it left",
        )
    return plan


def read_any_plan(path: Path) -> PlanBase:
    """The plan that `plan_yaml` wrote, of whatever engine.

    Raises RunnerError where the file is missing, damaged or edited (its hash no longer fits).
    """
    try:
        content = durable.read_record(path, MAX_PLAN_BYTES)
    except OSError as error:
        raise RunnerError(f"{path} can't be read: {error.strerror}") from None
    return parse_plan(content, path)


def parse_plan(content: bytes, path: Path) -> PlanBase:
    """The plan in these bytes, which were read from `path`. Raises RunnerError as read_any_plan."""
    try:
        text = content.decode()
        record = yaml.load(text, Loader=RecordLoader)  # noqa: S506 - a SafeLoader, and stricter
        if not isinstance(record, dict):
            raise RunnerError(f"{path} is damaged: there is no plan in it")
        other = durable.newer(record, PLAN_VERSION)
        if other is not None:
            raise RunnerError(f"{path} was {other}", "the runner that started it reads it")
        stated = str(record.pop("plan_hash"))
        plan = PLANS[record["engine"]].model_validate(record)
        fits = plan.hash == stated
    except UnicodeDecodeError:
        raise RunnerError(f"{path} is damaged: it is no text") from None
    except yaml.MarkedYAMLError as error:
        at = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RunnerError(f"{path} is not a plan of this runner: {error.problem}{at}") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RunnerError(f"{path} is not a plan of this runner: {reason}") from None
    if not fits:
        raise RunnerError(
            f"{path} was edited: it says plan {stated[:7]}, its contents are {plan.short_hash}",
            "change the job and render it anew, so that the hash names what runs",
        )
    return plan


def launch_script(plan: Plan) -> str:
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


def model_line(plan: Plan) -> str:
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


def method_line(plan: Plan) -> str:
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


def data_line(plan: Plan) -> str:
    return "; ".join(
        (f"{each.phase}: " if each.phase else "")
        + " + ".join(map(source_text, (each.rows.train, *each.rows.mixed)))
        for each in plan.trainings
    )


def source_text(rows: PlannedData) -> str:
    return str(rows.path) if rows.kind == "file" else f"{rows.kind}:{rows.id}"


def steps_line(plan: Plan) -> str:
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


def accelerate_config(plan: Plan) -> str:
    """accelerate's config file for this plan (the keys of accelerate 1.x)."""
    launch = plan.launch
    kind = "NO"
    if launch.deepspeed != "none":
        kind = "DEEPSPEED"
    elif launch.num_processes > 1:
        # ranks on CPU too: with ACCELERATE_USE_CPU=true the multi-GPU launcher keeps them all,
        # where accelerate's own CPU launcher needs MPI and otherwise starts a single process
        kind = "MULTI_GPU"
    record: dict[str, Any] = {
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


def deepspeed_config(plan: Plan) -> str:
    """DeepSpeed's config: "auto" values are filled in by transformers from the plan.

    There is no "optimizer" block: torch's AdamW is wrapped, so that nothing has to be compiled.
    """
    stage = _ZERO_STAGES[plan.launch.deepspeed]
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": plan.launch.device == "cuda",
        "contiguous_gradients": True,
        # DeepSpeed's own 500 M would take 1 GiB of every card, twice over, for any adapter
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
