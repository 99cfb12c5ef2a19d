"""Write metrics.jsonl and trackers, measure speed, and end a training with an impossible loss.

Imports torch, transformers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runner.common import durable
from runner.engines.sft.inside.train.loss_check import check_loss
from runner.engines.sft.inside.train.throughput import Throughput
from runner.engines.sft.inside.train.trackers import Trackers
from runner.engines.sft.plan import SftPlan
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from runner.runs.records import number, whole

METRICS_SCHEMA_VERSION = 1


class MetricsCallback(TrainerCallback):
    """metrics.jsonl, one line a logging step, and the end of a run whose loss is impossible.

    Args:
        plan: of one training (Plan.trainings); its phase is named in every line.
        folder: of the run.
        resumed_step: the run's step that training resumes from; None where nothing came before
            in this folder. Lines of later steps are dropped.
        step_offset: optimizer steps of the run's earlier trainings; the steps written are the
            run's, not the training's.
        trackers: who else is told, on the first process.
        outside_bytes: what a process holds on its GPU outside of torch, where that was measured.

    Attributes:
        first_loss, last_loss, eval_loss: of this training, as last logged; a resumed one goes on
            from the lines that it keeps.
        tokens: tokens trained on in the whole run so far, all processes together.
    """

    def __init__(
        self,
        plan: SftPlan,
        folder: RunFolder,
        resumed_step: int | None,
        *,
        step_offset: int = 0,
        trackers: Trackers | None = None,
        outside_bytes: int | None = None,
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._writer: durable.JsonlWriter | None = None
        self._resumed_step = resumed_step
        self._offset = step_offset
        self._trackers = trackers
        self._outside_bytes = outside_bytes
        self._peaks: dict[str, int] = {}
        self._process = psutil.Process()
        self._pace = Throughput()
        self._learning_rate: float | None = None
        self._evaluated: set[int] = set()
        self._tokens_before = 0
        self._logged_tokens = 0
        self._logged_seconds = 0.0
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self.eval_loss: float | None = None
        self.tokens = 0

    def statistics(self) -> dict[str, Any]:
        """Seconds a step (median, 95th percentile), tokens a second, time in evaluation and
        saving: of this training in this process, so not of what a resumed run did before."""
        return self._pace.statistics()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            if self._resumed_step is not None:
                keep_metrics_until(self._folder, self._resumed_step)
            self._writer = self._folder.open_lines(self._folder.metrics)
            self._go_on(self._offset + state.global_step)
        self._pace.start(time.monotonic())

    def _go_on(self, step: int) -> None:
        """Take up the figures where the lines that are kept leave them."""
        for line in durable.read_jsonl(self._folder.metrics):
            if _step_of(line) > step:
                continue
            self._tokens_before = _count(line.get("tokens")) or self._tokens_before
            if line.get("phase", "") != self._plan.phase:
                continue
            if "loss" in line:
                loss = line["loss"]
                self.last_loss = loss if number(loss) else None
                self.first_loss = self.last_loss if self.first_loss is None else self.first_loss
            if "eval_loss" in line:
                eval_loss = line["eval_loss"]
                self.eval_loss = eval_loss if number(eval_loss) else None
                self._evaluated.add(_step_of(line))
        # exact, where lines are further apart than checkpoints
        sealed = checkpoints.facts_of(self._folder.checkpoints / checkpoints.name_of(step))
        self._tokens_before = _count(sealed.get("tokens")) or self._tokens_before
        self.tokens = self._tokens_before

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        # What this step is made with, while no schedule has moved on: DeepSpeed steps optimizer and
        # schedule within the backward pass, and some versions of transformers log the next step's.
        self._learning_rate = float(optimizer.param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._pace.step(time.monotonic())

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._pace.evaluated(time.monotonic())

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._pace.saved(time.monotonic())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._pace.stop()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs, step = logs or {}, self._offset + state.global_step
        if "eval_loss" in logs:
            self.eval_loss = _finite(float(logs["eval_loss"]))
            if step not in self._evaluated:  # a kill after this line has it evaluated again
                self._write(step, logs.get("epoch"), {"eval_loss": self.eval_loss})
            self._evaluated.add(step)
        if "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), logs.get("grad_norm")
        norm = None if norm is None else float(norm)
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.last_loss = loss
        self._write(
            step,
            logs.get("epoch"),
            {
                "loss": _finite(loss),
                "learning_rate": self._learning_rate,
                "grad_norm": _finite(norm),
                **self._throughput(int(logs.get("num_tokens", 0))),
                **self._memory(),
                "time_unix_seconds": round(time.time(), 3),
            },
        )
        check_loss(
            step,
            loss,
            norm,
            self._plan.training.loss_ceiling,
            scaled=self._plan.precision == "fp16",
        )

    def _throughput(self, counted: int) -> dict[str, Any]:
        """Tokens of the run so far, and a second in the steps since the last line.

        `counted` is TRL's own count, which starts at 0 with each process.
        """
        fresh, seconds = counted - self._logged_tokens, self._pace.training_seconds
        rate = fresh / max(seconds - self._logged_seconds, 1e-9)
        self._pace.count(fresh)
        self._logged_tokens, self._logged_seconds = counted, seconds
        self.tokens = self._tokens_before + counted
        return {"tokens": self.tokens, "tokens_per_second": round(rate, 1)}

    def _write(self, step: int, epoch: float | None, figures: dict[str, Any]) -> None:
        if self._writer is None:
            return
        phase = {"phase": self._plan.phase} if self._plan.phase else {}
        head = {"schema_version": METRICS_SCHEMA_VERSION, "step": step, **phase, "epoch": epoch}
        self._writer.write({**head, **figures})
        if self._trackers is not None:
            self._trackers.log(step, {"epoch": epoch, **figures})

    def memory_peaks(self) -> dict[str, int]:
        """The most that torch's allocator held in this training, in bytes; nothing on a CPU.

        Of all processes as far as lines were logged, and of this one since the last line.
        """
        if self._plan.launch.device != "cuda":
            return {}
        self._keep(int(torch.cuda.max_memory_reserved()), int(torch.cuda.max_memory_allocated()))
        return dict(self._peaks)

    def _memory(self) -> dict[str, Any]:
        """The most since the last line, on the GPU that held most: a budget is each GPU's own."""
        if self._plan.launch.device != "cuda":
            return {
                "memory_bytes": int(self._process.memory_info().rss),
                "memory_source": "process_rss",
            }
        reserved, allocated = _fullest(
            int(torch.cuda.max_memory_reserved()), int(torch.cuda.max_memory_allocated())
        )
        torch.cuda.reset_peak_memory_stats()
        self._keep(reserved, allocated)
        outside = {"memory_outside_bytes": self._outside_bytes} if self._outside_bytes else {}
        return {
            "memory_bytes": reserved,
            "memory_source": "torch_max_reserved",
            "allocated_bytes": allocated,
            **outside,
        }

    def _keep(self, reserved: int, allocated: int) -> None:
        for name, size in (("peak_reserved_bytes", reserved), ("peak_allocated_bytes", allocated)):
            self._peaks[name] = max(size, self._peaks.get(name, 0))


