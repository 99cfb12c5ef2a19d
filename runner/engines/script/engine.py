"""ScriptEngine: a user's own training script, with the guard, the folder and the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from runner.engines.base import Engine
from runner.engines.script import inputs
from runner.engines.script.job import ScriptJob
from runner.engines.script.plan import ScriptPlan
from runner.engines.script.render import script_launch, script_lines
from runner.engines.script.resolve import ScriptFacts, gather_script, make_script_plan
from runner.jobs.load import LoadedJob
from runner.plans.base import PlannedMount, Variant
from runner.plans.inputs import FileRecord, Part
from runner.runs.folder import RunFolder


class ScriptEngine(Engine[ScriptJob, ScriptPlan]):
    """A script, of which runner knows its inputs and its output folder and nothing else."""

    name = "script"
    job_type = ScriptJob
    plan_type = ScriptPlan

    def gather(self, loaded: LoadedJob) -> ScriptFacts:
        return gather_script(loaded)

    def resolve(
        self, loaded: LoadedJob, facts: ScriptFacts, variant: Variant, max_steps: int | None
    ) -> ScriptPlan:
        return make_script_plan(loaded, facts, variant, max_steps)

    def render(self, plan: ScriptPlan) -> dict[str, str]:
        return {"launch.sh": script_launch(plan)}

    def summarize(self, plan: ScriptPlan) -> list[tuple[str, str]]:
        return script_lines(plan)

    def describe_job(self, job: ScriptJob) -> dict[str, str]:
        return {"model": job.script, "method": "script"}

    def mounts(self, plan: ScriptPlan, cache: Path) -> Iterable[PlannedMount]:
        return inputs.mounts(plan)

    def input_files(self, plan: ScriptPlan) -> list[FileRecord]:
        return inputs.input_files(plan)

    def parts(self, plan: ScriptPlan) -> list[Part]:
        return inputs.parts(plan)

    def starts(self, plan: ScriptPlan, file: Path) -> bool:
        return plan.runs_with == "itself" and file == Path(plan.script.path)

    def code_of(self, plan: ScriptPlan) -> str:
        return f"the script {plan.script.path}"

    def explain_no_model(self, plan: ScriptPlan, folder: RunFolder) -> tuple[str, str]:
        return (
            f"{folder.name} is a run of a script, of whose model runner knows nothing",
            f"what it wrote is in {folder.output}",
        )

    def explain_stop(self, plan: ScriptPlan, folder: RunFolder) -> str:
        return "the script is asked to end (SIGTERM); what it saves is its own affair"

    def result(self, plan: ScriptPlan, folder: RunFolder) -> str | None:
        wrote = folder.output.is_dir() and any(folder.output.iterdir())
        return folder.output.name if wrote else None

    def output(self, folder: RunFolder) -> Path:
        return folder.output
