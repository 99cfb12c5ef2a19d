"""Images that rows name are hashed one by one, kept by what the disk says of them, and the first
that is another is named."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.sft.plan import SftPlan
from runner.plans.inputs import FileRecord, ImageNames
from runner.provenance.compare import differences, first_of
from runner.provenance.hashes import GaveUp, Hasher
from runner.provenance.image_list import ImageList, _line, first_other, hash_images, read_hashes
from runner.provenance.inputs import moving
from runner.provenance.manifest import Manifest, read_manifest
from runner.provenance.recorder import ManifestRecorder
from runner.provenance.replay import wrong_inputs
from runner.provenance.verify import changed_since, read_side
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from tests.support.benches import small_manifest
from tests.support.command import REPOSITORY

NAMES = ("a/1.png", "a/ü 2.png", "b/3.png")


def pictures(root: Path, names: tuple[str, ...] = NAMES) -> None:
    """Files an hour old, each with content of its own."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 9)
        os.utime(path, (time.time() - 3600,) * 2)


def list_of(root: Path, names: tuple[str, ...] = NAMES, **options: Any) -> ImageList:
    found = [ImageNames("data.train", root, sorted(names))]
    return hash_images(found, Hasher(root.parent / "cache", **options))


def test_the_digest_is_of_names_and_contents_wherever_they_lie(tmp_path: Path) -> None:
    one, two = (tmp_path / place / "images" for place in ("one", "two"))
    pictures(one)
    pictures(two)
    first, again = list_of(one), list_of(two)
    assert (first.files, first.size_bytes) == (3, sum(9 * len(n.encode()) for n in NAMES))
    assert first == again and first.sha256 == again.sha256
    wanted = [hashlib.sha256(name.encode() * 9).hexdigest() for name in sorted(NAMES)]
    assert [line[:64] for line in first.text.splitlines()] == wanted
    (two / NAMES[1]).write_bytes(b"another")
    assert list_of(two).sha256 != first.sha256
    assert list_of(one, NAMES[:2]).sha256 != first.sha256


def test_an_image_is_read_again_only_where_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    pictures(root)
    first = list_of(root)
    read: list[str] = []
    real = Hasher.file
    monkeypatch.setattr(
        Hasher, "file", lambda self, path: (read.append(path.name), real(self, path))[1]
    )
    assert list_of(root) == first
    assert read == []
    (root / NAMES[2]).write_bytes(b"b/3.pnG" * 9)  # the same size
    assert list_of(root).sha256 != first.sha256
    assert read == ["3.png"]
    list_of(root)
    assert read == ["3.png"] * 2  # it was changed a moment ago, and could be again


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_name_reads_back(name: str) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "images.sha256"
        path.write_bytes(_line("a" * 64, name).encode())
        assert read_hashes(path) == {name: "a" * 64}


def test_the_first_other_image_is_named() -> None:
    ours = {"a.png": "1" * 64, "b.png": "2" * 64, "c.png": "3" * 64}
    assert first_other(ours, ours) is None
    assert first_other(ours, {**ours, "b.png": "9" * 64}) == ("b.png", "2" * 64, "9" * 64)
    assert first_other(ours, {**ours, "aa.png": "9" * 64}) == ("aa.png", "", "9" * 64)


def vision_plan(root: Path) -> SftPlan:
    """Two trainings on rows that name images below `root`: all of them, and two."""
    from runner.engines.sft.facts import gather
    from runner.engines.sft.resolve import make_plan

    loaded = load_job(str(REPOSITORY / "jobs" / "llava-gemma-10k-lora.yaml"))
    plan = make_plan(loaded, replace(gather(loaded), gpus=(), gpu_absence="none"), "smoke")
    record: dict[str, Any] = plan.model_dump(mode="json")
    for phase, names in zip((*record["earlier"], record), (NAMES, NAMES[:2]), strict=True):
        rows = [
            {
                "image": name,
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat?"},
                    {"from": "gpt", "value": "It."},
                ],
            }
            for name in (*names, names[0])  # one is named twice
        ]
        path = root.parent / f"{len(names)}.json"
        path.write_text(json.dumps(rows))
        phase["rows"]["train"]["path"] = str(path)
        phase["data"]["image_folder"] = str(root)
    return SftPlan.model_validate(record)


