"""Whole runs of the engine in this process: the real model of 260K parameters, real signals.

A run has dropout, epochs of eight steps, an evaluation now and then: all that a resume has to put
back. It takes two seconds, where a run of the real CLI takes a quarter of a minute.

`python -m tests.engines.sft.in_process OUT MODEL ROWS`, by a launcher's variables one of several
processes, does it in all of them together.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.engines.sft.inside.control import Control
from runner.engines.sft.job import SftJob
from runner.engines.sft.plan import SftPlan
from runner.plans.plan_file import plan_yaml
from runner.runs.folder import RunFolder

WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "Lily",
    "was",
    "happy",
    "with",
    "her",
    "ball",
)
ROWS = 36
"""Of which 4 are held out: 32 x 1 row, 4 batches a step, make 8 steps an epoch."""


def make_rows(path: Path, rows: int = ROWS) -> Path:
    """Short conversations, no two alike."""
    lines = []
    for number in range(rows):
        said = " ".join(WORDS[(number * step + step) % len(WORDS)] for step in range(1, 6))
        answer = " ".join(WORDS[(number + 3 * step) % len(WORDS)] for step in range(4 + number % 5))
        turns = [{"role": "user", "content": f"{number} {said}"}]
        turns.append({"role": "assistant", "content": answer})
        lines.append(json.dumps({"conversations": turns}))
    path.write_text("\n".join(lines) + "\n")
    return path


def plan_of(model: Path, rows: Path, **changes: Any) -> SftPlan:
    """A plan of 20 steps of 4 accumulated batches; `training` among the changes is merged."""
    training = {
        "max_steps": 20,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "max_length": 64,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.2,
        "eval_steps": 4,
        **changes.pop("training", {}),
    }
    precision = changes.pop("precision", "fp32")
    job = SftJob.model_validate(
        {
            "model": str(model),
            "lora": {"r": 4, "lora_dropout": 0.1, **changes.pop("lora", {})},
            "data": {
                "train": str(rows),
                "format": "conversations",
                "split": {"eval": 1 / 9, "seed": 1},
            },
            "training": training,
            "tracking": {"report_to": []},
            **changes,
        }
    )
    parts = ("lora", "quantization", "prefix", "data", "training", "evaluation", "tracking")
    source = {"kind": "file", "path": str(rows), "size_bytes": rows.stat().st_size}
    return SftPlan.model_validate(
        {
            **{part: getattr(job, part).model_dump() for part in parts},
            "job": "exact",
            "description": "",
            "variant": "train",
            "engine": "sft",
            "model": {"kind": "folder", "id": str(model), "folder": str(model)},
            "trust_remote_code": False,
            "method": job.method,
            "deterministic": job.deterministic,
            "trains": ["adapter"],
            "rows": {"train": source},
            "precision": precision,
            "launch": {
                "device": "cpu",
                "num_processes": 1,
                "deepspeed": "none",
                "threads_per_process": 1,
            },
            "budget": {"kind": "none"},
            "timeout_minutes": None,
            "python": "python",
        }
    )


@dataclass
class Interruptions:
    """What happens in the middle of things; batches are counted from 1, of this start."""

    signals: dict[int, tuple[signal.Signals, ...]] = field(default_factory=dict)
    """Batch to the signals that arrive while it is computed."""
    after_weights: Callable[[], None] | None = None
    """Called when weights are loaded, and nothing is drawn on them yet."""


@dataclass(frozen=True)
class Ended:
    """A start of the engine that is over."""

    code: int
    folder: RunFolder
    batches: list[tuple[int, ...]]
    """The ids of each batch that was trained on, in order."""

    @property
    def adapter(self) -> str:
        """sha256 of what was trained."""
        return str(durable.read_json(self.folder.engine_result)["adapter"]["sha256"])

    @property
    def losses(self) -> list[tuple[int, float, float]]:
        """Step, loss and learning rate of each line."""
        lines = durable.read_jsonl(self.folder.metrics)
        return [
            (each["step"], each["loss"], each["learning_rate"]) for each in lines if "loss" in each
        ]

    @property
    def evaluations(self) -> list[tuple[int, float]]:
        """Step and eval_loss of each evaluation."""
        lines = durable.read_jsonl(self.folder.metrics)
        return [(each["step"], each["eval_loss"]) for each in lines if "eval_loss" in each]


def run(
    plan: SftPlan, path: Path, *, resume: bool = False, meanwhile: Interruptions | None = None
) -> Ended:
    """Train `plan` in the run folder `path`, as `python -m runner.engines.sft.inside` does in a
    process.
    """
    from runner.engines.sft.inside.train.train import train

    folder = ready(plan, path)
    control = Control(folder, int(os.environ.get("RANK", "0")))
    batches: list[tuple[int, ...]] = []
    with signals_put_back(), _watched(meanwhile or Interruptions(), batches):
        control.install()
        code = train(plan, folder, control, resume=resume)
    return Ended(code, folder, batches)


def ready(plan: SftPlan, path: Path) -> RunFolder:
    """The run folder as a start finds it."""
    folder = RunFolder(path)
    for inner in (folder.path, folder.logs, folder.checkpoints, folder.engine):
        inner.mkdir(parents=True, exist_ok=True)
    if not folder.plan.exists():
        durable.write_text(folder.plan, plan_yaml(plan))
    return folder


@contextmanager
def signals_put_back() -> Iterator[None]:
    """Control takes signals over; whoever had them gets them again."""
    names = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    before = [(name, signal.getsignal(name)) for name in names]
    try:
        yield
    finally:
        for name, handler in before:
            signal.signal(name, handler)


@contextmanager
def _watched(meanwhile: Interruptions, batches: list[tuple[int, ...]]) -> Iterator[None]:
    from runner.engines.sft.inside.model import weights
    from runner.engines.sft.inside.train.trainer import RunTrainer

    step, load = RunTrainer.training_step, weights.load_model

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        batches.append(tuple(inputs["input_ids"].flatten().tolist()))
        for number in meanwhile.signals.get(len(batches), ()):
            os.kill(os.getpid(), number)
        return step(self, model, inputs, *rest, **more)

    def load_model(plan: SftPlan) -> Any:
        loaded = load(plan)
        if meanwhile.after_weights is not None:
            meanwhile.after_weights()
        return loaded

    RunTrainer.training_step, weights.load_model = training_step, load_model
    try:
        yield
    finally:
        RunTrainer.training_step, weights.load_model = step, load


def _several(out: Path, model: Path, rows: Path) -> None:
    """Of several processes, one: a run, the same again, and one that its last process is asked to
    stop in the middle of step 4; says what each gave."""
    import torch

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    training = {"max_steps": 6, "gradient_accumulation_steps": 2, "eval_steps": 3}
    plan = plan_of(model, rows, training=training)
    launch = plan.launch.model_copy(update={"num_processes": ranks})
    plan = plan.model_copy(update={"launch": launch})
    stop = {7: (signal.SIGTERM,)} if rank == ranks - 1 else {}
    for name, meanwhile, resume in (
        ("whole", {}, False),
        ("again", {}, False),
        ("stopped", stop, False),
        ("stopped", {}, True),
    ):
        ended = run(plan, out / name, resume=resume, meanwhile=Interruptions(dict(meanwhile)))
        torch.distributed.barrier()
        if rank == 0 and ended.code == 0:
            print("RESULT", "resumed" if resume else name, ended.adapter, flush=True)


if __name__ == "__main__":
    _several(*map(Path, sys.argv[1:]))
    sys.stdout.flush()
    os._exit(0)  # as the engine does
