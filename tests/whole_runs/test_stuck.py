"""A run whose processes outlive SIGKILL gets its verdict all the same.

No test can make a process hang in the kernel, so the place where runs run is one that never ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.sft.facts import Facts
from runner.engines.sft.resolve import make_plan
from runner.plans.sources import DataSource, ModelSource
from runner.runs.create import create_run
from tests.support.workplace import termination
from tests.testbed import REPOSITORY

PROGRAM = """
import functools, sys
from runner.supervisor.guard import policy
from runner.supervisor import attempt
from runner.supervisor.__main__ import main

class Tree:
    def members(self): return []
    def watched(self, search_seconds=1.0): return []
    def member(self, pid): return None
    def workers(self): return []
    def send(self, number, pids): return []
    def kill_all(self, timeout_seconds=10.0): return []
    def reap(self, leave): return {}

class Hanging:
    argv, notes, container_id, pid = ["bash"], [], None, 1
    exit_code = start_failure = None
    tree = Tree()
    def start(self): pass
    def ended(self): return False
    def clear(self): return []

attempt.executor_for = lambda *_, **__: Hanging()
policy.Thresholds = functools.partial(policy.Thresholds, kill_wait_seconds=0.3)
sys.exit(main())
"""


@pytest.mark.e2e
def test_a_run_that_outlives_sigkill_has_a_verdict_and_a_warning(tmp_path: Path) -> None:
    loaded = load_job("demo-identity", ["budget.grace_seconds=1", "timeout_minutes=0.01"])
    facts = Facts(
        python=sys.executable,
        cores=2,
        torch_version="2.13.0",
        gpus=(),
        gpu_absence="none here",
        model=ModelSource("hub", "some/model", None, None, True),
        rows={
            "data.train": DataSource("file", tmp_path / "rows.jsonl", None, None, "0" * 64, 1, True)
        },
        cache=tmp_path,
    )
    plan = make_plan(loaded, facts)
    folder = create_run(tmp_path / "runs", plan.job, plan.short_hash, plan.variant, render(plan))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder.path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=1800,
    )
    assert "Traceback" not in done.stderr, done.stderr
    end = termination(folder.path)
    assert (done.returncode, end["reason"]) == (143, "timeout")
    assert any("outlived SIGKILL" in warning for warning in end["warnings"])