END = Outcome(Reason.COMPLETED, 0, "done", started_unix_seconds=1, ended_unix_seconds=2)


def kept_run(root: Path, plan: SftPlan) -> RunFolder:
    """A run folder with its manifest."""
    folder = RunFolder(root / "llava" / "20260101-000000-0000000")
    folder.engine.mkdir(parents=True)
    folder.write_rendered(render(plan))
    warned: list[str] = []
    keeper = ManifestRecorder(folder, warned.append)
    keeper.begin(plan, resume=False)
    keeper.complete(plan, END, lambda: False)
    assert warned == []
    return folder


def images_of(manifest: Manifest) -> dict[str, FileRecord]:
    return {each.what: each for each in manifest.files if each.kind == "images"}


def test_a_manifest_has_the_images_of_each_training_and_verify_names_the_first_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "images"
    pictures(root)
    plan = vision_plan(root)
    one = kept_run(tmp_path / "one", plan)
    manifest = read_manifest(one.manifest)
    found = images_of(manifest)
    assert {what: each.files for what, each in found.items()} == {
        "pretrain: data.image_folder": 3,
        "finetune: data.image_folder": 2,
    }
    hasher = Hasher(tmp_path / "cache")
    wrong = [each.text for each in wrong_inputs(manifest, plan, hasher) if "image" in each.part]
    assert wrong == []
    (root / NAMES[1]).write_bytes(b"another picture")
    wrong = [each.text for each in wrong_inputs(manifest, plan, hasher) if "image" in each.part]
    assert len(wrong) == 2 and all("holds other images" in text for text in wrong)
    other = kept_run(tmp_path / "other", plan)
    sides = read_side(one), read_side(other)
    found_other = [each for each in differences(*sides) if "image" in each.what]
    first = first_of(found_other)
    assert first is not None and len(found_other) == 2  # of each training
    before, after = (
        hashlib.sha256(content).hexdigest()[:12]
        for content in (NAMES[1].encode() * 9, b"another picture")
    )
    text = f"pretrain: data.image_folder: data.train {NAMES[1]}: sha256 {before} → {after}"
    assert (first.group, first.text) == ("files", text)
    # where only the manifests are left
    other.images("pretrain").unlink()
    sides = read_side(one), read_side(other)
    first = first_of([each for each in differences(*sides) if "image" in each.what])
    assert first is not None and "which can't be told" in first.text
    one.images("pretrain").write_text("")
    told = changed_since(one, read_side(one), Hasher(tmp_path / "cache"))
    assert "images-pretrain.sha256" in [each.what for each in told]


def test_what_can_not_be_hashed_of_the_images_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "images"
    pictures(root)
    plan = vision_plan(root)
    (tmp_path / "3.json").write_text("[")
    manifest = read_manifest(kept_run(tmp_path / "run", plan).manifest)
    found = images_of(manifest)
    assert found["pretrain: data.image_folder"].sha256 is None
    assert found["finetune: data.image_folder"].sha256 is not None
    assert any("pretrain: data.image_folder could not be hashed" in note for note in manifest.notes)
    (root / NAMES[0]).unlink()
    with pytest.raises(FileNotFoundError, match=r"a/1\.png"):
        list_of(root)
    with pytest.raises(GaveUp):
        list_of(root, NAMES[1:], gave_up=lambda: True)


def test_rows_of_a_branch_on_a_hub_are_noted_as_such() -> None:
    assert len(small_manifest().files) == 2
    commit = "0123456789" * 4
    named = [
        FileRecord(what=what, path=path, kind="remote")
        for what, path in (
            ("data.train", "hub:someone/rows@main"),
            ("data.eval", f"hub:someone/rows@{commit}"),
            ("model", "hub:someone/model@main"),
        )
    ]
    (note,) = moving(named)
    assert note.startswith("data.train: hub:someone/rows@main names a branch, which can move")
