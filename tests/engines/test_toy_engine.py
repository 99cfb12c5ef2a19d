"""A fourth engine in one file: it trains nothing, and goes the whole way of the others.

One class beside its job and plan types, and one line in the registry. Child processes (the
supervisor) get that line by a sitecustomize.py on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from runner.engines.base import Engine
from runner.jobs.base import Job, JobHead
from runner.jobs.load import LoadedJob
from runner.plans.base import Plan, PlanHead, Variant
from runner.plans.facts import HostFacts
from runner.plans.resolve import planned_budget, planned_container, planned_launch
from runner.runs.folder import RunFolder
from tests.support.command import REPOSITORY


class ToySettings(JobHead):
    engine: Literal["toy"] = Field(description="toy: nothing trains.")
    steps: int = Field(3, ge=1, description="Lines that it writes.")


class ToyJob(Job, ToySettings):
    pass


class ToyPlanned(PlanHead):
    engine: Literal["toy"]
    steps: int


class ToyPlan(Plan, ToyPlanned):
    @property
    def planned_steps(self) -> int:
        return self.steps


class ToyEngine(Engine[ToyJob, ToyPlan]):
    name = "toy"
    job_type = ToyJob
    plan_type = ToyPlan

    def resolve(
        self, loaded: LoadedJob, facts: HostFacts, variant: Variant, max_steps: int | None
    ) -> ToyPlan:
        job: Any = loaded.job
        said: list[str] = []
        return ToyPlan(
            job=loaded.name,
            description=job.description,
            variant=variant,
            engine="toy",
            steps=max_steps or job.steps,
            launch=planned_launch(job, facts, "cpu"),
            budget=planned_budget(job, "cpu", said),
            container=planned_container(job, facts, online=False),
            timeout_minutes=job.timeout_minutes,
            on_end=job.on_end,
            substitutions=said,
            python=facts.python,
        )

    def render(self, plan: ToyPlan) -> dict[str, str]:
        lines = [json.dumps({"step": n, "loss": 1 / n}) for n in range(1, plan.steps + 1)]
        writes = [f"echo {shlex.quote(line)} >> metrics.jsonl" for line in lines]
        head = ["#!/usr/bin/env bash", "set -euo pipefail", 'cd -- "$(dirname -- "$0")"']
        return {"launch.sh": "\n".join([*head, *writes, "mkdir -p toy"]) + "\n"}

    def summarize(self, plan: ToyPlan) -> list[tuple[str, str]]:
        return [("toy", f"{plan.steps} lines")]

    def result(self, plan: ToyPlan, folder: RunFolder) -> str | None:
        return "toy" if (folder.path / "toy").is_dir() else None


SITE = """
import sys

from runner.engines import registry
from tests.engines.test_toy_engine import ToyEngine

registry.ENGINES["toy"] = ToyEngine()
"""


@pytest.fixture
def runner(tmp_path: Path) -> Any:
    """The real command, in a process whose registry has one engine more."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    (tmp_path / "toy.yaml").write_text("engine: toy\ndescription: lines\nsteps: 4\n")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{site}:{REPOSITORY}",
        "RUNNER_CACHE": str(tmp_path / "cache"),
        "RUNNER_ON": "local",
    }

    def call(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "runner", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    return call


@pytest.mark.e2e
def test_an_engine_of_one_file_goes_the_whole_way(runner: Any, tmp_path: Path) -> None:
    assert "toy        4 lines" in runner("check", "toy.yaml")
    assert "step" in runner("render", "toy.yaml")
    assert "engine: toy" in runner("render", "toy.yaml", "--file", "plan.yaml")
    ended = json.loads(runner("train", "toy.yaml", "--json"))
    assert ended["reason"] == "completed"
    assert (ended["steps"], ended["max_steps"], ended["last_loss"]) == (4, 4, 0.25)
    assert ended["result"] == "toy"
    report = json.loads(runner("report", "@last", "--json"))
    assert report["termination"]["reason"] == "completed"
    assert "toy" in runner("report", "@last")
    listed = json.loads(runner("ps", "--all", "--json"))
    assert [run["state"] for run in listed["runs"]] == ["completed"]
    again = json.loads(runner("reproduce", "@last", "--json"))
    assert again["identical"] is True
    smoked = json.loads(runner("smoke", "toy.yaml", "--max-steps", "2", "--json"))
    assert [(job["passed"], job["steps"]) for job in smoked["jobs"]] == [(True, 2)]


def test_its_mistakes_are_told_like_those_of_the_others(runner: Any, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("engine: toy\nstepz: 4\n")
    runner("check", "wrong.yaml", code=2)
    runner("chat", "@last", code=2)
