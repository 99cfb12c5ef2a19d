"""`runner fetch` for the MGM toolkit, from servers and a git repository on this machine."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest

from runner.common.errors import RefusedError
from runner.engines.load import load_job
from runner.engines.mgm.fetch import archive as mgm_archive
from runner.engines.mgm.fetch.address import address
from runner.engines.mgm.fetch.download import ContentError
from runner.engines.mgm.fetch.rows import count_rows, missing_images
from runner.engines.mgm.job import MgmJob
from runner.engines.mgm.resolve import absent, make_mgm_plan, placed
from runner.engines.mgm.sources import SOURCES, MgmSource
from runner.launch import fetch_mgm
from runner.machine.doctor import hub as doctor_hub
from tests.support.command import Answer
from tests.testbed.hub import RIGHT_TOKEN, FakeHub, Repository, serve, surroundings

pytest.importorskip("huggingface_hub")
Cli = Callable[..., Answer]
Fetching = subprocess.Popen[str]
JOB = "mgm-10k-lora"
PATH = "/dj-competition/better_synth/data/stage_1/"
MIB = 1024 * 1024
TAR, CAPTIONS = "pretrain_stage_1_10k.tar.gz", "mgm_pretrain_stage_1_10k.jsonl"
IMAGES = [f"images/{number:05}/{number}.jpg" for number in range(6)]


# What is served -----------------------------------------------------------------------------------


@dataclass
class DataServer:
    """A plain file server with ranges, and faults to order."""

    files: dict[str, bytes] = field(default_factory=dict)
    bytes_per_second: float | None = None
    hold_at: int | None = None
    """It sends so many bytes of a file and no more, until this is None."""
    etags: bool = True
    md5: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, file, Range."""
    authorized: list[str] = field(default_factory=list)
    url: str = ""

    def gets(self, name: str) -> list[str | None]:
        return [said for method, file, said in self.asked if (method, file) == ("GET", name)]


@contextlib.contextmanager
def serving(state: DataServer) -> Iterator[DataServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            name = self.path.removeprefix(PATH)
            said = self.headers.get("Range")
            state.asked.append((self.command, name, said))
            if "Authorization" in self.headers:
                state.authorized.append(name)
            content = state.files.get(name)
            if content is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            etag = f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'
            start = int(said.removeprefix("bytes=").rstrip("-")) if said else 0
            if self.headers.get("If-Range") not in (None, etag):
                start = 0
            if said and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if start else 200)
            if start:
                whole = len(content)
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            if state.etags:
                self.send_header("ETag", etag)
            if name in state.md5:
                self.send_header("Content-MD5", base64.b64encode(state.md5[name]).decode())
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if self.command == "HEAD":
                return None
            with contextlib.suppress(ConnectionError):
                for at in range(start, len(content), 65536):
                    while state.hold_at is not None and at >= state.hold_at:
                        time.sleep(0.02)
                    self.wfile.write(content[at : at + 65536])
                    if state.bytes_per_second:
                        time.sleep(65536 / state.bytes_per_second)
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def member(name: str, content: bytes = b"a picture", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    content = content if info.isfile() else b""
    info.size = len(content)
    return info, content


def tar_gz(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def images(top: str, *more: tuple[tarfile.TarInfo, bytes], noise: int = 0) -> bytes:
    pictures = [member(f"{top}/{name}", os.urandom(noise) or b"a picture") for name in IMAGES]
    return tar_gz(member(f"{top}/images", type=tarfile.DIRTYPE, mode=0o755), *pictures, *more)


def captions(count: int = 6) -> bytes:
    rows = [
        {"id": str(n), "text": "<__dj__image>\nx <|__dj__eoc|>", "images": [IMAGES[n % 6]]}
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def instructions(count: int = 4) -> bytes:
    turns = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "!"}]
    rows = [{"id": str(n), "image": IMAGES[n], "conversations": turns} for n in range(count - 1)]
    return json.dumps([*rows, {"id": "of text alone", "conversations": turns}]).encode()


def everything() -> dict[str, bytes]:
    return {
        TAR: images("pretrain_stage_1_10k"),
        CAPTIONS: captions(),
        "stage_1.json": instructions(),
        "finetuning_stage_1_12k.tar.gz": images("finetuning_stage_1_12k"),
        "mgm_instruction_stage_1_12k.json": instructions(),
        "eval_stage_1.tar.gz": tar_gz(
            member("eval_stage_1/textvqa/llava_textvqa_val_v051_ocr.jsonl"),
            member("eval_stage_1/textvqa/train_images/a.jpg"),
            member("eval_stage_1/mmbench/mmbench_dev_20230712.tsv"),
        ),
    }


def weights() -> dict[str, Repository]:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    gemma = dict.fromkeys(next(s for s in SOURCES if s.name == "Gemma-2B-it").files, b"{}") | {
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": shards[0], "b": shards[1]}}
        ).encode(),
        shards[0]: os.urandom(200_000),
        shards[1]: os.urandom(100_000),
        "gemma-2b-it.gguf": b"never",
    }
    clip = {
        "config.json": b"{}",
        "preprocessor_config.json": b"{}",
        "pytorch_model.bin": os.urandom(1000),
    }
    aux = {"open_clip_config.json": b"{}", "open_clip_pytorch_model.bin": os.urandom(1000)}
    return {
        "google/gemma-2b-it": Repository(gemma, access="gated"),
        "openai/clip-vit-large-patch14-336": Repository(clip),
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup": Repository(aux),
    }


