"""The emission job under budgets, by the figures of its traced steps that are recorded here.

`python -m tests.vram.emission` traces them anew, in a few minutes, into emission_figures.json:
where the job, what is traced (ask.VERSION) or the way down (`ladder`, `fit`) has changed.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from runner.common.packages import package_version
from runner.engines.load import load_job
from runner.engines.sft.facts import gather
from runner.engines.sft.memory.ask import PACKAGES, Batch
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.launch.vram import with_assumed_gpus

JOB = "emission-unified-lora"
BUDGETS_GIB = (8, 12, 24)
FIGURES = Path(__file__).with_name("emission_figures.json")


def emission_plan() -> SftPlan:
    """The job's plan on one assumed card, of a model that is not on this machine."""
    loaded = load_job(JOB)
    plan: Any = make_plan(loaded, with_assumed_gpus(gather(loaded), 1), "train")
    model = {"folder": None, "revision": None}
    return plan.model_copy(update={"model": plan.model.model_copy(update=model)})


def fitted(plan: SftPlan, budget_gib: int, versions: dict[str, str | None]) -> dict[str, Any]:
    """What `runner fit` is told for a budget."""
    from runner.engines.sft.inside.memory.fit import fit

    batch = Batch(plan.training.max_length or 0, 0, "max_length")
    asked = {"budget_bytes": budget_gib << 30, "allow": [], "models": [], "correction": None}
    return fit(plan, [batch], versions, asked)


def main() -> None:
    """Trace what the budgets ask for, and record it."""
    versions = {name: package_version(name) for name in PACKAGES}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RUNNER_CACHE"] = cache
        for budget in BUDGETS_GIB:
            fitted(emission_plan(), budget, versions)
        kept = sorted(Path(cache, "vram").glob("*.json"))
        figures = {path.stem: json.loads(path.read_text()) for path in kept}
    record = {"versions": versions, "figures": figures}
    FIGURES.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
