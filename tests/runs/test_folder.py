"""Run folders: how a RUN is found, names that never collide or escape, and nothing overwritten."""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.common.errors import RunnerError, UsageError
from runner.runs.create import create_run
from runner.runs.find import all_runs, default_root, find_run, runs_of
from runner.runs.folder import RunFolder
from runner.runs.job_folders import job_folder

FILES = {"plan.yaml": "plan\n", "launch.sh": "#!/bin/sh\n"}
NOON = time.mktime((2026, 11, 21, 12, 0, 0, 0, 0, -1))


def make(root: Path, job: str = "demo", short_hash: str = "3f2a91c", seconds: int = 0) -> RunFolder:
    run = create_run(root, job, short_hash, "train", FILES, NOON + seconds)
    os.utime(run.plan, (NOON + seconds, NOON + seconds))
    return run


def test_a_run_is_made_with_its_files_and_folders(tmp_path: Path) -> None:
    run = make(tmp_path / "runs")
    assert run.name == "demo/20261121-120000-3f2a91c"
    assert run.plan.read_text() == "plan\n"
    assert os.access(run.launch_script, os.X_OK)
    assert not os.access(run.plan, os.X_OK) or run.plan.stat().st_mode & 0o111 == 0
    assert all(folder.is_dir() for folder in (run.logs, run.checkpoints, run.engine))
    smoke = create_run(tmp_path / "runs", "demo", "3f2a91c", "smoke", FILES, NOON)
    assert smoke.path.name == "20261121-120000-3f2a91c-smoke"


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    runs = [make(tmp_path) for _ in range(12)]
    assert len({run.path for run in runs}) == 12
    assert [run.path.name for run in runs[:3]] == [
        "20261121-120000-3f2a91c",
        "20261121-120000-3f2a91c-2",
        "20261121-120000-3f2a91c-3",
    ]
    assert {run.path for run in all_runs(tmp_path)} == {run.path for run in runs}


def test_a_run_is_found_by_folder_name_prefix_and_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    first, second = make(root), make(root, "other", "aaaaaaa", seconds=5)
    for text in (
        *(str(first.path), "demo/20261121-120000-3f2a91c", "20261121-120000-3f2a91c"),
        *("demo", "demo/", "demo/2026", "20261121-120000", "20261121-120000-3f"),
    ):
        assert find_run(text, root).path == first.path, text
    assert find_run("@last", root).path == second.path
    monkeypatch.chdir(first.path)
    assert find_run(".", root).path == first.path
    monkeypatch.chdir(first.path.parent)
    assert find_run(first.path.name, Path("no-such-root")).path == first.path


