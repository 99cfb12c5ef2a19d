"""Memory and time of many settings from few traces: of shallow models, carried on to all layers.

Imports torch by way of `step`. Layers of a model are alike, so what a step takes is a straight line
in their number once there are a few, and nearly one in the number of layers that recompute. What is
chosen by these figures is traced whole before anything is said of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypedDict

from runner.common.typed_json import WrongRecord, typed_record
from runner.engines.sft.inside.memory.footprint import ASSUMED, footprint
from runner.engines.sft.inside.memory.process import held, packages_of
from runner.engines.sft.inside.memory.step import trace
from runner.engines.sft.memory.ask import Batch, keep_record, kept_record, key
from runner.engines.sft.memory.ladder import Choice, with_choice
from runner.engines.sft.plan import SftPlan
from runner.vram.sharding import state_bytes

SHALLOW = (3, 6)
HALF_SPEED_TOKENS = 1024
"""Tokens a pass at which a GPU does half of what it can: launches and thin products cost the rest.
An assumption, for the order of plans alone."""
SLOWER = {4: 1.28, 8: 1.5}
"""Time of a step on a base of so many bits, against 16: torchtune's 3,083 and 2,413 tokens/s (8B on
an RTX 4090, shared/docs/vram.md) for 4; for 8 an assumption."""
CHUNKED, OFFLOADED = 1.02, 1.15
"""The same for a loss in small chunks and for offloaded optimizer states; assumptions."""


@dataclass(frozen=True)
class Point:
    """What settings take: bytes of the process, and the time of a step in arbitrary units."""

    bytes: int
    time: float


class _Traced(TypedDict):
    """What is kept of a shallow trace: bytes of the process, operations."""

    bytes: float
    flops: float


def _kept(name: str) -> _Traced | None:
    try:
        return typed_record(kept_record(name), _Traced, name)
    except WrongRecord:
        return None


class Surface:
    """Figures for a plan of one training and its batch, by settings."""

    def __init__(
        self,
        plan: SftPlan,
        batch: Batch,
        layers: int,
        trained: int,
        versions: dict[str, str | None],
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`layers` and `trained` (values) of the whole model, `versions` of what traces it.

        `tell` gets a line for each trace that is not kept from before.
        """
        self._plan, self._batch, self._layers, self._tell = plan, batch, layers, tell
        self._trained, self._versions = trained, versions
        cpu = plan.launch.device == "cpu"
        self._own = footprint(packages_of(plan), versions) if cpu else ASSUMED
        self._known: dict[tuple[int, bool, int | None], tuple[float, float]] = {}

    def at(self, choice: Choice) -> Point:
        """The figures of one choice."""
        none = self._ends(choice.rows, False, choice.chunk)
        every = self._ends(choice.rows, True, choice.chunk) if choice.recompute else none
        share = choice.recompute / max(1, choice.layers)
        size = none[0] + share * (every[0] - none[0])
        flops = none[1] + share * (every[1] - none[1])
        if self._plan.launch.deepspeed == "none":
            own = state_bytes(self._trained, self._plan.training)
            wanted = self._plan.training.model_copy(update={"optim": choice.optim})
            size += state_bytes(self._trained, wanted) - own
        return Point(int(size), self._time(choice, flops))

    def _time(self, choice: Choice, flops: float) -> float:
        tokens = choice.rows * self._batch.tokens
        efficiency = tokens / (tokens + HALF_SPEED_TOKENS)
        slower = SLOWER[self._plan.quantization.bits] if self._plan.method == "qlora" else 1.0
        if choice.chunk:
            slower *= CHUNKED
        if choice.offload != "none":
            slower *= OFFLOADED
        return slower * choice.accumulation * flops / efficiency

    def _ends(self, rows: int, recompute: bool, chunk: int | None) -> tuple[float, float]:
        """Bytes and operations where all layers recompute, or none; with AdamW's own states."""
        name = (rows, recompute, chunk)
        if name not in self._known:
            figures = [self._shallow(rows, recompute, chunk, depth) for depth in self._depths()]
            self._known[name] = _carried_on(self._depths(), figures, self._layers)
        return self._known[name]

    def _depths(self) -> tuple[int, ...]:
        return SHALLOW if self._layers > SHALLOW[-1] else (self._layers,)

    def _shallow(
        self, rows: int, recompute: bool, chunk: int | None, depth: int
    ) -> tuple[float, float]:
        choice = Choice(
            rows=rows,
            accumulation=self._effective // rows,
            recompute=1 if recompute else 0,
            layers=1,
            chunk=chunk,
            optim=self._plan.training.optim,
            offload=self._plan.launch.offload,
        )
        part = with_choice(self._plan, choice)
        images = self._batch.images // max(1, self._plan.training.per_device_train_batch_size)
        batch = replace(self._batch, images=images * rows)
        name = f"{key(part, [batch], self._versions)}-{depth}-layers"
        record = _kept(name)
        if record is None:
            self._tell(f"{choice.text}: {depth} layers")
            traced = trace(part, batch.tokens, images=batch.images, layers=depth)
            record = {"bytes": held(part, traced, self._own).process_bytes, "flops": traced.flops}
            keep_record(name, record)
        return record["bytes"], record["flops"]

    @property
    def _effective(self) -> int:
        training = self._plan.training
        return training.per_device_train_batch_size * training.gradient_accumulation_steps


def _carried_on(
    depths: tuple[int, ...], figures: list[tuple[float, float]], layers: int
) -> tuple[float, float]:
    """The straight line through the figures of two depths, at `layers`."""
    if len(depths) == 1:
        return figures[0]
    (low, high), (first, second) = depths, figures
    steps = (layers - low) / (high - low)
    return (
        first[0] + steps * (second[0] - first[0]),
        first[1] + steps * (second[1] - first[1]),
    )


def least_recomputation(surface: Surface, choice: Choice, fits: Callable[[int], bool]) -> Choice:
    """The choice with as few recomputing layers as fit; with all of them where none do."""
    if fits(surface.at(replace(choice, recompute=0)).bytes):
        return replace(choice, recompute=0)
    low, high = 1, choice.layers
    while low < high:
        middle = (low + high) // 2
        if fits(surface.at(replace(choice, recompute=middle)).bytes):
            high = middle
        else:
            low = middle + 1
    return replace(choice, recompute=high)
