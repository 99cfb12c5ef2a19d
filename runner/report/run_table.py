"""Summarize each run as a row of `runner ps`.

Reads run folders only; imports runner.runs, runner.common and, for an active run, the plan's
reader. A folder that vanishes meanwhile is skipped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from runner.common import durable
from runner.common.errors import RunnerError
from runner.common.process_times import age_seconds
from runner.common.processes import host_pid
from runner.common.units import format_bytes, format_duration
from runner.engines.mgm.progress import MGM, stage_now
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from runner.runs.metrics import is_loss_line, loss_lines
from runner.runs.orphans import living_processes
from runner.runs.outcome import SCHEMA_VERSION, Reason
from runner.runs.ranks import living_engines
from runner.runs.record_types import OutcomeRecord, StatusRecord, SupervisorRecord
from runner.runs.records import (
    moment,
    number,
    read_outcome,
    record_problems,
    status_of,
    supervisor_of,
    whole,
)
from runner.runs.resume_command import going_on
from runner.runs.state import GONE, is_over, state_of
from runner.runs.trainings import trainings_of

_VARIANTS = {"-smoke": "smoke", "-dry": "dry_run"}
HEADER = ["RUN", "STATE", "STEP", "LOSS", "MEMORY", "GPU", "SINCE"]


@dataclass(frozen=True)
class RunSummary:
    """One run at one moment. None is what is not known."""

    run: str
    folder: str
    job: str
    variant: str
    state: str
    over: bool
    """Nothing more comes of it."""
    stage: str | None = None
    """Of a run of the toolkit that lives: the stage that runs."""
    stage_step: int | None = None
    """Steps of that stage, where it is a training."""
    stage_max_steps: int | None = None
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    memory_bytes: int | None = None
    """Its own at this moment; of one that has ended, its peak."""
    budget_bytes: int | None = None
    device: str | None = None
    gpus: tuple[int, ...] = ()
    since_unix_seconds: float | None = None
    """By the clock as it is set now."""
    seconds: float | None = None
    """By a clock that nobody sets, of a run that lives and of one that has ended."""
    last_sign_unix_seconds: float | None = None
    """Of one that is over without an outcome: when something was last written of it."""
    exit_code: int | None = None
    message: str | None = None
    goes_on_from: str | None = None
    """What the same command resumes from: a checkpoint (its files' sizes fit), or stages."""
    goes_on_by: str | None = None
    """The command for that, for a shell."""
    living_engines: tuple[int, ...] = ()
    living_processes: tuple[int, ...] = ()
    """All that outlived the supervisor of a lost run, its engines among them."""
    newer: str | None = None
    """That a newer runner wrote its records, of which only what is common is shown."""
    damaged: tuple[str, ...] = ()
    """Which of its records can't be read as they should be."""

    def to_record(self) -> dict[str, object]:
        """JSON-ready."""
        lists = ("gpus", "living_engines", "living_processes", "damaged")
        return {**asdict(self), **{name: list(getattr(self, name)) for name in lists}}


def standing_of(folder: RunFolder, now: float) -> RunSummary | None:
    """Where a run stands at `now` (unix seconds); None where its folder is gone."""
    state = state_of(folder)
    if state == GONE:
        return None
    known = RunSummary(
        run=folder.name,
        folder=str(folder.path),
        job=folder.path.parent.name,
        variant=variant_of(folder),
        state=state,
        over=is_over(folder, state),
    )
    end = read_outcome(folder)
    known = replace(known, damaged=tuple(record_problems(folder)))
    if end is not None:
        return _with_end(known, folder, end)
    known = _with_progress(known, folder)
    if known.over:
        last, kept = last_sign(folder), kept_in(folder)
        lost = state == Reason.LOST
        return replace(
            known,
            max_steps=status_of(folder).get("planned_steps"),
            since_unix_seconds=supervisor_of(folder).get("started_unix_seconds"),
            last_sign_unix_seconds=last,
            goes_on_from=kept,
            goes_on_by=going_on(folder) if kept and lost else None,
            living_engines=tuple(living_engines(folder)),
            living_processes=tuple(living_processes(folder)) if lost else (),
        )
    return _with_plan(_with_start(known, folder, now), folder)


def variant_of(folder: RunFolder) -> str:
    """train, smoke or dry_run, by the folder's name."""
    name = folder.path.name.partition("-")[2]
    return next((word for sign, word in _VARIANTS.items() if sign in name), "train")


def kept_in(folder: RunFolder) -> str | None:
    """What the same `runner train` would resume from, by the sizes of its files alone."""
    for path in reversed(checkpoints.listed(folder.checkpoints)):
        if checkpoints.damage(path, by_size=True) is None:
            return path.name
    done = sorted(path.stem for path in durable.entries(folder.stages) if path.suffix == ".json")
    return f"its stages that are done ({', '.join(done)})" if done else None


def _with_end(known: RunSummary, folder: RunFolder, end: OutcomeRecord) -> RunSummary:
    """From the outcome; a newer runner's is read as far as it goes."""
    newer = durable.newer(end, SCHEMA_VERSION)
    if newer is not None:
        return replace(known, message=end["message"], newer=newer)
    kept = None if end["reason"] == Reason.COMPLETED else kept_in(folder)
    return replace(
        known,
        step=end["steps"],
        max_steps=end["max_steps"],
        loss=end["last_loss"],
        memory_bytes=end["peak_bytes"],
        budget_bytes=end["budget_bytes"],
        since_unix_seconds=end["started_unix_seconds"],
        seconds=end["seconds"],
        exit_code=end["exit_code"],
        message=end["message"],
        goes_on_from=kept,
        goes_on_by=None if kept is None else going_on(folder),
    )


def _with_progress(known: RunSummary, folder: RunFolder) -> RunSummary:
    last = durable.last_jsonl(folder.metrics, having="loss") or {}
    if is_loss_line(last):
        loss = last["loss"]
        known = replace(known, step=last["step"], loss=loss if number(loss) else None)
    own = (durable.last_jsonl(folder.memory) or {}).get("own_bytes")
    return _with_stage(replace(known, memory_bytes=own if whole(own) else None), folder)


def _with_stage(known: RunSummary, folder: RunFolder) -> RunSummary:
    """Where a run of the toolkit stands within its stages; of any other nothing."""
    now = stage_now(folder)
    if now.name is None:
        return known
    planned = {name: (now.steps or {}).get(name) for name in MGM}
    one = {each.name: each for each in trainings_of(loss_lines(folder.metrics), planned)}.get(
        now.name
    )
    if one is None:
        return replace(known, stage=now.name)
    return replace(known, stage=one.name, stage_step=one.steps, stage_max_steps=one.max_steps)


def _with_start(known: RunSummary, folder: RunFolder, now: float) -> RunSummary:
    """How long it has lived, by its process's start time."""
    record: SupervisorRecord | StatusRecord = supervisor_of(folder) or status_of(folder)
    if host_pid(record) is None:
        return known
    seconds = age_seconds(record["start_ticks"])
    return replace(known, since_unix_seconds=round(now - seconds, 3), seconds=round(seconds, 3))


def _with_plan(known: RunSummary, folder: RunFolder) -> RunSummary:
    """What it is to come to, and where."""
    from runner.engines.render import read_any_plan

    said = status_of(folder).get("planned_steps")
    try:
        plan = read_any_plan(folder.plan)
    except RunnerError as error:
        newer = error.message if "newer" in error.message else None
        return replace(known, max_steps=said, newer=newer)
    return replace(
        known,
        max_steps=plan.planned_steps or said,
        budget_bytes=plan.budget.limit_bytes,
        device=plan.launch.device,
        gpus=tuple(plan.launch.gpu_indices),
    )


def last_sign(folder: RunFolder) -> float | None:
    """When something was last written of it, by the clock of that time."""
    times = []
    for path in (folder.metrics, folder.memory, folder.train_log, folder.supervisor, folder.plan):
        try:
            times.append(path.lstat().st_mtime)
        except OSError:
            continue
    last = max((when for when in times if moment(when)), default=None)
    return None if last is None else min(last, time.time())


def row(one: RunSummary, now: float) -> list[str]:
    """The cells under HEADER."""
    state = f"{one.state}, alive" if one.living_processes else one.state
    return [one.run, state, _step(one), _loss(one), _memory(one), _gpu(one), _since(one, now)]


def _step(one: RunSummary) -> str:
    if one.stage is not None and not one.over:
        if one.stage_step is None:
            return one.stage
        most = f"/{one.stage_max_steps}" if one.stage_max_steps else ""
        return f"{one.stage} {one.stage_step}{most}"
    if one.step is None and one.max_steps is None:
        return "-"
    return f"{one.step or 0}" + (f"/{one.max_steps}" if one.max_steps else "")


def _loss(one: RunSummary) -> str:
    if one.loss is None:
        return "-"
    return f"{one.loss:.4g}"


def _memory(one: RunSummary) -> str:
    if one.memory_bytes is None:
        return f"- of {format_bytes(one.budget_bytes)}" if one.budget_bytes else "-"
    budget = f" of {format_bytes(one.budget_bytes)}" if one.budget_bytes else ""
    return format_bytes(one.memory_bytes) + budget


def _gpu(one: RunSummary) -> str:
    if one.device == "cpu":
        return "cpu"
    return ",".join(map(str, one.gpus)) or "-"


def _since(one: RunSummary, now: float) -> str:
    if one.since_unix_seconds is None:
        return "-"
    lasted = "" if one.seconds is None else f" ({format_duration(max(0.0, one.seconds))})"
    return when(one.since_unix_seconds, now) + lasted


def when(unix_seconds: float, now: float) -> str:
    """A moment for people: the time of today, the date of this year, or all of it."""
    then, today = time.localtime(unix_seconds), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("%H:%M:%S", then)
    return time.strftime("%b %d %H:%M" if then[0] == today[0] else "%Y-%m-%d", then)


def notes(one: RunSummary, now: float, *, going_on: bool = True) -> list[str]:
    """Notes under the table: how to resume a run, and what could not be read.

    Without `going_on` only a lost run has the command that resumes it.
    """
    out = []
    if one.state == Reason.LOST:
        last = one.last_sign_unix_seconds
        seen = "" if last is None else f", {when(last, now)}"
        at = f"{one.run}: last sign at step {one.step or 0}{seen}"
        if one.goes_on_from:
            out.append(f"{at}; {_goes_on(one)}")
        elif one.living_processes:
            out.append(at)
        else:
            out.append(f"{at}; it left nothing to resume from: runner rm {one.run}")
        if one.living_processes:
            out.append(f"{one.run}: {still_alive(one.living_engines, one.living_processes)}")
    elif going_on and one.goes_on_by and one.goes_on_from:
        out.append(f"{one.run}: {_goes_on(one)}")
    out += [f"{one.run}: {text}" for text in one.damaged]
    if one.newer:
        out.append(f"{one.run}: {one.newer}")
    return out


def _goes_on(one: RunSummary) -> str:
    if one.goes_on_by is None:
        return f"the same runner train command resumes from {one.goes_on_from}"
    return f"resume it from {one.goes_on_from} with\n  {one.goes_on_by}"


def still_alive(engines: Sequence[int], processes: Sequence[int]) -> str:
    """What outlived a supervisor, and what becomes of it."""
    told = f"pids {list(processes)} STILL LIVE"
    if engines:
        return f"{told}; the trainers save and end within two minutes"
    ends = f"kill {' '.join(map(str, processes))}"
    return f"{told} without a guard; what is left after two minutes nobody ends but you: {ends}"


def shown_by_default(one: RunSummary) -> bool:
    """Whether `runner ps` shows it unasked: it lives, or it is lost and can be resumed."""
    return not one.over or one.state == Reason.LOST


def standings(folders: list[RunFolder], *, all_runs: bool, now: float) -> list[RunSummary]:
    """Those of `folders`, in their order; without `all_runs` only what shown_by_default says.

    A run with an outcome is left out by that file alone, so that a thousand of them cost little.
    """
    found = []
    for folder in folders:
        if not all_runs and read_outcome(folder) is not None:
            continue
        one = standing_of(folder, now)
        if one is not None and (all_runs or shown_by_default(one)):
            found.append(one)
    return found
