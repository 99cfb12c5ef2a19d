"""Names that look like secrets are never kept, and their values are struck out of every text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.provenance.environment import kept, looks_secret, secret_values, without_secrets

WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
NAME = st.from_regex(r"[A-Z_]{0,8}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9999, 9999) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@given(NAME, st.sampled_from(WORDS), NAME, st.text(min_size=1))
def test_no_name_with_such_a_word_is_kept(head: str, word: str, tail: str, value: str) -> None:
    for name in (f"{head}{word}{tail}", f"NCCL_{word}{tail}", f"torch_{word}".upper()):
        assert looks_secret(name) and looks_secret(name.lower())
        assert name not in kept({name: value})


@given(st.dictionaries(NAME.filter(bool), st.text(max_size=9), max_size=8))
def test_only_names_of_the_list_are_kept(environment: dict[str, str]) -> None:
    assert set(kept(environment)) <= set(environment)
    assert kept({**environment, "MY_OWN_VARIABLE": "x"}) == kept(environment)


@given(JSON, st.text("abcxyz0123456789-", min_size=6, max_size=20), st.text(max_size=8))
def test_a_secret_is_in_no_text(record: Any, secret: str, around: str) -> None:
    secrets = {secret: "MY_TOKEN"}
    dirty = {"list": [record, f"{around}{secret}{around}"], f"{secret}!": {"deep": [secret]}}
    text = json.dumps(without_secrets(dirty, secrets), ensure_ascii=False)
    assert secret not in text
    clean = {"list": [1, None, "innocent"]}
    assert without_secrets(clean, {"hunter22": "P"}) == clean


def test_which_values_are_secrets() -> None:
    environment = {"A_TOKEN": "123456", "SHORT_KEY": "abc", "PLAIN": "abcdefg", "NAMED": "qwertz"}
    assert secret_values(environment, ["NAMED"]) == {"123456": "A_TOKEN", "qwertz": "NAMED"}


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "NCCL_DEBUG", "TZ"])
def test_what_explains_a_run_is_kept(name: str) -> None:
    assert kept({name: "1"}) == {name: "1"}
