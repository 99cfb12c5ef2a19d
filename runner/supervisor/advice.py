"""The cheapest changes that would have fitted a run that ran out of memory. Imports no torch.

Asked of the prediction where the run ran, within a time; what can't be had is left out, and said.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.common.own_python import safe_environment
from runner.common.units import format_bytes
from runner.common.yaml_text import to_yaml
from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.sft.memory.ask import Batch, read_prediction, write_request
from runner.engines.sft.plan import Plan
from runner.engines.trainings import stage_now
from runner.plans.base import PlanBase
from runner.plans.container.mounts import PREPARED, plan_mounts
from runner.plans.engine_command import question
from runner.plans.sources import cache_folder
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from runner.supervisor.advice_mgm import Memory, changes
from runner.supervisor.event_log import Record
from runner.vram.calibration import Correction

SECONDS = 120.0
COUNT = 3


def advise(folder: RunFolder, plan: PlanBase, outcome: Outcome, record: Record) -> tuple[str, ...]:
    """Up to three changes in words, the cheapest first; also in advice.json. Empty otherwise."""
    limit = _limit(folder, plan, outcome)
    if isinstance(plan, MgmPlan):
        return _of_mgm(folder, plan, outcome, limit)
    if not isinstance(plan, Plan) or limit is None:
        return ()
    prediction = read_prediction(folder.prediction)
    asked: dict[str, Any] = {"limit_bytes": limit, "count": COUNT, "correction": None}
    if prediction is not None and outcome.peak_bytes:
        # it took more than was predicted: what is advised is measured by that
        ratio = max(1.0, outcome.peak_bytes / max(1, prediction.process_bytes))
        found = Correction(
            overhead_bytes=None, ratio=round(ratio, 4), spread=0.0, samples=1, large=1
        )
        asked["correction"] = found.model_dump()
    batches = None
    if prediction is not None:
        batches = [Batch(one.tokens, one.images, one.length_from) for one in prediction.trainings]
    found_changes = _ask(plan, batches, asked, record)
    if found_changes is None:
        return ()
    said = [_text(change) for change in found_changes]
    told = {"schema_version": 1, "limit_bytes": limit, "changes": found_changes, "texts": said}
    folder.write_json(folder.advice, told)
    return tuple(said)


def _of_mgm(
    folder: RunFolder, plan: MgmPlan, outcome: Outcome, limit: int | None
) -> tuple[str, ...]:
    """Of a run of the toolkit, for which nothing is predicted: what takes less, and how much."""
    on_host = plan.launch.device == "cpu" or outcome.reason is Reason.HOST_OOM
    if limit is None and outcome.reason is not Reason.HOST_OOM:
        return ()
    memory: Memory = "host" if on_host else "gpu"
    found = changes(plan.mgm, memory, stage_now(folder).name, limit, outcome.peak_bytes)
    return tuple(f"perhaps {text}" for text in found)[:COUNT]


def _limit(folder: RunFolder, plan: PlanBase, outcome: Outcome) -> int | None:
    """Bytes that the run should have kept to; None where memory was not the matter."""
    if not _out_of_memory(plan, outcome):
        return None
    if plan.budget.limit_bytes is not None:
        return plan.budget.limit_bytes
    last = durable.last_jsonl(folder.memory) or {}
    total = last.get("total_bytes")
    return total if isinstance(total, int) else None


def _out_of_memory(plan: PlanBase, outcome: Outcome) -> bool:
    memory = {Reason.CUDA_OOM, Reason.OVER_BUDGET}
    if plan.launch.device == "cpu":
        memory.add(Reason.HOST_OOM)
    return outcome.reason in memory


def _ask(
    plan: Plan, batches: list[Batch] | None, asked: dict[str, Any], record: Record
) -> list[dict[str, Any]] | None:
    with tempfile.TemporaryDirectory(prefix="runner-advice-") as name:
        place = Path(name)
        put = question(
            plan.container,
            write_request(place, plan, batches, cheapest=asked),
            reads=plan_mounts(plan, None, cache_folder()),
            writes=[place],
            caches=[PREPARED, "vram"],
            environment=True,
        )
        try:
            done = subprocess.run(
                put.argv,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=SECONDS,
                check=False,
                env=safe_environment(),
            )
            answer = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            put.abandon()
            record.event("notice", f"what would have fitted was not found in {SECONDS:.0f} s")
            return None
        except (OSError, ValueError, IndexError) as error:
            record.event("notice", f"what would have fitted could not be worked out: {error}")
            return None
    if "error" in answer:
        record.event("notice", f"what would have fitted: {answer['error'][0]}")
        return None
    changes: list[dict[str, Any]] = answer["changes"]
    return changes


def _text(change: dict[str, Any]) -> str:
    sets = " ".join(
        f"--set {name}={value if isinstance(value, str) else to_yaml(value)}"
        for name, value in change["overrides"].items()
    )
    cost = "" if not change["changes"] else f", {change['changes']}"
    return (
        f"{change['text']}: {format_bytes(change['peak_bytes'])}, x{change['time']:.2f} the time"
        f"{cost} ({sets})"
    )
