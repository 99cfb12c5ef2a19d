"""Make what several smokes need, in one process: `python -m PACKAGE.prepare_smokes REQUEST`.

REQUEST is a JSON file, a list of {"plan": of a smoke, "predicts": whether its memory is to be
predicted}. Stand-ins are made in the cache; for each prediction a line of JSON is printed:
{"number": of the plan, from 0, "prediction": the record of runner.vram.prediction}. A plan that is
refused has none, and harms no other. Imports the training stack once for all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner.common import terminal
from runner.common.errors import RunnerError
from runner.common.packages import package_version
from runner.common.tensors_only import load_tensors_only
from runner.data.read import ReadOptions
from runner.data.sources import table_options
from runner.engines.sft.inside.imports import without_collection
from runner.engines.sft.inside.memory.footprint import footprint
from runner.engines.sft.inside.memory.process import packages_of
from runner.engines.sft.memory.ask import PACKAGES, Batch, predicted
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.unused_packages import SPARED, leave_out, used_packages
from runner.vram.prediction import Prediction


def main() -> int:
    """Exit code 0. What is no refusal ends the process: what it leaves of torch is not known."""
    load_tensors_only()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # each plan's model has a folder here
    wanted = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    plans = [SftPlan.model_validate(one["plan"]) for one in wanted]
    leave_out(set(SPARED).difference(*map(used_packages, plans)))
    versions = {name: package_version(name) for name in PACKAGES}
    # the most frequent footprint is measured first, and what needs it predicted first
    sets = Counter(packages_of(plans[n]) for n, one in enumerate(wanted) if one["predicts"])
    order = [packages for packages, _ in sets.most_common()]
    batches: dict[int, list[Batch]] = {}
    with ThreadPoolExecutor(1) as beside:
        # by processes of their own, meanwhile; what they find is kept for the predictions
        measured = [beside.submit(_measure, each, versions, plans) for each in order]
        with without_collection():
            import runner.engines.sft.inside.memory.step  # noqa: F401 - and all that it imports
        for number, plan in enumerate(plans):
            with contextlib.suppress(RunnerError):  # the smoke's own process will say it
                _make_stand_in(plan)
                if wanted[number]["predicts"]:
                    batches[number] = _batches(plan)
        for packages, footprint_kept in zip(order, measured, strict=True):
            footprint_kept.result()
            for number in (n for n in batches if packages_of(plans[n]) == packages):
                _answer(number, plans[number], batches[number], versions)
    return 0


def _measure(
    packages: tuple[str, ...], versions: dict[str, str | None], plans: Sequence[SftPlan]
) -> None:
    """Measure the footprint of what uses `packages`, where a CPU run among the plans does."""
    if any(one.launch.device == "cpu" and packages_of(one) == packages for one in plans):
        footprint(packages, versions)


def _answer(
    number: int, plan: SftPlan, batches: list[Batch], versions: dict[str, str | None]
) -> None:
    """Print a plan's prediction, if it has one."""
    with contextlib.suppress(RunnerError):
        found = predicted(plan, batches, versions, _predict)
        terminal.put_json({"number": number, "prediction": found.model_dump(mode="json")})
        sys.stdout.flush()  # what is done stays done, however this ends


def _make_stand_in(plan: SftPlan) -> None:
    """Make the plan's model, where it is a stand-in that is not there. Raises RunnerError."""
    from runner.engines.sft.inside.model.standin import make

    model, first = plan.model, plan.trainings[0]
    if model.kind != "standin":
        return
    if model.model_type is None or model.folder is None or first.rows.train.path is None:
        raise RunnerError("a stand-in needs an architecture, a folder and rows")
    reading = ReadOptions(table_options(first.data.table))
    make(model.model_type, Path(model.folder), Path(first.rows.train.path), reading)


def _batches(plan: SftPlan) -> list[Batch]:
    """The longest batches, as runner.engines.sft.inside.memory finds them. Raises RunnerError."""
    from runner.engines.sft.inside.memory.batches import batches_of
    from runner.engines.sft.inside.model.limits import require_plain_weights

    for part in plan.trainings:
        require_plain_weights(part)
    return batches_of(plan)


def _predict(
    plan: SftPlan, batches: Sequence[Batch], versions: dict[str, str | None]
) -> Prediction:
    from runner.engines.sft.inside.memory.predict import predict

    return predict(plan, batches, versions)


if __name__ == "__main__":
    sys.exit(main())
