"""What kills leave half made in a run folder is cleared, what they took away is put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.runs import checkpoints
from runner.runs import recover as unfinished
from runner.runs.folder import RunFolder
from tests.runs.test_checkpoints import save

KEPT = (
    ".lock",
    ".hidden-by-its-user",
    "plan.yaml",
    "adapter/adapter_model.safetensors",
    "output/.script.tmp",
    "wandb/.own.tmp",
    "phases/align/result.json",
    "row-hashes/train.parquet",
)
LEFT = (
    ".manifest.json.x1y2.tmp",
    ".adapter-staging/adapter_model.safetensors",
    ".model-staging/model.safetensors",
    ".row-hashes.staging/train.parquet",
    ".reserve",
    "engine/.rank-0.json.x1y2.tmp",
    "engine/.reserve-3",
    "logs/.metrics-before-resume-1.jsonl.x.tmp",
    "checkpoints/.best.json.x.tmp",
    "checkpoints/.staging-4/checkpoint-4/optimizer.pt",
    "row-hashes/.align.staging/train.parquet",
    "phases/.align/projector.safetensors",
    "attempts/.1/plan.yaml",
)


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def test_temporaries_go_and_what_is_whole_or_somebody_else_s_stays(tmp_path: Path) -> None:
    for name in (*KEPT, *LEFT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    whole = save(tmp_path / "checkpoints", 3)
    before = files(tmp_path)
    removed = unfinished.clear(RunFolder(tmp_path))
    assert files(tmp_path) == {name: text for name, text in before.items() if name not in LEFT}
    assert len(removed) == len(LEFT)
    assert checkpoints.damage(whole) is None
    assert unfinished.clear(RunFolder(tmp_path)) == []


@pytest.mark.parametrize("renames", [1, 2])
def test_a_checkpoint_that_gave_way_is_put_back_unless_the_new_one_took_its_place(
    tmp_path: Path, renames: int
) -> None:
    """The instants after each rename of checkpoints.publish."""
    folder = RunFolder(tmp_path)
    old = save(folder.checkpoints, 6, "old")
    staging = folder.checkpoints / ".staging-6"
    new = save(staging, 6, "new")
    old.rename(staging / "checkpoint-6.replaced")
    if renames == 2:
        new.rename(old)
    unfinished.clear(folder)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["checkpoint-6"]
    assert checkpoints.damage(old) is None
    assert (old / "model.safetensors").read_text() == ("new 6" if renames == 2 else "old 6")


@pytest.mark.parametrize("renames", [1, 2])
def test_so_is_the_result_of_a_run(tmp_path: Path, renames: int) -> None:
    folder = RunFolder(tmp_path)
    for place, text in ((folder.adapter, "old"), (unfinished.staging_of(folder.adapter), "new")):
        place.mkdir()
        (place / "adapter_model.safetensors").write_text(text)
    folder.adapter.rename(unfinished.replaced_of(folder.adapter))
    if renames == 2:
        unfinished.staging_of(folder.adapter).rename(folder.adapter)
    unfinished.clear(folder)
    assert files(tmp_path) == {"adapter/adapter_model.safetensors": ["old", "new"][renames - 1]}
