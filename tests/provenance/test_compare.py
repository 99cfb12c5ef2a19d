"""The order in which differences are named, and that each deciding one is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.provenance.compare import Side, differences, first_of
from runner.provenance.manifest import Manifest
from runner.provenance.results import Step, losses_of
from tests.support.benches import small_manifest

BASE = small_manifest()
OTHER_LOSSES = {"count": 2, "last_step": 2, "sha256": "7" * 64}


def file(what: str, sha256: str) -> dict[str, Any]:
    return {"what": what, "path": "/rows", "kind": "file", "sha256": sha256}


CHANGES: dict[str, dict[str, Any]] = {
    # in the order in which they are named
    "data.train": {
        "files": [file("data.train", "9" * 64), BASE.files[1].model_dump()],
        "plan_hash": "b" * 64,
    },
    "peft": {"python": {**BASE.python.model_dump(), "packages": {"peft": "8", "zlib": "2"}}},
    "zlib": {"python": {**BASE.python.model_dump(), "packages": {"peft": "1", "zlib": "9"}}},
    "training.learning_rate": {
        "plan": {"engine": "sft", "training": {"learning_rate": 0.2, "seed": 7}},
        "plan_hash": "b" * 64,
    },
    "torch.deterministic_algorithms": {"switches": {"deterministic_algorithms": True}},
    "losses": {"results": {**BASE.results.model_dump(), "losses": OTHER_LOSSES}},
    "adapter": {"results": {**BASE.results.model_dump(), "adapter_sha256": "8" * 64}},
}
"""What is named -> what makes it differ."""


def changed(*names: str) -> Manifest:
    """The manifest with all of these changed."""
    record = BASE.model_dump()
    for name in names:
        for key, value in CHANGES[name].items():
            if key in ("results", "python"):
                inner = record[key]
                was = getattr(BASE, key).model_dump()
                for part, now in value.items():
                    if now == was[part]:
                        continue
                    if part == "packages":
                        moved = {k: v for k, v in now.items() if v != was[part][k]}
                        inner[part] = {**inner[part], **moved}
                    else:
                        inner[part] = now
            else:
                record[key] = value
    return Manifest.model_validate(record)


@given(st.sets(st.sampled_from(list(CHANGES)), min_size=1))
def test_the_first_in_order_is_named_whatever_else_differs(names: set[str]) -> None:
    found = differences(Side(BASE), Side(changed(*names)))
    first = first_of(found)
    assert first is not None
    assert first.what == next(name for name in CHANGES if name in names)
    told = {each.what for each in found if each.decides}
    assert told - {"plan"} == names


def test_a_run_is_like_itself_whatever_the_machine() -> None:
    host = {**BASE.host.model_dump(), "name": "elsewhere", "cores": 64}
    found = differences(Side(BASE), Side(small_manifest(host=host, run="job/two")))
    assert first_of(found) is None
    assert {each.what for each in found} == {"name", "cores"}


def test_runs_without_results_are_never_called_identical() -> None:
    lost = small_manifest(results=None, complete=False)
    for one, other in ((lost, lost), (BASE, lost), (lost, BASE)):
        first = first_of(differences(Side(one), Side(other)))
        assert first is not None and first.text.startswith("no results are known of job/one")


LOSS = st.floats(allow_nan=False, allow_infinity=False) | st.none()


def with_steps(losses: list[float | None]) -> Side:
    steps = [Step("", number, loss) for number, loss in enumerate(losses, start=1)]
    told = losses_of(steps)
    results = {**BASE.results.model_dump(), "losses": told.model_dump() if told else None}
    return Side(small_manifest(results=results), steps)


@given(st.lists(LOSS, min_size=1, max_size=12), st.data())
def test_the_first_step_that_differs_is_named(
    losses: list[float | None], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(losses) - 1))
    value = data.draw(LOSS.filter(lambda v: v != losses[at]))
    tail = data.draw(st.lists(LOSS, min_size=len(losses) - at - 1, max_size=len(losses) - at - 1))
    one, other = with_steps(losses), with_steps([*losses[:at], value, *tail])
    first = first_of(differences(one, other))
    assert first is not None and first.what == f"step {at + 1}"
    assert (first.one, first.other) == (losses[at], value)
    if at:  # before it they are alike
        assert first_of(differences(one, other, steps=at)) is None
    assert first_of(differences(one, with_steps(losses))) is None


@pytest.mark.parametrize("missing", [0, 1])
def test_an_input_that_was_not_hashed_is_never_called_identical(missing: int) -> None:
    files = [each.model_dump() for each in BASE.files]
    files[missing]["sha256"] = None
    first = first_of(differences(Side(BASE), Side(small_manifest(files=files))))
    assert first is not None and "was not hashed" in first.text


def test_runs_whose_templates_were_told_other_days_differ() -> None:
    """The day is in no hash, but in the rows' text."""
    days: list[dict[str, Any]] = [
        {**BASE.plan, "template_date": day} for day in ("2026-03-05", "2026-03-06", None)
    ]
    first, second, none = (Side(small_manifest(plan=plan)) for plan in days)
    found = first_of(differences(first, second))
    assert found is not None
    assert found.text == "template_date: 2026-03-05 → 2026-03-06"
    assert first_of(differences(first, none)) is None  # another model's, or an earlier runner's
    assert first_of(differences(first, first)) is None
