"""MgmEngine: the MGM toolkit's own trainings, in its image or environment. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from runner import __version__
from runner.common import durable
from runner.engines.base import Engine, Looked, Stage
from runner.engines.mgm import inputs
from runner.engines.mgm.advice import Memory, changes
from runner.engines.mgm.command import merged_folder
from runner.engines.mgm.job import MgmJob
from runner.engines.mgm.preflight import require_preflight
from runner.engines.mgm.progress import MGM, stage_now
from runner.engines.mgm.render import mgm_lines, render_mgm
from runner.engines.mgm.resolve import make_mgm_plan, require_mgm
from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.mgm.smoke import smoke_plan, stand_in
from runner.jobs.load import LoadedJob
from runner.plans.base import Plan, PlannedMount, Variant
from runner.plans.facts import HostFacts
from runner.plans.inputs import FileRecord, Part
from runner.plans.render import title
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason

MOST_CHANGES = 3


class MgmEngine(Engine[MgmJob, MgmPlan]):
    """The MGM toolkit, which is told what to do by flags and tells of itself by its stages."""

    name = "mgm"
    job_type = MgmJob
    plan_type = MgmPlan
    counts_by_training = True
    moves_earlier_results = True
    keeps_path_ends = True
    has_own_python = True
    python_keys = (("python",), ("mgm", "python"))
    is_tied_to_place = True

    def resolve(
        self, loaded: LoadedJob, facts: HostFacts, variant: Variant, max_steps: int | None
    ) -> MgmPlan:
        return make_mgm_plan(loaded, facts, variant, max_steps)

    def look_before(
        self,
        loaded: LoadedJob,
        plan: MgmPlan,
        say: Callable[[str], None],
        *,
        images: bool,
        runs: Path | None = None,
    ) -> Looked:
        require_mgm(loaded, plan)
        found = require_preflight(loaded, plan, say, images=images, runs=runs)
        return Looked(found.lines, found.warnings, found.to_record())

    def plan_smoke(
        self,
        loaded: LoadedJob,
        max_steps: int,
        *,
        fetch: Callable[[HostFacts], bool],
        load: Callable[[str, list[str]], LoadedJob],
    ) -> tuple[Plan, HostFacts]:
        plan, facts, why = smoke_plan(loaded, max_steps)
        return (plan, facts) if why is None else stand_in(loaded, plan, why, max_steps, load)

    def own_python(self, plan: MgmPlan) -> str | None:
        return plan.mgm.python if plan.container is None else None

    def render(self, plan: MgmPlan) -> dict[str, str]:
        return render_mgm(
            plan.mgm,
            title=title(plan),
            version=__version__,
            plan_hash=plan.hash,
            host_budget=plan.budget.limit_bytes if plan.budget.kind == "host" else None,
        )

    def summarize(self, plan: MgmPlan) -> list[tuple[str, str]]:
        return mgm_lines(plan.mgm)

    def describe_job(self, job: MgmJob) -> dict[str, str]:
        return {"model": job.model_name_or_path, "method": "lora, by MGM's toolkit"}

    def mounts(self, plan: MgmPlan, cache: Path) -> Iterable[PlannedMount]:
        for path in inputs.mgm_paths(plan.mgm):
            yield PlannedMount(source=str(path), target=str(path))

    def input_files(self, plan: MgmPlan) -> list[FileRecord]:
        return inputs.input_files(plan)

    def parts(self, plan: MgmPlan) -> list[Part]:
        return list(inputs.parts(plan))

    def code_of(self, plan: MgmPlan) -> str:
        return f"the toolkit in {plan.mgm.toolkit}"

    def explain_no_model(self, plan: MgmPlan, folder: RunFolder) -> tuple[str, str]:
        merged = folder.path / merged_folder(plan.mgm)
        way_out = (
            f"its merged model is {merged}; the toolkit loads it (mgm.model.builder, mgm.serve.cli)"
            if durable.is_folder(merged)
            else f"its merged model will be {merged}, once its stage merge is done"
        )
        return f"{folder.name} is a run of the MGM toolkit, whose model runner can't load", way_out

    def trainings(self, plan: MgmPlan, folder: RunFolder) -> dict[str, int | None]:
        known = stage_now(folder).steps or {}
        return {name: known.get(name, plan.mgm.max_steps) for name in MGM}

    def stage(self, folder: RunFolder) -> Stage:
        now = stage_now(folder)
        return Stage(now.name, now.name in MGM, now.saves, now.warnings)

    def explain_stop(self, plan: MgmPlan, folder: RunFolder) -> str:
        now = self.stage(folder)
        if now.is_training and now.saves:
            return f"{now.name} saves a checkpoint of its last whole step first"
        if now.is_training:
            return (
                f"no checkpoint of {now.name} is saved, which can't go on from one: it begins "
                "anew; the stages that are done stay"
            )
        stage = f"stage {now.name} ends" if now.name else "it ends"
        return f"{stage} and is run again when the run is resumed; the stages that are done stay"

    def resume_point(self, folder: RunFolder) -> str | None:
        done = sorted(path.stem for path in folder.stages.glob("*.json"))
        return f"its stages that are done ({', '.join(done)})" if done else None

    def result(self, plan: MgmPlan, folder: RunFolder) -> str | None:
        merged = str(merged_folder(plan.mgm))
        return merged if (folder.path / merged).is_dir() else None

    def advise(
        self,
        plan: MgmPlan,
        outcome: Outcome,
        folder: RunFolder,
        limit_bytes: int | None,
        warn: Callable[[str], None],
    ) -> tuple[str, ...]:
        """Nothing is predicted for the toolkit: what takes less, and how much, as far as known."""
        on_host = plan.launch.device == "cpu" or outcome.reason is Reason.HOST_OOM
        if limit_bytes is None and outcome.reason is not Reason.HOST_OOM:
            return ()
        memory: Memory = "host" if on_host else "gpu"
        found = changes(plan.mgm, memory, stage_now(folder).name, limit_bytes, outcome.peak_bytes)
        return tuple(f"perhaps {text}" for text in found)[:MOST_CHANGES]
