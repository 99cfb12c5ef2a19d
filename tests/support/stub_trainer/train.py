"""In place of runner.engines.sft.inside.train.train.

Steps that cost nothing, records and checkpoints like its own.

Everything random and everything that has a state takes part: a draw a row, a state that is saved
with the weights, evaluations that draw nothing. So a run that was resumed, or that went on with
half the rows at once, ends with the losses and the adapter of one that was not, or a test sees it.

Variables, all optional:
    STUB_STEP_SECONDS   how long a step takes (0.02)
    STUB_ROW_MIB        memory that a row of the batch takes on a device, held while training (0)
    STUB_FAULT          STEP:KIND: at that step raise NonFiniteLoss (non_finite_loss), an
                        out-of-memory error as torch words it (cuda_oom), or ValueError (failed)
    STUB_WAIT_ABOVE     ROWS: with more rows than that at once, the second step ends only once a
                        signal has come; so a test of a budget asks no clock
    STUB_RELEASE        a file without which the last step does not end: so a test of what happens
                        to a run that trains need not be quick
Imports the standard library and what of runner is torch-free.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.common import durable, staged_folder, terminal
from runner.common.process_times import start_ticks
from runner.engines.sft.inside.control import STOPPED_EXIT_CODE, Control
from runner.engines.sft.inside.train.loss_check import NonFiniteLoss
from runner.engines.sft.inside.train.schedule import learning_rate_at, saves_at
from runner.engines.sft.plan import SftPlan
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from runner.runs.recover import staging_of
from tests.support.stub_trainer.survey import steps_of

STATE_FILE = "state.json"
WEIGHTS = 512
"""Of the stub's adapter, 4 bytes each."""
WAIT_SECONDS = 300.0
RATE = 0.1


@dataclass
class State:
    """What training changes, and a checkpoint keeps."""

    weights: list[float]
    random: random.Random
    step: int = 0
    """Of the training; the run's counts those of earlier trainings too."""
    tokens: int = 0
    evaluated: set[int] = field(default_factory=set)


class OutOfMemoryError(RuntimeError):
    """Named as torch's own is."""


def train(plan: SftPlan, folder: RunFolder, control: Control, *, resume: bool) -> int:
    """Train `plan` in `folder`; the process's exit code, as runner.engines.sft.inside.train.train
    does.
    """
    if control.rank:
        return _follow_first(folder, control)
    checkpoint = _resume_point(folder) if resume else None
    if resume:
        _keep_metrics_until(folder, checkpoints.step_of(checkpoint) if checkpoint else 0)
    before = 0
    trainings = plan.trainings
    for number, part in enumerate(trainings, start=1):
        is_last = number == len(trainings)
        done = None if is_last else durable.read_json(folder.phase(part.phase) / "result.json")
        if done and resume:
            before += int(done["steps"])
            continue
        within = checkpoint if checkpoint and checkpoints.step_of(checkpoint) > before else None
        steps = _Training(part, folder, control, before, plan.hash, within).run(is_last=is_last)
        if steps is None:
            control.enter("stopped", interruptible=False)
            return STOPPED_EXIT_CODE
        before += steps
    control.enter("completed", interruptible=False)
    return 0


def _follow_first(folder: RunFolder, control: Control) -> int:
    """Another rank: it ends with the first.

    Raises ConnectionError where that is killed.
    """
    control.enter("training", interruptible=False)
    began = False
    while True:
        first = durable.read_json(folder.engine_status(0)) or {}
        lives = bool(first) and start_ticks(first["pid"]) == first["start_ticks"]
        began = began or lives
        is_over = first.get("phase") in ("completed", "stopped")
        if not (lives or is_over) and (began or control.stop_requested):
            raise ConnectionError("the first rank is gone")
        if is_over:
            control.enter(first["phase"], interruptible=False)
            return 0 if first["phase"] == "completed" else STOPPED_EXIT_CODE
        time.sleep(0.02)


