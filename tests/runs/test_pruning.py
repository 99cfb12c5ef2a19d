"""What `runner prune` removes: never of a run that lives, never what was said to stay."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.common.units import format_age, parse_age
from runner.runs.outcome import Reason
from runner.runs.retention import Candidate, Rules, doomed

DAY = 86_400.0
STATES = [*(reason.value for reason in Reason), "running", "queued", "by_hand", "not_started"]


def run(**more: Any) -> Candidate:
    known = {"run": "a/b", "state": "completed", "over": True, "variant": "train"}
    return Candidate(**{**known, "age_seconds": 40 * DAY, **more})


@given(
    st.builds(
        Candidate,
        run=st.just("a/b"),
        state=st.sampled_from(STATES),
        over=st.booleans(),
        variant=st.sampled_from(["train", "smoke", "dry_run"]),
        age_seconds=st.floats(0, 1e9),
        checkpoints=st.lists(st.integers(1, 99), unique=True).map(lambda x: tuple(sorted(x))),
        protected=st.frozensets(st.integers(1, 99)),
    ),
    st.builds(
        Rules,
        st.none() | st.integers(1, 9),
        st.none() | st.floats(0, 1e9),
        st.booleans(),
        st.booleans(),
    ),
)
def test_no_rule_touches_what_lives_or_is_protected(one: Candidate, rules: Rules) -> None:
    gone = doomed(one, rules)
    if gone is None:
        return
    assert one.over and one.state not in ("running", "queued")
    assert rules.older_than_seconds is None or one.age_seconds >= rules.older_than_seconds
    if gone.checkpoints is None:
        assert rules.smokes or rules.failed or rules.older_than_seconds is not None
    else:
        assert gone.checkpoints and not set(gone.checkpoints) & one.protected
        left = set(one.checkpoints) - set(gone.checkpoints)
        assert rules.keep_checkpoints is not None
        newest = one.checkpoints[-rules.keep_checkpoints :]
        assert set(newest) <= left


@pytest.mark.parametrize(
    ("one", "rules", "expected"),
    [
        (run(), Rules(older_than_seconds=30 * DAY), None),
        (run(age_seconds=29 * DAY), Rules(older_than_seconds=30 * DAY), "stays"),
        (run(), Rules(smokes=True), "stays"),
        (run(variant="smoke"), Rules(smokes=True), None),
        (run(variant="dry_run"), Rules(smokes=True), None),
        (run(variant="smoke"), Rules(smokes=True, older_than_seconds=41 * DAY), "stays"),
        (run(variant="smoke"), Rules(failed=True), "stays"),
        (run(state="cuda_oom"), Rules(failed=True), None),
        (run(state="lost"), Rules(failed=True), None),
        (run(state="stopped"), Rules(failed=True), "stays"),
        (run(state="not_started", age_seconds=60.0), Rules(failed=True), "stays"),
        (run(state="not_started"), Rules(failed=True), None),
        (run(checkpoints=(1, 2, 3)), Rules(keep_checkpoints=1), (1, 2)),
        (run(checkpoints=(1, 2, 3), protected=frozenset({1})), Rules(keep_checkpoints=1), (2,)),
        (run(checkpoints=(1, 2, 3)), Rules(keep_checkpoints=3), "stays"),
        # --older-than narrows the rule on checkpoints, and removes no run then
        (run(checkpoints=(1, 2)), Rules(keep_checkpoints=1, older_than_seconds=DAY), (1,)),
        (run(state="failed", checkpoints=(1, 2)), Rules(keep_checkpoints=1, failed=True), None),
    ],
)
def test_each_rule_removes_what_it_says(one: Candidate, rules: Rules, expected: Any) -> None:
    gone = doomed(one, rules)
    assert ("stays" if gone is None else gone.checkpoints) == expected


def test_what_could_have_been_gone_on_with_is_said() -> None:
    gone = doomed(run(state="lost", goes_on_from="checkpoint-9"), Rules(failed=True))
    assert gone is not None and gone.why == "lost; could resume from checkpoint-9"


def test_ages_are_read_and_written() -> None:
    assert [parse_age(text) for text in ("90m", "12h", "30d", "1.5w")] == [
        5400.0,
        43_200.0,
        30 * DAY,
        10.5 * DAY,
    ]
    for text in ("30", "d", "-1d", "1y", "1e3d", ""):
        with pytest.raises(ValueError, match="30d or 8w"):
            parse_age(text)
    assert [format_age(s) for s in (30, 7200, 3 * DAY)] == ["0 m", "2 h", "3 d"]
