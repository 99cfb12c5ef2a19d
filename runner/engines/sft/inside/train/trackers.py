"""Send a run's figures to TensorBoard, Weights & Biases and MLflow.

Imports each tracker's library only when its tracker opens. Training neither waits for a tracker nor
ends with it: figures go through a queue, and a tracker that fails causes one warning and is not
used again. metrics.jsonl is the record.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from runner.common import durable, terminal
from runner.engines.sft.plan import SftPlan
from runner.runs.folder import RunFolder
from runner.runs.job_folders import job_folder

SCHEMA_VERSION = 1
QUEUE_LINES = 10_000  # a server that is down for this many lines loses the oldest

State: TypeAlias = Literal["finished", "stopped", "failed"]

CLOSE_SECONDS: dict[State, float] = {"finished": 60.0, "stopped": 10.0, "failed": 10.0}
"""An upload longer than this is given up at the end; whoever asked for a stop also waits for it."""

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}
"""Tracker -> (module to look for, package to install)."""

LIBRARIES = {
    "tensorboard": "torch.utils.tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow.tracking",
}
"""Tracker -> module that it works with."""

TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "epoch": "train/epoch",
    "tokens": "train/tokens",
    "tokens_per_second": "train/tokens_per_second",
    "memory_bytes": "train/memory_bytes",
    "eval_loss": "eval/loss",
}
"""Figure of metrics.jsonl -> its name in every tracker (transformers' names, where it has one)."""


def missing_trackers(
    report_to: Sequence[str], version: Callable[[str], str | None] | None = None
) -> list[str]:
    """The packages to install for these trackers; empty where all are there. Imports none.

    `version` answers for another place than this interpreter: a package's version, or None.
    """
    wanted = [PACKAGES[name] for name in report_to]
    if version is not None:
        return [package for _, package in wanted if version(package) is None]
    return [package for module, package in wanted if importlib.util.find_spec(module) is None]


class Tracker(Protocol):
    """One open tracker. Any method may raise; `Feed` sees to that."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures, by their names in trackers, of a step of the run."""

    def close(self, state: State) -> None:
        """Write what is left and say how the run ended."""


class Trackers:
    """All trackers of a run; a context whose end closes them, as failed where it is an error."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = list(feeds)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Hand on one line of metrics.jsonl; what is no figure with a name in TAGS is left out."""
        numbers = {
            TAGS[name]: float(value)
            for name, value in figures.items()
            if name in TAGS and isinstance(value, int | float)
        }
        for feed in self._feeds:
            feed.put(step, numbers)

    def close(self, state: State = "finished") -> None:
        """Close all, within CLOSE_SECONDS of its state; once."""
        feeds, self._feeds = self._feeds, []
        deadline = time.monotonic() + CLOSE_SECONDS[state]
        for feed in feeds:
            feed.ask_to_close(state)
        for feed in feeds:
            feed.wait(deadline)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("finished" if kind is None else "failed")


def open_trackers(
    plan: SftPlan, folder: RunFolder, *, resumed_step: int | None, first: bool
) -> Trackers:
    """The trackers of `plan`, continuing where they were; none on processes but the first.

    Args:
        plan: of the whole run.
        folder: of the run; offline, all that trackers keep lies in it.
        resumed_step: the run's step that training resumes from; None where it starts.
        first: whether this is the process that writes records.
    """
    if not first or not plan.tracking.report_to:
        return Trackers([])
    names = _names(plan, folder)
    _settle_environment(plan)
    openers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(plan, folder, resumed_step),
        "wandb": lambda: WeightsAndBiases(plan, folder, names["wandb"]),
        "mlflow": lambda: MLflow(plan, folder, names),
    }
    return Trackers([Feed(name, openers[name]) for name in plan.tracking.report_to])


class Feed:
    """A queue and the thread that empties it into one tracker, for as long as that one works."""

    def __init__(self, name: str, opener: Callable[[], Tracker]) -> None:
        self._name = name
        self._opener = opener
        self._lines: queue.Queue[tuple[int, dict[str, float]] | State] = queue.Queue(QUEUE_LINES)
        self._lost = 0
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        try:  # here: imports of one library by two threads at once can find it half made
            importlib.import_module(LIBRARIES[name])
        except Exception as error:
            self._give_up("be imported", error)
        else:
            self._thread.start()

    def put(self, step: int, figures: dict[str, float]) -> None:
        """Never waits: where the queue is full its oldest line is lost, and counted."""
        if not self._failed:
            self._put((step, figures))

    def ask_to_close(self, state: State) -> None:
        self._put(state)

    def wait(self, deadline: float) -> None:
        """Until it is closed, or until `deadline` (time.monotonic) with a warning."""
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn("did not finish in time; the end of its record is missing")
        elif self._lost and not self._failed:
            self._warn(f"was too slow; {self._lost} lines never reached it")

    def _put(self, line: tuple[int, dict[str, float]] | State) -> None:
        while True:
            try:
                self._lines.put_nowait(line)
                return
            except queue.Full:
                try:
                    self._lines.get_nowait()
                    self._lost += 1
                except queue.Empty:
                    continue  # it was emptied meanwhile

    def _run(self) -> None:
        doing = "open"
        try:
            tracker = self._opener()
            while True:
                line = self._lines.get()
                if isinstance(line, str):
                    doing = "close"
                    tracker.close(line)
                    return
                doing = f"take step {line[0]}"
                tracker.log(*line)
        except BaseException as error:  # libraries raise SystemExit too; training continues
            self._give_up(doing, error)

    def _give_up(self, doing: str, error: BaseException) -> None:
        self._failed = True
        self._warn(
            f"could not {doing} ({type(error).__name__}: {_first_line(error)}); training "
            "continues without it, and metrics.jsonl has every figure"
        )

    def _warn(self, text: str) -> None:
        terminal.say(f"runner: warning: tracker {self._name} {text}")


