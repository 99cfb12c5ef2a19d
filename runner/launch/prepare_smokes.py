"""Make what several smokes need before the first of them: stand-ins and predicted memory.

Each smoke would start a process for its stand-in and another for its prediction, and each of these
would import the training stack. Here one process imports it for all of them. It only fills the
caches that a smoke looks into: one that finds nothing there asks for itself, as if this had not
been, and says what is wrong. It has ended when the first smoke starts, since a process that shares
a training's libraries makes its measured memory smaller. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runner.common.errors import EXIT_INTERRUPTED, RunnerError
from runner.common.output import Output, field
from runner.common.own_python import module_argv, safe_environment
from runner.engines.load import load_job
from runner.engines.registry import engine_of
from runner.engines.sft.facts import Facts
from runner.engines.sft.memory.ask import keep, kept, plan_key
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import SMOKE_DEFAULT_STEPS
from runner.jobs.load import LoadedJob
from runner.launch.calibrate import is_worth_predicting
from runner.launch.fetch import lacking
from runner.launch.vram import device_name, versions_at
from runner.plans.facts import HostFacts
from runner.vram.prediction import Prediction

MODULE = "runner.engines.sft.inside.prepare_smokes"
ANSWERS = "answers.jsonl"
_LATER = "what it did not come to is made in each job's turn"


@dataclass(frozen=True)
class Needed:
    """What a smoke needs that is not in the cache yet; one of the two at least."""

    plan: SftPlan
    facts: Facts
    stand_in: bool
    prediction: bool


def prepare_smokes(jobs: Sequence[LoadedJob], max_steps: int | None, out: Output) -> None:
    """Fill the caches for the smokes of `jobs`, where that takes fewer processes than they would.

    Raises SystemExit(EXIT_INTERRUPTED) after Ctrl-C, when its processes have been killed.
    """
    needed = list(_needed(jobs, max_steps or SMOKE_DEFAULT_STEPS))
    if sum(each.stand_in + each.prediction for each in needed) < 2:
        return
    stand_ins = sum(each.stand_in for each in needed)
    predictions = sum(each.prediction for each in needed)
    out.say(
        field("preparing", f"{stand_ins} stand-in(s) and {predictions} prediction(s) of memory")
    )
    try:
        with tempfile.TemporaryDirectory(prefix="runner-ask-") as name:
            code = _ask(needed, Path(name))
            _keep_predictions(needed, Path(name))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        out.say(field("preparing", f"failed ({error}): {_LATER}"))
        return
    if code:
        out.say(field("preparing", f"ended with {code}: {_LATER}"))


def _needed(jobs: Sequence[LoadedJob], max_steps: int) -> Iterator[Needed]:
    """What each smoke needs, of those that can be planned as they will be."""
    coming: Counter[tuple[str, str]] = Counter()
    for job in jobs:
        known = _planned(job, max_steps)
        if known is None:
            continue
        plan, facts = known
        stand_in = plan.model.kind == "standin"
        measured = (device_name(plan, facts), plan.method)
        predicts = is_worth_predicting(plan, facts, coming[measured])
        coming[measured] += predicts and stand_in
        makes = stand_in and not (Path(plan.model.folder or "") / "config.json").is_file()
        if not makes and predicts and kept(plan_key(plan, versions_at(facts.place))) is not None:
            predicts = False
        if makes or predicts:
            yield Needed(plan, facts, makes, predicts)


def _planned(job: LoadedJob, max_steps: int) -> tuple[SftPlan, Facts] | None:
    """The native plan of a job's smoke, if it can be prepared here; None leaves it to its turn.

    Left to it are what is to be fetched first, what a container or a model's own code is needed
    for, and what is refused.
    """

    def leave_fetching(facts: HostFacts) -> bool:
        if any(one.source == "builtin" for one in lacking(job, facts)):
            raise _LeftToItsTurn
        return False

    try:
        plan, facts = engine_of(job.job).plan_smoke(
            job, max_steps, fetch=leave_fetching, load=load_job
        )
        known = engine_of(plan).predicted(plan, facts)
    except (_LeftToItsTurn, RunnerError, OSError):
        return None
    if known is None or plan.container is not None:
        return None
    native, own_facts = known
    if native.trust_remote_code or native.model.folder is None:
        return None
    return native, own_facts


class _LeftToItsTurn(Exception):
    """The job's weights have to be fetched first."""


def _ask(needed: Sequence[Needed], folder: Path) -> int:
    """The exit code of the process that makes it; nothing of it, or that it started, is left."""
    wanted = [
        {"plan": each.plan.model_dump(mode="json"), "predicts": each.prediction} for each in needed
    ]
    request = folder / "request.json"
    request.write_text(json.dumps(wanted), encoding="utf-8")
    with (folder / ANSWERS).open("wb") as answers:
        process = subprocess.Popen(
            module_argv(MODULE, str(request)),
            stdin=subprocess.DEVNULL,
            stdout=answers,
            stderr=subprocess.DEVNULL,  # a job that is refused says why in its turn
            env=safe_environment(),
            start_new_session=True,
        )
    try:
        with contextlib.suppress(ChildProcessError):  # a caller who ignores SIGCHLD
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        # before it is waited for: until then its number is no other's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return code


def _keep_predictions(needed: Sequence[Needed], folder: Path) -> None:
    """Keep what was answered under the key by which each smoke will look for it."""
    answers: dict[int, Any] = {}
    for line in (folder / ANSWERS).read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may be a part
            record = json.loads(line)
            answers[record["number"]] = record["prediction"]
    for number, each in enumerate(needed):
        if number in answers:
            with contextlib.suppress(ValidationError, OSError):
                prediction = Prediction.model_validate(answers[number])
                keep(plan_key(each.plan, versions_at(each.facts.place)), prediction)
