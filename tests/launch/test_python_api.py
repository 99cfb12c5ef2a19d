"""The Python API of docs/python.md: light to import, and each of its examples tried."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import runner
from tests.support.command import REPOSITORY

PAGE = REPOSITORY / "docs" / "python.md"
SCRIPT = """echo '{"step": 1, "loss": 0.75, "learning_rate": 0.1}' >> ../metrics.jsonl
echo '{"step": 2, "loss": 0.5, "learning_rate": 0.1}' >> ../metrics.jsonl
echo said
echo weights > "$1/weights"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder whose job demo-identity is a script that takes no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RUNNER_RUNS", raising=False)
    (tmp_path / "train.sh").write_text(SCRIPT)
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    (jobs / "demo-identity.yaml").write_text(
        'engine: script\nscript: ../train.sh\narguments: ["{output}"]\n'
        'smoke: {arguments: ["{output}"]}\n'
    )
    return tmp_path


def test_importing_it_imports_the_standard_library_alone() -> None:
    code = "import sys, json, runner; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert loaded & {"torch", "rich", "typer", "pydantic", "yaml"} == set()
    own = [name for name in json.loads(done.stdout) if name.startswith("runner.")]
    assert own == []


def test_every_public_name_is_there() -> None:
    for name in runner.__all__:
        assert getattr(runner, name).__name__ == name
    assert set(runner.__all__) <= set(dir(runner))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        runner.trian  # noqa: B018


def test_the_examples_of_the_page_run_in_its_order(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.S)
    assert len(examples) == 5
    # the job here is a script, of which there is nothing to override
    text = "\n".join(examples).replace('{"training.max_steps": 5}', '["timeout_minutes=5"]')
    exec(compile(text, str(PAGE), "exec"), {})  # noqa: S102 - our own page
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "completed 0.5"
    assert lines[1] == "True []"
    name, state, code = lines[2].split()
    assert name.startswith("demo-identity/") and (state, code) == ("completed", "0")
    assert lines[3:5] == ["1 0.75 0.1", "2 0.5 0.1"]
    assert lines[6] == "None"


def test_a_run_is_read_anew_at_each_question(place: Path) -> None:
    from runner import Run, train

    (place / "train.sh").write_text("sleep 60\n")
    said: list[str] = []
    run = train("demo-identity", wait=False, say=said.append)
    assert any(line.startswith("run ") for line in said)
    assert (run.state, run.outcome, run.exit_code) == ("running", None, None)
    assert Run(run.folder).stop(now=True).state == "stopped"
    assert run.outcome is not None and run.outcome.reason == "stopped"
    assert run.exit_code == run.outcome.exit_code != 0
    assert run.report()["termination"]["reason"] == "stopped"
    assert run.wait() is run


def test_mistakes_are_raised_and_nothing_is_started(place: Path) -> None:
    from runner import SpecError, UsageError, list_runs, load_job, open_run, train

    with pytest.raises(UsageError, match="demo-identty"):
        load_job("demo-identty")
    with pytest.raises(SpecError) as caught:
        train(load_job("demo-identity", {"budget.host_memory": "much"}))
    assert caught.value.problems[0].field == "budget.host_memory"
    with pytest.raises(UsageError):
        open_run("nothing-like-it")
    assert list_runs() == []