class _Training:
    """One training of the run, from its first step or a checkpoint to its result."""

    def __init__(
        self,
        plan: SftPlan,
        folder: RunFolder,
        control: Control,
        before: int,
        plan_hash: str,
        checkpoint: Path | None,
    ) -> None:
        self.plan, self.folder, self.control = plan, folder, control
        self.before, self.plan_hash = before, plan_hash
        self.total = steps_of(plan)
        self.state = _loaded(checkpoint) if checkpoint else _begun(plan)
        fault, _, self.fault = os.environ.get("STUB_FAULT", "0:").partition(":")
        self.fault_step = int(fault)

    def run(self, *, is_last: bool) -> int | None:
        """Its steps; None where it was stopped before the last."""
        control, plan = self.control, self.plan
        if plan.variant == "dry_run":
            terminal.say("runner: dry run: one batch went through the model, loss 2.000")
            self._write_result({"dry_run": True, "steps": 0, "max_steps": 0})
            return 0
        control.planned_steps = self.before + self.total
        control.enter("training", interruptible=False)
        rows = plan.training.per_device_train_batch_size
        held = b"\1" * (rows * int(os.environ.get("STUB_ROW_MIB", "0")) << 20)
        self.lines = self.folder.open_lines(self.folder.metrics)
        self._go_on()
        while self.state.step < self.total:
            if not self._step(rows):
                return None
        del held
        control.enter("saving", interruptible=False)
        if is_last:
            self._write_result({"steps": self.before + self.total, "adapter": self._save_adapter()})
        else:
            place = self.folder.phase(plan.phase)
            self.folder.make_folder(place)
            self.folder.write_json(place / "result.json", {"steps": self.total})
        return self.total

    def _go_on(self) -> None:
        for line in durable.read_jsonl(self.folder.metrics):
            if "eval_loss" in line:
                self.state.evaluated.add(line["step"])

    def _step(self, rows: int) -> bool:
        """Make one; whether training goes on."""
        state, training, control = self.state, self.plan.training, self.control
        rate = learning_rate_at(training, state.step, self.total)
        at_once = rows * training.gradient_accumulation_steps * self.plan.launch.num_processes
        drawn = [state.random.random() for _ in range(at_once)]
        pull = RATE * (1 + sum(drawn) / len(drawn))
        loss = sum(abs(weight) for weight in state.weights) / len(state.weights)
        state.weights = [_fp32(weight * (1 - pull)) for weight in state.weights]
        state.step += 1
        state.tokens += 16 * at_once
        step = self.before + state.step
        time.sleep(float(os.environ.get("STUB_STEP_SECONDS", "0.02")))
        if state.step == self.fault_step:
            self._fail()
        self._write(step, loss=loss, learning_rate=rate, tokens=state.tokens)
        above = os.environ.get("STUB_WAIT_ABOVE")
        if above is not None and rows > int(above) and state.step >= 2:
            self._wait_until(lambda: False)
        release = os.environ.get("STUB_RELEASE")
        if release is not None and state.step == self.total:
            self._wait_until(Path(release).exists)
        save, stop = control.checkpoint_requested, control.stop_requested
        control.checkpoint_requested = False
        if training.eval_steps and state.step % training.eval_steps == 0:
            control.enter("evaluating", interruptible=False)
            if step not in state.evaluated:
                state.evaluated.add(step)
                self._write(step, eval_loss=sum(map(abs, state.weights)))
            control.enter("training", interruptible=False)
        if save or stop or saves_at(training, state.step, self.total):
            self._save_checkpoint(step)
        if stop:
            terminal.say(f"runner: stopped at step {step}; a checkpoint was saved")
        return not stop

    def _wait_until(self, holds: Callable[[], bool]) -> None:
        """Until it holds, or a signal has asked for a checkpoint or the end."""
        end = time.monotonic() + WAIT_SECONDS
        while not (holds() or self.control.checkpoint_requested or self.control.stop_requested):
            if time.monotonic() > end:
                raise TimeoutError("the stub trainer waited in vain")
            time.sleep(0.01)

    def _fail(self) -> None:
        if self.fault == "non_finite_loss":
            raise NonFiniteLoss(f"the loss of step {self.state.step} is nan")
        if self.fault == "cuda_oom":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        raise ValueError(f"the stub was to fail at step {self.state.step}")

    def _write(self, step: int, **figures: Any) -> None:
        phase = {"phase": self.plan.phase} if self.plan.phase else {}
        status = Path("/proc/self/statm").read_text().split()
        memory = {} if "eval_loss" in figures else {
            "memory_bytes": int(status[1]) * os.sysconf("SC_PAGE_SIZE"),
            "memory_source": "process_rss",
        }  # fmt: skip
        head = {"schema_version": 1, "step": step, **phase, "epoch": 0.0}
        now = round(time.time(), 3)
        self.lines.write({**head, **figures, **memory, "time_unix_seconds": now})

    def _save_checkpoint(self, step: int) -> None:
        final = self.folder.checkpoints / checkpoints.name_of(step)
        staging = final.parent / f".staging-{step}"
        staged = staging / final.name
        shutil.rmtree(staging, ignore_errors=True)
        staged.mkdir(parents=True)
        try:
            (staged / "weights.bin").write_bytes(_packed(self.state.weights))
            (staged / STATE_FILE).write_text(json.dumps(_record(self.state)))
            facts = {"step": step, "phase": self.plan.phase, "plan": self.plan_hash}
            checkpoints.seal(staged, {**facts, "tokens": self.state.tokens})
            checkpoints.publish(staged, final)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise OSError(
                error.errno or errno.EIO,
                f"No space left on device while saving {final.name}; earlier checkpoints are "
                "untouched",
            ) from error
        shutil.rmtree(staging, ignore_errors=True)
        keep = self.plan.training.save_total_limit
        if keep is not None:
            for old in checkpoints.surplus(final.parent, keep, after=self.before):
                checkpoints.delete(old)

    def _save_adapter(self) -> dict[str, Any]:
        target = self.folder.adapter
        staging = staging_of(target)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        packed = _packed(self.state.weights)
        shape = {"dtype": "F32", "shape": [WEIGHTS], "data_offsets": [0, len(packed)]}
        header = json.dumps({"stub.lora_B.weight": shape}).encode()
        content = struct.pack("<Q", len(header)) + header + packed
        (staging / "adapter_model.safetensors").write_bytes(content)
        staged_folder.replace(staging, target, staged_folder.replaced_of(target))
        digest = hashlib.sha256(content).hexdigest()
        return {"folder": target.name, "sha256": digest, "size_bytes": len(content)}

    def _write_result(self, more: dict[str, Any]) -> None:
        losses = [
            line["loss"] for line in durable.read_jsonl(self.folder.metrics) if "loss" in line
        ]
        told = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
        steps = {"max_steps": self.before + self.total, "tokens": self.state.tokens}
        record = {"schema_version": 1, "completed": True, **steps, **told, "checks": {}, **more}
        self.folder.write_json(self.folder.engine_result, record)


