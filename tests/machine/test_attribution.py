"""Whose memory is whose on a card, for any reading: what the stop of a run stands on."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.common.units import GIB
from runner.machine.attribution import (
    IDLE_SLACK_BYTES,
    Attributed,
    CardHistory,
    Owner,
    attribute,
    start_history,
)
from runner.machine.readings import Attribution, DeviceProcess, DeviceReading

BYTES = st.one_of(st.none(), st.integers(0, 80 * GIB))
PIDS = st.integers(1, 8)
PROCESSES = st.one_of(
    st.none(),
    st.lists(
        st.builds(DeviceProcess, PIDS, BYTES), max_size=5, unique_by=lambda each: each.pid
    ).map(tuple),
)
OWNERS = st.fixed_dictionaries({pid: st.sampled_from(Owner) for pid in range(1, 9)})
HISTORIES = st.builds(CardHistory, st.booleans())
BY_PROCESS = (Attribution.NVML_PID, Attribution.CONTAINER_PID)


@st.composite
def readings(draw: st.DrawFn) -> DeviceReading:
    lost = draw(st.booleans()) and draw(st.booleans())
    return DeviceReading(
        index=0,
        uuid=None,
        name=None,
        total_bytes=80 * GIB,
        used_bytes=None if lost else draw(BYTES),
        free_bytes=None,
        reserved_bytes=None,
        memory_api=draw(st.sampled_from((None, 1, 2))),
        utilization_percent=None,
        temperature_celsius=None,
        power_watts=None,
        lost=lost,
        processes=None if lost else draw(PROCESSES),
    )


BASELINES = st.one_of(st.none(), readings())
KNOWN = st.booleans()


def listed(reading: DeviceReading, owners: dict[int, Owner]) -> list[tuple[Owner, int | None]]:
    return [(owners[each.pid], each.used_bytes) for each in reading.processes or ()]


@settings(deadline=None)
@given(readings(), OWNERS, BASELINES, HISTORIES, KNOWN)
def test_a_figure_is_never_negative_and_never_without_its_attribution(
    reading: DeviceReading,
    owners: dict[int, Owner],
    baseline: DeviceReading | None,
    history: CardHistory,
    known: bool,
) -> None:
    found = attribute(reading, owners, baseline, history, members_known=known)
    assert (found.own_bytes is None) == (found.attribution is Attribution.NONE)
    assert found.own_bytes is None or found.own_bytes >= 0
    if reading.lost:
        assert found == Attributed(None, Attribution.NONE, history)


@settings(deadline=None)
@given(readings(), OWNERS, BASELINES, HISTORIES)
def test_by_process_the_runs_own_are_added_up_and_nothing_else(
    reading: DeviceReading,
    owners: dict[int, Owner],
    baseline: DeviceReading | None,
    history: CardHistory,
) -> None:
    found = attribute(reading, owners, baseline, history)
    own = [used for owner, used in listed(reading, owners) if owner.is_own]
    if own and None not in own:
        assert found.own_bytes == sum(used for used in own if used is not None)
        assert found.attribution in BY_PROCESS
        in_container = any(owner is Owner.CONTAINER for owner, _ in listed(reading, owners))
        assert (found.attribution is Attribution.CONTAINER_PID) == in_container
    if own and None in own:  # a part of an unknown whole is no figure
        assert found.attribution not in BY_PROCESS
    if not own and found.attribution in BY_PROCESS:
        assert found.own_bytes == 0


@settings(deadline=None)
@given(readings(), OWNERS, BASELINES, HISTORIES, KNOWN, st.data())
def test_what_others_use_changes_no_figure_by_process(
    reading: DeviceReading,
    owners: dict[int, Owner],
    baseline: DeviceReading | None,
    history: CardHistory,
    known: bool,
    data: st.DataObject,
) -> None:
    found = attribute(reading, owners, baseline, history, members_known=known)
    changed = tuple(
        each if owners[each.pid].is_own else replace(each, used_bytes=data.draw(BYTES))
        for each in reading.processes or ()
    )
    other = replace(reading, processes=None if reading.processes is None else changed)
    assert attribute(other, owners, baseline, history, members_known=known) == found


@settings(deadline=None)
@given(readings(), OWNERS, BASELINES, HISTORIES, KNOWN)
def test_the_order_of_the_list_does_not_matter(
    reading: DeviceReading,
    owners: dict[int, Owner],
    baseline: DeviceReading | None,
    history: CardHistory,
    known: bool,
) -> None:
    turned = None if reading.processes is None else tuple(reversed(reading.processes))
    assert attribute(
        replace(reading, processes=turned), owners, baseline, history, members_known=known
    ) == attribute(reading, owners, baseline, history, members_known=known)


@settings(deadline=None)
@given(st.lists(st.tuples(readings(), OWNERS, KNOWN), min_size=1, max_size=6), BASELINES)
def test_a_card_that_somebody_else_ever_used_is_never_judged_by_its_total(
    steps: list[tuple[DeviceReading, dict[int, Owner], bool]], baseline: DeviceReading | None
) -> None:
    history = start_history(baseline)
    shared = baseline is None or baseline.processes is None or len(baseline.processes) > 0
    for reading, owners, known in steps:
        found = attribute(reading, owners, baseline, history, members_known=known)
        shared = shared or any(not owner.is_own for owner, _ in listed(reading, owners))
        assert found.history.is_shared == shared
        if found.attribution is Attribution.DEVICE_DELTA:
            assert not shared
            assert reading.processes  # an empty list shows no neighbours either
            assert baseline is not None and baseline.memory_api == reading.memory_api
            assert reading.used_bytes is not None and baseline.used_bytes is not None
            assert found.own_bytes == max(0, reading.used_bytes - baseline.used_bytes)
        history = found.history


@settings(deadline=None)
@given(readings(), OWNERS, BASELINES, HISTORIES)
def test_without_the_runs_processes_known_no_figure_is_by_process(
    reading: DeviceReading,
    owners: dict[int, Owner],
    baseline: DeviceReading | None,
    history: CardHistory,
) -> None:
    found = attribute(reading, owners, baseline, history, members_known=False)
    assert found.attribution not in BY_PROCESS


@settings(deadline=None)
@given(readings(), OWNERS, BASELINES, HISTORIES)
def test_zero_is_a_figure_only_where_the_list_is_seen_to_work(
    reading: DeviceReading,
    owners: dict[int, Owner],
    baseline: DeviceReading | None,
    history: CardHistory,
) -> None:
    found = attribute(reading, owners, baseline, history)
    who = [owner for owner, _ in listed(reading, owners)]
    if any(owner.is_own for owner in who):
        return
    if Owner.HIDDEN in who:  # host pids that mean nothing here
        assert found.own_bytes is None
    elif who:
        assert (found.own_bytes, found.attribution) == (0, Attribution.NVML_PID)
    elif found.own_bytes is not None:  # nobody is listed: the card has to be as idle as before
        assert found.own_bytes == 0
        assert baseline is not None and baseline.used_bytes is not None
        assert reading.used_bytes is not None
        assert reading.used_bytes <= baseline.used_bytes + IDLE_SLACK_BYTES