def _fullest(*sizes: int, device: str = "cuda") -> tuple[int, ...]:
    """Each size where it is largest among the processes that train together.

    Every process logs at the same steps, as transformers gathers the loss there, too.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sizes
    told = torch.tensor(sizes, dtype=torch.int64, device=device)
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return tuple(int(size) for size in told.tolist())


def _step_of(line: Mapping[str, object]) -> int:
    return _count(line.get("step"))


def _count(value: object) -> int:
    return value if whole(value) else 0


def keep_metrics_until(folder: RunFolder, step: int) -> None:
    """Before a resume: drop the lines of steps that are trained again; a copy stays in logs/.

    `step` counts all optimizer steps of the run, as the lines do.
    """
    records = list(durable.read_jsonl(folder.metrics))
    kept = [record for record in records if _step_of(record) <= step]
    if len(kept) == len(records):
        return
    number = 1 + len(list(folder.logs.glob("metrics-before-resume-*.jsonl")))
    copy = folder.logs / f"metrics-before-resume-{number}.jsonl"
    for path, lines in ((copy, records), (folder.metrics, kept)):
        folder.write_file(path, "".join(json.dumps(line) + "\n" for line in lines))


def _finite(value: float | None) -> float | None:
    """NaN and infinity have no JSON; null stands for them."""
    return value if value is not None and value - value == 0 else None
