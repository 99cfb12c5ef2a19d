"""Fetching over real HTTP from a hub on this machine: the hub's, ModelScope's, models and rows."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.common.caches import file_sha256
from runner.common.errors import RefusedError
from runner.fetch.files import RemoteFile, data_files, needed, weights
from runner.fetch.progress import FileProgress
from runner.fetch.refusals import said
from runner.plans.sources import fetched_rows, find_model
from tests.support.command import REPOSITORY
from tests.testbed.hub import RIGHT_TOKEN, FakeHub, Repository, serve, surroundings

MIB = 1024 * 1024
PATIENCE_SECONDS = 600.0
"""How long what will come is waited for, on whatever machine."""
ROWS = [{"text": f"row {i} 你好", "label": str(i % 2)} for i in range(50)]
LARGE = "model.safetensors"

pytest.importorskip("huggingface_hub")


def jsonl(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def tiny_model(weights_bytes: int = 3 * MIB, **more: bytes) -> dict[str, bytes]:
    """Files of a model; what the weights hold is of no concern to who brings them."""
    return {
        "README.md": b"a model",
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"model_max_length": 512}',
        "pytorch_model.bin": b"a pickle" * 100,
        LARGE: os.urandom(weights_bytes),
        "onnx/model.onnx": b"x",
        "modeling_own.py": b"print('never')",
        **more,
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty hub, and an environment in which it is the only one, with caches of its own."""
    with serve(FakeHub()) as found:
        for name, value in surroundings(found, tmp_path).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        yield found


def model(source: str = "hub", **more: Any) -> dict[str, Any]:
    return {"what": "model", "source": source, "id": "o/m", "revision": None, **more}


def rows(source: str = "hub", **more: Any) -> dict[str, Any]:
    asked = {"revision": None, "name": None, "split": "train"}
    return {"what": "rows", "source": source, "id": "o/d", **asked, **more}


def start(*wanted: dict[str, Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.engines.sft.fetch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"quiet": False, "wanted": wanted}))
    process.stdin.close()
    process.stdin = None
    return process


