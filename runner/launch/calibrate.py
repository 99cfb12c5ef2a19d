"""Record what a smoke measured of its predicted step, for later predictions.

Imports no torch. A few records of tiny stand-ins are enough: they show what a process holds besides
its tensors, and nothing of a model's own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from runner.common import durable
from runner.common.errors import RefusedError
from runner.common.output import Output, field
from runner.engines.registry import engine_of
from runner.engines.sft.facts import Facts
from runner.engines.sft.memory.ask import stack
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.survey_record import Survey
from runner.launch.ask_engine import EngineRefused
from runner.launch.vram import correct, device_name, predict_plan, versions_at
from runner.plans.base import Plan
from runner.plans.facts import HostFacts
from runner.report.prediction import headline, verdict
from runner.runs.folder import RunFolder
from runner.runs.metrics import loss_lines, time_of
from runner.vram.calibration import (
    CPU_SCHEMA_VERSION,
    SMALL_BYTES,
    Measured,
    keep,
    matching,
    read_records,
)
from runner.vram.context import CONTEXT_BYTES
from runner.vram.prediction import Prediction

ENOUGH_SMALL = 3
"""Records of small models for a device, stack and method, beyond which no stand-in is predicted."""
SEES_ALL = ("nvml_pid", "host_process_tree")
"""Attributions of memory.jsonl that see the whole process; torch's own count does not."""


def predict_smoke(
    plan: Plan, facts: HostFacts, folder: RunFolder, out: Output
) -> Prediction | None:
    """The prediction of a smoke, shown and kept in its folder; None where it would tell nothing."""
    known = engine_of(plan).predicted(plan, facts)
    if known is None:
        return None
    native, own_facts = known
    if not is_worth_predicting(native, own_facts):
        return None
    try:
        prediction = predict_plan(native, own_facts, out)
    except (EngineRefused, RefusedError) as error:
        out.say(field("memory", f"not predicted: {error.message}"))
        return None
    keep_prediction(folder, prediction)
    out.say(field("memory", memory_line(prediction, plan)))
    return prediction


def is_worth_predicting(plan: SftPlan, facts: Facts, coming: int = 0) -> bool:
    """Whether a smoke's measurement would tell anything beside those that are kept.

    `coming`: how many of small models, for the same device and method, are to be kept before.
    """
    return plan.model.kind != "standin" or _known(plan, facts) + coming < ENOUGH_SMALL


def keep_prediction(folder: RunFolder, prediction: Prediction) -> None:
    """Write it into the run's folder."""
    folder.write_json(folder.prediction, prediction.model_dump(mode="json"))


def memory_line(prediction: Prediction, plan: Plan) -> str:
    """A prediction in a line: how much, how sure, and whether it fits."""
    return f"predicted {headline(prediction)} · {verdict(prediction, plan.budget.limit_bytes)}"


def corrected_survey(surveyed: Survey, plan: SftPlan, facts: Facts) -> Prediction | None:
    """The prediction that a survey brought, as measurements correct it; None where it has none."""
    if surveyed["memory"] is None:
        return None
    return correct(Prediction.model_validate(surveyed["memory"]), plan, facts)


def _known(plan: SftPlan, facts: Facts) -> int:
    found = matching(
        read_records(), device_name(plan, facts), stack(versions_at(facts.place)), plan.method
    )
    return sum(one.reserved_bytes < SMALL_BYTES for one in found)


def training_peak(folder: RunFolder) -> tuple[int, str] | None:
    """The most that a run held while it trained, in bytes, and how that is known.

    Not what came after its last step: a smoke loads its result a second time beside the first.
    """
    last = max((time_of(line) or 0.0 for line in loss_lines(folder.metrics)), default=0.0)
    seen = [
        (own, f"{line['attribution']}:{line.get('measure') or 'trainer'}")
        for line in durable.read_jsonl(folder.memory)
        if line.get("attribution") in SEES_ALL
        and isinstance(own := line.get("own_bytes"), int)
        and (time_of(line) or 0.0) <= last
    ]
    return max(seen, default=None)


def keep_measurement(
    plan: Plan,
    facts: HostFacts,
    folder: RunFolder,
    prediction: Prediction | None,
    end: Mapping[str, object],
    out: Output,
) -> None:
    """Keep what a smoke that completed measured beside what was predicted for it, and say so."""
    known = engine_of(plan).predicted(plan, facts)
    if prediction is None or known is None or end.get("reason") != "completed":
        return
    native, own_facts = known
    found = training_peak(folder)
    if found is None:
        return
    (measured, source), largest = found, prediction.largest
    assumed = CONTEXT_BYTES
    if prediction.device == "cpu":
        assumed = largest.uncorrected_overhead_bytes or largest.overhead_bytes
    record = Measured(
        schema_version=CPU_SCHEMA_VERSION,
        device=device_name(native, own_facts),
        stack=stack(versions_at(facts.place)),
        method=native.method,
        reserved_bytes=largest.reserved_bytes,
        overhead_bytes=assumed,
        measured_bytes=measured,
        source=source,
        job=plan.job,
        run=folder.name,
        time_unix_seconds=round(time.time(), 3),
    )
    error = largest.process_bytes / measured - 1
    try:
        path = keep(record)
    except OSError as failed:
        out.say(field("measured", f"could not be kept: {failed}"))
        return
    out.say(
        field(
            "measured",
            f"{measured / 2**30:.2f} GiB ({source}); predicted {error:+.1%} of it; kept in {path}",
        )
    )
