"""Kills a small training at random instants until it ends all the same; the result must not care.

    python -m tests.whole_runs.kills 100                                 one process
    python -m tests.whole_runs.kills 100 --processes 2                   two gloo ranks
    python -m tests.whole_runs.kills 100 --processes 2 --deepspeed zero2
    python -m tests.whole_runs.kills 100 --stub                          a trainer without torch

A run is SIGKILLed (a trainer, its supervisor, both, or every process of it, as a power cut would)
and started again with --resume, six kills a run at most; then it is left alone to its end, and must
have the adapter and the losses of a run that nobody disturbed, each step once, every checkpoint
whole after each kill, and no temporary file left in its folder or in $TMPDIR.

Exit code 1 where one of that is not so. With --keep DIR the runs stay there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from runner.common import durable
from runner.common.process_times import start_ticks
from runner.engines.load import load_job
from runner.engines.sft.facts import gather
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.launch.train import prepare_folder
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from tests.support.stub_trainer import stub_python

KILLS_A_RUN = 6
STEPS, SAVE_STEPS, EVAL_STEPS = 12, 3, 4
GONE_SECONDS = 900.0  # a trainer without a supervisor has two minutes to save; machines are slow
RUN_SECONDS = 1800.0
POLL_SECONDS = 0.002
VICTIMS = ("trainer", "supervisor", "both", "everything")


def settings(model: Path, rows: Path, processes: int = 1, deepspeed: str = "none") -> list[str]:
    """What makes demo-identity a run of seconds in which everything random and everything that
    has a state takes part: dropout, accumulation, a schedule with warm-up, evaluations."""
    return [
        f"model={model}",
        f"data.train={rows}",
        "data.format=conversations",
        f"training.max_steps={STEPS}",
        "training.max_length=128",
        "training.learning_rate=2e-3",
        "training.lr_scheduler_type=cosine",
        f"training.save_steps={SAVE_STEPS}",
        "training.save_total_limit=2",
        f"training.eval_steps={EVAL_STEPS}",
        "lora.r=4",
        "lora.lora_dropout=0.1",
        "budget.host_memory=10GiB",
        f"launch.num_processes={processes}",
        "launch.threads_per_process=1",
        f"launch.deepspeed={deepspeed}",
    ]


@dataclass(frozen=True)
class Aim:
    """At which instant a kill is meant to come."""

    name: str
    reached: Callable[[RunFolder], bool]
    seconds: float
    """It comes at a random instant of so many seconds from then on."""


@dataclass
class Tally:
    """What was done, and what was found to be wrong."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    runs: int = 0
    too_late: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(self.kills.values())


@dataclass(frozen=True)
class Trained:
    """What must be the same, however a run came to its end."""

    adapter: str
    losses: tuple[tuple[int, float], ...]
    evaluations: tuple[tuple[int, float], ...]


