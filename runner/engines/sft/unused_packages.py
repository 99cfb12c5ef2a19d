"""Packages that a plan does not use are as not installed for the process that trains it.

Standard library and the plan only. Called before the stack is imported. transformers, peft, trl and
accelerate ask whether a package is installed and import it if so, whatever the training is: wandb,
mlflow (by DeepSpeed), bitsandbytes (and by it torch's compiler), DeepSpeed, SciPy and scikit-learn
are half of the imports of a LoRA training, which calls nothing of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from runner.engines.sft.plan import SftPlan

SPARED = ("bitsandbytes", "comet_ml", "deepspeed", "mlflow", "scipy", "sklearn", "wandb")
"""Module names of packages that the stack imports wherever they are installed."""
_TRACKERS = {"comet_ml", "mlflow", "wandb"}


def used_packages(plan: SftPlan) -> set[str]:
    """Those of SPARED that training a plan uses.

    Python files of a model's own may import anything, so that such a plan uses all.
    """
    if plan.trust_remote_code:
        return set(SPARED)
    used = _TRACKERS & set(plan.tracking.report_to)
    if used:  # they look for what they can draw
        used |= {"scipy", "sklearn"}
    if plan.method == "qlora" or any(
        part.training.optim != "adamw_torch" for part in plan.trainings
    ):
        used.add("bitsandbytes")
    if plan.launch.deepspeed != "none":
        used.add("deepspeed")
    return used


def leave_out_unused(plan: SftPlan) -> None:
    """Leave out what a plan does not use, for the rest of this process."""
    leave_out(set(SPARED) - used_packages(plan))


def leave_out(names: Iterable[str]) -> None:
    """Make each name one that can't be imported, and that find_spec doesn't find.

    None in sys.modules is Python's own word for it (language reference, "The module cache"). What
    is imported already stays.
    """
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
