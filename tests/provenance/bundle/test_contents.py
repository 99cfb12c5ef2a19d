"""What goes into a bundle of each engine's runs, and that the plan finds it where it comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from runner.common.errors import RefusedError
from runner.engines.inputs import parts, relocated
from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.resolve import make_any_plan
from runner.engines.sft.facts import gather
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.plans.base import Plan
from runner.plans.rows import PlannedData
from runner.provenance.bundle import unpack
from runner.provenance.bundle.contents import contents
from runner.provenance.bundle.index import Index
from runner.provenance.bundle.index import Part as Asked
from runner.provenance.bundle.local_plan import placed_inputs
from runner.provenance.bundle.write import write
from runner.provenance.compare import Side, differences, first_of
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import Manifest, read_manifest
from runner.provenance.recorder import ManifestRecorder
from runner.provenance.replay import plan_of, wrong_inputs
from runner.runs.create import create_run
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from tests.plans.test_render import on_cpu
from tests.provenance.test_any_plan import any_plan
from tests.support.command import REPOSITORY
from tests.support.soaking import examples

END = Outcome(Reason.FAILED, 1, "it was only begun", started_unix_seconds=1, ended_unix_seconds=2)


def begun(root: Path, plan: Plan) -> tuple[RunFolder, Manifest]:
    """A run that has ended, and its manifest."""
    folder = create_run(root, plan.job, plan.short_hash, plan.variant, render(plan))
    warned: list[str] = []
    keeper = ManifestRecorder(folder, warned.append)
    keeper.begin(plan, resume=False)
    keeper.complete(plan, END, lambda: False)
    assert warned == []
    return folder, read_manifest(folder.manifest)


def there_and_back(
    folder: RunFolder, manifest: Manifest, place: Path, asked: Collection[Asked]
) -> tuple[RunFolder, Index]:
    """The run in another folder, by way of a bundle."""
    packed = contents(
        folder,
        manifest,
        plan_of(manifest),
        asked,
        Hasher(place / "hashes"),
        made_by="runner",
        manifest_sha256="0" * 64,
    )
    write(packed, place / "b.tar", lambda _: None)
    unpack.unpack(place / "b.tar", place / "there", lambda *_: None)
    return RunFolder(place / "there"), packed.index


def wrongs(manifest: Manifest, plan: Plan, place: Path) -> list[str]:
    return [each.text for each in wrong_inputs(manifest, plan, Hasher(place / "hashes"))]


@settings(max_examples=examples(8, 200), deadline=None)
@given(plan=any_plan())
def test_any_plan_finds_its_rows_where_they_are_unpacked(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan
) -> None:
    place = tmp_path_factory.mktemp("any")
    folder, manifest = begun(place / "runs", plan)
    here = all(part.path is None or Path(part.path).exists() for part in parts(plan))
    rows = [each for each in manifest.files if "data." in each.what and each.sha256]
    asked: list[Asked] = ["data"] if isinstance(plan, SftPlan) and rows else []
    try:
        run, index = there_and_back(folder, manifest, place, asked)
    except RefusedError as error:
        assert "is not here" in error.message and not here
        return
    moved = placed_inputs(run, plan_of(manifest), {})
    paths = {part.what: part.path for part in parts(moved)}
    for what in index.places:
        assert str(paths[what]).startswith(f"{run.path}/inputs/"), what
    assert {lacking.what for lacking in index.lacks}.isdisjoint(index.places)
    assert not [text for text in wrongs(manifest, moved, place) if text.startswith("data.")]


@pytest.fixture(scope="module")
def vision_plan(tmp_path_factory: pytest.TempPathFactory) -> SftPlan:
    """Two trainings on rows with images, beside the rows and in a folder above them."""
    folder = tmp_path_factory.mktemp("vision")
    sample = REPOSITORY / "jobs" / "data" / "llava_sample"
    shutil.copytree(sample, folder / "rows")
    loaded = load_job(str(REPOSITORY / "jobs" / "llava-gemma-10k-lora.yaml"))
    plan = make_plan(loaded, on_cpu(gather(loaded)), "smoke")
    record: dict[str, Any] = plan.model_dump(mode="json")
    for phase in (*record["earlier"], record):
        rows = phase["rows"]["train"]
        rows["path"] = str(folder / "rows" / Path(rows["path"]).name)
    model = folder / "standin"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "README.md").write_text("not read by anything")
    record["model"]["folder"] = record["vision"]["model"]["folder"] = str(model)
    return SftPlan.model_validate(record)


def test_images_that_rows_name_come_along_and_are_known_by_content(
    vision_plan: SftPlan, tmp_path: Path
) -> None:
    folder, manifest = begun(tmp_path / "runs", vision_plan)
    assert manifest.notes == []
    images = [each for each in manifest.files if each.kind == "images"]
    assert [each.what for each in images] == [
        "pretrain: data.image_folder",
        "finetune: data.image_folder",
    ]
    assert all(each.files and each.sha256 for each in images)
    run, index = there_and_back(folder, manifest, tmp_path, ["data", "model"])
    assert index.lacks == [] and "model" in index.places
    assert not any(member.path.endswith("README.md") for member in index.members)
    moved = placed_inputs(run, plan_of(manifest), {})
    assert wrongs(manifest, moved, tmp_path) == []
    other = begun(tmp_path / "runs2", moved)[1]
    found = differences(Side(manifest), Side(other))
    assert first_of(found) is None, first_of(found)
    assert any(each.what == "places" for each in found)
    # and another picture is another input, whatever its name
    assert isinstance(moved, SftPlan) and moved.data.image_folder
    picture = next(path for path in Path(moved.data.image_folder).rglob("*") if path.is_file())
    picture.write_bytes(picture.read_bytes() + b" ")
    assert any("holds other images" in text for text in wrongs(manifest, moved, tmp_path))


def test_images_by_a_path_of_this_machine_are_refused(vision_plan: SftPlan, tmp_path: Path) -> None:
    image = tmp_path / "one.png"
    image.write_bytes(b"png")
    rows = tmp_path / "rows.jsonl"
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "One."}]
    rows.write_text(json.dumps({"id": "1", "image": str(image), "conversations": turns}) + "\n")
    train = PlannedData(kind="file", path=str(rows))
    planned = vision_plan.rows.model_copy(update={"train": train})
    plan = vision_plan.model_copy(update={"earlier": [], "rows": planned})
    folder, manifest = begun(tmp_path / "runs", plan)
    with pytest.raises(RefusedError, match="by which no other machine can find it"):
        there_and_back(folder, manifest, tmp_path, ["data"])


def test_the_toolkits_inputs_keep_the_words_in_their_paths(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    files = {
        "MGM/mgm/train/train.py": "",
        "MGM/.git/config": "[remote]",
        "gemma-2b-it/config.json": "{}",
        "gemma-2b-it/tokenizer_config.json": "{}",
        "gemma-2b-it/model.safetensors": "w",
        "OpenAI/clip-vit-large/config.json": "{}",
        "OpenAI/clip-vit-large/pytorch_model.bin": "v",
        "openclip-convnext-large-d-320/open_clip_config.json": "{}",
        "openclip-convnext-large-d-320/open_clip_pytorch_model.bin": "a",
        "rows/pretrain.jsonl": "{}\n",
        "rows/finetune.json": "[]",
        "rows/images/1.jpg": "jpg",
        "rows/stage_1.json": "[]",
        "bench/mmbench.tsv": "q",
    }
    for name, text in files.items():
        (zoo / name).parent.mkdir(parents=True, exist_ok=True)
        (zoo / name).write_text(text)
    plan = make_any_plan(
        load_job(str(REPOSITORY / "jobs" / "mgm-10k-lora.yaml"), ["launch.on=local"]), "train"
    )[0]
    places = {
        "toolkit": "MGM",
        "model_name_or_path": "gemma-2b-it",
        "vision_tower": "OpenAI/clip-vit-large",
        "vision_tower_aux": "openclip-convnext-large-d-320",
        "pretrain.data_path": "rows/pretrain.jsonl",
        "pretrain.image_folder": "rows/images",
        "pretrain.questions": "rows/stage_1.json",
        "finetune.data_path": "rows/finetune.json",
        "finetune.image_folder": "rows/images",
        "infer.mmbench": "bench/mmbench.tsv",
    }
    known = {part.what for part in parts(plan)}
    plan = relocated(plan, {k: str(zoo / v) for k, v in places.items() if k in known})
    folder, manifest = begun(tmp_path / "runs", plan)
    run, index = there_and_back(folder, manifest, tmp_path, ["data", "model"])
    tower = index.places["vision_tower"].path
    assert tower.endswith("/OpenAI/clip-vit-large")
    assert index.places["finetune.image_folder"] == index.places["pretrain.image_folder"]
    assert not any("/.git/" in member.path for member in index.members)
    moved = placed_inputs(run, plan_of(manifest), {})
    assert wrongs(manifest, moved, tmp_path) == []
    other = begun(tmp_path / "runs2", moved)[1]
    assert other.plan_hash != manifest.plan_hash  # the toolkit's counts paths
    assert first_of(differences(Side(manifest), Side(other))) is None


def test_weights_of_the_hubs_cache_are_links_and_come_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "c" * 40
    model = tmp_path / "hub" / "models--owner--name"
    for name, text in {"config.json": "{}", "model.safetensors": "weights"}.items():
        blob = model / "blobs" / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(text)
        snapshot = model / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    loaded = load_job(
        str(REPOSITORY / "jobs" / "demo-identity.yaml"),
        [f"model=owner/name@{commit}", f"data.train={rows}"],
    )
    plan = make_plan(loaded, on_cpu(gather(loaded)))
    folder, manifest = begun(tmp_path / "runs", plan)
    bare, index = there_and_back(folder, manifest, tmp_path, [])
    lacking = {each.what: each for each in index.lacks}
    assert (lacking["model"].id, lacking["model"].revision) == ("owner/name", commit)
    assert {known.name: bool(known.sha256) for known in lacking["model"].files} == {
        "config.json": True,
        "model.safetensors": True,
    }
    # left out, it is found in the hub's cache of the other machine, or named
    rows_there = {"data.train": str(rows)}
    assert wrongs(manifest, placed_inputs(bare, plan_of(manifest), rows_there), tmp_path) == []
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "moved"))
    (tmp_path / "hub").rename(tmp_path / "moved")
    assert wrongs(manifest, placed_inputs(bare, plan_of(manifest), rows_there), tmp_path) == []
    (tmp_path / "moved").rename(tmp_path / "gone")
    (told,) = wrongs(manifest, placed_inputs(bare, plan_of(manifest), rows_there), tmp_path)
    assert told.startswith(f"model: owner/name@{commit} is not here (model.safetensors sha256 ")
    shutil.rmtree(bare.path)
    (tmp_path / "gone").rename(tmp_path / "hub")
    whole, index = there_and_back(folder, manifest, tmp_path, ["data", "model"])
    assert index.lacks == []
    (tmp_path / "hub").rename(tmp_path / "gone")
    assert (whole.path / index.places["model"].path / "model.safetensors").is_file()
    moved = placed_inputs(whole, plan_of(manifest), {})
    assert wrongs(manifest, moved, tmp_path) == []
    assert moved.hash == plan.hash  # a hub's model counts by its revision, not by where it lies
    # a file more in a model's folder could be read, too
    (whole.path / index.places["model"].path / "extra.json").write_text("{}")
    (told,) = wrongs(manifest, moved, tmp_path)
    assert "was not there when the run read its folder" in told
