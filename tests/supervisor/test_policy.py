"""guard.policy under a virtual clock: the ladder as written, and what must hold in any sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.machine.readings import Attribution
from runner.supervisor.guard.policy import (
    Action,
    AskCheckpoint,
    Cause,
    EnforcedAgain,
    Kill,
    Observation,
    State,
    Stuck,
    Terminate,
    Thresholds,
    Unenforced,
    Warn,
    advance,
    initial,
    interval_seconds,
)

BUDGET = 1000
ROOMY = 10 * 1024**3
KNOWN = [one for one in Attribution if one.enforceable]


def see(at: float, used: int | None, **other: Any) -> Observation:
    usual: dict[str, Any] = {
        "attribution": Attribution.NVML_PID,
        "free_bytes": ROOMY,
        "handles_checkpoint": True,
        "alive": True,
    }
    return Observation(at, used, **{**usual, **other})


def play(
    observations: Iterable[Observation], state: State | None = None
) -> tuple[State, list[tuple[float, Action]]]:
    """All actions with the times at which they came."""
    state = initial(BUDGET) if state is None else state
    log = []
    for observation in observations:
        state, actions = advance(state, observation)
        log += [(observation.monotonic_seconds, action) for action in actions]
    return state, log


def kinds(log: list[tuple[float, Action]]) -> list[str]:
    return [type(action).__name__ for _, action in log]


def test_a_rise_goes_through_the_ladder_in_order() -> None:
    state, log = play(
        [see(0, 500), see(1, 850), see(2, 950), see(3, 1001), see(3.1, 1001), see(63.1, 900)]
    )
    assert log == [
        (1, Warn(850, BUDGET)),
        (2, AskCheckpoint(950, BUDGET)),
        (3.1, Terminate(Cause.OVER_BUDGET, 1001)),
        (63.1, Kill(Cause.OVER_BUDGET)),
    ]
    assert state.cause is Cause.OVER_BUDGET


def test_far_over_the_budget_one_sample_is_enough_and_a_checkpoint_is_asked_first() -> None:
    _, log = play([see(0, 1051)])
    assert kinds(log) == ["Warn", "AskCheckpoint", "Terminate"]
    _, log = play([see(0, 1050)])
    assert kinds(log) == ["Warn", "AskCheckpoint"]


def test_a_single_spike_or_two_samples_too_close_do_not_end_a_run() -> None:
    _, log = play([see(0, 1020), see(0.05, 1020), see(0.09, 900), see(0.2, 1020), see(0.25, 900)])
    assert "Terminate" not in kinds(log)


def test_warnings_have_hysteresis() -> None:
    _, log = play([see(at, 849 + at % 2 * 2) for at in range(40)])
    assert kinds(log) == ["Warn"]
    _, log = play([see(0, 860), see(1, 799), see(61, 799), see(62, 860)])
    assert kinds(log) == ["Warn", "Warn"]


def test_memory_that_swings_with_every_step_is_warned_of_and_saved_once() -> None:
    _, log = play(see(at, 970 if at % 4 == 0 else 300) for at in range(600))
    assert kinds(log) == ["Warn", "AskCheckpoint"]


def test_a_checkpoint_is_asked_once_per_excursion() -> None:
    rises = [see(0, 960), see(1, 940), see(2, 960), see(3, 899), see(63, 899), see(64, 960)]
    _, log = play(rises)
    assert [at for at, action in log if isinstance(action, AskCheckpoint)] == [0, 64]


def test_a_checkpoint_is_asked_as_soon_as_the_engine_says_it_answers() -> None:
    _, log = play([see(0, 960, handles_checkpoint=False), see(1, 960)])
    assert kinds(log) == ["Warn", "AskCheckpoint"]


def test_falling_back_does_not_take_a_termination_back() -> None:
    _, log = play([see(0, 1100), *(see(at, 10) for at in range(1, 61))])
    assert kinds(log)[-2:] == ["Terminate", "Kill"]
    assert log[-1][0] == 60


def test_a_tight_card_shortens_the_grace_also_later() -> None:
    _, log = play([see(0, 1100, free_bytes=1), see(9, 1100), see(10, 1100)])
    assert log[-1] == (10, Kill(Cause.OVER_BUDGET))
    _, log = play([see(0, 1100), see(20, 1100, free_bytes=1), see(29, 1), see(30, 1, free_bytes=1)])
    assert log[-1] == (30, Kill(Cause.OVER_BUDGET))
    _, log = play([see(0, 1100), see(55, 1100, free_bytes=1), see(60, 1)])
    assert log[-1] == (60, Kill(Cause.OVER_BUDGET))  # never later than it was


def test_unknown_free_memory_is_not_tight() -> None:
    _, log = play([see(0, 1100, free_bytes=None), see(30, 1100, free_bytes=None)])
    assert "Kill" not in kinds(log)


def test_blindness_is_said_once_and_ends_nothing() -> None:
    blind = [see(at, None, failure="NVML is gone") for at in range(1, 600)]
    state, log = play([see(0, 990), *blind])
    assert kinds(log) == ["Warn", "AskCheckpoint", "Unenforced"]
    assert log[-1] == (16, Unenforced(16, "NVML is gone"))
    _, log = play([see(600, 500), see(601, None)], state)
    assert log == [(600, EnforcedAgain())]


def test_unattributed_memory_counts_as_blind_from_the_start() -> None:
    _, log = play([see(at, 9999, attribution=Attribution.NONE) for at in range(100, 200)])
    assert kinds(log) == ["Unenforced"]
    assert log[0][0] == 116


def test_a_graceful_stop_then_now() -> None:
    state, log = play([see(0, 10), see(1, 10, stop=1), see(30, 10, stop=1), see(31, 10, stop=2)])
    assert log == [
        (1, Terminate(Cause.STOP_REQUESTED, 10)),
        (31, Kill(Cause.STOP_REQUESTED)),
    ]
    _, log = play([see(41, 10, stop=2), see(41.1, 10, stop=2), see(99, 10, stop=2)], state)
    assert log == [(41.1, Stuck())]


def test_a_stop_that_is_ignored_ends_in_a_kill_within_the_grace() -> None:
    _, log = play([see(at, 10, stop=1, free_bytes=1) for at in range(100)])
    assert kinds(log) == ["Terminate", "Kill", "Stuck"]
    assert [at for at, _ in log] == [0, 60, 71]


def test_stop_now_kills_at_once() -> None:
    state, log = play([see(0, 10, stop=2)])
    assert log == [(0, Kill(Cause.STOP_REQUESTED))]
    assert state.cause is Cause.STOP_REQUESTED


def test_a_lost_card_ends_the_run_with_a_short_grace() -> None:
    _, log = play([see(0, None, gpu_lost=True), see(9, None), see(10, None)])
    assert log == [(0, Terminate(Cause.GPU_LOST, None)), (10, Kill(Cause.GPU_LOST))]


def test_a_card_lost_while_the_run_is_being_ended_shortens_the_grace() -> None:
    state, log = play([see(0, 1100), see(1, None, gpu_lost=True), see(10.9, None), see(11, None)])
    assert log[-1] == (11, Kill(Cause.OVER_BUDGET))
    assert state.cause is Cause.OVER_BUDGET


def test_a_trainers_report_that_is_read_twice_is_one_sample() -> None:
    once = [see(0, 1001), *(see(at, 1001, fresh=False) for at in range(1, 30))]
    _, log = play(once)
    assert kinds(log) == ["Warn", "AskCheckpoint"]
    _, log = play([*once, see(30, 1001)])
    assert kinds(log)[-1] == "Terminate"


def test_a_run_that_is_seen_on_one_card_of_two_is_said_to_be_unenforced_in_part() -> None:
    life = [see(at, 300, complete=False, failure="GPU 1: gone") for at in range(20)]
    state, log = play([see(0, 300), *life[1:]])
    assert log == [(16, Unenforced(16, "GPU 1: gone"))]
    _, log = play([see(20, 1100, complete=False)], state)  # what is seen is still enforced
    assert kinds(log) == ["Warn", "AskCheckpoint", "Terminate"]
    _, log = play([see(20, 300)], state)
    assert log == [(20, EnforcedAgain())]


def test_the_first_cause_is_kept() -> None:
    state, log = play(
        [see(0, 10, timed_out=True), see(1, 2000, gpu_lost=True, stop=1), see(60, 2000)]
    )
    assert state.cause is Cause.TIMEOUT
    assert log == [(0, Terminate(Cause.TIMEOUT, 10)), (60, Kill(Cause.TIMEOUT))]


def test_without_a_budget_memory_is_no_reason_for_anything() -> None:
    state, log = play([see(at, 10**15 if at % 2 else None) for at in range(50)], initial(None))
    assert log == []
    _, log = play([see(50, 1, stop=1)], state)
    assert kinds(log) == ["Terminate"]


def test_after_the_end_nothing_is_done() -> None:
    _, log = play([see(0, 10, alive=False), see(1, 5000, stop=2, gpu_lost=True)])
    assert log == []


def test_samples_are_close_at_the_start_near_the_budget_and_while_ending() -> None:
    state, _ = play([see(0, 10)])
    assert interval_seconds(initial(BUDGET)) == interval_seconds(state) == 0.1
    state, _ = play([see(60, 10)], state)
    assert interval_seconds(state) == 1.0
    near, _ = play([see(61, 850)], state)
    assert interval_seconds(near) == 0.1
    assert interval_seconds(play([see(62, 799), see(122, 799)], near)[0]) == 1.0
    assert interval_seconds(play([see(61, 1, stop=1)], state)[0]) == 0.1


@pytest.mark.parametrize("wrong", [{"warn_fraction": 0.99}, {"hard_fraction": 0.9}])
def test_thresholds_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Thresholds(**wrong)
    with pytest.raises(ValueError, match="budget"):
        initial(0)


# What holds in any sequence ----------------------------------------------------------------------

sizes = st.integers(0, 2 * BUDGET)
gaps = st.floats(0.01, 30, allow_nan=False)
# No deadline: the tests share their cores with others.
quick = settings(max_examples=60, deadline=None)


@st.composite
def lives(draw: st.DrawFn, *, own: st.SearchStrategy[int | None], **fixed: Any) -> Any:
    """A sequence of observations, in order of time."""
    at = 0.0
    observations = []
    for _ in range(draw(st.integers(1, 40))):
        at += draw(gaps)
        values: dict[str, Any] = {
            "attribution": draw(st.sampled_from(list(Attribution))),
            "free_bytes": draw(st.sampled_from([None, 0, ROOMY])),
            "handles_checkpoint": draw(st.booleans()),
            **{key: draw(value) for key, value in fixed.items()},
        }
        observations.append(see(at, draw(own), **values))
    return observations


@quick
@given(lives(own=st.none() | sizes, attribution=st.just(Attribution.NONE)))
def test_unattributed_memory_never_warns_or_ends_a_run(life: list[Observation]) -> None:
    state, log = play(life)
    assert set(kinds(log)) <= {"Unenforced"}
    assert state.cause is None


@quick
@given(lives(own=st.none()))
def test_unknown_memory_never_warns_or_ends_a_run(life: list[Observation]) -> None:
    state, log = play(life)
    assert set(kinds(log)) <= {"Unenforced"}
    assert state.cause is None


@quick
@given(lives(own=st.none() | st.integers(0, BUDGET)))
def test_within_the_budget_no_run_is_ended(life: list[Observation]) -> None:
    _, log = play(life)
    assert not {"Terminate", "Kill", "Stuck"} & set(kinds(log))


@quick
@given(lives(own=st.none() | sizes))
def test_only_known_memory_over_the_budget_ends_a_run(life: list[Observation]) -> None:
    _, log = play(life)
    seen = {one.monotonic_seconds: one for one in life}
    for at, action in log:
        if isinstance(action, Warn | AskCheckpoint | Terminate):
            assert seen[at].attribution.enforceable
            assert seen[at].own_bytes is not None
        if isinstance(action, Terminate):
            assert (seen[at].own_bytes or 0) > BUDGET


@quick
@given(lives(own=st.none() | sizes), st.sampled_from(KNOWN), st.sampled_from([0.1, 0.4, 1.0]))
def test_every_sustained_breach_is_terminated_then_killed_within_the_grace(
    life: list[Observation], attribution: Attribution, gap: float
) -> None:
    start = life[-1].monotonic_seconds
    breach = [
        see(start + gap * step, 1001, attribution=attribution) for step in range(1, int(75 / gap))
    ]
    _, log = play([*life, *breach])
    terminated = [at for at, action in log if isinstance(action, Terminate)]
    killed = [at for at, action in log if isinstance(action, Kill)]
    assert len(terminated) == len(killed) == 1
    assert terminated[0] <= start + 2 * gap + 0.1 + 1e-6
    if killed[0] > start:
        assert killed[0] <= max(start, terminated[0] + 60) + gap + 1e-6
    assert terminated[0] <= killed[0]


@quick
@given(lives(own=st.none() | sizes, handles_checkpoint=st.just(False)))
def test_an_engine_that_did_not_offer_it_is_never_asked_for_a_checkpoint(
    life: list[Observation],
) -> None:
    _, log = play(life)
    assert "AskCheckpoint" not in kinds(log)


@quick
@given(
    lives(
        own=st.none() | sizes,
        alive=st.sampled_from([True] * 20 + [False]),
        gpu_lost=st.sampled_from([False] * 20 + [True]),
        stop=st.sampled_from([0] * 20 + [1, 2]),
        timed_out=st.sampled_from([False] * 20 + [True]),
    )
)
def test_the_order_of_actions_and_the_first_cause_hold(life: list[Observation]) -> None:
    state = initial(BUDGET)
    cause = None
    done: list[str] = []
    ended = False
    for observation in life:
        state, actions = advance(state, observation)
        ended = ended or not observation.alive
        assert not (ended and actions)
        assert cause is None or state.cause is cause
        cause = state.cause
        done += [type(action).__name__ for action in actions]
    last = [name for name in done if name in ("Terminate", "Kill", "Stuck")]
    assert last in ([], ["Terminate"], ["Terminate", "Kill"], ["Kill"], ["Kill", "Stuck"]) or (
        last == ["Terminate", "Kill", "Stuck"]
    )
    if last:  # once it is being ended, nothing else is said
        assert done[done.index(last[0]) :] == last
    told = [name for name in done if name in ("Unenforced", "EnforcedAgain")]
    assert told == ["Unenforced", "EnforcedAgain"] * (len(told) // 2) + told[len(told) & ~1 :]
    assert told[-1:] != ["EnforcedAgain"] or len(told) % 2 == 0


@quick
@given(st.lists(st.integers(0, 99), min_size=1, max_size=200))
def test_no_storm_of_warnings(percents: list[int]) -> None:
    _, log = play(see(at, percent * BUDGET // 100) for at, percent in enumerate(percents))
    warnings = kinds(log).count("Warn")
    excursions, inside, low_for = 0, False, 0  # one observation a second
    for percent in percents:
        low_for = low_for + 1 if percent < 80 else 0
        if inside and low_for > 60:
            inside = False
        if not inside and percent >= 85:
            inside, excursions = True, excursions + 1
    assert warnings == excursions


def test_advance_changes_no_state_in_place() -> None:
    state = initial(BUDGET)
    kept = replace(state)
    advance(state, see(0, 2000))
    assert state == kept
