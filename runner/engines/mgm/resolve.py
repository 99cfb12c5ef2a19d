"""MgmJob and facts -> MgmPlan: what a run of the MGM toolkit does on this host, and what it lacks.

`make_mgm_plan` looks for paths; the arithmetic is runner.engines.mgm.plan's. Imports no torch.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from runner.common.errors import RefusedError
from runner.engines.mgm.job import MgmJob, MgmSettings
from runner.engines.mgm.plan import PlannedMgm, plan_mgm
from runner.engines.mgm.render import SCRIPTS, script_text
from runner.engines.mgm.run_plan import MgmPlan
from runner.jobs.load import LoadedJob
from runner.plans.base import Variant
from runner.plans.facts import HostFacts
from runner.plans.resolve import planned_budget, planned_container, planned_launch

PATHS = (
    "toolkit",
    "model_name_or_path",
    "vision_tower",
    "vision_tower_aux",
    "pretrain.data_path",
    "pretrain.image_folder",
    "pretrain.questions",
    "finetune.data_path",
    "finetune.image_folder",
    "infer.textvqa_questions",
    "infer.textvqa_images",
    "infer.mmbench",
)
"""Fields that name files and folders."""
NEEDED = (
    "toolkit",
    "model_name_or_path",
    "vision_tower",
    "vision_tower_aux",
    "pretrain.data_path",
    "finetune.data_path",
)
"""Those without which nothing trains."""


IMAGE_TOOLKIT = "/opt/runner/toolkit"
"""Where docker/mgm.Dockerfile puts the toolkit; taken where this machine has no copy of its own."""


@dataclass(frozen=True)
class Absent:
    """What a job names and this machine lacks."""

    field: str
    path: Path


def mgm_job(loaded: LoadedJob) -> MgmJob:
    """The job, known to be the toolkit's."""
    return cast(MgmJob, loaded.job)


def make_mgm_plan(
    loaded: LoadedJob, facts: HostFacts, variant: Variant = "train", max_steps: int | None = None
) -> MgmPlan:
    """Decide everything a run of the toolkit does on this host.

    Raises:
        SpecError: the global batch can't be 256 and 128 on so many GPUs.
        RefusedError: it asks for GPUs that the host lacks.
    """
    job = mgm_job(loaded)
    settings = placed(job, loaded, facts.cache)
    box = facts.place.container
    if box is not None and box.image.kind == "mgm" and not Path(settings.toolkit).exists():
        settings = settings.model_copy(update={"toolkit": IMAGE_TOOLKIT})
    smoke = variant == "smoke"
    if smoke and max_steps is not None:
        shorter = settings.smoke.model_copy(update={"max_steps": max_steps})
        settings = settings.model_copy(update={"smoke": shorter})
    elif max_steps is not None:
        raise RefusedError(
            "--max-steps means nothing to the whole of the toolkit's stages",
            "runner smoke takes it; --set num_train_epochs=0.1 shortens a training",
        )
    substitutions: list[str] = []
    device: Literal["cuda", "cpu"] = "cpu" if job.launch.device == "cpu" else "cuda"
    # without a GPU the script can still be read; `require_mgm` refuses to start it
    lacks_gpu = device == "cuda" and not facts.gpus
    launch = planned_launch(job, facts, "cpu" if lacks_gpu else device)
    launch = launch.model_copy(update={"device": device})
    cards = launch.gpu_uuids or [str(index) for index in range(job.launch.num_processes)]
    planned = plan_mgm(
        settings,
        variant="smoke" if smoke else "train",
        device=device,
        gpus=cards,
        python=job.python or _python(facts),
        base_folder=facts.cache,
        where=str(loaded.path),
    )
    return MgmPlan(
        job=loaded.name,
        description=job.description,
        variant=variant,
        engine="mgm",
        mgm=planned,
        scripts_sha256=scripts_sha256(),
        launch=launch,
        budget=planned_budget(job, launch.device, substitutions),
        container=planned_container(job, facts, online=False),
        timeout_minutes=job.timeout_minutes,
        on_end=job.on_end,
        substitutions=[*planned.substitutions, *substitutions],
        warnings=[f"no GPU: {facts.gpu_absence}"] if lacks_gpu else list(facts.gpu_notes),
        python=planned.python,
    )


def require_mgm(loaded: LoadedJob, plan: MgmPlan) -> None:
    """Refuse before the start what the stages would fail on, with the way out."""
    if missing := absent(plan.mgm):
        told = "; ".join(f"{each.field}: no {each.path}" for each in missing)
        raise RefusedError(
            f"{loaded.name} lacks on this machine: {told}",
            f"runner fetch {loaded.name} brings them; runner smoke {loaded.name} does without",
        )
    if plan.launch.device == "cuda" and not plan.launch.gpu_uuids:
        raise RefusedError(
            f"{loaded.name} needs a GPU: {plan.warnings[0] if plan.warnings else 'there is none'}",
            "--set launch.device=cpu tries it on CPU, which is for tiny weights",
        )
    if plan.container is None and shutil.which(plan.python) is None:
        raise RefusedError(
            f"the toolkit's interpreter is not here: {plan.python}",
            "--set python=PATH names the one of an environment with the toolkit's pins; or "
            "runner image build mgm and --on docker",
        )


def placed(job: MgmSettings, loaded: LoadedJob, cache: Path) -> MgmSettings:
    """The settings with every relative path looked for, and absolute."""
    record: dict[str, Any] = job.model_dump()
    for field in PATHS:
        block, _, name = field.rpartition(".")
        place = record[block] if block else record
        text = place[name]
        if text is None or Path(text).expanduser().is_absolute():
            continue
        beside = [] if field in loaded.overridden else [loaded.path.parent]
        candidates = [*(folder / text for folder in beside), Path.cwd() / text, cache / text]
        there = [path for path in candidates if path.exists()]
        place[name] = str((there or candidates[-1:])[0].absolute())
    kept = {name: record[name] for name in MgmSettings.model_fields}
    return MgmSettings.model_validate(kept)


def absent(planned: PlannedMgm) -> list[Absent]:
    """What must be on this machine, and is not."""
    record = planned.model_dump()
    found = []
    for field in NEEDED:
        block, _, name = field.rpartition(".")
        path = Path((record[block] if block else record)[name])
        if not path.exists() and str(path) != IMAGE_TOOLKIT:
            found.append(Absent(field, path))
    return found


def scripts_sha256() -> str:
    """Over the stage scripts: a run with others is another run."""
    digest = hashlib.sha256()
    for name in SCRIPTS:
        digest.update(script_text(name).encode())
    return digest.hexdigest()


def _python(facts: HostFacts) -> str:
    return facts.place.python if facts.place.container is not None else "python3"
