"""What a run's manifest holds, that it fits its schema, and that no secret is in the folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.common.packages import package_version
from runner.common.yaml_text import to_yaml
from runner.engines.load import load_job
from runner.engines.render import read_any_plan
from runner.engines.resolve import make_any_plan
from runner.launch.train import prepare_folder
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import json_schema
from runner.provenance.recorder import ManifestRecorder
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from tests.support.benches import Bench, make_bench, manifest_of
from tests.support.command import REPOSITORY
from tests.support.soaking import examples
from tests.support.workplace import termination

SCHEMA = REPOSITORY / "docs" / "manifest.schema.json"


def validate(record: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(record)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_committed_schema_is_that_of_the_code() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert json.loads(SCHEMA.read_text()) == json_schema()
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.e2e
def test_a_manifest_says_what_went_in_and_what_came_out(first: tuple[Bench, Path]) -> None:
    bench, run = first
    record = manifest_of(run)
    validate(record)
    folder = bench.place.folder
    assert record["complete"] is True and record["run"].endswith(run.name)
    assert record["job"]["sha256"] == sha256(folder / "job.yaml")
    assert record["job"]["command"][1:3] == ["train", "job.yaml"]
    assert record["sources"]["inputs.0"] == "job.yaml:4"
    assert record["rendered"] == {name: sha256(run / name) for name in ("launch.sh", "plan.yaml")}
    assert {each["what"]: each["sha256"] for each in record["files"]} == {
        "script": sha256(folder / "train.sh"),
        "inputs.0": sha256(folder / "rows.txt"),
    }
    assert record["python"]["packages"]["pydantic"] == package_version("pydantic")
    assert record["argv"] == ["bash", str(run / "launch.sh")]
    end = termination(run)
    results = record["results"]
    assert (results["reason"], results["steps"]) == ("completed", 3)
    assert results["losses"] == {
        "count": 3,
        "last_step": 3,
        "sha256": hashlib.sha256(b" 1 3.0\n 2 2.5\n 3 2.25\n").hexdigest(),
    }
    assert results["peak_bytes"] == end["peak_bytes"]
    assert results["ended_unix_seconds"] == end["ended_unix_seconds"]
    assert record["host"]["name"] == os.uname().nodename
    # the verdict is written last
    assert (run / "termination.json").stat().st_mtime_ns >= (
        run / "manifest.json"
    ).stat().st_mtime_ns


@pytest.mark.e2e
def test_a_changed_checkout_is_told_with_its_diff(first: tuple[Bench, Path]) -> None:
    run = first[1]
    code = manifest_of(run)["code"]
    asked = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no git checkout")
    assert code["commit"] == done.stdout.strip()
    diff = run / "project.diff"
    assert diff.is_file() == (code["diff_sha256"] is not None)
    if diff.is_file():
        assert code["dirty"] is True and sha256(diff) == code["diff_sha256"]


@pytest.mark.e2e
def test_a_stopped_run_has_its_results_too(bench: Bench) -> None:
    process = bench.place.start("train", "job.yaml", "--set", "environment.PAUSE='900'")
    run = bench.place.wait_for_step(1)
    assert manifest_of(run)["complete"] is False  # its inputs are there from the start
    validate(manifest_of(run))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    record = manifest_of(run)
    validate(record)
    assert record["complete"] is True
    assert (record["results"]["reason"], record["results"]["steps"]) == ("stopped", 1)


@pytest.mark.e2e
def test_a_killed_supervisor_leaves_the_inputs(bench: Bench) -> None:
    process = bench.place.start("train", "job.yaml", "--set", "environment.PAUSE='900'")
    run = bench.place.wait_for_step(1)
    os.kill(json.loads((run / "supervisor.json").read_text())["pid"], signal.SIGKILL)
    process.communicate(timeout=600)
    record = manifest_of(run)
    validate(record)
    assert record["complete"] is False and record["results"] is None
    refused = bench.call("reproduce", str(run))
    assert refused.code == 3 and "has no results" in refused.err


@pytest.mark.e2e
def test_what_can_not_be_recorded_never_ends_a_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that can't be written and a git that fails are notes or nothing, never a failure."""
    broken = bench.place.folder / "cache"
    broken.write_text("a file where a folder should be")
    fake = bench.place.folder / "bin"
    fake.mkdir()
    (fake / "git").write_text("#!/bin/sh\nexit 128\n")
    (fake / "git").chmod(0o755)
    monkeypatch.setenv("RUNNER_CACHE", str(broken))
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    run = bench.train()
    record = manifest_of(run)
    validate(record)
    assert record["code"]["commit"] is None and record["results"]["reason"] == "completed"


