"""How many tokens an image takes in a plan's rows.

Imports the image tower's code only for a model that has one.
"""

from __future__ import annotations

from runner.engines.sft.plan import SftPlan


def image_tokens(plan: SftPlan) -> int:
    """Tokens that one image takes; 0 for a text model."""
    if plan.vision is None:
        return 0
    from runner.engines.sft.inside.model.vision.config import image_tokens_of

    return image_tokens_of(plan)
