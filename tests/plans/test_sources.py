"""What a job's texts mean, and what counts as being on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.common.caches import file_sha256
from runner.common.errors import SpecError
from runner.engines.sft.facts import hub_parts, row_fields
from runner.engines.sft.job import SftJob
from runner.plans.sources import (
    MANIFEST,
    fetched_rows,
    find_data,
    find_model,
    modelscope_folder,
    offline_switch,
    rows_file,
    whole_weights,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of this test's own."""
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(caches: Path, *names: str) -> Path:
    """Files of a model in the hub's cache, at COMMIT, which is main."""
    folder = caches / "hf" / "hub" / "models--o--m"
    place = folder / "snapshots" / COMMIT
    place.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for name in names:
        (place / name).write_text("{}")
    return place


def test_a_snapshot_counts_once_all_its_weights_are_there(caches: Path) -> None:
    place = snapshot(caches, "config.json")
    assert not find_model("o/m", beside=None, where="x").present
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    (place / "1.safetensors").write_text("x")
    assert not find_model("o/m", beside=None, where="x").present
    (place / "2.safetensors").write_text("x")
    found = find_model("o/m", beside=None, where="x")
    assert (found.kind, found.present, found.revision, found.folder) == ("hub", True, COMMIT, place)
    assert find_model(f"o/m@{COMMIT}", beside=None, where="x").present
    assert not find_model("o/m@v2", beside=None, where="x").present


def test_a_link_to_nothing_is_no_file(caches: Path) -> None:
    place = snapshot(caches, "config.json")
    (place / "model.safetensors").symlink_to("../../blobs/absent")
    assert not whole_weights(place)


def test_modelscope_ids_are_read_and_refused(caches: Path) -> None:
    found = find_model("modelscope:gongjy/MiniMind2-Small@v1", beside=None, where="x")
    assert (found.kind, found.id, found.revision) == ("modelscope", "gongjy/MiniMind2-Small", "v1")
    assert not found.present and found.folder == modelscope_folder(found.id, "v1")
    for text in ("modelscope:", "modelscope:name", "modelscope:a/b@", "modelscope:a/b/c"):
        with pytest.raises(SpecError) as caught:
            find_model(text, beside=None, where="jobs/x.yaml:3")
        assert caught.value.problems[0].expected == (
            "modelscope:OWNER/NAME or modelscope:OWNER/NAME@REVISION"
        )


def test_a_modelscope_model_counts_once_its_manifest_is_true(caches: Path) -> None:
    folder = modelscope_folder("o/m", None)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert not find_model("modelscope:o/m", beside=None, where="x").present
    files = [{"path": "config.json", "size_bytes": 2, "sha256": "0" * 64}]
    (folder / MANIFEST).write_text(json.dumps({"revision": "master-12", "files": files}))
    found = find_model("modelscope:o/m", beside=None, where="x")
    assert (found.present, found.revision) == (True, "master-12")
    (folder / "config.json").unlink()
    assert not find_model("modelscope:o/m", beside=None, where="x").present


@pytest.mark.parametrize("record", ["{", "[]", "null", '{"files": [1], "revision": "x"}', ""])
def test_a_damaged_manifest_means_absent(caches: Path, record: str) -> None:
    folder = modelscope_folder("o/m", None)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(record)
    assert not find_model("modelscope:o/m", beside=None, where="x").present