@pytest.fixture(scope="session")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bare repository with two commits, hooks and filters that must not run; the first's name."""
    work = tmp_path_factory.mktemp("toolkit") / "MGM"
    files = {
        "mgm/train/train.py": "raise SystemExit('never')\n",
        "mgm/model/builder.py": "pass\r\n",
        ".gitattributes": "* text eol=lf filter=evil\n",
    }
    for name, text in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(text.encode())

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.attributesFile=/dev/null"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=work, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    (work / ".git" / "info" / "attributes").write_text("* -text -filter\n")
    git("add", ".")
    git("commit", "-q", "-m", "the pin")
    pin = git("rev-parse", "HEAD")
    (work / "later").write_text("x")
    git("add", ".")
    git("commit", "-q", "-m", "later")
    bare = work.parent / "bare.git"
    subprocess.run(["git", "clone", "-q", "--bare", work, bare], check=True)
    return bare, pin


@dataclass
class World:
    """All that a job could be fetched from, and the cache that it goes to."""

    hub: FakeHub
    data: DataServer
    base: Path
    table: tuple[MgmSource, ...]


@pytest.fixture
def world(
    tmp_path: Path, cli: Cli, toolkit: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    bare, pin = toolkit
    counts = {"pretraining captions": 6, "finetuning instructions": 4}
    table = tuple(
        replace(
            source,
            revision=pin if source.kind == "git" else source.revision,
            rows=counts.get(source.name),
        )
        for source in SOURCES
    )
    with serve(FakeHub(weights())) as hub, serving(DataServer(everything())) as data:
        for name, value in surroundings(hub, tmp_path).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_TOKEN", RIGHT_TOKEN)
        monkeypatch.setenv("MGM_DATA_ENDPOINT", data.url)
        monkeypatch.setenv("MGM_REPOSITORY", str(bare))
        monkeypatch.setattr(fetch_mgm, "SOURCES", table)
        monkeypatch.setattr(doctor_hub, "HUB_SECONDS", 600.0)  # a busy machine takes more than 5
        yield World(hub, data, tmp_path / "cache" / "mgm", table)


def items(answer: Answer) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in json.loads(answer.out)["items"]}


def start(world: World, *names: str, told: int | IO[str] = subprocess.PIPE) -> Fetching:
    """The process that fetches, by itself; `told` takes what it says of its progress."""
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.engines.mgm.fetch.__main__"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=told,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    table = [asdict(source) for source in world.table]
    asked = {"quiet": False, "base": str(world.base), "wanted": names, "table": table}
    process.stdin.write(json.dumps(asked))
    process.stdin.close()
    process.stdin = None
    return process


def fetch(world: World, *names: str) -> tuple[list[dict[str, Any]], str]:
    out, err = start(world, *names).communicate(timeout=600)
    assert "Traceback" not in err, err
    return [json.loads(line) for line in out.splitlines()], err


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def leftovers(base: Path) -> list[str]:
    """What a fetch should have cleared away."""
    return [p.name for p in base.rglob("*") if ".making-" in p.name or "incomplete" in p.name]