class TensorBoard:
    """Event files in tensorboard/; `tensorboard --logdir RUN_FOLDER/tensorboard` shows them."""

    def __init__(self, plan: SftPlan, folder: RunFolder, resumed_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # steps that are trained again are hidden from the earlier start's file
        purge = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(log_dir=str(folder.tensorboard), purge_step=purge)
        if resumed_step is None:
            text = "\n".join(f"    {key}: {value}" for key, value in _settings(plan).items())
            self._writer.add_text("plan", text, 0)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for tag, value in figures.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()  # a killed run has told all it knew

    def close(self, state: State) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run in wandb/ (offline; `wandb sync` uploads it), or on the server of the environment."""

    def __init__(self, plan: SftPlan, folder: RunFolder, run_id: str) -> None:
        import wandb

        offline = plan.tracking.offline
        self._run = wandb.init(
            project=project_of(plan),
            name=folder.path.name,
            id=run_id,
            resume=None if offline else "allow",  # offline the id alone joins the parts at a sync
            mode="offline" if offline else None,
            dir=str(folder.path),
            config=_settings(plan),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=offline,
            ),
        )
        # by the run's steps, not by its own count, which refuses to go back after a resume
        self._run.define_metric("train/global_step", hidden=True)
        for tag in TAGS.values():
            self._run.define_metric(tag, step_metric="train/global_step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "train/global_step": step})

    def close(self, state: State) -> None:
        self._run.finish(exit_code=0 if state == "finished" else 1)


class MLflow:
    """A run in mlruns/ (`mlflow ui --backend-store-uri`), or on the server of the environment."""

    def __init__(self, plan: SftPlan, folder: RunFolder, names: dict[str, str]) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        server = None if plan.tracking.offline else os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=server or folder.mlruns.as_uri())
        project = project_of(plan)
        known = names.get("mlflow")
        if known is not None:
            self._run_id = known
            self._client.update_run(known, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(project)
        place = experiment.experiment_id if experiment else self._client.create_experiment(project)
        run = self._client.create_run(place, run_name=folder.path.name)
        self._run_id = run.info.run_id
        _remember(folder, {**names, "mlflow": self._run_id})
        params = [Param(key, str(value)[:6000]) for key, value in _settings(plan).items()]
        self._client.log_batch(self._run_id, params=params)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(tag, value, now, step) for tag, value in figures.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, state: State) -> None:
        words = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._run_id, status=words[state])


def project_of(plan: SftPlan) -> str:
    """The project, or experiment, that a run is logged to; by default the job's name.

    Weights & Biases takes none of its own separators in one, nor more than 128 characters.
    """
    job = plan.job
    takes = len(job) <= 128 and job.isprintable() and not set(job) & set("/\\#?%:")
    return plan.tracking.project or (job if takes else job_folder(job))


def _settle_environment(plan: SftPlan) -> None:
    """What the libraries read from the environment when they are imported."""
    # the store of plain files needs no package beside mlflow-skinny, and wants to be asked for
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    if plan.tracking.offline:  # they report their own use and errors, too
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ["WANDB_ERROR_REPORTING"] = "false"


def _settings(plan: SftPlan) -> dict[str, Any]:
    """What of a plan is worth comparing runs by: flat, without places on this machine."""
    flat: dict[str, Any] = {
        "job": plan.job,
        "plan": plan.hash,
        "variant": plan.variant,
        "model": plan.model.id,
        "method": plan.method,
        "precision": plan.precision,
        "device": plan.launch.device,
        "num_processes": plan.launch.num_processes,
        "deepspeed": plan.launch.deepspeed,
    }
    if plan.substitutions:
        flat["substitutions"] = "; ".join(plan.substitutions)
    sections = {"lora": ["lora"], "qlora": ["lora", "quantization"], "prefix": ["prefix"]}
    for name in sections.get(plan.method, []):
        section = getattr(plan, name).model_dump(mode="json")
        flat.update({f"{name}.{key}": value for key, value in section.items()})
    for part in plan.trainings:
        prefix = f"{part.phase}.training" if part.phase else "training"
        section = part.training.model_dump(mode="json")
        flat.update({f"{prefix}.{key}": value for key, value in section.items()})
    return flat


def _names(plan: SftPlan, folder: RunFolder) -> dict[str, str]:
    """Under which ids trackers know this run: as an earlier start of it left them, or new ones."""
    record = durable.read_json(folder.trackers)
    known = record.get("names") if isinstance(record, dict) else None
    names = {str(key): str(value) for key, value in (known or {}).items()}
    if "wandb" in plan.tracking.report_to and "wandb" not in names:
        # the folder's name, to be recognised by, and a part that no copy of the folder has
        names["wandb"] = f"{folder.path.name}-{secrets.token_hex(3)}"
        _remember(folder, names)
    return names


def _remember(folder: RunFolder, names: dict[str, str]) -> None:
    folder.write_json(folder.trackers, {"schema_version": SCHEMA_VERSION, "names": names})


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]
