"""What several smokes need is made at once, and no job's smoke depends on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runner.common.output import Output
from runner.engines.load import load_job
from runner.engines.registry import engine_of
from runner.engines.sft.memory.ask import kept, plan_key
from runner.jobs.load import LoadedJob
from runner.launch import prepare_smokes as preparing
from runner.launch.calibrate import ENOUGH_SMALL
from runner.launch.vram import versions_at
from tests.support.command import REPOSITORY
from tests.support.forked import forks_for_modules

JOB = """model: org/{name}
method: lora
launch: {{device: cpu, num_processes: 1}}
data: {{train: {rows}, format: alpaca}}
training: {{max_steps: 2, per_device_train_batch_size: 1, max_length: 64}}
smoke: {{model_type: {kind}}}
"""
TRAINING = {
    "phase": "",
    "rows": 1,
    "tokens": 64,
    "length_from": "a test",
    "method": "traced",
    "allocated_bytes": 1,
    "reserved_bytes": 1,
    "overhead_bytes": 1,
    "process_bytes": 2,
    "low_bytes": 1,
    "high_bytes": 3,
    "parts": {"adapter": 1},
    "at": "forward pass",
    "flops": 1.0,
    "trainable": 1,
    "total": 1,
}
ANSWER = {"device": "cpu", "trainings": [TRAINING]}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedJob]:
    """Makes a job without weights, whose stand-in is its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RUNNER_STATE", str(tmp_path / "state"))

    def make(name: str, kind: str = "llama", *sets: str) -> LoadedJob:
        rows = tmp_path / f"{name}.json"
        pairs = [{"instruction": f"{name} {n}", "output": f"so {n} it is"} for n in range(24)]
        rows.write_text(json.dumps(pairs))
        path = tmp_path / f"{name}.yaml"
        path.write_text(JOB.format(name=name, rows=rows, kind=kind))
        return load_job(str(path), list(sets))

    return make


