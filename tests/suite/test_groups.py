"""That workers take whole files: with pytest 9.1 xdist's own groups went unheeded, unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import pytest_xdist_auto_num_workers
from tests.support.command import REPOSITORY
from tests.support.groups import group_of

CONFTEST = "from tests.conftest import pytest_xdist_make_scheduler\n"
MODULE = """
import json, os
import pytest

@pytest.mark.parametrize("number", range(12))
def test_one(number):
    with open("seen.jsonl", "a") as seen:
        seen.write(json.dumps([__file__, os.environ["PYTEST_XDIST_WORKER"]]) + "\\n")
"""


def test_a_group_is_a_file() -> None:
    assert group_of("tests/a/test_b.py::Test::test_c[x::y@z]") == "tests/a/test_b.py"


@pytest.mark.parametrize(("asked", "workers"), [(None, 3), ("2", 2)])
def test_there_is_a_worker_more_than_cores_unless_somebody_says_how_many(
    asked: str | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    if asked:
        monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", asked)
    hook = pytest_xdist_auto_num_workers()
    next(hook)
    with pytest.raises(StopIteration) as end:
        hook.send(2)  # what xdist counts of cores, or was told
    assert end.value.value == workers


def test_a_file_goes_to_one_worker(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in ("test_a.py", "test_b.py", "test_c.py"):
        (tmp_path / name).write_text(MODULE)
    words = ["-p", "no:cacheprovider", "-q", "-n", "2", "--dist", "loadgroup", "."]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    workers = {file: {worker for each, worker in seen if each == file} for file, _ in seen}
    assert len(seen) == 36 and len(workers) == 3
    assert all(len(each) == 1 for each in workers.values()), workers
    assert len(set.union(*workers.values())) == 2
