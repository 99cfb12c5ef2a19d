"""The stub trainer itself: what supervises a run takes it for the engine."""

from __future__ import annotations

import pytest

from tests.support.workplace import Workplace, lines, termination


@pytest.mark.e2e
def test_a_run_of_the_stub_is_a_run(stub_place: Workplace, stub_job: list[str]) -> None:
    done = stub_place.call("train", *stub_job)
    assert done.code == 0, done.err
    end = termination(stub_place.last)
    assert (end["reason"], end["steps"], end["max_steps"]) == ("completed", 6, 6)
    assert end["last_loss"] < end["first_loss"]
    assert [line["step"] for line in lines(stub_place.last / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert "completed" in stub_place.call("report", "@last").out