@pytest.mark.parametrize("kind", ["hub", "modelscope"])
def test_rows_count_once_the_record_beside_them_fits(caches: Path, kind: str) -> None:
    text = f"{kind}:o/d@v1"
    absent = find_data(text, field="data.train", beside=None, where="x", name="c", split="s")
    assert (absent.kind, absent.path, absent.present, absent.revision) == (kind, None, False, "v1")
    assert (absent.asked, absent.name, absent.split) == ("v1", "c", "s")
    path = rows_file(absent.kind, "o/d", "v1", "c", "s")  # type: ignore[arg-type]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"rows")
    record = {"sha256": file_sha256(path), "size_bytes": 4, "revision": COMMIT}
    path.with_suffix(".json").write_text(json.dumps(record))
    found = find_data(text, field="data.train", beside=None, where="x", name="c", split="s")
    assert (found.path, found.sha256, found.revision) == (path, record["sha256"], COMMIT)
    assert found.present and found.size_bytes == 4 and found.asked == "v1"
    other = find_data(text, field="data.train", beside=None, where="x", name="c", split="t")
    assert not other.present
    path.write_bytes(b"more rows")
    assert not fetched_rows(found.kind, "o/d", "v1", "c", "s").present  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["hub:", "hub:name", "modelscope:a/b/c", "hub:a/b@", "hub:a/b@../x"]
)
def test_malformed_hub_rows_are_refused(caches: Path, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        find_data(text, field="data.train", beside=None, where="x")
    kind = text.partition(":")[0]
    assert caught.value.problems[0].expected == f"{kind}:OWNER/NAME or {kind}:OWNER/NAME@REVISION"


name_ = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,8}", fullmatch=True)
text_ = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@given(
    first=st.tuples(name_, name_, st.none() | text_, st.none() | text_, text_),
    second=st.tuples(name_, name_, st.none() | text_, st.none() | text_, text_),
)
def test_what_is_asked_for_decides_the_file_and_stays_in_the_cache(
    first: tuple[str, str, str | None, str | None, str],
    second: tuple[str, str, str | None, str | None, str],
) -> None:
    def file_of(asked: tuple[str, str, str | None, str | None, str]) -> Path:
        owner, dataset, revision, name, split = asked
        return rows_file("hub", f"{owner}/{dataset}", revision, name, split)

    assert file_of(first).parent.name == "data"
    assert file_of(first).suffix == ".parquet"
    if "--" in "".join(part or "" for part in first + second) or "@" in str(first + second):
        return  # separators of the name
    same = [(a or d) == (b or d) for a, b, d in zip(first, second, (0, 0, "main", "default", 0))]  # noqa: B905
    assert (file_of(first) == file_of(second)) == all(same)


def test_each_field_has_its_own_split_and_mixed_sources_their_own_configuration() -> None:
    job = SftJob.model_validate(
        {
            "description": "x",
            "model": "o/m",
            "data": {
                "train": "hub:o/d",
                "eval": "hub:o/d",
                "hub": {"name": "c", "split": "train[:9]", "eval_split": "dev"},
                "mix": {"ratio": 3.0, "sources": [{"rows": "hub:o/e"}]},
            },
            "training": {"max_steps": 1},
        }
    )
    parts = hub_parts(job)
    assert set(parts) == set(row_fields(job))
    assert parts["data.train"] == ("c", "train[:9]")
    assert parts["data.eval"] == ("c", "dev")
    assert parts["data.mix.sources.0.rows"] == (None, "train[:9]")


def test_each_phase_has_its_own_part_of_the_hub() -> None:
    job = SftJob.model_validate(
        {
            "description": "x",
            "model": "o/m",
            "vision": {"model": "o/tower"},
            "data": {"train": "hub:o/d"},
            "training": {"max_steps": 1},
            "phases": [
                {"name": "one", "trains": ["projector"], "data": {"hub": {"split": "first"}}},
                {
                    "name": "two",
                    "trains": ["adapter"],
                    "data": {"hub": {"split": "second", "name": "c"}},
                },
            ],
        }
    )
    assert hub_parts(job) == {
        "phases.0.data.train": (None, "first"),
        "phases.1.data.train": ("c", "second"),
    }


@pytest.mark.parametrize(
    ("value", "said"), [("1", True), ("on", True), ("True", True), ("0", False), ("", False)]
)
def test_the_switch_is_read_as_the_hubs_client_reads_it(
    monkeypatch: pytest.MonkeyPatch, value: str, said: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert offline_switch() == (f"HF_HUB_OFFLINE={value}" if said else None)
