"""No module comes from the folder a user stands in: a planted one would run in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.common.own_python import code_argv, module_argv, safe_environment
from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.sft.facts import gather
from runner.engines.sft.resolve import make_plan
from runner.plans.engine_command import question

PLANTED = ("psutil", "yaml", "pydantic", "torch", "transformers", "accelerate", "runner", "json")


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of modules that leave a canary where they are imported, and the canary's place."""
    folder, canary = tmp_path / "trap", tmp_path / "canary"
    folder.mkdir()
    code = f"import pathlib; pathlib.Path({str(canary)!r}).write_text('imported')\nraise SystemExit"
    for name in PLANTED:
        (folder / f"{name}.py").write_text(code)
    return folder, canary


def run_in(folder: Path, argv: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    return subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize(
    "module",
    [
        "runner.supervisor",
        "runner.engines.sft.inside",
        "runner.engines.sft.inside.chat",
        "runner.engines.mgm.fetch.address",
        "runner.common.hub_address",
    ],
)
def test_processes_of_ours_take_none(trap: tuple[Path, Path], module: str) -> None:
    folder, canary = trap
    run_in(folder, module_argv(module, "--help"))
    assert not canary.exists()


def test_without_it_they_would(trap: tuple[Path, Path]) -> None:
    folder, canary = trap
    run_in(folder, [sys.executable, "-m", "runner.supervisor", "--help"])
    assert canary.exists()


def test_a_question_on_this_machine_takes_none(trap: tuple[Path, Path]) -> None:
    folder, canary = trap
    run_in(folder, question(None, ["runner.engines.sft.inside.survey", "--help"]).argv)
    run_in(folder, code_argv("import psutil, json"))
    assert not canary.exists()
    assert safe_environment({})["PYTHONSAFEPATH"] == "1"


def test_the_launch_script_starts_no_python_that_would() -> None:
    loaded = load_job("demo-identity", ["launch.device=cpu"])
    script = render(make_plan(loaded, gather(loaded)))["launch.sh"]
    started = [line for line in script.splitlines() if '"$PYTHON"' in line]
    assert started and all('"$PYTHON" -P -m ' in line for line in started)
