"""Find the cheapest changes with which a run that ran out of memory would have fitted.

Imports no torch. Runs the prediction in the run's environment, with a time limit; what it can't
find is left out, with a message.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.common.own_python import safe_environment
from runner.common.typed_json import WrongRecord, typed_record
from runner.common.units import format_bytes
from runner.common.yaml_text import to_yaml
from runner.engines.sft.memory.ask import Batch, write_request
from runner.engines.sft.memory.messages import Change, CheapestAnswer, CheapestAsked
from runner.engines.sft.plan import SftPlan
from runner.plans.base import PlannedMount
from runner.plans.container.mounts import PREPARED
from runner.plans.engine_command import question
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome
from runner.runs.records import texts
from runner.vram.calibration import Correction
from runner.vram.prediction import read_prediction

SECONDS = 120.0
COUNT = 3


def advise(
    folder: RunFolder,
    plan: SftPlan,
    outcome: Outcome,
    limit: int | None,
    reads: Sequence[PlannedMount],
    warn: Callable[[str], None],
) -> tuple[str, ...]:
    """Up to three changes in words, the cheapest first; also in advice.json. Empty otherwise.

    Args:
        reads: what a container has to see in which the prediction is asked.
        warn: takes what could not be found out.
    """
    if limit is None:
        return ()
    prediction = read_prediction(folder.prediction)
    asked: CheapestAsked = {"limit_bytes": limit, "count": COUNT, "correction": None}
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
    found_changes = _ask(plan, batches, asked, reads, warn)
    if found_changes is None:
        return ()
    said = [_text(change) for change in found_changes]
    told = {"schema_version": 1, "limit_bytes": limit, "changes": found_changes, "texts": said}
    folder.write_json(folder.advice, told)
    return tuple(said)


def _ask(
    plan: SftPlan,
    batches: list[Batch] | None,
    asked: CheapestAsked,
    reads: Sequence[PlannedMount],
    warn: Callable[[str], None],
) -> list[Change] | None:
    with tempfile.TemporaryDirectory(prefix="runner-advice-") as name:
        place = Path(name)
        put = question(
            plan.container,
            write_request(place, plan, batches, cheapest=asked),
            reads=list(reads),
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
            answer: object = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            put.abandon()
            warn(f"what would have fitted was not found in {SECONDS:.0f} s")
            return None
        except (OSError, ValueError, IndexError) as error:
            warn(f"what would have fitted could not be worked out: {error}")
            return None
    if isinstance(answer, dict) and texts(answer.get("error")) and answer["error"]:
        warn(f"what would have fitted: {answer['error'][0]}")
        return None
    try:
        return typed_record(answer, CheapestAnswer, "the engine's answer")["changes"]
    except WrongRecord as error:
        warn(f"what would have fitted could not be worked out: {error}")
        return None


def _text(change: Change) -> str:
    sets = " ".join(
        f"--set {name}={value if isinstance(value, str) else to_yaml(value)}"
        for name, value in change["overrides"].items()
    )
    cost = "" if not change["changes"] else f", {change['changes']}"
    return (
        f"{change['text']}: {format_bytes(change['peak_bytes'])}, x{change['time']:.2f} the time"
        f"{cost} ({sets})"
    )
