"""A run of one process ends, whatever other launchers have set outside: it waited for ever."""

from __future__ import annotations

import pytest

from tests.environment.test_launchers import OUTSIDE
from tests.runs.conftest import Workplace


@pytest.mark.slow
def test_a_run_of_one_process_ends(
    place: Workplace, small_job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in OUTSIDE.items():
        monkeypatch.setenv(name, text)
    done = place.call("train", *small_job, "--set", "training.max_steps=2", seconds=180)
    assert done.code == 0, done.err
    log = (place.last / "logs" / "train.log").read_text()
    assert log.count("left out here:") == 1
