"""Checkpoints: sealed, verified by the seal, published whole, and the newest whole one found."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.runs import checkpoints
from runner.runs import recover as unfinished
from runner.runs.folder import RunFolder


def save(folder: Path, step: int, text: str = "weights") -> Path:
    """A sealed checkpoint, as the trainer leaves it."""
    path = folder / f"checkpoint-{step}"
    (path / "global_step" / "rank").mkdir(parents=True)
    (path / "model.safetensors").write_text(f"{text} {step}")
    (path / "global_step" / "rank" / "optimizer.pt").write_text(f"state {step}")
    (path / "global_step" / "seal.json").write_text("a file of the trainer's own")
    (path / "empty").write_text("")
    checkpoints.seal(path)
    return path


def test_a_sealed_checkpoint_is_whole_where_it_is_and_where_it_is_copied(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    record = json.loads((path / "seal.json").read_text())
    assert record["schema_version"] == 1
    assert set(record["files"]) == {
        *("model.safetensors", "empty", "global_step/rank/optimizer.pt", "global_step/seal.json"),
    }
    assert checkpoints.damage(path) is None
    checkpoints.seal(path)
    assert json.loads((path / "seal.json").read_text()) == record
    moved = path.rename(tmp_path / "elsewhere")
    assert checkpoints.damage(moved) is None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def edit_seal(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    record = json.loads((path / "seal.json").read_text())
    change(record)
    (path / "seal.json").write_text(json.dumps(record))


UNSEALED = "it has no seal, so its save did not finish"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no seal": (lambda path: (path / "seal.json").unlink(), UNSEALED),
    "an empty seal": (lambda path: (path / "seal.json").write_text(""), UNSEALED),
    "a torn seal": (lambda path: (path / "seal.json").write_text('{"files": {'), UNSEALED),
    "a seal of another kind": (lambda path: (path / "seal.json").write_text("[]"), UNSEALED),
    "a seal without files": (lambda path: (path / "seal.json").write_text("{}"), UNSEALED),
    "a seal that says nothing": (
        lambda path: (path / "seal.json").write_text('{"files": {"empty": 3}}'),
        "its seal says nothing usable of empty",
    ),
    "a seal without a hash": (
        lambda path: (path / "seal.json").write_text('{"files": {"empty": {"size_bytes": 0}}}'),
        "its seal says nothing usable of empty",
    ),
    "a missing file": (
        lambda path: (path / "model.safetensors").unlink(),
        "model.safetensors is missing",
    ),
    "a missing file, deep down": (
        lambda path: (path / "global_step/rank/optimizer.pt").unlink(),
        "global_step/rank/optimizer.pt is missing",
    ),
    "a truncated file": (
        lambda path: (path / "model.safetensors").write_text("weigh"),
        "model.safetensors has 5 bytes, not 9",
    ),
    "a longer file": (
        lambda path: (path / "empty").write_text("x"),
        "empty has 1 bytes, not 0",
    ),
    "a flipped bit": (
        lambda path: flip(path / "model.safetensors"),
        "model.safetensors was changed since it was sealed",
    ),
    "another hash": (
        lambda path: edit_seal(
            path,
            lambda record: record.update(files={"empty": {"size_bytes": 0, "sha256": "0" * 64}}),
        ),
        "empty was changed since it was sealed",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_and_the_one_before_is_taken(kind: str, tmp_path: Path) -> None:
    harm, wrong = DAMAGES[kind]
    older, newer = save(tmp_path, 4), save(tmp_path, 5)
    harm(newer)
    assert checkpoints.damage(newer) == wrong
    assert checkpoints.newest_whole(tmp_path) == (
        older,
        [f"checkpoint-5 is passed over: {wrong}"],
    )


def test_the_newest_is_by_number_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    save(tmp_path, 200).rename(tmp_path / ".staging")
    (tmp_path / "checkpoint-300").write_text("a file")
    (tmp_path / "checkpoint-x").mkdir()
    names = [path.name for path in checkpoints.listed(tmp_path)]
    assert names == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    newest, skipped = checkpoints.newest_whole(tmp_path)
    assert newest is not None
    assert (checkpoints.step_of(newest), skipped) == (100, [])
    with pytest.raises(ValueError, match="checkpoint-x is not a checkpoint's name"):
        checkpoints.step_of(tmp_path / "checkpoint-x")


def test_no_whole_checkpoint_is_said_so(tmp_path: Path) -> None:
    assert checkpoints.newest_whole(tmp_path / "none") == (None, [])
    for step in (1, 2):
        (save(tmp_path, step) / "seal.json").unlink()
    newest, skipped = checkpoints.newest_whole(tmp_path)
    assert newest is None
    assert [line.split()[0] for line in skipped] == ["checkpoint-2", "checkpoint-1"]


@pytest.mark.parametrize("left_behind", [False, True])
def test_publishing_replaces_an_older_one_of_that_name(left_behind: bool, tmp_path: Path) -> None:
    final, staging = tmp_path / "checkpoints", tmp_path / "staging"
    final.mkdir()
    old = save(final, 5, "old")
    if left_behind:  # by a kill in the middle of an earlier publish
        (staging / "checkpoint-5.replaced" / "inner").mkdir(parents=True)
    new = save(staging, 5, "new")
    checkpoints.publish(new, old)
    assert (final / "checkpoint-5" / "model.safetensors").read_text() == "new 5"
    assert checkpoints.damage(final / "checkpoint-5") is None
    assert list(staging.iterdir()) == []
    checkpoints.publish(save(staging, 6), final / "checkpoint-6")
    assert checkpoints.newest_whole(final) == (final / "checkpoint-6", [])


def test_a_seal_says_what_the_checkpoint_is_of(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    assert checkpoints.facts_of(path) == {}
    facts = {"step": 5, "phase": "adapter", "eval_loss": None}
    checkpoints.seal(path, facts)
    assert checkpoints.facts_of(path) == facts
    assert checkpoints.damage(path) is None
    edit_seal(path, lambda record: record.update(facts="all fine"))
    assert checkpoints.facts_of(path) == {}
    assert checkpoints.facts_of(tmp_path / checkpoints.name_of(6)) == {}


@given(
    st.sets(st.integers(1, 12)), st.integers(1, 5), st.integers(0, 12), st.sets(st.integers(1, 12))
)
def test_the_newest_and_the_protected_stay_and_earlier_trainings_are_left_alone(
    steps: set[int], keep: int, after: int, protected: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        for step in steps:
            (Path(name) / checkpoints.name_of(step)).mkdir()
        found = checkpoints.surplus(Path(name), keep, protected=protected, after=after)
        own = sorted(step for step in steps if step > after)
        doomed = [checkpoints.step_of(path) for path in found]
        assert doomed == [step for step in own[:-keep] if step not in protected]


def test_by_size_a_cut_file_is_seen_and_a_changed_one_is_not(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    (path / "model.safetensors").write_text("WEIGHTS 5")
    assert checkpoints.damage(path, by_size=True) is None
    assert checkpoints.damage(path) is not None
    (path / "model.safetensors").write_text("weigh")
    assert checkpoints.damage(path, by_size=True) is not None


def test_a_kill_while_one_is_deleted_leaves_none_that_is_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    old, new = save(run.checkpoints, 3), save(run.checkpoints, 6)

    class Killed(BaseException):
        pass

    def begins(folder: Path, **_: object) -> None:
        if folder.exists():
            (folder / "seal.json").unlink()
            raise Killed

    monkeypatch.setattr(shutil, "rmtree", begins)
    with pytest.raises(Killed):
        checkpoints.delete(old)
    monkeypatch.undo()
    assert checkpoints.listed(run.checkpoints) == [new]
    assert unfinished.clear(run) == ["checkpoints/.staging-old-checkpoint-3"]
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-6"]
