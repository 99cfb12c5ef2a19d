"""Find the fastest plan under a budget: try settings in the order of their cost.

Imports torch by way of `cost_model` and `predict`. First everything that keeps the mathematics,
then 8-bit optimizer states and offloading, then, one more each time, the changes of the result that
the job allows. Settings are compared by shallow traces; what is chosen is traced whole before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from runner.common import terminal
from runner.engines.sft.inside.memory.cost_model import Surface, least_recomputation
from runner.engines.sft.inside.memory.predict import predict
from runner.engines.sft.memory.ask import Batch, predicted
from runner.engines.sft.memory.ladder import (
    SMALL_CHUNK,
    Base,
    Choice,
    bases,
    batch_splits,
    current,
    overrides,
    with_base,
    with_choice,
)
from runner.engines.sft.memory.messages import (
    CheapestAsked,
    FitAnswer,
    FitAsked,
    FittedTraining,
    FoundChange,
    LadderOption,
)
from runner.engines.sft.plan import PlannedModel, SftPlan
from runner.vram.calibration import Correction, apply
from runner.vram.prediction import Prediction

JOBS_OWN = Base("", "as the job says", "", {})
MORE_LAYERS = 2
"""Layers that recompute besides, where a choice turns out larger whole than by shallow traces."""
ATTEMPTS = 6


@dataclass(frozen=True)
class Option:
    """One way to train, and what it takes."""

    base: Base
    choice: Choice
    bytes: int
    time: float
    """Against the job as it is: 1.2 takes a fifth longer for the same rows."""
    fits: bool
    allowed: bool = True
    exact: bool = False
    """Traced whole, and not carried on from shallow traces."""

    @property
    def changes(self) -> str:
        """What of the result it changes; empty where nothing but the order of rounding."""
        return "; ".join(part for part in (self.base.changes, self.choice.changes) if part)

    def record(self) -> LadderOption:
        text = self.choice.text if not self.base.name else f"{self.base.text}: {self.choice.text}"
        return {
            "text": text,
            "base": self.base.name,
            "peak_bytes": self.bytes,
            "time": round(self.time, 3),
            "changes": self.changes,
            "fits": self.fits,
            "allowed": self.allowed,
            "exact": self.exact,
        }


def fit(
    plan: SftPlan,
    batches: Sequence[Batch],
    versions: dict[str, str | None],
    asked: FitAsked,
) -> FitAnswer:
    """The ladder of a plan under a budget, and what was chosen: the JSON that `runner fit` gets.

    `asked`: budget_bytes; allow and models, of the job's `fit`; correction, or None. Where nothing
    fits, no option is chosen.
    """
    limit = int(asked["budget_bytes"])
    found = Correction.model_validate(asked["correction"]) if asked["correction"] else None
    out: list[FittedTraining] = []
    chosen_all: dict[str, object] = {}
    for number, (part, batch) in enumerate(zip(plan.trainings, batches, strict=True)):
        prefix = f"phases.{number}." if plan.earlier else ""
        one = _Search(
            part, batch, versions, limit, found, allow=asked["allow"], models=asked["models"]
        ).run()
        changes = dict(one.chosen.base.overrides) if one.chosen else {}
        if one.chosen:
            changes |= overrides(one.now, one.chosen.choice, prefix)
        chosen_all |= changes
        out.append(
            {
                "phase": part.phase,
                "effective_batch": one.now.rows * one.now.accumulation * part.launch.num_processes,
                "ladder": [rung.record() for rung in one.rungs],
                "chosen": one.rungs.index(one.chosen) if one.chosen else None,
                "prediction": one.prediction.model_dump(mode="json") if one.prediction else None,
                "overrides": changes,
                "allowed_would_fit": one.would_fit,
            }
        )
    return {"budget_bytes": limit, "trainings": out, "overrides": chosen_all}


class _Search:
    """One training's way down."""

    def __init__(
        self,
        plan: SftPlan,
        batch: Batch,
        versions: dict[str, str | None],
        limit: int,
        correction: Correction | None,
        *,
        allow: Sequence[str] = (),
        models: Sequence[str] = (),
    ) -> None:
        self._plan, self._batch, self._versions, self._limit = plan, batch, versions, limit
        self._allow = list(allow)
        self._models = list(models)
        self._correction = correction
        self.rungs: list[Option] = []
        self.chosen: Option | None = None
        self.prediction: Prediction | None = None
        self.would_fit: list[str] = []
        _say("tracing the job as it is")
        own = self._whole(plan)
        self._layers = own.largest.layers
        self.now = current(plan, self._layers)
        self._margin = own.high_bytes - own.process_bytes
        self._own = own

    def run(self) -> _Search:
        surface = self._surface(self._plan)
        self._unit = surface.at(self.now).time
        fits = self._own.high_bytes <= self._limit
        self.rungs.append(
            Option(JOBS_OWN, self.now, self._own.process_bytes, 1.0, fits, exact=True)
        )
        if self._take(JOBS_OWN, self._plan, surface):
            return self
        tried: list[Base] = []
        for base in bases(self._plan, self._models):
            allowed = base.name in self._allow
            steps = [*tried, base] if allowed else [base]
            try:
                other = self._with(steps)
            except ValueError:
                continue
            merged = _merged(steps)
            surface = self._surface(other)
            if allowed:
                tried = steps
                if self._take(merged, other, surface):
                    return self
                continue
            rung = self._best(merged, surface, replace(self.now, rows=1, accumulation=self._rows))
            self.rungs.append(replace(rung, allowed=False))
            if rung.fits:
                self.would_fit.append(base.name)
        return self

    @property
    def _rows(self) -> int:
        return self.now.rows * self.now.accumulation

    def _surface(self, plan: SftPlan) -> Surface:
        return Surface(
            plan, self._batch, self._layers, self._own.largest.trainable, self._versions, _say
        )

    def _fits(self, size: int) -> bool:
        return size + self._margin <= self._limit

    def _choices(self) -> Iterator[list[Choice]]:
        """Sets of settings, each dearer than the one before: the fastest that fits of a set counts.

        The effective batch is the same in all.
        """
        now = self.now
        plain = [
            replace(now, rows=rows, accumulation=self._rows // rows)
            for rows in batch_splits(self._rows)
        ]
        yield plain
        small = [replace(one, chunk=SMALL_CHUNK) for one in plain[-2:]]
        yield small
        eight = [replace(one, optim="adamw_8bit") for one in (*plain[-2:], *small)]
        if self._plan.training.optim == "adamw_torch" and self._versions.get("bitsandbytes"):
            yield eight
        if self._plan.launch.deepspeed in ("zero2", "zero3") and now.offload == "none":
            yield [replace(one, offload="optimizer") for one in (*plain[-2:], *small)]

    def _take(self, base: Base, plan: SftPlan, surface: Surface) -> bool:
        """Put the options of one base on the ladder, and choose the fastest that fits."""
        for choices in self._choices():
            rungs = [self._best(base, surface, choice) for choice in choices]
            self.rungs += [rung for rung in _worth_showing(rungs) if rung not in self.rungs]
            by_time = sorted((rung for rung in rungs if rung.fits), key=lambda one: one.time)
            for rung in by_time[:2]:
                if self._confirm(rung, plan):
                    return True
        return False

    def _best(self, base: Base, surface: Surface, choice: Choice) -> Option:
        """The choice with no more recomputation than the budget needs."""
        if self._plan.method == "prefix":
            choice = replace(choice, recompute=0)
        else:
            choice = least_recomputation(surface, choice, self._fits)
        point = surface.at(choice)
        return Option(base, choice, point.bytes, point.time / self._unit, self._fits(point.bytes))

    def _confirm(self, rung: Option, plan: SftPlan) -> bool:
        """Trace a option whole; where it is too large, with some more layers that recompute."""
        place = self.rungs.index(rung) if rung in self.rungs else None
        for _ in range(ATTEMPTS):
            _say(f"tracing whole: {rung.choice.text}")
            found = self._whole(with_choice(plan, rung.choice))
            fits = found.high_bytes <= self._limit
            rung = replace(rung, bytes=found.process_bytes, fits=fits, exact=True)
            if fits:
                break
            more = min(rung.choice.layers, rung.choice.recompute + MORE_LAYERS)
            if more == rung.choice.recompute or self._plan.method == "prefix":
                break
            rung = replace(rung, choice=replace(rung.choice, recompute=more), exact=False)
        if place is None:
            self.rungs.append(rung)
        else:
            self.rungs[place] = rung
        if not rung.fits:
            return False
        self.chosen, self.prediction = rung, found
        return True

    def _whole(self, plan: SftPlan) -> Prediction:
        rows = plan.training.per_device_train_batch_size
        images = self._batch.images // max(1, self._plan.training.per_device_train_batch_size)
        batch = replace(self._batch, images=images * rows)
        found = predicted(plan, [batch], self._versions, predict)
        return apply(found, self._correction)

    def _with(self, steps: Iterable[Base]) -> SftPlan:
        plan = self._plan
        for base in steps:
            if base.name == "smaller_model":
                model = PlannedModel(kind="hub", id=str(base.overrides["model"]))
                plan = plan.model_copy(update={"model": model})
            else:
                plan = with_base(plan, base)
        return plan


def _merged(steps: Sequence[Base]) -> Base:
    """Several changes as one."""
    return Base(
        name=steps[-1].name,
        text=", ".join(dict.fromkeys(one.text for one in steps)),
        changes="; ".join(dict.fromkeys(one.changes for one in steps)),
        overrides={field: value for one in steps for field, value in one.overrides.items()},
    )


def _worth_showing(rungs: Sequence[Option]) -> list[Option]:
    """Those that no other beats in both bytes and time."""
    return [
        one
        for one in rungs
        if not any(
            (other.bytes <= one.bytes and other.time < one.time)
            or (other.bytes < one.bytes and other.time <= one.time)
            for other in rungs
        )
    ]


def cheapest(
    plan: SftPlan, batches: Sequence[Batch], versions: dict[str, str | None], asked: CheapestAsked
) -> list[FoundChange]:
    """The cheapest changes that would have fitted, for a run that ran out of memory.

    `asked`: limit_bytes, count, and a correction or None. What keeps the result comes first.
    """
    given = asked["correction"]
    found = Correction.model_validate(given) if given else None
    limit = asked["limit_bytes"]
    out: list[FoundChange] = []
    for part, batch in zip(plan.trainings, batches, strict=True):
        search = _Search(part, batch, versions, limit, found).run()
        fitting = [one for one in search.rungs[1:] if one.fits]
        for rung in sorted(fitting, key=lambda one: (bool(one.changes), one.time)):
            changes = {**rung.base.overrides, **overrides(search.now, rung.choice)}
            out.append({**rung.record(), "phase": part.phase, "overrides": changes})
    return out[: int(asked["count"])]


def _say(line: str) -> None:
    terminal.say(f"runner: {line}")