def _begun(plan: SftPlan) -> State:
    drawn = random.Random(plan.training.seed)  # noqa: S311 - weights, no secrets
    return State([_fp32(drawn.uniform(-4, 4)) for _ in range(WEIGHTS)], drawn)


def _record(state: State) -> dict[str, Any]:
    drawn = state.random.getstate()
    return {"step": state.step, "tokens": state.tokens, "random": [drawn[0], [*drawn[1]], drawn[2]]}


def _loaded(checkpoint: Path) -> State:
    record = json.loads((checkpoint / STATE_FILE).read_text())
    version, inner, gauss = record["random"]
    drawn = random.Random()  # noqa: S311
    drawn.setstate((version, tuple(inner), gauss))
    packed = (checkpoint / "weights.bin").read_bytes()
    weights = [*struct.unpack(f"<{len(packed) // 4}f", packed)]
    return State(weights, drawn, record["step"], record["tokens"])


def _packed(weights: list[float]) -> bytes:
    return struct.pack(f"<{len(weights)}f", *weights)


def _fp32(value: float) -> float:
    """As it comes back from a checkpoint, so that a resume changes no bit."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _resume_point(folder: RunFolder) -> Path | None:
    checkpoint, skipped = checkpoints.newest_whole(folder.checkpoints)
    for line in skipped:
        terminal.say(f"runner: {line}")
    told = f"going on from {checkpoint.name}" if checkpoint else "training from the start"
    terminal.say(f"runner: {told}")
    return checkpoint


def _keep_metrics_until(folder: RunFolder, step: int) -> None:
    """As runner.engines.sft.inside.train.metrics_callback does.

    Drop what is trained again, keep a copy in logs/.
    """
    records = list(durable.read_jsonl(folder.metrics))
    kept = [record for record in records if int(record.get("step", 0)) <= step]
    if len(kept) == len(records):
        return
    number = 1 + len(list(folder.logs.glob("metrics-before-resume-*.jsonl")))
    copy = folder.logs / f"metrics-before-resume-{number}.jsonl"
    for path, lines in ((copy, records), (folder.metrics, kept)):
        folder.write_file(path, "".join(json.dumps(line) + "\n" for line in lines))
