from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engine.data.split import content_key, split

REPOSITORY = Path(__file__).resolve().parents[3]

some_keys = st.lists(st.sampled_from("abcdefgh") | st.text(max_size=3), max_size=60)
fractions = st.floats(0, 0.99)
seeds = st.integers(-5, 2**40)


@given(some_keys, fractions, seeds)
def test_a_split_is_a_partition_and_disjoint_by_content(
    keys: list[str], fraction: float, seed: int
) -> None:
    train, evaluation = split(keys, fraction, seed)
    assert sorted(train + evaluation) == list(range(len(keys)))
    assert not {keys[i] for i in train} & {keys[i] for i in evaluation}
    assert (train, evaluation) == split(keys, fraction, seed)
    if len(set(keys)) >= 2:
        assert train
        assert bool(evaluation) == (fraction > 0)
    else:
        assert not evaluation


@given(some_keys, fractions, seeds, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(keys, fraction, seed, random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(keys)
    random.shuffle(shuffled)
    held_out = {keys[i] for i in split(keys, fraction, seed)[1]}
    assert held_out == {shuffled[i] for i in split(shuffled, fraction, seed)[1]}


@given(st.sets(st.text(max_size=6), min_size=2, max_size=80), st.floats(0.01, 0.99), seeds)
def test_the_size_is_exact_without_duplicates(keys: set[str], fraction: float, seed: int) -> None:
    wanted = min(max(1, round(fraction * len(keys))), len(keys) - 1)
    assert len(split(sorted(keys), fraction, seed)[1]) == wanted


def test_seeds_differ_and_a_larger_share_contains_the_smaller() -> None:
    keys = [f"row {n}" for n in range(1000)]
    held_out = set(split(keys, 0.1, 42)[1])
    assert len(held_out) == 100
    assert held_out != set(split(keys, 0.1, 43)[1])
    assert held_out < set(split(keys, 0.2, 42)[1])


def test_hash_randomization_changes_nothing() -> None:
    code = (
        "from runner.engine.data.split import split, content_key\n"
        "keys = [content_key({'b': n % 50, 'a': '你'}) for n in range(200)]\n"
        "print(split(keys, 0.1, 42))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_keys_are_those_of_content() -> None:
    assert content_key({"a": 1, "b": "\ud83d"}) == content_key({"b": "\ud83d", "a": 1})
    assert content_key({"a": 1}) != content_key({"a": "1"})


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fractions_out_of_range_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction_eval"):
        split(["a", "b"], fraction, 0)
