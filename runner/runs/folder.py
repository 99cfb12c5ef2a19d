"""RunFolder: the one place that knows the file names in a run, and how a RUN is found.

Imports the standard library, runner.common.shared_folder, runner.common.errors and
runner.runs.job_folders. Creates folders; judges nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.common import durable, locks
from runner.common.errors import RunnerError, UsageError, nearest
from runner.common.shared_folder import SharedFolder, require_own_way
from runner.runs import origin
from runner.runs.job_folders import earlier_job_folder, job_folder

_SUFFIXES = {"smoke": "-smoke", "dry_run": "-dry", "replay": "-replay"}
"""Endings of the names of runs that `runner train` never resumes, by kind."""
_RANK = re.compile(r"rank-\d+\.json")
MOST_RANKS = 4096
"""Of a training's processes so many are looked at: a folder may hold a million such names."""
_STAMP = re.compile(r"^\d{8}-\d{6}-[0-9a-f]{7}")
_NUMBER = re.compile(r"^[1-9][0-9]{0,8}$")


def default_root() -> Path:
    """Where runs go unless --runs says otherwise: $RUNNER_RUNS, else ./runs."""
    return Path(os.environ.get("RUNNER_RUNS") or "runs")


@dataclass(frozen=True)
class RunFolder(SharedFolder):
    """One run's folder and the names of all that lies in it; what is written in it, by them."""

    @property
    def name(self) -> str:
        """JOB/TIME-HASH, as `runner` prints it and takes it as a RUN."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def plan(self) -> Path:
        return self.path / "plan.yaml"

    @property
    def sources(self) -> Path:
        """Where each value of the job came from."""
        return self.path / "sources.json"

    @property
    def manifest(self) -> Path:
        """All that determined the run and all that it gave (runner.provenance)."""
        return self.path / "manifest.json"

    @property
    def bundle(self) -> Path:
        """Of a run that came in a bundle: its index, by which its inputs are found."""
        return self.path / "bundle.json"

    def is_ended(self) -> bool:
        """Whether nothing more comes of it: an outcome is there, or it ended on another machine."""
        return durable.is_there(self.termination) or durable.is_there(self.bundle)

    @property
    def project_diff(self) -> Path:
        """What runner's own checkout had uncommitted, where it had anything."""
        return self.path / "project.diff"

    @property
    def origin(self) -> Path:
        """The seal by which the plan is known as this user's own (runner.runs.origin)."""
        return self.path / origin.SEAL

    @property
    def launch_script(self) -> Path:
        return self.path / "launch.sh"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def memory(self) -> Path:
        return self.path / "memory.jsonl"

    def images(self, phase: str = "") -> Path:
        """sha256 of each image that the rows of a training name, a line each."""
        return self.path / f"images{f'-{phase}' if phase else ''}.sha256"

    @property
    def events(self) -> Path:
        """What the guard warned of and did, as it happens."""
        return self.path / "events.jsonl"

    @property
    def termination(self) -> Path:
        return self.path / "termination.json"

    @property
    def data_report(self) -> Path:
        return self.path / "data.json"

    @property
    def row_hashes(self) -> Path:
        """Hashes of the rows on each side of the split: what was trained on, without its text."""
        return self.path / "row-hashes"

    @property
    def evaluations(self) -> Path:
        """A folder for each `runner evaluate`; they outlive a repeated start, as no result does."""
        return self.path / "evaluations"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def prediction(self) -> Path:
        """What memory the run was predicted to take, before it started (runner.vram.prediction)."""
        return self.path / "prediction.json"

    @property
    def advice(self) -> Path:
        """The cheapest changes that would have fitted, where the run ran out of memory."""
        return self.path / "advice.json"

    @property
    def oom_snapshot(self) -> Path:
        """PyTorch's record of allocations at a CUDA OOM, where the job asks for it."""
        return self.path / "oom_snapshot.pickle"

    @property
    def attempts(self) -> Path:
        """What was tried before a recovery: plan, rendered files and outcome of each attempt."""
        return self.path / "attempts"

    def attempt(self, number: int) -> Path:
        return self.attempts / str(number)

    @property
    def best(self) -> Path:
        """The evaluations while training, and the best of them."""
        return self.checkpoints / "best.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        """Weights & Biases chooses this name itself, inside the folder that it is given."""
        return self.path / "wandb"

    @property
    def mlruns(self) -> Path:
        return self.path / "mlruns"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The whole trained model, of method full; other methods leave an adapter."""
        return self.path / "model"

    @property
    def merged(self) -> Path:
        """Where runner merge writes base and adapter as one model, unless told otherwise."""
        return self.path / "merged"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def train_log(self) -> Path:
        """Everything that launch.sh and the trainer print."""
        return self.logs / "train.log"

    @property
    def supervisor_log(self) -> Path:
        return self.logs / "supervisor.log"

    @property
    def phases(self) -> Path:
        """What the trainings before the last one left, a folder each."""
        return self.path / "phases"

    def phase(self, name: str) -> Path:
        """The folder of an earlier training; it is there once that training is done."""
        return self.phases / name

    @property
    def engine(self) -> Path:
        """What the trainer's processes say of themselves."""
        return self.path / "engine"

    def engine_status(self, rank: int) -> Path:
        return self.engine / f"rank-{rank}.json"

    def engine_statuses(self) -> list[Path]:
        """What each training process said of itself; at most MOST_RANKS of them."""
        found = [path for path in durable.entries(self.engine) if _RANK.fullmatch(path.name)]
        return sorted(found)[:MOST_RANKS]

    @property
    def engine_failure(self) -> Path:
        return self.engine / "failure.json"

    @property
    def engine_result(self) -> Path:
        return self.engine / "result.json"

    @property
    def engine_stages(self) -> Path:
        """Which stage of the MGM toolkit runs, and how many steps its trainings have."""
        return self.engine / "stages.json"

    @property
    def engine_stack(self) -> Path:
        """torch's settings and builds, as the trainer has them."""
        return self.engine / "stack.json"

    @property
    def trackers(self) -> Path:
        """Under which names the trackers know this run, for a resumed start."""
        return self.engine / "trackers.json"

    @property
    def supervisor(self) -> Path:
        """pid and start time of the supervisor, by which a lost run is known."""
        return self.path / "supervisor.json"

    @property
    def queue(self) -> Path:
        """The run's place in the queue for a GPU; there only while it waits."""
        return self.path / "queue.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor as long as it lives (runner.common.locks)."""
        return self.path / ".lock"

    @property
    def lock_lease(self) -> Path:
        """Who holds the lock, where the file system's own can't be believed."""
        return locks.lease_folder(self.lock)

    def try_lock(
        self, *, patience_seconds: float = 0.0, on_lost: Callable[[str], None] | None = None
    ) -> locks.Held | None:
        """Take the lock, as runner.common.locks.try_lock does; None where another has it.

        Raises OSError.

        What was put in its place and is none is moved aside.
        """
        if self.is_there(self.lock_lease) and not self.is_folder(self.lock_lease):
            self.remove(self.lock_lease)
        return locks.try_lock(
            self.lock,
            opening=lambda: self.open_lock(self.lock),
            patience_seconds=patience_seconds,
            on_lost=on_lost,
        )

    def is_supervised(self) -> bool:
        """Whether a supervisor holds the lock, in whatever container or namespace this is asked."""
        return locks.is_locked(self.lock)

    @property
    def container(self) -> Path:
        """The command of the run's container, where it has one, and which image it was."""
        return self.path / "container.json"

    @property
    def container_id(self) -> Path:
        """Written by docker once the container is made."""
        return self.path / "container.id"

    @property
    def container_log(self) -> Path:
        """What the container program itself said, not what ran in it."""
        return self.logs / "container.log"

    @property
    def output(self) -> Path:
        """What a user's own script writes."""
        return self.path / "output"

    @property
    def stages(self) -> Path:
        """Which stages of the MGM toolkit are done, a file each."""
        return self.path / "stages"

    @property
    def earlier(self) -> Path:
        return self.path / "earlier"

    def records(self) -> list[Path]:
        """What commands read beside outcome and supervisor: files, and folders of files."""
        return [
            *(self.plan, self.sources, self.manifest, self.metrics, self.memory, self.events),
            *(self.data_report, self.prediction, self.container, self.queue, self.train_log),
            *(self.engine_result, self.engine_failure, *self.engine_statuses()[:1]),
            *(self.engine, self.checkpoints, self.logs, self.phases, self.attempts, self.stages),
        ]

    def results(self) -> list[Path]:
        """What a run leaves, beside the rendered files and the logs."""
        return [
            self.metrics,
            self.memory,
            self.events,
            self.termination,
            self.manifest,
            self.project_diff,
            *sorted(self.path.glob("images*.sha256")),
            self.data_report,
            self.row_hashes,
            self.checkpoints,
            self.adapter,
            self.model,
            self.merged,
            self.phases,
            self.engine,
            self.tensorboard,
            self.wandb,
            self.mlruns,
            self.supervisor,
            self.output,
        ]

    def write_rendered(self, files: Mapping[str, str]) -> None:
        """Write the files that a plan was rendered to, each whole; the plan itself last, sealed.

        Where no seal can be made (runner.runs.origin), the run is foreign from then on. Raises
        OSError.
        """
        if self.plan.name in files:
            with contextlib.suppress(origin.SealError):
                origin.seal(self.path, files[self.plan.name].encode())
        for name in sorted(files, key=lambda one: one == self.plan.name):
            mode = 0o755 if name.endswith(".sh") else 0o644
            self.write_file(self.path / name, files[name], mode=mode)

    def verdicts(self) -> list[Path]:
        """What an earlier start said of its end, which a resumed run must not be judged by."""
        return [
            self.termination,
            self.manifest,
            self.project_diff,
            *sorted(self.path.glob("images*.sha256")),
            self.supervisor,
            self.queue,
            self.engine_failure,
            self.engine_result,
            self.engine_stages,
        ]

    def set_aside(self, paths: Iterable[Path]) -> Path | None:
        """Move an earlier start's files to earlier/N, so that nothing is overwritten.

        Returns that folder, or None where there was nothing to move.
        """
        existing = [path for path in paths if self.is_there(path) and not self._is_bare(path)]
        if not existing:
            return None
        self.make_folder(self.earlier)
        target = self.earlier / str(1 + max(numbers(self.names(self.earlier)), default=0))
        self.make_new_folder(target)
        for path in existing:
            self.move(path, target / path.name)
        return target

    def _is_bare(self, path: Path) -> bool:
        return self.is_folder(path) and not self.names(path)