def fetch(*wanted: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The records, and what a person was told."""
    out, err = start(*wanted).communicate(timeout=PATIENCE_SECONDS)
    assert "Traceback" not in err, err
    return [json.loads(line) for line in out.splitlines()], err


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Models ------------------------------------------------------------------------------------------


def test_a_model_lands_in_the_hubs_own_cache_and_is_whole_for_its_own_client(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_model()
    hub.repositories["o/m"] = Repository(files)
    assert not find_model("o/m", beside=None, where="here").present
    [record], told = fetch(model())
    commit = hub.repositories["o/m"].commit
    assert record["revision"] == commit
    assert record["sha256"] == sha256(files[LARGE])
    wanted = ["config.json", LARGE, "tokenizer.json", "tokenizer_config.json"]
    assert record["fetched_bytes"] == record["size_bytes"] == sum(len(files[n]) for n in wanted)
    assert sorted(path.name for path in Path(record["place"]).iterdir()) == wanted
    assert f"{LARGE}  3 MiB in " in told
    source = find_model("o/m", beside=None, where="here")
    assert (source.present, source.revision) == (True, commit)
    assert str(source.folder) == record["place"]
    # the very layout of huggingface_hub: its client finds all of it without a network
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code = "import huggingface_hub as h, sys; print(h.hf_hub_download('o/m', sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, LARGE], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).read_bytes() == files[LARGE]


def test_the_real_260k_model_comes_whole(hub: FakeHub, shared: Path) -> None:
    folder = shared / "models" / "stories260k"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    hub.repositories["o/m"] = Repository(files)
    [record], _ = fetch(model())
    for name, content in files.items():
        assert (Path(record["place"]) / name).read_bytes() == content


def test_a_broken_connection_is_taken_up_where_it_ended(hub: FakeHub) -> None:
    files = tiny_model()
    hub.repositories["o/m"] = Repository(files)
    hub.drop_after[LARGE] = [MIB + 17, MIB // 2]
    [record], _ = fetch(model())
    assert record["sha256"] == file_sha256(Path(record["place"]) / LARGE)
    asked = [request.range for request in hub.asked("/cdn/")]
    # counted from the bytes that are on disk: the last ones may have been on their way
    starts = [int((said or "bytes=0-").removeprefix("bytes=").rstrip("-")) for said in asked]
    assert len(starts) == 3 and starts[0] == 0 < starts[1] <= MIB + 17
    assert starts[1] < starts[2] <= starts[1] + MIB // 2


@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_a_killed_fetch_goes_on_where_it_was(hub: FakeHub, source: str) -> None:
    if source == "modelscope":
        pytest.importorskip("modelscope_hub")
    files = tiny_model(24 * MIB)
    hub.repositories["o/m"] = Repository(files)
    hub.bytes_per_second = 12 * MIB
    process = start(model(source))
    try:
        _wait_for(lambda: _largest_partial(Path(os.environ["HOME"])) > 4 * MIB)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    had = _largest_partial(Path(os.environ["HOME"]))
    assert not find_model(_text(source), beside=None, where="here").present
    hub.bytes_per_second = None
    hub.requests.clear()
    [record], told = fetch(model(source))
    part = "/cdn/" if source == "hub" else f"FilePath={LARGE}"
    assert [request.range for request in hub.asked(part)] == [f"bytes={had}-"]
    assert (Path(record["place"]) / LARGE).read_bytes() == files[LARGE]
    if source == "hub":
        assert "of it before" in told
        assert record["fetched_bytes"] == len(files[LARGE]) - had
    assert find_model(_text(source), beside=None, where="here").present
    assert _largest_partial(Path(os.environ["HOME"])) == 0


def _text(source: str) -> str:
    return "o/m" if source == "hub" else "modelscope:o/m"


def _largest_partial(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*incomplete*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes)


def _wait_for(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def test_a_server_without_ranges_sends_it_whole_and_nothing_is_mixed(hub: FakeHub) -> None:
    files = tiny_model()
    hub.repositories["o/m"] = Repository(files)
    hub.ranges = False
    hub.drop_after[LARGE] = [2 * MIB]
    [record], _ = fetch(model())
    assert (Path(record["place"]) / LARGE).read_bytes() == files[LARGE]


@pytest.mark.parametrize(
    ("source", "name"), [("hub", LARGE), ("hub", "config.json"), ("modelscope", LARGE)]
)
def test_wrong_content_is_refused_and_not_kept(hub: FakeHub, source: str, name: str) -> None:
    if source == "modelscope":
        pytest.importorskip("modelscope_hub")
    hub.repositories["o/m"] = Repository(tiny_model())
    hub.corrupt.add(name)
    [record], _ = fetch(model(source))
    assert record["exit_code"] == 3
    assert name in record["error"] and "another content" in record["error"]
    home = Path(os.environ["HOME"])
    assert _largest_partial(home) == 0
    assert not [path for path in home.rglob(name) if path.is_file()]
    assert not find_model(_text(source), beside=None, where="here").present
    hub.corrupt.clear()
    [record], _ = fetch(model(source))
    assert "error" not in record


def test_what_lay_half_fetched_and_is_wrong_is_dropped_and_fetched_whole(hub: FakeHub) -> None:
    files = tiny_model()
    hub.repositories["o/m"] = Repository(files)
    blobs = Path(os.environ["HF_HOME"]) / "hub" / "models--o--m" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(files[LARGE])}.runner.incomplete").write_bytes(b"not the start of it")
    [record], told = fetch(model())
    assert "what was here is dropped" in told
    assert (Path(record["place"]) / LARGE).read_bytes() == files[LARGE]
    assert [r.range for r in hub.asked("/cdn/")] == ["bytes=19-", None]


def test_shards_come_by_the_index_and_half_of_them_are_no_model(hub: FakeHub) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: os.urandom(1000) for name in names},
        "consolidated.safetensors": os.urandom(1000),
    }
    hub.repositories["o/m"] = Repository(files)
    [record], _ = fetch(model())
    place = Path(record["place"])
    assert not (place / "consolidated.safetensors").exists()
    assert find_model("o/m", beside=None, where="here").present
    (place / names[1]).unlink()
    assert not find_model("o/m", beside=None, where="here").present
    [record], _ = fetch(model())  # its blob is still there: a link is all it takes
    assert record["fetched_bytes"] == 0
    assert find_model("o/m", beside=None, where="here").present


def test_remote_code_comes_only_where_the_job_trusts_it(hub: FakeHub) -> None:
    hub.repositories["o/m"] = Repository(tiny_model(1000))
    [record], _ = fetch(model())
    assert not (Path(record["place"]) / "modeling_own.py").exists()
    [record], _ = fetch(model(trust_remote_code=True))
    assert (Path(record["place"]) / "modeling_own.py").exists()


def test_the_token_goes_to_the_hub_alone_and_is_never_printed(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["o/m"] = Repository(tiny_model(1000), access="private")
    monkeypatch.setenv("HF_TOKEN", RIGHT_TOKEN)
    [record], told = fetch(model())
    assert "error" not in record
    assert all(request.token for request in hub.asked("/resolve/"))
    assert hub.asked("/cdn/") and not any(request.token for request in hub.asked("/cdn/"))
    assert RIGHT_TOKEN not in told + json.dumps(record)


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_refusals_say_what_to_do(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    for access in ("open", "private", "gated"):
        hub.repositories[f"o/{access}"] = Repository(tiny_model(1000), access=access)  # type: ignore[arg-type]
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    about = "the one in use was not accepted" if token else "HF_TOKEN is not set"
    cases = [
        (model(id="o/absent"), ["has no o/absent", about]),
        (model(id="o/private"), ["has no o/private", about]),
        (model(id="o/gated"), ["o/gated is gated", f"{hub.url}/o/gated, then set HF_TOKEN"]),
        (model(id="o/open", revision="v9"), ["no such revision", "o/open@v9"]),
    ]
    records, told = fetch(*(wanted for wanted, _ in cases))
    for record, (_, words) in zip(records, cases, strict=True):
        assert record["exit_code"] == 3
        text = f"{record['error']} {record['hint']}"
        assert all(word in text for word in words), text
        assert token is None or token not in text + told


def test_pickled_weights_are_refused_before_anything_comes(hub: FakeHub) -> None:
    files = tiny_model(1000)
    files.pop(LARGE)
    hub.repositories["o/m"] = Repository(files)
    [record], _ = fetch(model())
    assert "pickles only (pytorch_model.bin)" in record["error"]
    assert "refs/pr/N" in record["hint"]
    assert not hub.asked("/resolve/")


def test_an_unreachable_hub_is_named_and_one_failure_keeps_no_other_away(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("modelscope_hub")
    hub.repositories["o/m"] = Repository(tiny_model(1000))
    monkeypatch.setenv("HF_ENDPOINT", "http://user:secret@127.0.0.1:9")
    [first, second], told = fetch(model(), model("modelscope"))
    assert "could not be reached" in first["error"] and "http://127.0.0.1:9" in first["error"]
    assert "secret" not in first["error"] + told
    assert "error" not in second


def test_two_fetches_at_once_take_turns(hub: FakeHub) -> None:
    files = tiny_model(8 * MIB)
    hub.repositories["o/m"] = Repository(files)
    hub.bytes_per_second = 8 * MIB
    both = [start(model()), start(model())]
    records = [json.loads(process.communicate(timeout=PATIENCE_SECONDS)[0]) for process in both]
    assert all((Path(r["place"]) / LARGE).read_bytes() == files[LARGE] for r in records)
    assert len(hub.asked("/cdn/")) == 1


def test_a_proxy_is_used(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["o/m"] = Repository(tiny_model(1000))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", hub.url)
    monkeypatch.setenv("no_proxy", "")
    [record], _ = fetch(model())
    assert "error" not in record
    assert hub.asked("http://hub.invalid/o/m/resolve/")


def test_names_that_lead_out_of_the_cache_are_refused(hub: FakeHub) -> None:
    name = "additional_chat_templates/../../../../../own.jinja"
    hub.repositories["o/m"] = Repository({**tiny_model(1000), name: b"out"})
    [record], _ = fetch(model())
    assert record["exit_code"] == 3 and "whose name or hash is none" in record["error"]
    assert not list(Path(os.environ["HOME"]).rglob("own.jinja"))


def test_the_built_in_model_comes_from_the_hub_where_that_answers(
    hub: FakeHub, tmp_path: Path
) -> None:
    files = {**tiny_model(1000), "LICENSE": b"Apache-2.0"}
    hub.repositories["HuggingFaceTB/SmolLM2-135M-Instruct"] = Repository(files)
    folder = tmp_path / "built"
    wanted = model("builtin", id="smollm2-135m-instruct", folder=str(folder))
    [record], _ = fetch(wanted)
    assert record["place"] == str(folder)
    assert (folder / LARGE).read_bytes() == files[LARGE]
    assert not (folder / LARGE).is_symlink()
    told = json.loads((folder / "runner-source.json").read_text())
    assert told["source"] == "hub" and told["commit"] in [
        r.commit for r in hub.repositories.values()
    ]


def test_a_full_disk_is_foreseen(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    from runner.fetch import fetched

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, fetched.SPARE_BYTES + 10))
    fetched.require_room("o/m", 10, Path("/tmp/a/b"))
    with pytest.raises(RefusedError, match="o/m takes 1 MiB more"):
        fetched.require_room("o/m", MIB, Path("/tmp/a/b"))
    fetched.require_room("o/m", 0, Path("/tmp/a/b"))


# ModelScope --------------------------------------------------------------------------------------


def test_a_model_from_modelscope_is_named_by_its_content(hub: FakeHub) -> None:
    pytest.importorskip("modelscope_hub")
    files = tiny_model(5000)
    hub.repositories["o/m"] = Repository(files)
    [record], _ = fetch(model("modelscope"))
    source = find_model("modelscope:o/m", beside=None, where="here")
    assert source.present and source.revision == record["revision"]
    assert record["revision"].startswith("master-")
    assert record["sha256"] == sha256(files[LARGE])
    place = Path(record["place"])
    assert not (place / "pytorch_model.bin").exists()
    hub.requests.clear()
    [again], _ = fetch(model("modelscope"))
    assert again["fetched_bytes"] == 0 and again["revision"] == record["revision"]
    (place / "config.json").write_bytes(b"cut")
    assert not find_model("modelscope:o/m", beside=None, where="here").present


def test_modelscope_without_its_client_says_what_to_install(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.fetch import modelscope

    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(RefusedError) as caught:
        modelscope.make_client()
    assert "pip install 'runner[modelscope]'" in (caught.value.hint or "")


def test_an_absent_repository_on_modelscope_is_said_to_be(hub: FakeHub) -> None:
    pytest.importorskip("modelscope_hub")
    [record], _ = fetch(model("modelscope", id="o/absent"))
    assert record["exit_code"] == 3
    assert "ModelScope" in record["error"] and "has no o/absent" in record["error"]
    assert "MODELSCOPE_API_TOKEN" in record["hint"]


# Rows --------------------------------------------------------------------------------------------


def read_parquet(path: str) -> list[dict[str, Any]]:
    from runner.data.read import read_rows

    return [row for _, row in read_rows(Path(path))]


@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_rows_become_one_file_with_a_record_and_only_their_split_comes(
    hub: FakeHub, source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "modelscope":
        pytest.importorskip("modelscope_hub")
    card = b"---\nlicense: mit\n---\nrows"
    files = {"README.md": card, "train.jsonl": jsonl(ROWS), "test.jsonl": jsonl(ROWS[:7])}
    hub.repositories["o/d"] = Repository(files, type="dataset")
    assert not fetched_rows(source, "o/d", None, None, "train").present
    [record], _ = fetch(rows(source))
    assert read_parquet(record["place"]) == ROWS
    found = fetched_rows(source, "o/d", None, None, "train")
    assert found.present and found.sha256 == record["sha256"] == file_sha256(Path(record["place"]))
    assert found.revision == record["revision"] and record["rows"] == 50
    if source == "hub":
        assert record["revision"] == hub.repositories["o/d"].commit
        assert not hub.asked("test.jsonl")
    written = json.loads(Path(record["place"]).with_suffix(".json").read_text())
    assert [f["path"] for f in written["files"] if "train" in f["path"]] == ["train.jsonl"]
    assert not list(Path(record["place"]).parent.glob("*.making"))
    # the same rows give the same file, so that plans of two machines have one hash
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "other"))
    [other], _ = fetch(rows(source))
    assert (other["place"], other["sha256"]) != (record["place"], "")
    assert other["sha256"] == record["sha256"]


def test_configurations_and_shards_are_taken_as_the_card_says(hub: FakeHub) -> None:
    import io

    import pyarrow
    import pyarrow.parquet

    def parquet(part: list[dict[str, str]]) -> bytes:
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), buffer)
        return buffer.getvalue()

    card = b"""---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train-*.parquet}
  - {split: validation, path: small/validation-*.parquet}
