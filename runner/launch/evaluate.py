"""Measure a model on rows with known answers, in a process of its own. Imports no torch."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runner.common import durable
from runner.common.caches import cache_folder
from runner.common.errors import (
    EXIT_INTERRUPTED,
    Problem,
    RunnerError,
    SpecError,
    UsageError,
    nearest,
)
from runner.common.output import Output
from runner.common.own_python import safe_environment
from runner.common.shared_folder import SharedFolder
from runner.common.yaml_text import parse
from runner.engines.load import load_job
from runner.engines.mounts import plan_mounts
from runner.engines.sft.facts import gather, require_data
from runner.engines.sft.inside.evaluate.request import (
    PACKAGES,
    EvaluationFolder,
    Request,
    write_request,
)
from runner.engines.sft.inside.model.trained import require_result
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.jobs.training import EvaluationSettings
from runner.launch.left_out import say_left_out
from runner.launch.preflight import answering_gpu, fetch_missing, require_run_stack
from runner.launch.recorded_plan import mount_of, plan_to_ask, result_mounts
from runner.plans.container.mounts import PREPARED
from runner.plans.engine_command import question
from runner.plans.plan_file import plan_yaml
from runner.runs.find import default_root, find_run
from runner.runs.folder import RunFolder
from runner.runs.job_folders import job_folder

_PREFIX = "evaluation."


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation left."""

    exit_code: int
    """Of the measuring process; 130 where it was stopped."""
    folder: Path
    record: dict[str, Any]
    """evaluation.json; empty where it was refused or stopped."""


def evaluate(
    target: str,
    output: Output,
    *,
    job: str | None = None,
    sets: Sequence[str] = (),
    data: Sequence[Path] = (),
    base: bool = False,
    max_rows: int | None = None,
    trust_code: bool = False,
    runs: Path | None = None,
    out: Path | None = None,
) -> Evaluated:
    """Measure a run's model, or with `job` any model on that job's rows.

    Args:
        target: a RUN; with `job` a model: a folder, a hub id, modelscope:ID or builtin:NAME.
        job: whose rows and settings a MODEL is measured with; None for a RUN, which has its own.
        sets: overrides; of a RUN's plan only evaluation.* can change.
        data: files to measure in place of the held-out rows; one set each.
        base: measure a RUN's base model beside it.
        max_rows: over evaluation.max_rows.
        trust_code: the Python files of a foreign RUN's model may run; a JOB says so itself.
        out: the evaluation's folder; without it, a new one in the run, or under `runs`.

    Raises:
        UsageError, SpecError, RefusedError: bad input, or what the machine lacks.
        RunnerError: the evaluation left no figures.
    """
    for path in data:
        if not path.is_file():
            near = nearest(path.name, [p.name for p in path.parent.glob("*")])
            hint = f"nearest in that folder: {path.parent / near}" if near else None
            raise UsageError(f"--data {path}: no such file", hint)
    root = runs or default_root()
    run: RunFolder | None = None
    if job is None:
        run, plan = _run(target, root, output, trust_code=trust_code)
        settings = _settings(plan.evaluation, sets)
    else:
        plan = _model_plan(target, job, sets, output, own_rows=not data)
        settings = plan.evaluation
    require_run_stack(plan, PACKAGES)
    if max_rows is not None:
        settings = settings.model_copy(update={"max_rows": max_rows})
    folder = EvaluationFolder(_make_folder(out, run, root, plan))
    try:
        folder.write_file(folder.plan, plan_yaml(plan))
        write_request(
            folder,
            Request(
                target=target,
                run=run.path if run else None,
                plan=folder.plan,
                files=[path.absolute() for path in data],
                base=base and run is not None,
                settings=settings,
            ),
        )
        code = _measure(folder, plan, run, data)
    finally:
        _remove_if_bare(folder, ours=out is None)
    if code:
        return Evaluated(code, folder.path, {})
    record: Any = durable.read_json(folder.evaluation)
    if not isinstance(record, dict) or not record.get("complete"):
        raise RunnerError(f"the evaluation left no figures in {folder.path}")
    return Evaluated(0, folder.path, record)


def _run(target: str, root: Path, output: Output, *, trust_code: bool) -> tuple[RunFolder, SftPlan]:
    try:
        run = find_run(target, root)
    except UsageError as error:
        is_model = (Path(target) / "config.json").is_file() or ":" in target
        if not is_model:
            raise
        raise UsageError(
            f"{target} is a model, not a run: {error.message}",
            "add --job JOB, which says on which rows it is measured",
        ) from None
    plan = plan_to_ask(run, output, trust_code=trust_code)
    require_result(plan.trainings[-1], run)
    return run, plan