class Ground:
    """Where runs are made, started, shot at and looked at.

    `python` is what trains, this interpreter by default, and `variables` are its own, as in
    tests.support.stub_trainer.
    """

    def __init__(
        self,
        place: Path,
        sets: list[str],
        chance: random.Random,
        python: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.place, self.chance = place, chance
        self.python, self.variables = str(python or sys.executable), dict(variables or {})
        self.temporary = place / "tmp"
        self.temporary.mkdir(parents=True)
        self._loaded = load_job("demo-identity", sets)
        self._number = 0

    def make(self) -> RunFolder:
        """A new run folder, as `runner train --fresh` makes it."""
        facts = replace(gather(self._loaded), python=self.python)
        plan = make_plan(self._loaded, facts, "train", None)
        assert isinstance(plan, SftPlan)
        self._number += 1
        return prepare_folder(self._loaded, plan, self.place / f"runs {self._number}")

    def start(self, run: RunFolder, *, resume: bool) -> subprocess.Popen[bytes]:
        with run.supervisor_log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "runner.supervisor", str(run.path)] + ["--resume"] * resume,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(self.temporary), **self.variables},
            )

    def undisturbed(self) -> tuple[Trained, dict[str, float]]:
        """What a run gives that nobody kills, and how long its parts take, in seconds."""
        run = self.make()
        began = time.monotonic()
        supervisor = self.start(run, resume=False)
        seen: dict[str, float] = {}
        marks = {"training": _is_training, "done": _has_result}
        while supervisor.poll() is None:
            for name, reached in marks.items():
                if name not in seen and reached(run):
                    seen[name] = time.monotonic() - began
            time.sleep(POLL_SECONDS)
        seen["ended"] = time.monotonic() - began
        if supervisor.returncode:
            raise SystemExit(f"the undisturbed run failed: {_log_end(run)}")
        return trained(run), seen

    def aim(self, took: dict[str, float], done: int) -> Aim:
        """At a part of a run that is still to come after `done` steps, and somewhere in it."""
        loading = took["training"]
        step = (took["done"] - loading) / STEPS
        found = [
            Aim("loading", lambda _run: True, loading),
            Aim("final save", _is_ending, 0.2),
            Aim("verdict", _has_result, took["ended"] - took["done"]),
        ]
        if done < STEPS:
            after = self.chance.randint(done + 1, STEPS)
            found.append(Aim(f"step {after}", lambda run: _reached(run, after), step))
            found.append(Aim("checkpoint", _is_saving, 0.05))
            step_done = [one for one in range(EVAL_STEPS, STEPS + 1, EVAL_STEPS) if one > done]
            evaluated = self.chance.choice(step_done)
            name = f"evaluation {evaluated}"
            found.append(Aim(name, lambda run: _reached(run, evaluated), step / 2))
        return self.chance.choice(found)

    def shoot(
        self,
        run: RunFolder,
        supervisor: subprocess.Popen[bytes],
        aim: Aim,
        victim: str | None = None,
    ) -> str | None:
        """Kill at the aim, the `victim` or one by chance; whom. None where the run ended before."""
        if not _wait(lambda: aim.reached(run), supervisor):
            return None
        until = time.monotonic() + self.chance.uniform(0.0, aim.seconds)
        if not _wait(lambda: time.monotonic() >= until, supervisor):
            return None
        victim = victim or self.chance.choice(VICTIMS)
        own = psutil.Process(supervisor.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = own.children(recursive=True)
            trainers = [each for each in tree if _is_trainer(each)] or tree[-1:]
            chosen = {
                "trainer": [self.chance.choice(trainers)] if trainers else [],
                "supervisor": [own],
                "both": [own, *trainers],
                "everything": [own, *tree],
            }[victim]
            if not chosen:  # nothing was started yet, so there is only one to kill
                victim, chosen = "supervisor", [own]
            for each in chosen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        return victim

    def settle(self, run: RunFolder, supervisor: subprocess.Popen[bytes]) -> None:
        """Wait until no process of the run is left."""
        end = time.monotonic() + GONE_SECONDS
        while supervisor.poll() is None or _processes(run):
            if time.monotonic() > end:
                raise SystemExit(f"processes do not end: {_processes(run)}")
            time.sleep(0.05)


def _wait(reached: Callable[[], bool], supervisor: subprocess.Popen[bytes]) -> bool:
    """Whether it was reached before the supervisor ended."""
    while not reached():
        if supervisor.poll() is not None:
            return False
        time.sleep(POLL_SECONDS)
    return supervisor.poll() is None


def _step(run: RunFolder) -> int:
    last = durable.last_jsonl(run.metrics, having="loss")
    return int(last["step"]) if last else 0


def _phase(run: RunFolder) -> str:
    """Of the trainer that lives; nothing where none does."""
    record = durable.read_json(run.engine_status(0))
    if not isinstance(record, dict) or start_ticks(record["pid"]) != record["start_ticks"]:
        return ""
    return str(record["phase"])


def _reached(run: RunFolder, step: int) -> bool:
    return _step(run) >= step and _phase(run) in ("training", "evaluating", "saving")


def _is_training(run: RunFolder) -> bool:
    return _phase(run) == "training"


def _is_saving(run: RunFolder) -> bool:
    return any(run.checkpoints.glob(".staging-*"))


def _is_ending(run: RunFolder) -> bool:
    return _step(run) == STEPS and _phase(run) in ("saving", "evaluating")


def _has_result(run: RunFolder) -> bool:
    return run.engine_result.exists()


def _is_trainer(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return "runner.engines.sft.inside" in words and "accelerate.commands.launch" not in words
    return False


def _processes(run: RunFolder) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if str(run.path) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(f"{process.pid}: {' '.join(words)}")
    return found


def _log_end(run: RunFolder) -> str:
    log = run.train_log if run.train_log.is_file() else run.supervisor_log
    return log.read_text(errors="replace")[-3000:]


def trained(run: RunFolder) -> Trained:
    """The run's adapter, and what it logged at which step."""
    result: dict[str, Any] = json.loads(run.engine_result.read_text())
    lines = list(durable.read_jsonl(run.metrics))
    losses, evaluations = (
        tuple((int(line["step"]), float(line[key])) for line in lines if key in line)
        for key in ("loss", "eval_loss")
    )
    return Trained(result["adapter"]["sha256"], losses, evaluations)


def left_over(place: Path) -> Iterator[str]:
    """Temporary files and folders, by their names."""
    for path in place.rglob("*"):
        if path.name != ".lock" and (path.name.startswith(".") or path.name.endswith(".tmp")):
            yield str(path.relative_to(place))


def damaged(run: RunFolder) -> list[str]:
    """Every checkpoint that is not as it was sealed."""
    found = [(path.name, checkpoints.damage(path)) for path in checkpoints.listed(run.checkpoints)]
    return [f"{name}: {why}" for name, why in found if why is not None]


def aimed(name: str) -> Aim:
    """At a part of a run: "step N", "checkpoint" or "final save"; at the instant it is reached."""
    if name.startswith("step "):
        step = int(name.removeprefix("step "))
        return Aim(name, lambda run: _reached(run, step), 0.0)
    return Aim(name, {"checkpoint": _is_saving, "final save": _is_ending}[name], 0.0)


def bombard(
    count: int,
    place: Path,
    sets: list[str],
    *,
    seed: int,
    say: Callable[[str], None],
    python: Path | None = None,
) -> Tally:
    """Kill `count` times, over as many runs as that takes."""
    chance, tally = random.Random(seed), Tally()  # noqa: S311 - not for secrets
    ground = Ground(place, sets, chance, python)
    wanted, took = ground.undisturbed()
    say(f"undisturbed: adapter {wanted.adapter[:12]}, {took['ended']:.1f} s")
    while tally.count < count and not tally.wrong:
        run, kills, resume = ground.make(), 0, False
        name = f"run {tally.runs + 1}"
        while True:
            supervisor = ground.start(run, resume=resume)
            resume = True
            left = kills < KILLS_A_RUN and tally.count < count
            whole, _ = checkpoints.newest_whole(run.checkpoints)
            done = checkpoints.step_of(whole) if whole else 0
            aim = ground.aim(took, done) if left else None
            victim = ground.shoot(run, supervisor, aim) if aim else None
            if victim is None:
                supervisor.wait(RUN_SECONDS)
                tally.too_late += aim is not None
            ground.settle(run, supervisor)
            tally.wrong += [f"{name}: after a kill: {line}" for line in damaged(run)]
            if victim is None or aim is None:
                break
            kills += 1
            tally.kills[aim.name.split()[0], victim] += 1
            say(f"{name}: kill {tally.count} at {aim.name}: {victim}; step {_step(run)}")
        tally.runs += 1
        tally.wrong += [f"{name}: {line}" for line in judge(run, wanted, ground.temporary)]
        say(f"{name}: ended after {kills} kills" + "".join(f"\n  {line}" for line in tally.wrong))
        if not tally.wrong:
            shutil.rmtree(run.path)
    return tally


def judge(run: RunFolder, wanted: Trained, temporary: Path) -> Iterator[str]:
    """What is not as in an undisturbed run, or was left."""
    end = durable.read_json(run.termination)
    if not isinstance(end, dict) or end["reason"] != "completed":
        yield f"it ended otherwise: {end and end['message']}\n{_log_end(run)}"
        return
    yield from differences(run, wanted, temporary)


def differences(run: RunFolder, wanted: Trained, temporary: Path) -> Iterator[str]:
    """What a run that is over has trained otherwise than an undisturbed one, or has left."""
    found = trained(run)
    for what in ("adapter", "losses", "evaluations"):
        if getattr(found, what) != getattr(wanted, what):
            yield f"{what} {getattr(found, what)}, undisturbed {getattr(wanted, what)}"
    for path in left_over(run.path):
        yield f"left in the run folder: {path}"
    for path in temporary.iterdir():
        yield f"left in TMPDIR: {path.name}"


def table(tally: Tally) -> list[str]:
    """How many kills of each kind."""
    rows = sorted({part for part, _ in tally.kills})
    lines = ["".join(f"{word:>14}" for word in ("", *VICTIMS))]
    for part in rows:
        cells = [str(tally.kills[part, victim]) for victim in VICTIMS]
        lines.append("".join(f"{word:>14}" for word in (part, *cells)))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int, help="how many kills")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--deepspeed", default="none", choices=["none", "zero1", "zero2", "zero3"])
    parser.add_argument("--stub", action="store_true", help="train by tests.support.stub_trainer")
    parser.add_argument("--seed", type=int, default=None, help="of the instants (default: new)")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="a new folder")
    arguments = parser.parse_args()
    root = Path(__file__).resolve().parents[2]
    shared = Path(os.environ.get("RUNNER_SHARED", root.parent / "shared"))
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    model, rows = shared / "models" / "stories260k", shared / "data" / "lora_identity.jsonl"
    sets = settings(model, rows, arguments.processes, arguments.deepspeed)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with contextlib.ExitStack() as stack:
        place = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(f"seed {seed}", flush=True)
        python = stub_python(place / "python") if arguments.stub else None
        began = time.monotonic()
        tally = bombard(
            arguments.count,
            place / "kills",
            sets,
            seed=seed,
            say=lambda line: print(line, flush=True),
            python=python,
        )
        took = time.monotonic() - began
    print("\n".join(table(tally)))
    print(
        f"{tally.count} kills in {tally.runs} runs, {took:.0f} s: "
        + ("; ".join(tally.wrong) or "all as undisturbed")
    )
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
