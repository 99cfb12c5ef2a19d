"""Which plans leave an adapter that can be merged into its base.

Pure; imports runner.engines.sft.plan only.
"""

from __future__ import annotations

from runner.engines.sft.plan import SftPlan


def nothing_to_merge(plan: SftPlan) -> str | None:
    """What a run of the plan trains, where that can't be merged: a predicate after "it"; else None.

    Taken by `runner merge`, which refuses such a run, and by the check before the start, which says
    so.
    """
    if plan.trains == ["projector"]:
        return "trains a projector and no adapter; there is nothing to merge"
    if plan.method == "full":
        return "trains all weights: its model is whole already"
    if plan.method == "prefix":
        return (
            "trains a prefix, which can't be merged: it is keys and values before every layer's "
            "own, not a change of weights"
        )
    return None