def create(
    root: Path,
    job: str,
    short_hash: str,
    variant: str,
    files: Mapping[str, str],
    now: float | None = None,
) -> RunFolder:
    """Make the folder of a new run and write the rendered files into it.

    The folder's name is new: where two runs start in one second, the second gets "-2".
    Raises RunnerError where the disk refuses.
    """
    slug = job_folder(job)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    base = f"{stamp}-{short_hash}" + _SUFFIXES.get(variant, "")
    made: Path | None = None
    try:
        (root / slug).mkdir(parents=True, exist_ok=True)
        require_own_way(root / slug)
        for attempt in itertools.count(1):
            path = (root / slug / (base if attempt == 1 else f"{base}-{attempt}")).absolute()
            try:
                path.mkdir()
                made = path
                break
            except FileExistsError:
                continue
        folder = RunFolder(path)
        folder.write_rendered(files)
        for inner in (folder.logs, folder.checkpoints, folder.engine):
            folder.make_folder(inner)
    except OSError as error:
        if made is not None:  # half a run folder would be listed as a run
            shutil.rmtree(made, ignore_errors=True)
        raise RunnerError(
            f"the run folder can't be made under {root}: {error.strerror}",
            "free disk space or give another place with --runs DIR",
        ) from None
    return folder


def all_runs(root: Path) -> list[RunFolder]:
    """Every run under `root`, oldest first."""
    found = [
        RunFolder(path.absolute())
        for job in durable.entries(root)
        for path in durable.entries(job)
        if _STAMP.match(path.name) and not job.name.startswith(".") and durable.is_folder(path)
    ]
    return sorted(found, key=lambda run: (run.path.name[:15], _created(run.path), run.name))


