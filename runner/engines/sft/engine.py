"""SftEngine: LoRA, QLoRA, prefix and full fine-tuning by TRL. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

from runner.common.caches import cache_folder
from runner.engines.base import CODE_FLAG, Engine, Untrusted
from runner.engines.sft import inputs
from runner.engines.sft.advice import advise
from runner.engines.sft.facts import Facts, gather, require_data
from runner.engines.sft.job import SftJob
from runner.engines.sft.needs import needs
from runner.engines.sft.packages import require_training_stack
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.recovery import next_plan, with_steps_down
from runner.engines.sft.render import (
    accelerate_config,
    deepspeed_config,
    launch_script,
    method_line,
    model_line,
    steps_line,
)
from runner.engines.sft.resolve import make_plan
from runner.jobs.load import LoadedJob
from runner.plans.base import PlannedMount, Variant
from runner.plans.container.mounts import run_mounts
from runner.plans.facts import HostFacts
from runner.plans.inputs import FileRecord, ImageNames, Part
from runner.plans.needs import Need
from runner.plans.placement import Placement
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome
from runner.runs.records import object_at, status_of, valid_adapter


class SftEngine(Engine[SftJob, SftPlan]):
    """The native engine, of whose runs runner knows rows, weights, steps and memory."""

    name = "sft"
    job_type = SftJob
    plan_type = SftPlan
    is_judged_by_exit_code = False
    caps_memory = True
    prepares_rows = True

    def gather(self, loaded: LoadedJob) -> Facts:
        return gather(loaded)

    def resolve(
        self, loaded: LoadedJob, facts: Facts, variant: Variant, max_steps: int | None
    ) -> SftPlan:
        return make_plan(loaded, facts, variant, max_steps)

    def require_packages(self, job: SftJob, place: Placement) -> None:
        require_training_stack(job, place)

    def require_inputs(self, loaded: LoadedJob, facts: Facts, plan: SftPlan | None = None) -> None:
        if plan is not None:
            train = plan.rows.train.path
            if train is not None and Path(train).is_file():
                return  # the job's rows, or samples of them
        require_data(loaded, facts)

    def needs(self, loaded: LoadedJob, facts: Facts) -> list[Need]:
        return needs(loaded, facts)

    def absent_inputs(self, facts: Facts) -> list[str]:
        lines = []
        if not facts.model.present:
            lines.append(f"the weights of {facts.model.id} are not on this machine yet")
        for source, rows in facts.rows.items():
            if rows.kind == "file" and not rows.present and not source.endswith(".sample"):
                lines.append(f"{source} is not on this machine: {rows.path}")
        return lines

    def predicted(self, plan: SftPlan, facts: HostFacts) -> tuple[SftPlan, Facts]:
        return plan, cast(Facts, facts)

    def render(self, plan: SftPlan) -> dict[str, str]:
        files = {"launch.sh": launch_script(plan), "accelerate.yaml": accelerate_config(plan)}
        if plan.launch.deepspeed != "none":
            files["deepspeed.json"] = deepspeed_config(plan)
        return files

    def summarize(self, plan: SftPlan) -> list[tuple[str, str]]:
        return [
            ("model", model_line(plan)),
            ("method", method_line(plan)),
            ("training", steps_line(plan)),
        ]

    def describe_job(self, job: SftJob) -> dict[str, str]:
        return {"model": job.model, "method": job.method}

    def surveyed(self, plan: SftPlan) -> SftPlan:
        return plan

    def mounts(self, plan: SftPlan, cache: Path) -> Iterable[PlannedMount]:
        for path in inputs.paths_read(plan):
            yield PlannedMount(source=str(path), target=str(path))
        for model in (plan.model, *([plan.vision.model] if plan.vision else [])):
            for link, real in inputs.links_out(model):
                yield PlannedMount(source=str(real), target=str(link))
        yield PlannedMount(source=str(cache), target=str(cache))

    def input_files(self, plan: SftPlan) -> list[FileRecord]:
        return inputs.input_files(plan)

    def parts(self, plan: SftPlan) -> list[Part]:
        return inputs.parts(plan)

    def images(self, plan: SftPlan, phase: str) -> list[ImageNames]:
        return inputs.named_images(plan, phase)

    def found_here(self, plan: SftPlan) -> Mapping[str, str]:
        return inputs.found_here(plan)

    def code_of(self, plan: SftPlan) -> str | None:
        return f"the Python files of its model {plan.model.id}" if plan.trust_remote_code else None

    def leave_off(self, plan: SftPlan, *, allows_code: bool, whole: bool) -> Untrusted:
        changes: dict[str, object] = {}
        said = []
        if plan.trust_remote_code and not allows_code:
            changes["trust_remote_code"] = False
            said.append(
                f"trust_remote_code: the Python files of {plan.model.id} are not run; {CODE_FLAG} "
                "runs them"
            )
        if whole and set(plan.tracking.report_to) - {"tensorboard"}:
            names = ", ".join(plan.tracking.report_to)
            said.append(f"tracking.report_to: {names}, nothing is sent to a server")
            changes["tracking"] = plan.tracking.model_copy(update={"report_to": []})
        return Untrusted(changes, said)

    def explain_no_model(self, plan: SftPlan, folder: RunFolder) -> None:
        return None

    def trainings(self, plan: SftPlan, folder: RunFolder) -> dict[str, int | None]:
        several = plan.trainings
        if len(several) == 1:
            return {}
        return {str(one.phase): one.training.max_steps for one in several}

    def explain_stop(self, plan: SftPlan, folder: RunFolder) -> str:
        if status_of(folder).get("phase") in (None, "training"):
            return "a checkpoint is saved first"
        return "it ends as soon as it can; a training saves a checkpoint first"

    def adopt(self, plan: SftPlan, recorded: SftPlan, *, is_own: bool) -> SftPlan | None:
        """This plan on the recorded one's day, and with its steps down where it was recovered.

        Those are the one thing taken from a folder: they count only where they make the plan that
        its seal names.
        """
        # its rows stay as they were written, whatever day it is now
        day = recorded.template_date or plan.template_date
        plan = plan.model_copy(update={"template_date": day})
        if recorded.hash == plan.hash:
            return plan
        settings = [each.training for each in recorded.trainings]
        if len(settings) == len(plan.trainings):
            lower = with_steps_down(plan, settings, recorded.substitutions)
            if lower.hash == recorded.hash and is_own:
                return lower
        return None

    def result(self, plan: SftPlan, folder: RunFolder) -> str | None:
        return valid_adapter(object_at(folder.engine_result).get("adapter")).get("folder")

    def step_down(
        self, plan: SftPlan, outcome: Outcome, folder: RunFolder
    ) -> tuple[SftPlan, str] | None:
        return next_plan(plan, outcome, folder)

    def advise(
        self,
        plan: SftPlan,
        outcome: Outcome,
        folder: RunFolder,
        limit_bytes: int | None,
        warn: Callable[[str], None],
    ) -> tuple[str, ...]:
        cache = cache_folder()
        reads = run_mounts(plan, self.mounts(plan, cache), None, cache, prepares_rows=True)
        return advise(folder, plan, outcome, limit_bytes, reads, warn)