class Asked:
    """In place of the engine's process: a script that is given the request's path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
        self.requests: list[Path] = []
        self._script = folder / "engine.py"
        self._script.write_text(f"import json, os, signal, sys, time\n{body}\n")
        monkeypatch.setattr(preparing, "module_argv", self._argv)

    def _argv(self, _: str, request: str) -> list[str]:
        self.requests.append(Path(request))
        return [sys.executable, "-P", str(self._script), request]


def keys(*jobs: LoadedJob) -> list[str]:
    """By which the smokes of jobs will look for their predictions."""
    planned = [preparing._planned(one, 2) for one in jobs]
    return [plan_key(plan, versions_at(facts.place)) for plan, facts in filter(None, planned)]


def test_what_a_killed_process_answered_is_kept_and_the_rest_left_to_each_job(
    job: Callable[..., LoadedJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = json.dumps({"number": 0, "prediction": ANSWER})
    asked = Asked(
        tmp_path,
        monkeypatch,
        f"print({answer!r}, flush=True)\nprint('{{\"number\": 1, \"pre', end='', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    jobs = [job("one"), job("two")]
    preparing.prepare_smokes(jobs, 2, Output(as_json=False))
    assert len(asked.requests) == 1
    first, second = (kept(key) for key in keys(*jobs))
    assert first is not None and first.process_bytes == 2
    assert second is None
    said = capsys.readouterr().err
    assert "preparing  2 stand-in(s) and 2 prediction(s) of memory" in said
    assert "ended with -9: what it did not come to is made in each job's turn" in said


@pytest.mark.parametrize(
    "answer",
    ["", "no JSON", "[]", '{"number": 7, "prediction": {}}', '{"number": 0, "prediction": {}}'],
)
def test_an_answer_that_is_none_is_not_kept(
    answer: str, job: Callable[..., LoadedJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Asked(tmp_path, monkeypatch, f"print({answer!r})")
    jobs = [job("one"), job("two")]
    preparing.prepare_smokes(jobs, 2, Output(as_json=False))
    assert [kept(key) for key in keys(*jobs)] == [None, None]


def test_a_disk_that_takes_no_request_leaves_all_to_each_job(
    job: Callable[..., LoadedJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    asked = Asked(tmp_path, monkeypatch, "")
    jobs = [job("one"), job("two")]
    monkeypatch.setattr(Path, "write_text", full)
    preparing.prepare_smokes(jobs, 2, Output(as_json=False))
    assert asked.requests == []
    assert "No space left on device): what it did not come to" in capsys.readouterr().err


def test_nothing_is_started_where_nothing_is_shared(
    job: Callable[..., LoadedJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = Asked(tmp_path, monkeypatch, "")
    script = tmp_path / "own.yaml"
    (tmp_path / "own.sh").write_text("true\n")
    script.write_text("engine: script\nscript: own.sh\n")
    alone = job("alone")
    preparing.prepare_smokes([load_job(str(script), [])], 2, Output(as_json=False))
    known = preparing._planned(alone, 2)
    assert known is not None and known[0].model.folder is not None
    model = Path(known[0].model.folder)
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    preparing.prepare_smokes([alone], 2, Output(as_json=False))  # its prediction alone
    assert asked.requests == []
    assert capsys.readouterr().err == ""


def test_what_the_network_a_container_or_a_models_own_code_is_needed_for_waits_for_its_turn(
    job: Callable[..., LoadedJob],
) -> None:
    assert preparing._planned(job("plain"), 2) is not None
    assert preparing._planned(job("code", "llama", "trust_remote_code=true"), 2) is None
    assert (
        preparing._planned(job("small", "llama", "model=builtin:smollm2-135m-instruct"), 2) is None
    )
    refused = job("refused", "llama", "smoke.model_type=null")
    assert preparing._planned(refused, 2) is None


def test_no_more_stand_ins_are_predicted_than_tell_anything(
    job: Callable[..., LoadedJob],
) -> None:
    jobs = [job(f"job{number}") for number in range(ENOUGH_SMALL + 2)]
    needed = list(preparing._needed(jobs, 2))
    assert all(each.stand_in for each in needed)
    assert [each.prediction for each in needed] == [True] * ENOUGH_SMALL + [False] * 2


def test_ctrl_c_leaves_no_process(job: Callable[..., LoadedJob], tmp_path: Path) -> None:
    jobs = [str(job(name).path) for name in ("one", "two")]
    script, pids = tmp_path / "engine.py", tmp_path / "pids"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "inner = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r} + '.part', 'w').write(f'{{os.getpid()}} {{inner.pid}}')\n"
        f"os.rename({str(pids)!r} + '.part', {str(pids)!r})\n"
        "time.sleep(600)\n"
    )
    driver = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from runner.launch import prepare_smokes\n"
        f"prepare_smokes.module_argv = lambda *_: [sys.executable, {str(script)!r}]\n"
        "from runner.cli import main\n"
        "sys.argv[0] = 'runner'\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", driver, "smoke", *jobs],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not pids.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert pids.exists(), process.communicate()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    assert not list((tmp_path / "runs").glob("*/*"))
    left = [int(text) for text in pids.read_text().split() if _lives(int(text))]
    assert left == []


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.e2e
def test_a_job_that_fails_harms_no_other_and_the_predictions_are_those_of_each_alone(
    job: Callable[..., LoadedJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.launch.plan import planned_smoke
    from runner.launch.vram import predict_plan

    out = Output(as_json=False)
    jobs = [job("first"), job("unknown", "nosucharchitecture"), job("last", "qwen2")]
    with forks_for_modules():
        preparing.prepare_smokes(jobs, 2, out)
        first, unknown, last = keys(*jobs)
        assert kept(unknown) is None
        together = [kept(first), kept(last)]
        stand_ins = _contents(tmp_path / "cache" / "standins")
        monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "other"))
        alone = []
        for one in (jobs[0], jobs[2]):
            plan, facts = planned_smoke(one, 2, out, None, lambda _: None)
            known = engine_of(plan).predicted(plan, facts)
            assert known is not None
            alone.append(predict_plan(*known, out))
    assert [one and one.model_copy(update={"seconds": 0.0}) for one in together] == [
        one.model_copy(update={"seconds": 0.0}) for one in alone
    ]
    assert stand_ins == _contents(tmp_path / "other" / "standins")


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
