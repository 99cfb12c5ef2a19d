"""Refuse early if the training packages are missing. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from runner.common.errors import RefusedError
from runner.engines.sft.inside.train.trackers import missing_trackers
from runner.engines.sft.job import SftJob
from runner.plans.placement import HERE, Placement


def require_training_stack(job: SftJob | None = None, place: Placement = HERE) -> None:
    """Refuse early where the packages that train, or those that `job` asks for, are not there."""
    names = ["torch", "transformers", "trl", "peft", "accelerate", "datasets"]
    if job is not None:
        names += ["pillow"] if job.vision is not None else []
        names += ["deepspeed"] if job.launch.deepspeed != "none" else []
    require_packages(names, place)
    wanted = job.tracking.report_to if job is not None else []
    if trackers := missing_trackers(wanted, place.version if place.container else None):
        raise RefusedError(
            f"tracking.report_to needs {', '.join(trackers)}, which is not installed {place.short}",
            "pip install 'runner[train,trackers]', or --set tracking.report_to=[]",
        )


def require_packages(names: Iterable[str], place: Placement = HERE) -> None:
    """Refuse where what trains lacks one of runner's packages for it, by their names."""
    missing = [name for name in names if place.version(name) is None]
    if missing and place.container is not None:
        raise RefusedError(
            f"the image {place.container.image.name} lacks {', '.join(missing)}",
            "runner image verify says what it has; runner image build makes it anew",
        )
    if missing:
        raise RefusedError(
            f"this Python ({sys.executable}) lacks {', '.join(missing)}",
            "pip install 'runner[train]' into it; or run in a container: --on docker",
        )