def _settings(settings: EvaluationSettings, sets: Sequence[str]) -> EvaluationSettings:
    """A run's evaluation settings with --set evaluation.*: nothing else of a run can change."""
    record = settings.model_dump()
    for text in sets:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.startswith(_PREFIX):
            raise UsageError(
                f"--set {text}: a run's plan is fixed; only evaluation.* can be set here",
                "fields: " + ", ".join(_PREFIX + known for known in record),
            )
        key = name.removeprefix(_PREFIX)
        if key not in record:
            near = nearest(key, record)
            problem = Problem(
                f"--set {text}", name, "is not a field", nearest=near and _PREFIX + near
            )
            raise SpecError([problem])
        told = value if key == "answer_pattern" else parse(value, "--set")[0]
        record[key] = told
        try:
            EvaluationSettings.model_validate(record)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise SpecError([Problem(f"--set {text}", name, said, value)]) from None
    return EvaluationSettings.model_validate(record)


def _model_plan(
    target: str, job: str, sets: Sequence[str], output: Output, *, own_rows: bool
) -> SftPlan:
    """The job's plan with the model in place of its own, as it is loaded from the job's side."""
    folder = Path(target)
    if (folder / "plan.yaml").is_file():
        raise UsageError(
            f"{target} is a run, which has its own job", "leave --job out; --data gives other rows"
        )
    if (folder / "adapter_config.json").is_file():
        raise UsageError(
            f"{target} is an adapter, not a model", "give its RUN, or the folder that merge wrote"
        )
    loaded = load_job(job, [*sets, f"model={target}"])
    facts = gather(loaded)
    if own_rows:
        require_data(loaded, facts)
    if fetch_missing(loaded, facts, output):
        facts = gather(loaded)
    return make_plan(loaded, facts, "train")


def _make_folder(out: Path | None, run: RunFolder | None, root: Path, plan: SftPlan) -> Path:
    """A new folder for this evaluation. Raises UsageError where --out is taken."""
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"--out {out} is there already", "name a folder that is new or empty")
        out.mkdir(parents=True, exist_ok=True)
        return out.absolute()
    within = run or SharedFolder(root)
    parent = run.evaluations if run else root / "evaluations" / job_folder(plan.job)
    root.mkdir(parents=True, exist_ok=True)
    within.make_folder(parent)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        path = parent / (stamp if number == 1 else f"{stamp}-{number}")
        with contextlib.suppress(FileExistsError):
            within.make_new_folder(path)
            return path.absolute()
    raise AssertionError("itertools.count does not end")


def _measure(
    folder: EvaluationFolder, plan: SftPlan, run: RunFolder | None, data: Sequence[Path]
) -> int:
    """Exit code of the engine. Ctrl-C is passed on once; a second one kills it."""
    say_left_out()
    environment, card = safe_environment(to_terminal=True), answering_gpu(plan)
    if card:
        environment["CUDA_VISIBLE_DEVICES"] = card[0]
    given = [mount_of(path.absolute()) for path in data]
    seen = plan_mounts(plan, None, cache_folder()) if run is None else result_mounts(plan, run)
    asked = question(
        plan.container,
        ["runner.engines.sft.inside.evaluate", str(folder.path)],
        reads=[*seen, *given],
        writes=[folder.path],
        caches=[PREPARED],
        gpu_uuids=card,
    )
    # a session of its own: what a terminal's Ctrl-C does to it is decided here alone
    process = subprocess.Popen(
        asked.argv,
        stdout=sys.stderr,
        env=environment,
        start_new_session=True,
    )
    before = signal.signal(signal.SIGTERM, _interrupt)
    stops = 0
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                stops += 1
                process.send_signal(signal.SIGINT if stops == 1 else signal.SIGKILL)
    finally:
        signal.signal(signal.SIGTERM, before)
    if stops:
        asked.abandon()
        return EXIT_INTERRUPTED
    return 128 - code if code < 0 else code


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _remove_if_bare(folder: EvaluationFolder, *, ours: bool) -> None:
    """Take back a folder without a single answer: it would look like an evaluation.

    A folder that the user named stays, empty.
    """
    if folder.predictions.exists() and folder.predictions.stat().st_size:
        return
    for path in (folder.request, folder.plan, folder.predictions):
        folder.remove(path)
    if ours:
        with contextlib.suppress(OSError):  # it, or the one that holds it, has something else
            folder.path.rmdir()
            folder.path.parent.rmdir()
