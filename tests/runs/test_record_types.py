"""The types of a run's records are those of the fields that its readers take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from runner.runs import record_types, records
from runner.runs.outcome import Outcome, Reason


@pytest.mark.parametrize(
    ("kinds", "type_", "besides"),
    [
        (records.END, record_types.OutcomeRecord, {"schema_version", "reason"}),
        (records.SUPERVISOR, record_types.SupervisorRecord, set()),
        (records.STATUS, record_types.StatusRecord, set()),
        (records.RESULT, record_types.ResultRecord, set()),
        (records.ADAPTER, record_types.AdapterRecord, set()),
        (records.FAILURE, record_types.FailureRecord, set()),
        (records.SOURCES, record_types.SourcesRecord, set()),
        (records.STAGES, record_types.StagesRecord, set()),
        (records.MEMORY, record_types.MemoryLine, set()),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_type_has_the_fields_that_are_read(
    kinds: Mapping[str, records.Kind], type_: Any, besides: set[str]
) -> None:
    assert set(type_.__annotations__) == {*kinds, *besides}


def test_an_outcome_has_the_fields_of_its_type() -> None:
    record = Outcome(Reason.COMPLETED, 0, "done").to_record()
    assert set(record) == set(record_types.OutcomeRecord.__annotations__)
