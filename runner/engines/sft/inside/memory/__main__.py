"""Predict a plan's memory, or fit it to a budget; print JSON: `python -m PACKAGE REQUEST`.

REQUEST is a JSON file: {"plan": path of a plan.yaml, "batches": null or a list of {tokens, images,
because}, "fit": null or what `fit` asks for, "cheapest": null or a limit to find changes for,
"mgm": null or stages of the toolkit's trainings}.
Lines on stderr that start with "runner: " are for people.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.common import terminal
from runner.common.errors import RunnerError, bug
from runner.common.packages import package_version
from runner.common.tensors_only import load_tensors_only
from runner.common.typed_json import typed_record
from runner.engines.render import read_plan
from runner.engines.sft.inside.imports import without_collection
from runner.engines.sft.memory.ask import PACKAGES, Batch, predicted
from runner.engines.sft.memory.messages import Request
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.unused_packages import leave_out_unused
from runner.vram.prediction import Prediction


def main() -> int:
    """Exit code 0, or that of the refusal, whose lines are in the JSON."""
    load_tensors_only()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    code = 0
    record: Mapping[str, object]
    try:
        asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        record = _answer(typed_record(asked, Request, "the request"))
    except RunnerError as error:
        record, code = {"error": error.lines()}, error.exit_code
    except Exception as error:
        record, code = {"error": bug(error).lines()}, 1
    terminal.put_json(record)
    return code


def _answer(request: Request) -> Mapping[str, object]:
    plan = read_plan(Path(request["plan"]))
    if request.get("fit") is None and request.get("cheapest") is None:  # which try other methods
        leave_out_unused(plan)
    if plan.model.folder is not None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with without_collection():
        import runner.engines.sft.inside.memory.step  # noqa: F401 - and the stack by it
    stages = request.get("mgm")
    if stages is not None:
        from runner.engines.sft.inside.memory.mgm import answer

        return answer(plan, stages)
    from runner.engines.sft.inside.model.limits import require_plain_weights

    for part in plan.trainings:
        require_plain_weights(part)
    versions = {name: package_version(name) for name in PACKAGES}
    given = request["batches"]
    if given is None:
        from runner.engines.sft.inside.memory.batches import batches_of

        batches = batches_of(plan)
    else:
        batches = [Batch(**one) for one in given]
    cheapest_asked, fit_asked = request.get("cheapest"), request.get("fit")
    if cheapest_asked is not None:
        from runner.engines.sft.inside.memory.fit import cheapest

        return {"changes": cheapest(plan, batches, versions, cheapest_asked)}
    if fit_asked is not None:
        from runner.engines.sft.inside.memory.fit import fit

        return fit(plan, batches, versions, fit_asked)
    return predicted(plan, batches, versions, _predict).model_dump(mode="json")


def _predict(
    plan: SftPlan, batches: Sequence[Batch], versions: dict[str, str | None]
) -> Prediction:
    from runner.engines.sft.inside.memory.predict import predict

    shown = ", ".join(f"{one.tokens} tokens" for one in batches)
    terminal.say(f"runner: tracing a step of {shown} without weights")
    return predict(plan, batches, versions)


if __name__ == "__main__":
    sys.exit(main())
