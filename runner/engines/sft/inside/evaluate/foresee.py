"""Find before a run starts what `runner evaluate` and `runner merge` would refuse of it.

The judgements are their own functions, called here with the plan alone. Imports this package and
runner.engines.sft.inside's checks when called; no weights are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runner.common.packages import package_version
from runner.data.prepared import Prepared
from runner.engines.sft.inside.evaluate.request import PACKAGES
from runner.engines.sft.mergeable import nothing_to_merge
from runner.engines.sft.plan import SftPlan


def foresee_evaluation(
    plan: SftPlan, tokenizer: Any, prepared: Prepared, say: Callable[[str], None]
) -> list[str]:
    """Refuse what an evaluation of this training's held-out rows would refuse.

    Returns lines on what an evaluation will lack, and can still be given: rows (none are held out),
    packages.

    Raises SpecError: rows that the task can't judge, labels that can't be told apart, rows that the
    model has no room for.
    """
    missing = [name for name in PACKAGES if package_version(name) is None]
    if missing:
        return [f"runner evaluate needs {', '.join(missing)}, which is not installed here"]
    if not prepared.counts["test"] and not prepared.counts["eval"]:
        return ["runner evaluate will need --data FILE: no rows are held out (data.split)"]
    from runner.engines.sft.inside.evaluate.evaluation import greedy_of, settle_task
    from runner.engines.sft.inside.evaluate.measure import tokenize
    from runner.engines.sft.inside.evaluate.rows import Question
    from runner.engines.sft.inside.evaluate.sight import load_sight
    from runner.engines.sft.inside.model.limits import require_measurable

    settings = plan.evaluation
    choices = settings.task == "multiple_choice"
    question = Question(plan, [], None, settings.max_rows, choices, say)
    asked = settle_task(question, settings, greedy_of(tokenizer, settings))
    if not prepared.counts["test"]:
        return []  # the evaluation rows have been encoded, and looked at as they were
    sight, most = load_sight(plan, tokenizer), plan.training.max_length
    material = tokenize(tokenizer, asked.rows, most, sight, generates=asked.task is not None)
    encoded = [row.input_ids for row in material.encoded.values()]
    require_measurable(plan, tokenizer, encoded, material.prompts)
    return []


def foresee_merge(plan: SftPlan) -> list[str]:
    """A line where the run will leave nothing that `runner merge` could merge, and why.

    What else merge refuses, a base whose weights are stored quantized, is refused before this.
    """
    found = nothing_to_merge(plan)
    return [] if found is None else [f"runner merge will refuse this run: it {found}"]
