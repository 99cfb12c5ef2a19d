"""`runner verify` names the first thing that differs, `runner diff` all of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.benches import Bench, make_bench, manifest_of

pytestmark = pytest.mark.e2e


@pytest.fixture
def beside(first: tuple[Bench, Path], tmp_path: Path) -> tuple[Bench, Path]:
    """The same job in a folder of its own, to be changed; and the first run."""
    copy = tmp_path / "copy"
    copy.mkdir()
    return make_bench(copy), first[1]


def test_two_runs_of_one_plan_are_identical(first: tuple[Bench, Path]) -> None:
    bench, run = first
    again = bench.train()
    told = bench.call("verify", run.name, str(again))
    assert told.code == 0, told.out
    assert told.out.startswith("identical ") and "3 logged steps, bit for bit" in told.out
    record = bench.call("verify", run.name, str(again), "--json").json
    assert record["identical"] is True and record["first"] is None


def test_runs_in_two_places_are_identical(beside: tuple[Bench, Path]) -> None:
    bench, run = beside
    told = bench.call("verify", str(run), str(bench.train()))
    assert told.code == 0, told.out


def test_one_byte_of_the_data_is_named(beside: tuple[Bench, Path]) -> None:
    bench, run = beside
    (bench.place.folder / "rows.txt").write_text("3.0\n2.6\n2.25\n")
    told = bench.call("verify", str(run), str(other := bench.train()))
    assert told.code == 1
    assert told.out.startswith("different  files: inputs.0: ") and "rows.txt sha256" in told.out
    record = bench.call("diff", str(run), str(other), "--json").json
    losses = [each for each in record["differences"] if each["group"] == "losses"]
    assert losses[0]["text"] == "step 2: loss 2.5 → 2.6 (by +0.1)"


def test_one_setting_is_named(beside: tuple[Bench, Path]) -> None:
    bench, run = beside
    told = bench.call("verify", str(run), str(bench.train("environment.RATE='0.2'")))
    assert told.code == 1
    assert told.out.startswith("different  settings: environment.RATE: 0.1 → 0.2\n")
    assert "the same all the same" not in told.out


def test_one_version_is_named(
    beside: tuple[Bench, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, run = beside
    was = manifest_of(run)["python"]["packages"]["pydantic"]
    metadata = tmp_path / "newer" / "pydantic-99.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: pydantic\nVersion: 99.1\n")
    before = os.environ.get("PYTHONPATH")
    paths = [str(metadata.parents[1]), *([before] if before else [])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    other = bench.train()
    told = bench.call("verify", str(run), str(other))
    assert told.code == 1
    assert told.out.startswith(f"different  versions: pydantic: {was} → 99.1\n")
    assert "results    the same all the same" in told.out


def test_a_variable_that_decides_bits_is_named_and_another_only_told(
    beside: tuple[Bench, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, run = beside
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    harmless = bench.train()
    assert bench.call("verify", str(run), str(harmless)).code == 0
    assert "$TZ: (none) → Asia/Shanghai" in bench.call("diff", str(run), str(harmless)).out
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    told = bench.call("verify", str(run), str(bench.train()))
    assert told.code == 1 and "$CUBLAS_WORKSPACE_CONFIG: (none) → :4096:8" in told.out


def test_records_changed_after_the_run_are_noticed(
    first: tuple[Bench, Path], tmp_path: Path
) -> None:
    bench, run = first
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    assert bench.call("verify", str(run), str(copy)).code == 0
    with (copy / "launch.sh").open("a") as script:
        script.write("# one line more\n")
    told = bench.call("verify", str(run), str(copy))
    assert told.code == 1 and "launch.sh was changed after the run" in told.out


def test_what_can_not_be_compared_is_refused(first: tuple[Bench, Path], tmp_path: Path) -> None:
    bench, run = first
    same = bench.call("verify", run.name, str(run))
    assert same.code == 2 and "compared with itself" in same.err
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    (copy / "manifest.json").unlink()
    gone = bench.call("verify", str(run), str(copy))
    assert gone.code == 1 and "there is no manifest" in gone.err
    (copy / "manifest.json").write_text('{"schema_version": 9}')
    newer = bench.call("verify", str(run), str(copy))
    assert newer.code == 1 and "schema_version 9" in newer.err
    (copy / "manifest.json").write_text('{"schema_version": 1, "run": 5}')
    damaged = bench.call("diff", str(run), str(copy))
    assert damaged.code == 1 and "is no manifest" in damaged.err