def test_the_exact_name_wins_over_longer_ones(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    assert find_run(first.name, tmp_path).path == first.path
    assert find_run(second.path.name, tmp_path).path == second.path


def test_an_ambiguous_prefix_names_what_it_fits(tmp_path: Path) -> None:
    runs = [make(tmp_path, seconds=n) for n in range(3)]
    with pytest.raises(UsageError) as caught:
        find_run("demo", tmp_path)
    assert caught.value.message == "'demo' fits 3 runs: " + ", ".join(run.name for run in runs)
    assert (caught.value.exit_code, caught.value.hint) == (2, "give more of the name")


def test_a_run_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(UsageError) as caught:
        find_run("dmeo/20261121-120000-3f2a91c", tmp_path)
    assert caught.value.message == (
        f"no run 'dmeo/20261121-120000-3f2a91c' under {tmp_path} (1 there)"
    )
    assert caught.value.hint == "nearest: demo/20261121-120000-3f2a91c"
    with pytest.raises(UsageError) as caught:
        find_run("@last", tmp_path / "none")
    assert caught.value.message == f"there is no run under {tmp_path / 'none'}"


def test_what_is_no_run_is_not_listed(tmp_path: Path) -> None:
    run = make(tmp_path)
    (tmp_path / "demo" / "notes").mkdir()
    (tmp_path / "demo" / "20261121-120000-3f2a91c.txt").write_text("")
    (tmp_path / "file").write_text("")
    assert all_runs(tmp_path) == [run]


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=30) | st.sampled_from(["..", ".", "../../x", "/etc", "-rf", "~", "a\nb", ""])
)
def test_any_job_name_becomes_a_safe_folder_name(
    tmp_path_factory: pytest.TempPathFactory, job: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "hostile"
    run = create_run(root, job, "3f2a91c", "train", {}, NOON)
    assert run.path.parent.parent == root
    assert re.fullmatch(r"[\w][\w.-]*|.*-[0-9a-f]{8}", run.path.parent.name)
    assert find_run(run.name, root).path == run.path


NAMES = st.text(max_size=40) | st.text(st.sampled_from("ab_. -/医é\u0301\u202e"), max_size=6)


@settings(max_examples=400, deadline=None)
@given(NAMES, NAMES)
def test_job_names_keep_their_letters_and_are_told_apart(one: str, other: str) -> None:
    folder = job_folder(one)
    assert len(folder.encode()) <= 120
    assert folder[0] not in ".-"
    assert not any(unicodedata.category(each)[0] in "CZ" or each in "/\\" for each in folder)
    assert unicodedata.is_normalized("NFC", folder)
    assert job_folder(folder) == folder
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (job_folder(other) == folder) == same


@pytest.mark.parametrize(
    ("job", "folder"),
    [
        ("医疗", "医疗"),
        ("情感", "情感"),
        ("cafe\u0301", "café"),
        ("हिन्दी-v1.2", "हिन्दी-v1.2"),
        ("demo-identity", "demo-identity"),
    ],
)
def test_letters_of_any_script_stay(job: str, folder: str) -> None:
    assert job_folder(job) == folder


def test_what_is_replaced_or_cut_is_told_apart() -> None:
    names = ["a b", "a/b", "a\nb", "a\u202eb", "🚀", "🎉", "", "-a", ".a", "\udcff", "\udcfe"]
    names += ["医" * 60 + end for end in "ab"] + ["x" * 200 + end for end in "ab"]
    folders = [job_folder(name) for name in names]
    assert len(set(folders)) == len(names)
    assert folders[0].startswith("a_b-")


def test_runs_of_an_earlier_naming_are_found(tmp_path: Path) -> None:
    old = make(tmp_path, "job")  # where 医疗 and 情感 both went
    new = make(tmp_path, "医疗", seconds=5)
    assert new.path.parent.name == "医疗"
    assert [run.path for run in runs_of(tmp_path, "医疗", "3f2a91c")] == [old.path, new.path]
    assert find_run("医疗", tmp_path).path == new.path
    accented = make(tmp_path, "cafe\u0301", seconds=9)
    assert find_run("cafe\u0301", tmp_path).path == accented.path


def fill(run: RunFolder, text: str) -> dict[str, str]:
    """Leave a file, with its content, for every result of a run."""
    for path in run.results():
        if path.suffix:
            path.write_text(f"{path.name} {text}")
        else:
            (path / "inner").mkdir(parents=True, exist_ok=True)
            (path / "inner" / "file").write_text(f"{path.name} {text}")
    return contents(run)


def contents(run: RunFolder) -> dict[str, str]:
    files = [path for path in run.path.rglob("*") if path.is_file()]
    return {str(path.relative_to(run.path)): path.read_text() for path in files}


def test_set_aside_results_lose_nothing(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.train_log.write_text("log")
    assert run.set_aside(run.results()) is None
    kept = contents(run)
    for number in (1, 2, 3):
        before = fill(run, f"of start {number}")
        target = run.set_aside(run.results())
        assert target == run.earlier / str(number)
        after = contents(run)
        assert sorted(after.values()) == sorted(before.values())
        assert {name: text for name, text in after.items() if "/" not in name} == {
            name: text for name, text in kept.items() if "/" not in name
        }
    assert (run.earlier / "1" / "metrics.jsonl").read_text() == "metrics.jsonl of start 1"
    assert run.train_log.read_text() == "log"
    assert run.set_aside(run.results()) is None


def test_a_full_disk_leaves_no_half_made_run(full_disk: Callable[[int], Path]) -> None:
    root = full_disk(16 * 1024)
    with pytest.raises(RunnerError) as caught:
        create_run(root, "demo", "3f2a91c", "train", {"plan.yaml": "x" * 200_000}, NOON)
    assert caught.value.message == (
        f"the run folder can't be made under {root}: No space left on device"
    )
    assert all_runs(root) == []


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunnerError, match="can't be made under"):
        make(tmp_path / "runs")


def test_the_environment_names_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_RUNS", "/elsewhere")
    assert default_root() == Path("/elsewhere")
    monkeypatch.setenv("RUNNER_RUNS", "")
    assert default_root() == Path("runs")
