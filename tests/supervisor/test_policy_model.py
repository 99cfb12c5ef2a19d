"""guard.policy against an independent reading of its rules, in thousands of generated lives.

`expected` says from the whole life, looking back and forth, what `advance` must have said step by
step. A life is drawn as one number a step, so that ten thousand of them take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import psutil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.machine.nvml_sampler import NvmlSampler
from runner.machine.readings import Attribution, DeviceProcess, DeviceReading
from runner.supervisor.guard.policy import (
    Action,
    AskCheckpoint,
    Cause,
    EnforcedAgain,
    Kill,
    Observation,
    Stuck,
    Terminate,
    Unenforced,
    Warn,
    advance,
    initial,
)
from tests.support.soaking import examples

BUDGET = 1000
ROOMY = 10 * 1024**3
TIGHT = 511 * 1024**2

# What a step of a life is drawn from; values around every threshold, and the rare ones rare.
GAPS = [0.05, 0.125, 0.125, 0.25, 1.0, 1.0, 4.0, 11.0, 16.0, 61.0]
USES = [None, 0, 300, 790, 850, 899, 950, 1000, 1001, 1001, 1040, 1050, 1051, 3000]
HOWS = [Attribution.NVML_PID, Attribution.NVML_PID, Attribution.TRAINER, Attribution.NONE]
FREES = [ROOMY, ROOMY, ROOMY, None, TIGHT]
FLAGS = [{}, {}, {}, {}, {"handles_checkpoint": False}, {"fresh": False}, {"complete": False}]
EVENTS: list[dict[str, Any]] = [
    *[{}] * 40,
    {"gpu_lost": True},
    {"stop": 1},
    {"stop": 2},
    {"timed_out": True},
    {"alive": False},
]
TABLES: list[Sequence[Any]] = [EVENTS, GAPS, USES, HOWS, FREES, FLAGS]
KINDS = 1
for _table in TABLES:
    KINDS *= len(_table)
numbers = st.lists(st.integers(0, KINDS - 1), min_size=1, max_size=30)


def thorough(runs: int) -> Any:
    """So many lives in a soak, a quarter in CI."""
    tried = examples(runs // 4, runs)
    return settings(max_examples=tried, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def lived(codes: list[int], *, events: bool = True) -> list[Observation]:
    """The observations that these numbers stand for, in order of time."""
    at, life = 0.0, []
    for number in codes:
        drawn, code = [], number
        for table in TABLES:
            code, place = divmod(code, len(table))
            drawn.append(table[place])
        event, gap, used, how, free, flags = drawn
        at += gap
        values = {"handles_checkpoint": True, "alive": True, **flags, **(event if events else {})}
        life.append(Observation(at, used, how, free, **values))
    return life


def play(life: list[Observation]) -> list[tuple[float, Action]]:
    state, log = initial(BUDGET), []
    for one in life:
        state, actions = advance(state, one)
        log += [(one.monotonic_seconds, action) for action in actions]
    return log


def known(one: Observation) -> bool:
    return one.own_bytes is not None and one.attribution is not Attribution.NONE


@dataclass
class End:
    """When and why a life must be ended, by the rules as written."""

    at: float
    cause: Cause
    place: int  # in the life


def expected_end(life: list[Observation]) -> End | None:
    """The first reason to stop; looks at all pairs of samples, as the rule is worded."""
    for i, one in enumerate(life):
        at = one.monotonic_seconds
        if not one.alive:
            return None
        if one.gpu_lost:
            return End(at, Cause.GPU_LOST, i)
        if one.stop:
            return End(at, Cause.STOP_REQUESTED, i)
        if one.timed_out:
            return End(at, Cause.TIMEOUT, i)
        if not known(one) or (one.own_bytes or 0) <= BUDGET:
            continue
        if (one.own_bytes or 0) * 100 > 105 * BUDGET:
            return End(at, Cause.OVER_BUDGET, i)
        for j in range(i - 1, -1, -1):
            if known(life[j]) and (life[j].own_bytes or 0) <= BUDGET:
                break
            if known(life[j]) and one.fresh and at - life[j].monotonic_seconds >= 0.1:
                return End(at, Cause.OVER_BUDGET, i)
    return None


def expected_after(life: list[Observation], end: End) -> list[tuple[float, str]]:
    """After the first reason to stop: SIGTERM, the kill when it is due, word of a survivor."""
    said: list[tuple[float, str]] = []
    deadline = end.at + 60
    killed = None
    if life[end.place].stop != 2:
        said.append((end.at, "Terminate"))
    for one in life[end.place :]:
        at = one.monotonic_seconds
        if not one.alive:
            break
        if killed is not None:
            if at - killed > 10:
                said.append((at, "Stuck"))
                break
            continue
        tight = one.free_bytes is not None and one.free_bytes < 512 * 1024**2
        if one.gpu_lost or (end.cause is Cause.OVER_BUDGET and tight):
            deadline = min(deadline, at + 10)
        if one.stop == 2 or at >= deadline:
            killed = at
            said.append((at, "Kill"))
    return said


def expected_before(life: list[Observation], end: End | None) -> list[tuple[float, str]]:
    """Warnings, requests to save, and word of blindness, until it is being ended."""
    said: list[tuple[float, str]] = []
    seen, unenforced = life[0].monotonic_seconds, False
    calm = {"Warn": True, "AskCheckpoint": True}
    low_since: dict[str, float | None] = {"Warn": None, "AskCheckpoint": None}
    for i, one in enumerate(life):
        at = one.monotonic_seconds
        if not one.alive or (end is not None and i > end.place):
            break
        if end is not None and i == end.place and end.cause is not Cause.OVER_BUDGET:
            break
        if known(one) and one.complete:
            if unenforced:
                said.append((at, "EnforcedAgain"))
            seen, unenforced = at, False
        elif not unenforced and at - seen > 15:
            unenforced = True
            said.append((at, "Unenforced"))
        if not known(one):
            continue
        percent = (one.own_bytes or 0) * 100 / BUDGET
        for name, began in (("Warn", 85), ("AskCheckpoint", 95)):
            if calm[name]:
                if percent >= began and (name == "Warn" or one.handles_checkpoint):
                    said.append((at, name))
                    calm[name], low_since[name] = False, None
            elif percent >= began - 5:
                low_since[name] = None
            else:
                since = low_since[name]
                low_since[name] = at if since is None else since
                calm[name] = since is not None and at - since >= 60
    return said


@thorough(6000)
@given(numbers)
def test_every_action_is_the_one_that_the_rules_call_for_and_no_other(codes: list[int]) -> None:
    life = lived(codes)
    end = expected_end(life)
    log = play(life)
    wanted = expected_before(life, end) + (expected_after(life, end) if end else [])
    assert [(at, type(action).__name__) for at, action in log] == wanted
    for at, action in log:
        one = next(one for one in life if one.monotonic_seconds == at)
        if isinstance(action, Terminate | Kill):
            assert end is not None and action.cause is end.cause
        if isinstance(action, Warn | AskCheckpoint):
            assert (action.used, action.budget) == (one.own_bytes, BUDGET)


@thorough(1500)
@given(numbers)
def test_no_life_without_known_memory_over_the_budget_is_ended(codes: list[int]) -> None:
    """Whatever is unknown, unattributed or another's: 3000 of 1000 bytes as well."""
    life = [
        replace(one, attribution=Attribution.NONE) if (one.own_bytes or 0) > BUDGET else one
        for one in lived(codes, events=False)
    ]
    assert not any(isinstance(action, Terminate | Kill | Stuck) for _, action in play(life))


