"""Jobs of engine script: what is refused, what is rendered, and runs of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.common.errors import RefusedError, SpecError
from runner.common.yaml_text import to_yaml
from runner.engines.load import load_job
from runner.engines.render import read_any_plan, render
from runner.engines.script.plan import ScriptPlan
from runner.engines.script.resolve import gather_script, make_script_plan
from tests.support.command import REPOSITORY, Answer
from tests.support.workplace import Workplace, termination

EXAMPLE = str(REPOSITORY / "jobs" / "script-example.yaml")
ANY_TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)))


def written(folder: Path, **fields: Any) -> str:
    """A job file beside a script train.sh."""
    (folder / "train.sh").write_text("echo trained > result\n")
    path = folder / "job.yaml"
    path.write_text(to_yaml({"engine": "script", "script": "train.sh", **fields}))
    return str(path)


def planned(job: str, variant: Any = "train", steps: int | None = None) -> ScriptPlan:
    loaded = load_job(job)
    return make_script_plan(loaded, gather_script(loaded), variant, steps)


@settings(max_examples=50, deadline=None)
@given(arguments=st.lists(ANY_TEXT, max_size=4), value=ANY_TEXT, title=ANY_TEXT)
def test_any_argument_arrives_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, arguments: list[str], value: str, title: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    known = ("{output}", "{source}", "{max_steps}", "{inputs.")
    if any(mark in text for text in (*arguments, value) for mark in known):
        return
    job = written(folder, arguments=arguments, environment={"VALUE": value}, description=title)
    plan = planned(job)
    (folder / "train.sh").write_text('printf "%s\\0" "$VALUE" "$@" >arguments\n')
    run = folder / "run"
    run.mkdir()
    (run / "launch.sh").write_text(render(plan)["launch.sh"])
    subprocess.run(["bash", str(run / "launch.sh")], check=True, cwd="/")
    got = (run / "output" / "arguments").read_bytes().decode().split("\0")[:-1]
    assert got == [value, *arguments]


def test_placeholders_are_filled_in_once(tmp_path: Path) -> None:
    folder = tmp_path / "{output} {inputs.0}"
    folder.mkdir()
    (folder / "rows.txt").write_text("x")
    texts = ["{inputs.0}", "--out={output}/model", "{source}", "{max_steps}", "{other}"]
    job = written(folder, inputs=["rows.txt"], arguments=texts, smoke={"arguments": texts})
    (folder / "train.sh").write_text('printf "%s\\n" "$@" >arguments\n')
    for variant, steps in (("train", "{max_steps}"), ("smoke", "7")):
        run = tmp_path / variant
        run.mkdir()
        script = render(planned(job, variant, 7 if variant == "smoke" else None))["launch.sh"]
        (run / "launch.sh").write_text(script)
        subprocess.run(["bash", str(run / "launch.sh")], check=True)
        assert (run / "output" / "arguments").read_text().splitlines() == [
            str(folder / "rows.txt"),
            f"--out={run / 'output'}/model",
            str(folder),
            steps,
            "{other}",
        ]


def test_the_plan_reads_back_and_knows_its_files_by_content(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("one")
    job = written(tmp_path, inputs=["rows.txt"])
    plan = planned(job)
    (tmp_path / "plan.yaml").write_text(render(plan)["plan.yaml"])
    assert read_any_plan(tmp_path / "plan.yaml") == plan
    (tmp_path / "rows.txt").write_text("two")
    changed = planned(job)
    assert changed.hash != plan.hash
    (tmp_path / "train.sh").write_text("echo other\n")
    assert planned(job).hash != changed.hash


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"script": "tarin.sh"}, "train.sh"),  # the nearest
        ({"inputs": ["no-such-rows"]}, "no-such-rows"),
        ({"arguments": ["{inputs.0}"]}, "inputs.0"),
        ({"launch": {"deepspeed": "zero2"}}, "the script's own affair"),
        ({"data": {"train": "x"}}, "unknown field"),
        ({"environment": {"A=B": "x"}}, "environment"),
        ({"script": "."}, "is a folder"),
        ({"engine": "scirpt"}, "nearest   script"),
    ],
)
def test_a_wrong_script_job_is_told_what_is_wrong(
    tmp_path: Path, cli: Callable[..., Answer], fields: dict[str, Any], told: str
) -> None:
    answer = cli("train", written(tmp_path, **fields))
    assert answer.code == 2, answer.err
    assert told in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "runs").exists()


def test_what_a_script_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="says nothing of a smoke"):
        planned(written(tmp_path), "smoke", 5)
    with pytest.raises(RefusedError, match="--max-steps"):
        planned(written(tmp_path), "train", 5)
    (tmp_path / "program").write_text("x")
    with pytest.raises(RefusedError, match="not executable"):
        planned(written(tmp_path, script="program"))
    with pytest.raises(SpecError):
        planned(written(tmp_path, script="absent.py"))


def test_commands_for_the_native_engine_say_so(cli: Callable[..., Answer]) -> None:
    answer = cli("data", EXAMPLE)
    assert answer.code == 2
    assert "another engine" in answer.err
    checked = cli("check", EXAMPLE)
    assert checked.code == 0
    assert "would start" in checked.out and "fit_line.py" in checked.out


@pytest.mark.e2e
def test_the_example_trains_smokes_and_is_reported(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    done = place.call("train", EXAMPLE)
    assert done.code == 0, done.err
    model = json.loads((place.last / "output" / "model.json").read_text())
    assert abs(model["a"] - 2.5) < 0.05 and abs(model["b"] + 0.75) < 0.05
    assert "output" in done.out
    report = place.call("report", "@last")
    assert "fit_line.py" in report.out and report.out.count("completed") == 1
    chat = place.call("chat", "@last", "-p", "x")
    assert chat.code == 2 and "is a run of a script" in chat.err
    smoked = place.call("smoke", EXAMPLE, "--max-steps", "3", "--json")
    assert smoked.code == 0, smoked.err
    assert json.loads((place.last / "output" / "model.json").read_text())["steps"] == 3


@pytest.mark.e2e
def test_a_failing_script_passes_its_exit_code_on(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    job = written(tmp_path)
    (tmp_path / "train.sh").write_text("echo last words; exit 7\n")
    done = place.call("train", job)
    assert done.code == 7
    assert termination(place.last)["reason"] == "failed"
    assert (place.last / "logs" / "train.log").read_text() == "last words\n"


@pytest.mark.e2e
def test_a_script_whose_supervisor_is_killed_is_ended_too(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    job = written(tmp_path)
    (tmp_path / "train.sh").write_text("trap 'echo saved; exit' TERM\necho tick\nsleep 60 & wait\n")
    process = place.start("train", job)
    log = Path()
    for _ in range(300):
        logs = list((tmp_path / "runs").glob("*/*/logs/train.log"))
        if logs and "tick" in logs[0].read_text():
            log = logs[0]
            break
        time.sleep(0.1)
    supervisor = json.loads((log.parents[1] / "supervisor.json").read_text())["pid"]
    script = [each for each in psutil.process_iter() if str(tmp_path / "train.sh") in _words(each)]
    assert script
    os.kill(supervisor, signal.SIGKILL)
    process.communicate(timeout=1800)
    psutil.wait_procs(script, timeout=1800)
    assert not any(each.is_running() for each in script)
    assert "the supervisor is gone" in log.read_text() and "saved" in log.read_text()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_misspelt_engine_is_the_only_thing_wrong(
    tmp_path: Path, cli: Callable[..., Answer]
) -> None:
    """It was taken for the native engine, whose fields were then missing."""
    answer = cli("train", written(tmp_path, engine="scirpt"))
    assert answer.code == 2 and answer.err.count("error: ") == 1, answer.err
