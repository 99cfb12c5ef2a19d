"""RunPaths: the one place that knows the file names in a run.

Imports the standard library, runner.common and this package's `origin`; reads nothing but which
statuses of a training's processes and which lists of images there are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runner.common import durable
from runner.common.locks import lease_folder
from runner.common.shared_folder import SharedFolder
from runner.runs import origin

_RANK = re.compile(r"rank-\d+\.json")
MOST_RANKS = 4096
"""Of a training's processes so many are looked at: a folder may hold a million such names."""


@dataclass(frozen=True)
class RunPaths(SharedFolder):
    """The names of all that lies in a run's folder."""

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
        return lease_folder(self.lock)

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