def numbers(names: Iterable[str]) -> list[int]:
    """Those of a folder's names that runner gave: 1, 2, ..., in no order."""
    return [int(name) for name in names if _NUMBER.match(name)]


def is_run_name(name: str) -> bool:
    """Whether a folder is called as `create` calls them."""
    return _STAMP.match(name) is not None


def runs_of(root: Path, job: str, short_hash: str) -> list[RunFolder]:
    """The trainings of a job whose plan's hash starts so, oldest first; smokes are left out.

    Those in a folder of an earlier runner's naming too, which other jobs may share: the plan's
    hash, which is also of the job's name, tells them apart.
    """
    names = {job_folder(job), earlier_job_folder(job)}
    return [
        run
        for run in all_runs(root)
        if run.path.parent.name in names
        and run.path.name[16:].startswith(short_hash)
        and not run.path.name[16 + len(short_hash) :].startswith(tuple(_SUFFIXES.values()))
    ]


def _created(path: Path) -> float:
    for file in (path / "plan.yaml", path):
        with contextlib.suppress(OSError):  # it may be removed while it is looked at
            return file.stat().st_mtime
    return 0.0


def find_run(text: str, root: Path) -> RunFolder:
    """The run that a RUN argument means: its folder, name, a unique prefix, or @last.

    Raises UsageError naming what there is and the nearest.
    """
    path = Path(text)
    if text != "@last" and (path / "plan.yaml").is_file():
        return RunFolder(path.absolute())
    runs = all_runs(root)
    text = unicodedata.normalize("NFC", text)  # as folders are named, however it was typed
    if text == "@last":
        if not runs:
            raise UsageError(
                f"there is no run under {root}", "runner train demo-identity makes one"
            )
        return runs[-1]
    matches = [run for run in runs if text in (run.name, run.path.name)] or [
        run for run in runs if run.name.startswith(text) or run.path.name.startswith(text)
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(run.name for run in matches[-5:])
        raise UsageError(f"{text!r} fits {len(matches)} runs: {names}", "give more of the name")
    near = nearest(text, [run.name for run in runs] + [run.path.name for run in runs])
    raise UsageError(
        f"no run {text!r} under {root} ({len(runs)} there)",
        f"nearest: {near}" if near else "a RUN is a folder, a name, a unique prefix, or @last",
    )