- config_name: large
  data_files: large/*.parquet
---
"""
    hub.repositories["o/d"] = Repository(
        {
            "README.md": card,
            "small/train-0.parquet": parquet(ROWS[:20]),
            "small/train-1.parquet": parquet(ROWS[20:]),
            "small/validation-0.parquet": parquet(ROWS[:3]),
            "large/x.parquet": parquet(ROWS),
        },
        type="dataset",
    )
    hub.drop_after["small/train-1.parquet"] = [100]
    [train, slice_, without, wrong, absent], _ = fetch(
        rows(name="small"),
        rows(name="small", split="validation[:2]"),
        rows(),
        rows(name="medium"),
        rows(name="small", split="test"),
    )
    assert read_parquet(train["place"]) == ROWS
    assert read_parquet(slice_["place"]) == ROWS[:2]
    assert "small" in without["error"] and "data.hub.name" in without["hint"]
    assert "medium" in wrong["error"] and "large" in wrong["error"]
    assert "has no split 'test'; it has train, validation" in absent["error"]
    assert len([r for r in hub.asked("/cdn/") if r.range]) == 1  # the shard that broke


def test_a_data_set_that_a_script_makes_is_refused(hub: FakeHub) -> None:
    hub.repositories["o/d"] = Repository(
        {"README.md": b"rows", "d.py": b"raise SystemExit('it ran')"}, type="dataset"
    )
    [record], told = fetch(rows())
    assert "made by a script of its own, which is not run here" in record["error"]
    assert "it ran" not in told
    assert "refs/convert/parquet" in record["hint"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"README.md": b"nothing"}, "can't be read"),
        ({"train.jsonl": b'{"a": 1}\n{"a": broken'}, "can't be read"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(
    hub: FakeHub, files: dict[str, bytes], words: str
) -> None:
    hub.repositories["o/d"] = Repository(files, type="dataset")
    [record], _ = fetch(rows())
    assert record["exit_code"] == 3 and words in record["error"], record


def test_gated_rows_are_told_from_absent_ones(hub: FakeHub) -> None:
    hub.repositories["o/d"] = Repository(
        {"train.jsonl": jsonl(ROWS)}, type="dataset", access="gated"
    )
    [gated, absent], _ = fetch(rows(), rows(id="o/absent"))
    assert "is gated" in gated["error"] and "/datasets/o/d" in gated["hint"]
    assert "has no o/absent" in absent["error"]


def test_wrong_content_of_rows_is_refused(hub: FakeHub) -> None:
    hub.repositories["o/d"] = Repository({"train.jsonl": jsonl(ROWS)}, type="dataset")
    hub.corrupt.add("train.jsonl")
    [record], _ = fetch(rows())
    assert "another content" in record["error"]
    assert not fetched_rows("hub", "o/d", None, None, "train").present


# The pure parts ----------------------------------------------------------------------------------


def listed(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 1, None) for path in paths]


def test_only_what_transformers_reads_is_needed() -> None:
    files = listed(
        "config.json",
        "chat_template.jinja",
        "tokenizer.model",
        "merges.txt",
        "additional_chat_templates/tool.jinja",
        "own.py",
        "sub/own.py",
        "README.md",
        "training_args.bin",
        "runs/x.json",
        "model.safetensors",
    )
    assert [file.path for file in needed(files, code=False)] == [
        "config.json",
        "chat_template.jinja",
        "tokenizer.model",
        "merges.txt",
        "additional_chat_templates/tool.jinja",
    ]
    assert {"own.py", "sub/own.py"} <= {file.path for file in needed(files, code=True)}


@pytest.mark.parametrize(
    ("paths", "index", "expected"),
    [
        (["model.safetensors", "a.safetensors"], None, ["model.safetensors"]),
        (["a.safetensors", "b.safetensors"], {"weight_map": {"x": "b.safetensors"}}, None),
        (["a.safetensors", "adapter_model.safetensors"], None, ["a.safetensors"]),
        (["w.fp16.safetensors", "w.safetensors"], None, ["w.safetensors"]),
        (["sub/model.safetensors", "model.safetensors"], None, ["model.safetensors"]),
    ],
)
def test_weights_are_those_that_transformers_reads(
    paths: list[str], index: dict[str, Any] | None, expected: list[str] | None
) -> None:
    found = [file.path for file in weights(listed(*paths), index, "o/m")]
    assert found == (expected or ["b.safetensors"])


@pytest.mark.parametrize(
    ("paths", "index", "words"),
    [
        (["model.gguf"], None, "model.gguf, which is not trained here"),
        (["flax_model.msgpack"], None, "which is not trained here"),
        (["adapter_model.safetensors"], None, "holds no weights"),
        (["README.md"], None, "holds no weights"),
        (["a.safetensors"], {"weight_map": {"x": "b.safetensors"}}, "names b.safetensors"),
    ],
)
def test_repositories_without_safetensors_are_refused(
    paths: list[str], index: dict[str, Any] | None, words: str
) -> None:
    with pytest.raises(RefusedError, match=words):
        weights(listed(*paths), index, "o/m")


def test_data_files_follow_the_card() -> None:
    files = listed("README.md", "a/x.parquet", "b/y.parquet", "dataset_infos.json", ".git/z.json")
    assert [f.path for f in data_files(files, {}, None)] == ["a/x.parquet", "b/y.parquet"]
    card = {
        "configs": [
            {"config_name": "a", "data_files": "a/*"},
            {"config_name": "b", "default": True, "data_files": [{"split": "s", "path": "b/*"}]},
        ]
    }
    assert [f.path for f in data_files(files, card, "a")] == ["a/x.parquet"]
    assert [f.path for f in data_files(files, card, None)] == ["b/y.parquet"]
    assert [f.path for f in data_files(files, {"configs": "x"}, "a")][:1] == ["a/x.parquet"]


def test_progress_says_rate_and_time_left() -> None:
    progress = FileProgress("w.safetensors", 100 * MIB, had_bytes=20 * MIB, quiet=True)
    progress.update(20 * MIB)
    assert progress.line(2.0) == "  w.safetensors  40 MiB of 100 MiB · 10 MiB/s · 0:06 left"
    progress.update(-40 * MIB)
    assert progress.line(0.0) == "  w.safetensors  0 B of 100 MiB"


def test_addresses_in_errors_lose_what_is_signed() -> None:
    text = said(RuntimeError("403 for https://cdn/x?Signature=abc&Key=1\nmore"))
    assert text == "403 for https://cdn/x"
    assert said(OSError("no route to http://me:secret@hub/o")) == "no route to http://hub/o"