@thorough(1000)
@given(numbers, st.sampled_from([0.125, 1.0, 1.0]), st.sampled_from([1001, 1060]))
def test_every_breach_ends_in_a_verdict(codes: list[int], gap: float, used: int) -> None:
    """However a life went before: it is told to end, killed, and said to be stuck."""
    life = lived(codes, events=False)
    start = life[-1].monotonic_seconds
    steps = int(100 / gap)
    breach = [
        Observation(start + gap * step, used, Attribution.NVML_PID, ROOMY, True, True)
        for step in range(1, steps)
    ]
    names = [type(action).__name__ for _, action in play([*life, *breach])]
    assert [name for name in names if name in ("Terminate", "Kill", "Stuck")] == [
        "Terminate",
        "Kill",
        "Stuck",
    ]
    assert names[-3:] == ["Terminate", "Kill", "Stuck"]


@thorough(1500)
@given(numbers, st.lists(st.sampled_from([0, 0, 0, 1, 100, 2000]), min_size=30, max_size=30))
def test_more_memory_is_never_answered_more_mildly(codes: list[int], more: list[int]) -> None:
    life = lived(codes)
    fuller = [
        one if one.own_bytes is None else replace(one, own_bytes=one.own_bytes + extra)
        for one, extra in zip(life, more, strict=False)
    ]
    for kind in (Warn, AskCheckpoint, Terminate, Kill, Stuck):
        first = [at for at, action in play(life) if isinstance(action, kind)][:1]
        sooner = [at for at, action in play(fuller) if isinstance(action, kind | Kill)][:1]
        if kind in (Warn, AskCheckpoint):  # unless what is harder came first
            sooner = [
                at for at, action in play(fuller) if isinstance(action, kind | Terminate | Kill)
            ][:1]
        assert not first or (sooner and sooner[0] <= first[0]), kind