@pytest.mark.e2e
def test_a_defect_of_the_manifest_is_a_warning_of_the_run(
    first: tuple[Bench, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(first[1], folder)
    before = (folder / "manifest.json").read_bytes()
    warned: list[str] = []
    keeper = ManifestRecorder(RunFolder(folder), warned.append)
    monkeypatch.setattr("runner.provenance.software.code", lambda: 1 / 0)
    plan = read_any_plan(folder / "plan.yaml")
    keeper.begin(plan, resume=False)
    end = Outcome(Reason.COMPLETED, 0, "done", started_unix_seconds=1, ended_unix_seconds=2)
    keeper.complete(plan, end, lambda: False)
    assert warned == ["the manifest could not be begun: ZeroDivisionError: division by zero"]
    assert (folder / "manifest.json").read_bytes() == before


SECRET_NAMES = ("MY_API_KEY", "HF_TOKEN", "db_password", "AWS_SECRET_ACCESS", "A_CREDENTIAL")
WORD = st.text(st.sampled_from("abcdefghij KLMNÄ$'\"\\{}:#%0123456789"), max_size=12)
VALUE = st.text("abcdefghijklmnopqrstuvwxyz0123456789!$'\"\\", min_size=8, max_size=24)


@st.composite
def any_job(draw: st.DrawFn) -> dict[str, Any]:
    """Rows, the job's fields, and the values of the secrets that are set beside it."""
    rates = draw(st.dictionaries(st.sampled_from(["RATE", "NAME", "MODE"]), WORD, max_size=3))
    values = draw(st.lists(VALUE, min_size=6, max_size=6, unique=True))
    return {
        "rows": "".join(f"{loss!r}\n" for loss in draw(st.lists(st.floats(-1e6, 1e6), max_size=4))),
        "secrets": [f"s3cr3t-{value}" for value in values],
        "job": {
            "description": draw(WORD),
            "engine": "script",
            "script": "train.sh",
            "inputs": ["rows.txt"],
            "arguments": ["{inputs.0}", *draw(st.lists(WORD, max_size=3))],
            "environment": {"PAUSE": "0", "RATE": "1", **rates},
            "launch": {"threads_per_process": draw(st.integers(1, 3))},
            "container": {"secrets": ["PLAIN_NAME"]},
        },
    }


def lay_out(bench: Bench, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's files in the bench's folder, and the secrets in the environment."""
    values = given["secrets"]
    names = [*SECRET_NAMES, "PLAIN_NAME"]  # the last is one because the job says so
    for name, value in zip(names, values, strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_ENDPOINT", f"https://user:{values[0]}@mirror.example/hub")
    monkeypatch.setenv("NCCL_TOKEN_OF_MINE", values[1])
    (bench.place.folder / "rows.txt").write_text(given["rows"])
    (bench.place.folder / "job.yaml").write_text(to_yaml(given["job"]))


def holds_no_secret(run: Path, values: list[str]) -> None:
    record = manifest_of(run)
    validate(record)
    assert record["secrets"] == ["PLAIN_NAME"]
    assert record["environment"]["HF_ENDPOINT"] == "https://***@mirror.example/hub"
    assert "NCCL_TOKEN_OF_MINE" not in record["environment"]
    for path in (path for path in run.rglob("*") if path.is_file()):
        text = path.read_bytes()
        for value in values:
            # as it is, and as JSON would write it
            assert value.encode() not in text, path
            assert json.dumps(value)[1:-1].encode() not in text, path


any_example = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.e2e
@settings(any_example, max_examples=examples(3, 100))
@given(given=any_job())
def test_the_run_of_any_job_holds_no_secret(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
) -> None:
    """All that a run leaves, its supervisor's records and its log too."""
    bench = make_bench(tmp_path_factory.mktemp("any"))
    lay_out(bench, given, monkeypatch)
    holds_no_secret(bench.train(), given["secrets"])


@settings(any_example, max_examples=examples(30, 1000))
@given(given=any_job())
def test_manifests_of_any_job_validate_and_hold_no_secret(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
) -> None:
    """What is written before a script starts and after it has ended; nothing runs."""
    bench = make_bench(tmp_path_factory.mktemp("any"))
    lay_out(bench, given, monkeypatch)
    loaded = load_job(str(bench.place.folder / "job.yaml"), ["launch.on=local"])
    plan = make_any_plan(loaded, "train")[0]
    run = prepare_folder(loaded, plan, bench.place.folder / "runs")
    keeper = ManifestRecorder(run, pytest.fail)
    keeper.begin(plan, resume=False)
    end = Outcome(Reason.COMPLETED, 0, "done", started_unix_seconds=1, ended_unix_seconds=2)
    keeper.complete(plan, end, lambda: False)
    holds_no_secret(run.path, given["secrets"])


@pytest.mark.e2e
def test_what_was_begun_of_a_refused_start_does_not_come_back(
    first: tuple[Bench, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inputs were still being hashed, and the thread wrote the manifest once more."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(first[1], run.path)
    shutil.rmtree(run.earlier, ignore_errors=True)
    read = Hasher.file

    def slowly(hasher: Hasher, path: Path) -> str:
        time.sleep(0.5)
        return read(hasher, path)

    keeper = ManifestRecorder(run, pytest.fail)
    plan = read_any_plan(run.plan)
    keeper.begin(plan, resume=False)
    assert run.manifest.is_file()
    keeper.abandon()
    monkeypatch.setattr(Hasher, "file", slowly)
    keeper = ManifestRecorder(run, pytest.fail)
    keeper.begin(plan, resume=False)
    keeper.abandon()
    time.sleep(1.0)
    assert not list(run.path.glob("*manifest*")) and not list(run.path.glob(".*.tmp"))