# The whole ----------------------------------------------------------------------------------------


def test_all_of_it_is_fetched_verified_and_where_the_job_looks(
    cli: Cli, world: World, toolkit: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = cli("fetch", JOB)
    assert answer.code == 0, answer
    lines = answer.out.splitlines()
    assert lines[0].split() == ["WHAT", "SOURCE", "REVISION", "SIZE", "SHA256", "STATE", "WHERE"]
    assert sum(" fetched in " in line for line in lines) == len(SOURCES)
    assert toolkit[1][:7] in lines[1]
    assert "unproven" in answer.out and "who wrote the files can't be verified" in answer.out
    assert RIGHT_TOKEN not in answer.out + answer.err and not world.data.authorized
    assert leftovers(world.base) == []
    assert not (world.base / ".downloads" / TAR).exists()

    loaded = load_job(JOB, [])
    assert isinstance(loaded.job, MgmJob)
    settings = placed(loaded.job, loaded, world.base.parent)
    gemma = Path(settings.model_name_or_path)
    assert gemma == world.base / "model_zoo/LLM/gemma/gemma-2b-it" and gemma.resolve() == gemma
    assert not (gemma / "gemma-2b-it.gguf").exists()
    assert (Path(settings.toolkit) / "mgm/model/builder.py").read_bytes() == b"pass\r\n"
    assert Path(settings.infer.mmbench or "").is_file()
    rows = Path(settings.pretrain.data_path)
    assert all((rows.parent / name).is_file() for name in IMAGES)

    world.hub.requests.clear()
    world.data.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = cli("fetch", JOB, "--json")
    assert again.code == 0 and json.loads(again.out)["ok"]
    assert {item["state"] for item in items(again).values()} == {"here"}
    assert not world.hub.requests and not world.data.asked


def test_json_says_what_was_verified_and_what_can_not_be(
    cli: Cli, world: World, toolkit: tuple[Path, str], capfd: pytest.CaptureFixture[str]
) -> None:
    answer = cli("fetch", JOB, "--json")
    assert answer.code == 0 and capfd.readouterr().err == ""
    told = items(answer)
    assert told["MGM toolkit"]["authenticated"] and toolkit[1] in told["MGM toolkit"]["verified"][0]
    captions_ = told["pretraining captions"]
    assert captions_["authenticated"] is False
    assert captions_["sha256"] == hashlib.sha256(world.data.files[CAPTIONS]).hexdigest()
    assert captions_["rows"] == 6 and "6 rows" in captions_["verified"][-1]
    pictures = told["pretraining images"]
    assert pictures["sha256"] == hashlib.sha256(world.data.files[TAR]).hexdigest()
    assert "has all 6 images that pretraining captions name" in pictures["verified"]
    assert "git's hash of its small ones (2)" in told["CLIP ViT-L/14-336"]["verified"][0]
    # the local mirror is plain http, as no hub is
    assert told["Gemma-2B-it"]["authenticated"] is False
    record = json.loads((world.base / "MGM" / "runner-source.json").read_text())
    assert record["revision"] == toolkit[1]


def test_the_plan_of_the_job_finds_all_that_was_fetched(cli: Cli, world: World) -> None:
    from runner.plans.facts import gather_host

    loaded = load_job(JOB, [])
    assert len(absent(make_mgm_plan(loaded, gather_host(loaded.job)).mgm)) == 6
    assert cli("fetch", JOB).code == 0
    assert absent(make_mgm_plan(loaded, gather_host(loaded.job)).mgm) == []


def test_what_the_user_has_is_used_and_not_fetched(cli: Cli, world: World, tmp_path: Path) -> None:
    own = tmp_path / "own-gemma"
    own.mkdir()
    sets = ["--set", f"model_name_or_path={own}", "--set", "pretrain.questions=null"]
    answer = cli("fetch", JOB, "--json", *sets)
    assert answer.code == 0, answer
    told = items(answer)
    assert told["Gemma-2B-it"]["source"] == "your own" and told["Gemma-2B-it"]["verified"] == []
    assert "pretraining questions" not in told
    assert not world.hub.asked("gemma")


def test_a_path_that_no_one_can_fetch_is_a_wrong_job(cli: Cli, world: World) -> None:
    answer = cli("fetch", JOB, "--set", "vision_tower=/no/openai/clip")
    assert answer.code == 2
    assert "vision_tower" in answer.err and "mgm/model_zoo/OpenAI/clip" in answer.err


# The network --------------------------------------------------------------------------------------


def test_offline_names_all_that_is_lacking(
    cli: Cli, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answer = cli("fetch", JOB)
    assert answer.code == 3 and not world.data.asked and not world.hub.requests
    assert "MGM toolkit, Gemma-2B-it" in answer.err
    assert "HF_HUB_OFFLINE=1 forbids the network" in answer.err


def test_hosts_out_of_reach_are_refused_at_once_and_the_others_serve(
    cli: Cli, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MGM_DATA_ENDPOINT", "http://user:secret@127.0.0.1:9")
    began = time.monotonic()
    answer = cli("fetch", JOB)
    assert answer.code == 3 and time.monotonic() - began < 300
    assert "1 of 10 are here" in answer.out
    assert "MGM_DATA_ENDPOINT names a mirror" in answer.err and "HF_ENDPOINT" in answer.err
    assert "secret" not in answer.out + answer.err
    assert answer.err.count("127.0.0.1:9 can't be reached") == 3  # each host once, and the note
    assert "note: TextVQA and MMBench, which is optional" in answer.err


def test_a_closed_hub_says_which_licence_and_which_variable(
    cli: Cli, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in (None, "hf_wrong"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        else:
            monkeypatch.delenv("HF_TOKEN")
        answer = cli("fetch", JOB)
        assert answer.code == 3 and "9 of 10 are here" in answer.out
        assert "https://huggingface.co/google/gemma-2b-it" in answer.err
        assert "HF_TOKEN" in answer.err and "Gemma terms of use" in answer.err
        assert "hf_wrong" not in answer.out + answer.err


def test_an_absent_benchmark_is_told_and_no_error(
    cli: Cli, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    del world.data.files["eval_stage_1.tar.gz"]
    answer = cli("fetch", JOB)
    assert answer.code == 0, answer
    assert "optional, absent" in answer.out and "HTTP 404" in answer.err
    assert "9 of 10 are here" in answer.out
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = cli("fetch", JOB, "--json")
    assert offline.code == 0 and json.loads(offline.out)["ok"]
    assert "HF_HUB_OFFLINE=1 forbids the network" in offline.err


def test_addresses_of_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = next(source for source in SOURCES if source.kind == "file")
    assert address(rows) == rows.where
    monkeypatch.setenv("MGM_DATA_ENDPOINT", "https://mirror/x/")
    assert address(rows) == f"https://mirror/x{PATH}{CAPTIONS}"
    for wrong in ("ftp://mirror", "mirror", "http://"):
        monkeypatch.setenv("MGM_DATA_ENDPOINT", wrong)
        with pytest.raises(RefusedError, match="MGM_DATA_ENDPOINT"):
            address(rows)
    for wrong in ("--upload-pack=evil", "ext::sh -c evil"):
        monkeypatch.setenv("MGM_REPOSITORY", wrong)
        with pytest.raises(RefusedError, match="MGM_REPOSITORY"):
            address(SOURCES[0])


# Breaks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_download_that_was_ended_goes_on_where_it_was(world: World, end: signal.Signals) -> None:
    world.data.files[TAR] = images("pretrain_stage_1_10k", noise=MIB)
    world.data.hold_at = 2 * MIB
    partial = world.base / ".downloads" / f"{TAR}.runner.incomplete"
    process = start(world, "pretraining images")
    wait_for(lambda: size(partial) > MIB)
    process.send_signal(end)
    _, told = process.communicate(timeout=600)
    if end == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in told
    had = size(partial)
    world.data.hold_at = None
    world.data.asked.clear()
    [record], _ = fetch(world, "pretraining images")
    assert world.data.gets(TAR) == [f"bytes={had}-"]
    assert record["sha256"] == hashlib.sha256(world.data.files[TAR]).hexdigest()
    assert record["fetched_bytes"] == len(world.data.files[TAR]) - had
    assert leftovers(world.base) == []


def test_a_kill_while_unpacking_leaves_no_half_folder_and_no_second_download(world: World) -> None:
    world.data.files[TAR] = images("pretrain_stage_1_10k", noise=20 * MIB)
    target = world.base / "data/pretrain_stage_1_10k"
    process = start(world, "pretraining images")
    wait_for(lambda: any(target.parent.glob(".*.making-*/*/*")))
    process.kill()
    process.communicate()
    assert not target.exists() and leftovers(world.base)
    world.data.asked.clear()
    [record], _ = fetch(world, "pretraining images")
    assert record["file_count"] == 6 and world.data.gets(TAR) == []
    assert leftovers(world.base) == []


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changed_meanwhile_is_not_stitched_together(world: World, etags: bool) -> None:
    world.data.etags = etags
    place = world.base / ".downloads" / CAPTIONS
    place.parent.mkdir(parents=True)
    world.data.files[CAPTIONS] = captions() + b"\n" * 300_000
    world.data.bytes_per_second = 100_000
    process = start(world, "pretraining captions")
    partial = place.with_name(f"{CAPTIONS}.runner.incomplete")
    wait_for(lambda: size(partial) > 1000)
    process.kill()
    process.communicate()
    world.data.bytes_per_second = None
    length = len(world.data.files[CAPTIONS])
    new = captions().replace(b"x ", b"y ")
    world.data.files[CAPTIONS] = new + b"\n" * (length - len(new))  # as long as before
    [record], _ = fetch(world, "pretraining captions")
    if etags:
        assert record["sha256"] == hashlib.sha256(world.data.files[CAPTIONS]).hexdigest()
    else:  # nothing tells them apart but the content, which parses: no more is claimed
        assert record["authenticated"] is False


def test_what_is_wrong_after_a_resume_is_fetched_whole_once_more(world: World) -> None:
    world.data.files[CAPTIONS] = captions() + b"\n" * 300_000
    world.data.bytes_per_second = 100_000
    partial = world.base / ".downloads" / f"{CAPTIONS}.runner.incomplete"
    process = start(world, "pretraining captions")
    wait_for(lambda: size(partial) > 1000)
    process.kill()
    process.communicate()
    world.data.bytes_per_second = None
    partial.write_bytes(b"{" + partial.read_bytes()[1:].replace(b'"id"', b'"no"'))
    [record], told = fetch(world, "pretraining captions")
    assert record["rows"] == 6 and "is dropped, and it is fetched whole" in told


def test_the_real_rows_of_the_challenge_are_read(shared: Path) -> None:
    folder = shared / "data" / "mgm_200"
    for name in ("data.jsonl", "data.llava.json"):
        assert count_rows(folder / name, 200) == 200
        assert missing_images(folder / name, folder) == (200, [])
        with pytest.raises(ContentError, match="200 rows for 201"):
            count_rows(folder / name, 201)


# Content ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (captions(5), "5 rows for 6"),
        (captions() + b"{", "does not parse"),
        (b"<html>log in first</html>", "does not parse"),
        (captions().replace(b"x", b"\xff", 1), "does not parse"),
        (b"", "rows for 6"),
    ],
)
def test_rows_that_are_not_the_ones_are_refused(world: World, content: bytes, reason: str) -> None:
    world.data.files[CAPTIONS] = content
    [record], _ = fetch(world, "pretraining captions")
    assert reason in record["error"] and record["exit_code"] == 3
    assert not (world.base / "data/pretrain_stage_1_10k" / CAPTIONS).exists()
    world.data.files[CAPTIONS] = captions()
    [record], _ = fetch(world, "pretraining captions")
    assert record["rows"] == 6


def test_a_truncated_json_array_is_refused(world: World) -> None:
    world.data.files["stage_1.json"] = instructions()[:-3]
    [record], _ = fetch(world, "pretraining questions")
    assert "does not parse" in record["error"]


def test_a_checksum_that_the_server_states_is_held_against_what_came(world: World) -> None:
    world.data.md5[CAPTIONS] = hashlib.md5(captions(), usedforsecurity=False).digest()
    [record], _ = fetch(world, "pretraining captions")
    assert any("MD5" in line for line in record["verified"])
    world.data.md5["stage_1.json"] = b"x" * 16
    [record], _ = fetch(world, "pretraining questions")
    assert "another MD5" in record["error"]


def test_a_hash_in_the_table_is_kept_to(world: World) -> None:
    wrong = tuple(
        replace(s, sha256="0" * 64) if s.name == "pretraining captions" else s for s in world.table
    )
    [record], _ = fetch(replace(world, table=wrong), "pretraining captions")
    assert "another content" in record["error"]


def test_images_that_rows_name_and_the_archive_lacks_are_told_each_time(
    cli: Cli, world: World
) -> None:
    world.data.files[CAPTIONS] = captions().replace(b"00002/2.jpg", b"00002/7.jpg")
    for _ in range(2):
        answer = cli("fetch", JOB)
        assert answer.code == 3
        assert "1 of 6 images that pretraining captions name are not in" in answer.err
        assert "images/00002/7.jpg" in answer.err
    assert len(world.data.gets(TAR)) == 1
    # rows that lead out of the folder name nothing, even where something is there
    outside = world.base / "data" / "x.jpg"
    outside.write_bytes(b"")
    rows = world.base / "data/pretrain_stage_1_10k" / CAPTIONS
    rows.unlink()
    rows.with_name(f"{CAPTIONS}.runner-source.json").unlink()
    world.data.files[CAPTIONS] = captions().replace(b"images/00002/2.jpg", b"../x.jpg")
    assert "../x.jpg" in cli("fetch", JOB).err


def test_rows_that_came_before_their_images_stay(cli: Cli, world: World) -> None:
    archive = world.data.files.pop(TAR)
    first = cli("fetch", JOB, "--json")
    assert first.code == 3 and items(first)["pretraining captions"]["state"] == "fetched"
    world.data.files[TAR] = archive
    second = cli("fetch", JOB, "--json")
    assert second.code == 0, second
    assert items(second)["pretraining captions"]["state"] == "here"
    assert items(second)["pretraining images"]["state"] == "fetched"


EVIL = {
    "parent": member("pretrain_stage_1_10k/../../evil"),
    "absolute": member("/tmp/runner-evil"),
    "symlink": member("pretrain_stage_1_10k/l", type=tarfile.SYMTYPE, linkname="../../../evil"),
    "inner symlink": member("pretrain_stage_1_10k/l", type=tarfile.SYMTYPE, linkname="images"),
    "hard link": member("pretrain_stage_1_10k/l", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device": member("pretrain_stage_1_10k/d", type=tarfile.CHRTYPE),
    "fifo": member("pretrain_stage_1_10k/p", type=tarfile.FIFOTYPE),
    "record": member("pretrain_stage_1_10k/x.jsonl.runner-source.json", b"{}"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_harmful_members_are_refused(world: World, kind: str) -> None:
    world.data.files[TAR] = images("pretrain_stage_1_10k", EVIL[kind])
    before = sorted(world.base.parent.parent.iterdir())
    [record], _ = fetch(world, "pretraining images")
    assert "its member" in record["error"] and record["exit_code"] == 3
    assert not (world.base / "data/pretrain_stage_1_10k").exists()
    assert not Path("/tmp/runner-evil").exists()
    kept = {path.name for path in world.base.rglob("*")} - {".downloads", "data", ".fetch.lock"}
    assert kept <= {".runner.lock"}
    assert {p.name for p in world.base.parent.parent.iterdir()} - {p.name for p in before} <= {
        "cache"
    }


def test_set_user_id_bits_do_not_come_along(world: World) -> None:
    tool = member("pretrain_stage_1_10k/images/tool", mode=0o6777)
    world.data.files[TAR] = images("pretrain_stage_1_10k", tool)
    fetch(world, "pretraining images")
    mode = (world.base / "data/pretrain_stage_1_10k/images/tool").stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH)


def _cut(content: bytes) -> bytes:
    return content[:-20]


def _without_end(content: bytes) -> bytes:
    import gzip

    plain = gzip.decompress(content)
    return gzip.compress(plain.rstrip(b"\0") + bytes(-len(plain.rstrip(b"\0")) % 512))


@pytest.mark.parametrize("break_", [_cut, _without_end, lambda c: c[: len(c) // 2], lambda c: b"x"])
def test_a_damaged_archive_is_refused_and_not_kept(
    world: World, break_: Callable[[bytes], bytes]
) -> None:
    good = world.data.files[TAR]
    world.data.files[TAR] = break_(good)
    [record], _ = fetch(world, "pretraining images")
    assert "damaged or cut short" in record["error"] or "tar's end" in record["error"]
    assert not (world.base / "data/pretrain_stage_1_10k").exists()
    assert not (world.base / ".downloads" / TAR).exists()
    world.data.files[TAR] = good
    [record], _ = fetch(world, "pretraining images")
    assert record["file_count"] == 6


def test_an_archive_of_something_else_says_what_is_in_it(world: World) -> None:
    world.data.files[TAR] = tar_gz(member("other/a.jpg"))
    [record], _ = fetch(world, "pretraining images")
    assert "no images in it, but other" in record["error"]


def test_an_archive_that_outgrows_the_disk_is_refused_before_it_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_gz(member("zeros", bytes(4 * MIB)), member("more", bytes(4 * MIB))))
    folder = tmp_path / "x" / "y" / "z"
    folder.mkdir(parents=True)
    room = mgm_archive.SPARE_BYTES + 5 * MIB
    usage = type("Usage", (), {"free": room})
    monkeypatch.setattr(mgm_archive.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RefusedError, match="unpacks to more than 5 MiB"):
        mgm_archive.unpack(archive, folder)
    assert not (folder / "more").exists()


def test_padding_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(gzip.decompress(tar_gz(member("a"))) + bytes(MIB)))
    monkeypatch.setattr(mgm_archive, "PADDING_BYTES", MIB // 2)
    (tmp_path / "to").mkdir()
    with pytest.raises(ContentError, match="follow the end"):
        mgm_archive.unpack(archive, tmp_path / "to")


def test_a_disk_with_too_little_room_is_refused_before_anything_comes(
    world: World, full_disk: Callable[[int], Path]
) -> None:
    disk = full_disk(8 * MIB)
    records, _ = fetch(replace(world, base=disk / "mgm"), "pretraining images", "Gemma-2B-it")
    for record in records:
        assert record["exit_code"] == 3 and "free" in record["error"], record
    assert not world.data.gets(TAR)


# Weights and toolkit ------------------------------------------------------------------------------


def test_damage_in_the_hubs_cache_is_found_and_mended(world: World) -> None:
    [first], _ = fetch(world, "CLIP ViT-L/14-336")
    target = world.base / "model_zoo/OpenAI/clip-vit-large-patch14-336"
    content = (target / "pytorch_model.bin").read_bytes()
    assert (target / "pytorch_model.bin").stat().st_nlink == 2  # no second copy on the disk
    (target / "runner-source.json").unlink()
    (target / "pytorch_model.bin").write_bytes(b"y" * 1000)  # and by the link the cache's
    [refused], _ = fetch(world, "CLIP ViT-L/14-336")
    assert "not from runner fetch" in refused["error"] and "--set vision_tower=" in refused["hint"]
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
    [record], told = fetch(world, "CLIP ViT-L/14-336")
    assert "is damaged" in told and record["sha256"] == first["sha256"]
    assert (target / "pytorch_model.bin").read_bytes() == content


ACROSS = """
import json, os, sys
from pathlib import Path
def refuse(*_): raise OSError(18, "Invalid cross-device link")
os.link = refuse
from runner.engines.mgm.fetch import hub as mgm_hub
from runner.engines.mgm.sources import MgmSource
source = MgmSource(**json.loads(sys.argv[1]))
record, _ = mgm_hub.fetch_hub(source, Path(sys.argv[2]), quiet=True, say=lambda _: None)
print(len(record["files"]))
"""


def test_another_disk_gets_copies(world: World) -> None:
    """In a process of its own: the hub's library reads its address when it is imported."""
    source = next(s for s in world.table if s.name == "OpenCLIP ConvNeXt-L")
    done = subprocess.run(
        [sys.executable, "-c", ACROSS, json.dumps(asdict(source)), str(world.base)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["2"]), done.stderr
    place = world.base / source.target / "open_clip_pytorch_model.bin"
    assert place.stat().st_nlink == 1


def test_content_that_the_hub_did_not_state_is_refused(world: World) -> None:
    world.hub.corrupt.add("pytorch_model.bin")
    [record], _ = fetch(world, "CLIP ViT-L/14-336")
    assert "another content than the hub states" in record["error"]
    assert not (world.base / "model_zoo/OpenAI/clip-vit-large-patch14-336").exists()


def test_a_repository_without_a_file_of_the_table_is_refused(world: World) -> None:
    del world.hub.repositories["openai/clip-vit-large-patch14-336"].files["pytorch_model.bin"]
    [record], _ = fetch(world, "CLIP ViT-L/14-336")
    assert "has no pytorch_model.bin" in record["error"]


def test_a_mirror_without_the_pinned_commit_is_refused(world: World) -> None:
    other = tuple(replace(s, revision="1" * 40) if s.kind == "git" else s for s in world.table)
    [record], _ = fetch(replace(world, table=other), "MGM toolkit")
    assert record["exit_code"] == 3 and "git fetch fails" in record["error"]
    assert "MGM_REPOSITORY" in record["hint"] and not (world.base / "MGM").exists()


def test_without_git_it_is_said(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    [record], _ = fetch(world, "MGM toolkit")
    assert "git, which is not on this machine" in record["error"]
    assert "--set toolkit=FOLDER" in record["hint"]


def test_hooks_filters_and_the_callers_repository_stay_out_of_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    script = tmp_path / "hooks" / "post-checkout"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\ntouch {mark}\n")
    script.chmod(0o755)
    (tmp_path / ".gitconfig").write_text(
        f"[core]\n\thooksPath = {script.parent}\n"
        f'[filter "evil"]\n\tsmudge = touch {mark}\n\tclean = touch {mark}\n\trequired = true\n'
    )
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    [record], _ = fetch(world, "MGM toolkit")
    assert "error" not in record, record
    assert not mark.exists()
    files = {path.name for path in (world.base / "MGM").iterdir()}
    assert files == {".git", ".gitattributes", "mgm", "runner-source.json"}


def test_a_new_pin_replaces_what_was_fetched_and_never_what_was_not(
    world: World, toolkit: tuple[Path, str]
) -> None:
    assert "error" not in fetch(world, "MGM toolkit")[0][0]
    later = subprocess.run(
        ["git", "-C", toolkit[0], "rev-parse", "main"], capture_output=True, text=True, check=True
    ).stdout.strip()
    moved = replace(
        world,
        table=tuple(replace(s, revision=later) if s.kind == "git" else s for s in world.table),
    )
    [record], _ = fetch(moved, "MGM toolkit")
    assert record["revision"] == later and (world.base / "MGM" / "later").is_file()
    (world.base / "MGM" / "runner-source.json").unlink()
    [record], _ = fetch(moved, "MGM toolkit")
    assert "not from runner fetch" in record["error"]
    assert (world.base / "MGM" / "later").is_file()


def test_two_fetches_take_turns(world: World, tmp_path: Path) -> None:
    world.data.hold_at = MIB
    world.data.files[TAR] = images("pretrain_stage_1_10k", noise=MIB // 2)
    told = [tmp_path / "told-1", tmp_path / "told-2"]
    with told[0].open("w") as one, told[1].open("w") as other:
        both = [start(world, "pretraining images", told=each) for each in (one, other)]
        wait_for(lambda: any("waiting for it" in each.read_text() for each in told))
        world.data.hold_at = None
        for process in both:
            process.communicate(timeout=600)
    assert all(process.returncode == 0 for process in both)
    assert len(world.data.gets(TAR)) == 1


def test_the_real_table_has_what_this_relies_on() -> None:
    names = [source.name for source in SOURCES]
    assert len(set(names)) == len(names)
    for source in SOURCES:
        if source.kind == "git":
            assert re.fullmatch("[0-9a-f]{40}", source.revision or "")
        if source.kind == "hub":
            assert source.files and set(source.expects) <= set(source.files)
        assert not source.target.startswith("/") and ".." not in source.target