@thorough(1500)
@given(numbers, st.lists(st.sampled_from([None, 0, TIGHT, ROOMY]), min_size=30, max_size=30))
def test_what_others_leave_free_ends_nobody(codes: list[int], frees: list[int | None]) -> None:
    """Little free memory shortens the grace of a run over its budget, and does nothing else."""
    life = lived(codes)
    squeezed = [replace(one, free_bytes=free) for one, free in zip(life, frees, strict=False)]
    quiet = (Warn, AskCheckpoint, Terminate, Unenforced, EnforcedAgain)
    assert [entry for entry in play(squeezed) if isinstance(entry[1], quiet)] == [
        entry for entry in play(life) if isinstance(entry[1], quiet)
    ]


ME = psutil.Process()


@thorough(800)
@given(
    st.lists(
        st.tuples(
            st.integers(0, BUDGET),  # own
            st.sampled_from([0, 0, 5, 900, 70_000]),  # a neighbour's, listed or not
            st.booleans(),  # is the neighbour listed?
            st.sampled_from(["bytes", "bytes", "no bytes", "no list", "no own pid"]),
        ),
        min_size=1,
        max_size=25,
    ),
    st.booleans(),
)
def test_a_neighbours_spike_never_ends_the_run(
    life: list[tuple[int, int, bool, str]], alone_at_first: bool
) -> None:
    """From what NVML lists to the decision: the run within its budget, whatever the card holds."""
    now: list[DeviceReading] = [reading(0, ())]
    if not alone_at_first:
        now = [reading(50, (DeviceProcess(1, 50),))]
    cards = OneCard(now)
    sampler = NvmlSampler(cards, [0], lambda: [ME], {0: now[0]})
    state = initial(BUDGET)
    for step, (own, foreign, listed, driver) in enumerate(life):
        processes: tuple[DeviceProcess, ...] | None = ()
        if driver != "no own pid":
            processes = (DeviceProcess(ME.pid, None if driver == "no bytes" else own),)
        if foreign and (
            listed or driver == "no bytes"
        ):  # no driver lists the one and not the other
            processes = (*processes, DeviceProcess(1, None if driver == "no bytes" else foreign))
        now[0] = reading(own + foreign, None if driver == "no list" else processes)
        sample = replace(sampler.sample(), monotonic_seconds=float(step))
        state, actions = advance(state, Observation.of(sample, handles_checkpoint=True, alive=True))
        assert not any(isinstance(action, Terminate | Kill) for action in actions)


class OneCard:
    """A DeviceSource with what the test put there."""

    def __init__(self, now: list[DeviceReading]) -> None:
        self.now = now

    def devices(self) -> list[tuple[int, str | None]]:
        return [(0, "GPU-0")]

    def read(self, index: int) -> DeviceReading:
        return self.now[index]


def reading(used: int, processes: tuple[DeviceProcess, ...] | None) -> DeviceReading:
    free = max(0, 80_000 - used)
    return DeviceReading(
        0, "GPU-0", "X", 80_000, used, free, 0, 2, None, None, None, False, processes
    )


def test_the_tables_reach_every_action() -> None:
    """That the lives above are not all dull: each action comes of one that they can draw."""
    life = [
        Observation(at, used, Attribution.NVML_PID, ROOMY, True, True)
        for at, used in ((0, 300), (1, 850), (2, 950), (18, None), (19, 1001), (20, 1001))
    ]
    life += [replace(life[-1], monotonic_seconds=at) for at in (81.0, 92.0)]
    assert {one.own_bytes for one in life} <= set(USES)
    assert all(later.monotonic_seconds > one.monotonic_seconds for one, later in pairwise(life))
    names = [type(action).__name__ for _, action in play(life)]
    assert names == [
        "Warn",
        "AskCheckpoint",
        "Unenforced",
        "EnforcedAgain",
        "Terminate",
        "Kill",
        "Stuck",
    ]
