"""A bundle's author plants nothing: no program, no verdict, no way out, no memory without end."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.common import locks, staged_folder
from runner.common.errors import RefusedError, UsageError
from runner.engines.registry import ENGINES
from runner.provenance.bundle import bounded, unpack
from runner.provenance.bundle.index import Index, Member, Placed
from runner.provenance.manifest import read_manifest
from runner.runs.folder import RunFolder
from runner.runs.outcome import Reason
from tests.security.made_bundles import END, Made, as_earlier, bundled, lay, made_of, script_job
from tests.support.command import REPOSITORY, Answer
from tests.support.soaking import examples

MEMORY_BYTES = 400 << 20
START_BYTES = 100 << 20
"""What an interpreter with runner in it takes, generously."""
SPACE_BYTES = 1 << 30
_HEAD = '{"schema_version":1,"made_by":"r","run":"r","plan_hash":"p","manifest_sha256":"%s"' % (
    "b" * 64
)
_MEMBER = '{"path":"inputs/a","size_bytes":1,"sha256":"%s"}' % ("b" * 64)


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a script, and the bundle of it as base.tar."""
    place = tmp_path_factory.mktemp("laid")
    folder, _ = lay(place / "runs", script_job(place / "jobs"))
    made, _ = bundled(folder, ("data", "adapter"), place / "hashes")
    (place / "base.tar").write_bytes(made.archive())
    return place


@pytest.fixture
def made(laid: Path) -> Made:
    return made_of((laid / "base.tar").read_bytes())


def is_refused(cli: Callable[..., Answer], archive: bytes, place: Path) -> str:
    """What is said where a bundle is refused: exit 2, and nothing of it is left."""
    (place / "b.tar").write_bytes(archive)
    answer = cli("unbundle", "b.tar")
    assert answer.code == 2, answer
    assert not [path for path in place.rglob("*") if path.name not in ("b.tar", "cache")]
    return answer.err


PLANTED = (
    *("launch.py", "earlier/1/launch.sh", "attempts/x/launch.sh", "attempts/1/run.sh"),
    *("checkpoints/checkpoint-1/seal.json", "checkpoints/checkpoint-1/optimizer.pt"),
    *("origin.json", "supervisor.json", "queue.json", "container.id", ".lock", "bundle.json"),
    *("stages/merge.json", "engine/x.json", "engine/rank-x.json", "evaluations/1/plan.yaml"),
    *("merged/model.safetensors", "oom_snapshot.pickle", "index.json", "psutil.py"),
    *("logs/x.sh", "logs/a/train.log", "phases/a/launch.sh", "tensorboard/x", "wandb/settings"),
    *("inputs/other/train.sh", "inputs", "adapter", "mgm/plan.py/x", "mgm/x.sh", "data/x.json"),
    *("adapter/pytorch_model.bin", "model/weights.pt", "model/a/b.pickle", "model/W.PTH"),
    *("adapter/modeling_x.py", "model/tokenization_x.py", "training_dirs/m/x.py"),
    *("adapter/kernel.so", "model/x.sh", "model/__pycache__/x.pyc"),
)


@pytest.mark.parametrize("name", PLANTED)
def test_a_name_that_is_on_no_list_is_refused(
    name: str, made: Made, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    made.files[name] = b"touch canary\n"
    told = is_refused(cli, made.archive(), tmp_path)
    assert name in told


def test_what_earlier_bundles_hold_is_read_and_left_out(
    made: Made, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    earlier = as_earlier(made)
    known = sorted(earlier.files.keys() - made.files.keys())
    (tmp_path / "b.tar").write_bytes(earlier.archive())
    answer = cli("unbundle", "b.tar", "one")
    assert answer.code == 0, answer
    assert "left out   attempts/1/launch.sh" in answer.out and "no outcome of its own" in answer.out
    assert all(not os.path.lexists(tmp_path / "one" / name) for name in known)
    asked = json.loads(cli("unbundle", "b.tar", "two", "--json").out)
    assert asked["left_out"] == known and asked["files"] == len(made.files)
    # checked all the same
    archive = earlier.archive().replace(b"raise SystemExit", b"raise systemexit")
    (tmp_path / "b.tar").write_bytes(archive)
    assert "mgm/train.py is damaged" in cli("unbundle", "b.tar", "three").err
    assert not (tmp_path / "three").exists()


def test_a_new_bundle_holds_no_launch_script_and_no_verdict(
    laid: Path, made: Made, tmp_path: Path
) -> None:
    (run,) = (RunFolder(path) for path in (laid / "runs").glob("*/*"))
    assert run.launch_script.is_file()
    copy = RunFolder(tmp_path / "runs" / run.name)
    shutil.copytree(run.path, copy.path)
    copy.termination.write_text('{"reason": "completed"}')
    copy.engine_status(0).write_text("{}")
    copy.container.write_text("{}")
    again, _ = bundled(copy, ("data", "adapter"), tmp_path / "hashes")
    assert again.files.keys() == made.files.keys()
    assert {"manifest.json", "plan.yaml", "metrics.jsonl", "logs/train.log"} < made.files.keys()
    assert {"output/deep/result.txt", "inputs/inputs.0/rows.txt"} < made.files.keys()
    assert made.executable == set()


def test_every_command_does_without_them(
    made: Made, laid: Path, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "b.tar").write_bytes(made.archive())
    assert cli("unbundle", "b.tar").code == 0
    name = made.index["run"]
    report = cli("report", name)
    assert (
        "came in     a bundle, made by runner 0; its outcome is what the bundle says" in report.out
    )
    assert "completed   2 of 2 steps in 1:30 · loss 2.5 → 1.5 · peak 5.00 GiB" in report.out
    record = json.loads(cli("report", name, "--json").out)
    assert record["state"] == "completed" and record["termination"]["exit_code"] == 0
    assert record["damaged"] == [] and record["checkpoints"] == []
    (row,) = json.loads(cli("ps", "--all", "--json").out)["runs"]
    assert (row["state"], row["over"], row["loss"], row["step"]) == ("completed", True, 1.5, 2)
    assert cli("ps").out.startswith("no run lives")
    waited = cli("wait", name)
    assert waited.code == 0 and "all steps done" in waited.out
    assert cli("logs", name).out == "it trained\n"
    assert cli("stop", name).code == 3
    assert cli("monitor", name, "--json").code == 0  # it has ended: one look, and done
    (original,) = (laid / "runs").glob("*/*")
    same = cli("verify", name, str(original))
    assert same.code == 0 and same.out.startswith("identical"), same
    bundled_again = cli("bundle", name, "--with", "data", "-o", "again.tar")
    assert bundled_again.code == 0, bundled_again
    assert cli("unbundle", "again.tar", "again").code == 0
    assert cli("rm", name, "--yes").code == 0
    assert not list((tmp_path / "runs").glob("*/*"))


@pytest.mark.parametrize("reason", ["lost", "running", "queued", "gone", "by_hand", "not_started"])
def test_a_bundle_says_no_state_but_how_it_ended(
    reason: str, made: Made, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    manifest = json.loads(made.files["manifest.json"])
    manifest["results"]["reason"] = reason
    made.files["manifest.json"] = json.dumps(manifest).encode()
    (tmp_path / "b.tar").write_bytes(made.archive())
    assert cli("unbundle", "b.tar").code == 0
    (row,) = json.loads(cli("ps", "--all", "--json").out)["runs"]
    assert (row["state"], row["over"]) == ("not_started", True)
    told = cli("report", made.index["run"])
    assert "the bundle does not say how it ended" in told.out


def test_how_a_failed_run_ended_is_told(cli: Callable[..., Answer], tmp_path: Path) -> None:
    end = replace(END, reason=Reason.OVER_BUDGET, exit_code=75, message="it took too much")
    folder, _ = lay(tmp_path / "first", script_job(tmp_path / "jobs"), end)
    folder.advice.write_text(json.dumps({"schema_version": 1, "texts": ["a batch of 1: 2 GiB"]}))
    made, _ = bundled(folder, (), tmp_path / "hashes")
    (tmp_path / "b.tar").write_bytes(made.archive())
    assert cli("unbundle", "b.tar").code == 0
    told = cli("report", folder.name).out
    assert "over_budget" in told and "why         it took too much (exit code 75)" in told
    assert "would fit   a batch of 1: 2 GiB" in told
    assert cli("wait", folder.name).code == 75


def test_code_of_a_model_comes_where_the_manifest_lists_it(
    made: Made, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    made.index["places"] |= {"model": {"path": "inputs/model", "kind": "folder"}}
    code = "inputs/model/modeling_x.py"
    made.files |= {code: b"x = 1\n", "inputs/model/pytorch_model.bin": b"weights"}
    made.files |= {"model/modeling_x.py": b"x = 1\n", "model/model.safetensors": b"w"}
    assert "modeling_x.py is code" in is_refused(cli, made.archive(), tmp_path)
    manifest = json.loads(made.files["manifest.json"])
    listed = [
        {"what": f"model/{name}", "path": "/x", "kind": "file"}
        for name in ("modeling_x.py", "pytorch_model.bin")
    ]
    manifest["files"] += listed[:1]
    made.files["manifest.json"] = json.dumps(manifest).encode()
    assert "pytorch_model.bin is code" in is_refused(cli, made.archive(), tmp_path)
    manifest["files"] += listed[1:]
    made.files["manifest.json"] = json.dumps(manifest).encode()
    (tmp_path / "b.tar").write_bytes(made.archive())
    assert cli("unbundle", "b.tar", "run").code == 0
    assert (tmp_path / "run" / code).is_file()


def test_only_a_script_that_starts_itself_is_executable(
    made: Made, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    made.executable = set(made.files)
    (tmp_path / "b.tar").write_bytes(made.archive())
    assert cli("unbundle", "b.tar", "one").code == 0
    one = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert one and not any(path.stat().st_mode & 0o111 for path in one)  # bash runs train.sh
    folder, _ = lay(tmp_path / "first", script_job(tmp_path / "jobs", "train"))
    itself, _ = bundled(folder, (), tmp_path / "hashes")
    assert itself.executable == {"inputs/script/train"}
    itself.executable = set(itself.files)
    (tmp_path / "b.tar").write_bytes(itself.archive())
    assert cli("unbundle", "b.tar", "two").code == 0
    two = {path for path in (tmp_path / "two").rglob("*") if path.is_file()}
    assert {path.name for path in two if path.stat().st_mode & 0o111} == {"train"}


def test_the_folder_of_runs_is_no_place_for_a_bundle(
    made: Made, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    stamped = "inputs/20261125-183738-28d4593"
    made.index["places"]["inputs.0"] = {"path": stamped, "kind": "folder"}
    made.files[f"{stamped}/plan.yaml"] = made.files["plan.yaml"]
    told = is_refused(lambda *words: cli(*words, "runs"), made.archive(), tmp_path)
    assert "the folder that holds the runs" in told


def hostile_index(kind: str, share: int) -> str:
    """The worst of indexes, of just the size that is read, or of a share of that."""
    room = (bounded.MAX_BYTES - 400) // share
    whole = {
        "numbers for files": f'{_HEAD},"members":[{"0," * (room // 2)}0]}}',
        "empty files": f'{_HEAD},"members":[{"{}," * (room // 3)}{{}}]}}',
        "one empty file late": f'{_HEAD},"members":[{(_MEMBER + ",") * (room // 112)}{{}}]}}',
        "whole files, no hash": f'{_HEAD},"members":[{(_MEMBER + ",") * (room // 112)}{_MEMBER}]}}',
        "a file of lists": f'{_HEAD},"members":[{{"path":[{"[]," * (room // 3)}[]]}}]}}',
        "notes": f'{{"notes":[{"0," * (room // 2)}0]}}',
        "lacks": f'{{"lacks":[{"{}," * (bounded.MAX_HEAD_VALUES - 50)}{{}}]}}',
        "places": '{"places":{'
        + ",".join(f'"{n}":0' for n in range(bounded.MAX_HEAD_VALUES - 50))
        + "}}",
        "keys": "{" + ",".join(f'"{n:x}":1' for n in range(room // 12)) + "}",
        "lists": f"[{'[],' * (room // 3)}[]]",
        "depth": "[" * room,
        "a wide letter": f'{_HEAD},"notes":["\U0001f600"],"members":['
        + (_MEMBER + ",") * (room // 112)
        + f"{_MEMBER}]}}",
    }
    return whole[kind]


KINDS = (
    *("numbers for files", "empty files", "a file of lists", "notes", "lacks", "places", "keys"),
    *("lists", "depth", "one empty file late", "whole files, no hash", "a wide letter"),
)
WHOLE = examples(2, len(KINDS))
"""So many kinds come in the largest size too, which takes seconds each."""
OF_ONE_SIZE = ("lacks", "places")
"""As many as an index may have of them are no eighth of it in bytes."""


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        *((kind, 1 if kind in OF_ONE_SIZE else 8) for kind in KINDS),
        *((kind, 1) for kind in KINDS[:WHOLE]),
    ],
)
def test_a_hostile_index_takes_bounded_memory(kind: str, share: int, tmp_path: Path) -> None:
    archive = Made({}, {}).archive(hostile_index(kind, share).encode())
    (tmp_path / "b.tar").write_bytes(archive)
    answer, peak = unbundle_in_little_memory(tmp_path)
    assert answer.code == 2, answer
    assert "index.json" in answer.err and len(answer.err) < 2000
    most = START_BYTES + (MEMORY_BYTES - START_BYTES) // share
    assert peak < most, f"{peak >> 20} MiB"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar"]


def unbundle_in_little_memory(place: Path) -> tuple[Answer, int]:
    """`runner unbundle b.tar run` with 1 GiB of address space; and its largest resident set."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (SPACE_BYTES, SPACE_BYTES))

    code = (
        "import sys; from runner.cli import main\n"
        "try: main()\n"
        "finally:\n"
        " open(3, 'w').write(open('/proc/self/status').read())"
    )
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [
                "bash",
                "-c",
                f'exec "$0" -c "$1" unbundle b.tar run 3>&{writer}',
                sys.executable,
                code,
            ],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            preexec_fn=bound,
            pass_fds=[writer],
        )
    finally:
        os.close(writer)
    with os.fdopen(reader) as stream:
        peak = largest_of(stream.read())
    return Answer(done.returncode, done.stdout, done.stderr), peak


def largest_of(status: str) -> int:
    """VmHWM of /proc/PID/status in bytes; ru_maxrss has what was there before the exec, too."""
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def test_a_large_honest_index_opens(tmp_path: Path) -> None:
    share = examples(4, 1)
    place, count = "inputs/data.image_folder", 150_000 // share
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    members = [
        Member(path=f"{place}/GCC_train_{number:09d}.jpg", size_bytes=0, sha256=empty)
        for number in range(count)
    ]
    index = Index(
        made_by="runner 0",
        run="job/20261125-183738-28d4593",
        plan_hash="a" * 64,
        manifest_sha256="b" * 64,
        places={"data.image_folder": Placed(path=place, kind="folder")},
        members=members,
    ).sealed()
    content = index.content()
    assert 0.8 * bounded.MAX_BYTES < len(content) * share < bounded.MAX_BYTES
    (tmp_path / "index").write_bytes(content)
    code = (
        "from runner.provenance.bundle.index import parse\n"
        "with open('index', 'rb') as stream: content = stream.read()\n"
        "print(len(parse(content, 'b.tar').members))\n"
        "print(open('/proc/self/status').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    found, _, status = done.stdout.partition("\n")
    assert int(found) == count
    peak = largest_of(status)
    most = START_BYTES + (MEMORY_BYTES - START_BYTES) // share
    assert peak < most, f"{peak >> 20} MiB"


def test_the_index_says_the_same_as_before_byte_for_byte(made: Made) -> None:
    """It is written and hashed piece by piece, as json.dumps would as a whole."""
    index = Index.model_validate({**made.index, "notes": ["a\nb", "ü"]}).sealed()
    record = index.model_dump(mode="json")
    assert index.content() == (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
    digest = record.pop("index_sha256")
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_a_sweep_in_the_first_instant_takes_no_work(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a folder's making and its lock another's sweep deletes it, or holds it just then."""
    (tmp_path / "b.tar").write_bytes(made.archive())
    place = tmp_path / "place"
    place.mkdir()
    real, made_folders, held = Path.mkdir, [], []

    def make(folder: Path, *arguments: Any, **named: Any) -> None:
        real(folder, *arguments, **named)
        if folder.suffix != ".staging" or folder in made_folders:
            return  # of the files in it each has its parent made, if need be
        made_folders.append(folder)
        if len(made_folders) == 1:
            staged_folder.sweep(place)
            assert not os.path.lexists(folder)
        elif len(made_folders) == 2:
            held.append(locks.try_lock_folder(folder))  # a sweep that is about to delete it

    monkeypatch.setattr(Path, "mkdir", make)
    unpack.unpack(tmp_path / "b.tar", place / "run", lambda *_: staged_folder.sweep(place))
    held[0].release()
    assert len(made_folders) == 3
    run = read_manifest(place / "run" / "manifest.json")
    assert run.run == made.index["run"]


def test_a_sweep_between_opening_and_locking_takes_no_work(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that was locked is deleted already: its place is empty."""
    (tmp_path / "b.tar").write_bytes(made.archive())
    real, locked = locks.try_flock, []

    def lock(descriptor: int, *, shared: bool = False) -> bool:
        if not locked:
            locked.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            shutil.rmtree(locked[0])
        return real(descriptor, shared=shared)

    monkeypatch.setattr(locks, "try_flock", lock)
    sweep = staged_folder.sweep
    unpack.unpack(tmp_path / "b.tar", tmp_path / "run", lambda *_: sweep(tmp_path))
    assert locked[0].suffix == ".staging"
    assert (tmp_path / "run" / "manifest.json").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_a_sweep_leaves_another_user_s_folder(made: Made, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(made.archive())
    other = tmp_path / ".unbundling-other"
    other.mkdir()
    os.chown(other, 12345, 12345)
    unpack.unpack(tmp_path / "b.tar", tmp_path / "run", lambda *_: None)
    assert other.is_dir()


def test_an_empty_folder_that_appears_meanwhile_is_not_replaced(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last look and before the rename, which would take an empty folder's place."""
    (tmp_path / "b.tar").write_bytes(made.archive())
    target, real = tmp_path / "run", Path.exists

    def appear(*_: int) -> None:
        target.mkdir(exist_ok=True)

    monkeypatch.setattr(Path, "exists", lambda path: path != target and real(path))
    with pytest.raises(UsageError, match="is there already"):
        unpack.unpack(tmp_path / "b.tar", target, appear)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "run"]
    assert list(target.iterdir()) == []


SECRET = "the-private-key-of-this-user"  # noqa: S105


@pytest.fixture
def run(laid: Path, tmp_path: Path) -> RunFolder:
    """A run of this machine, in which a container could write, and files that it is not to have."""
    (source,) = (laid / "runs").glob("*/*")
    folder = RunFolder(tmp_path / "runs" / source.parent.name / source.name)
    shutil.copytree(source, folder.path)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_rsa").write_text(SECRET)
    (tmp_path / "private.txt").write_text(SECRET)
    return folder


def leaks(made: Made) -> list[str]:
    return [name for name, content in made.files.items() if SECRET.encode() in content]


@pytest.mark.parametrize("target", [".ssh/id_rsa", "private.txt"])
def test_a_link_in_a_result_takes_nothing_along(
    target: str, run: RunFolder, tmp_path: Path
) -> None:
    (run.output / "weights").symlink_to(tmp_path / target)
    (run.output / "same").symlink_to("deep/result.txt")
    (run.output / "deep" / "log").symlink_to(run.train_log)
    run.path.joinpath("projector.safetensors").symlink_to(tmp_path / target)
    run.row_hashes.symlink_to(tmp_path / ".ssh")
    made, index = bundled(run, ("adapter",), tmp_path / "hashes")
    assert leaks(made) == []
    assert made.files["output/same"] == b"1\n"  # within the result it is a file like another
    assert not {"output/weights", "output/deep/log", "projector.safetensors"} & made.files.keys()
    assert "output/weights is a link that leads out of output: it is left out" in index.notes


def test_a_result_or_a_log_folder_that_is_a_link_takes_nothing_along(
    run: RunFolder, tmp_path: Path
) -> None:
    shutil.rmtree(run.output)
    run.output.symlink_to(tmp_path / ".ssh")
    (tmp_path / ".ssh" / "train.log").write_text(SECRET)
    shutil.rmtree(run.logs)
    run.logs.symlink_to(tmp_path / ".ssh")
    with pytest.raises(RefusedError):
        bundled(run, ("adapter",), tmp_path / "hashes")
    made, _ = bundled(run, (), tmp_path / "hashes")
    assert leaks(made) == [] and "logs/train.log" not in made.files


def test_code_and_pickles_among_weights_stay_here(run: RunFolder, tmp_path: Path) -> None:
    record = json.loads(run.manifest.read_text())
    record["results"]["result"] = "adapter"
    run.manifest.write_text(json.dumps(record))
    run.adapter.mkdir()
    for name in ("adapter_model.safetensors", "evil.py", "evil.bin", "training_args.bin"):
        (run.adapter / name).write_text("x")
    made, index = bundled(run, ("adapter",), tmp_path / "hashes")
    assert [name for name in made.files if name.startswith("adapter/")] == [
        "adapter/adapter_model.safetensors"
    ]
    assert sum("it is left out" in note for note in index.notes) == 3


def test_links_in_an_input_are_taken_where_their_content_is_known(
    cli: Callable[..., Answer], tmp_path: Path
) -> None:
    job = script_job(tmp_path / "jobs")
    rows = tmp_path / "jobs" / "rows"
    rows.mkdir()
    (tmp_path / "blob").write_text("4.0\n")
    (rows / "a.txt").symlink_to(tmp_path / "blob")
    job.write_text(job.read_text().replace("[rows.txt]", "[rows]"))
    folder, _ = lay(tmp_path / "first", job)
    made, _ = bundled(folder, ("data",), tmp_path / "hashes")
    assert made.files["inputs/inputs.0/a.txt"] == b"4.0\n"
    # another target than the run read
    (rows / "a.txt").unlink()
    (tmp_path / "private.txt").write_text(SECRET)
    (rows / "a.txt").symlink_to(tmp_path / "private.txt")
    with pytest.raises(RefusedError, match="another file than the run read"):
        bundled(folder, ("data",), tmp_path / "hashes")
    # the run did not hash it: nobody knows what it led to then
    record = json.loads(folder.manifest.read_text())
    for each in record["files"]:
        if each["what"] == "inputs.0":
            each["sha256"] = None
    folder.manifest.write_text(json.dumps(record))
    with pytest.raises(
        RefusedError, match=r"is a link to .*private\.txt, and the run did not hash"
    ):
        bundled(folder, ("data",), tmp_path / "hashes")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known").write_text(SECRET)
    (rows / "a.txt").unlink()
    (rows / "a.txt").symlink_to(tmp_path / ".ssh" / "known")
    with pytest.raises(RefusedError, match="looks like a file of secrets"):
        bundled(folder, ("data",), tmp_path / "hashes")


def test_a_bundle_s_author_does_not_choose_what_a_bundle_of_it_holds(
    made: Made, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    """inputs.0 lies where the author says, unhashed: a file of whoever bundles it again."""
    (tmp_path / "private.txt").write_text(SECRET)
    manifest = json.loads(made.files["manifest.json"])
    manifest["plan"]["inputs"][0] |= {"path": str(tmp_path / "private.txt"), "sha256": None}
    plan = ENGINES["script"].plan_type.model_validate(manifest["plan"])
    manifest["plan_hash"], manifest["rendered"] = plan.hash, {}
    for each in manifest["files"]:
        if each["what"] == "inputs.0":
            each["sha256"] = None
    made.files["manifest.json"] = json.dumps(manifest).encode()
    made.files = {k: v for k, v in made.files.items() if not k.startswith("inputs/inputs.0")}
    del made.index["places"]["inputs.0"]
    (tmp_path / "b.tar").write_bytes(made.archive())
    assert cli("unbundle", "b.tar", "run").code == 0
    answer = cli("bundle", "run", "--with", "data", "-o", "again.tar")
    assert answer.code == 3 and "names without a hash" in answer.err, answer
    assert not (tmp_path / "again.tar").exists()


def test_ps_runs_no_program_that_a_record_names(
    run: RunFolder, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    """container.json of a lost run is how ps looked for its container."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/canary\n")
    program.chmod(0o755)
    run.supervisor.write_text(json.dumps({"pid": 2**22 + 5, "start_ticks": 1}))
    run.container.write_text(json.dumps({"argv": [str(program), "run"], "name": "x"}))
    answer = cli("ps", "--all")
    assert answer.code == 0 and "lost" in answer.out
    assert not (tmp_path / "canary").exists()


def test_an_index_beside_a_run_is_read_like_any_other(
    made: Made, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "b.tar").write_bytes(made.archive())
    assert cli("unbundle", "b.tar").code == 0
    (run,) = (tmp_path / "runs").glob("*/*")
    beside = RunFolder(run).bundle
    beside.unlink()
    os.mkfifo(beside)
    for command in (["ps", "--all"], ["report", "@last"], ["chat", "@last", "-p", "hi"]):
        assert "bug in runner" not in cli(*command).err
    beside.unlink()
    beside.symlink_to("/dev/zero")
    answer = cli("bundle", "@last", "-o", "x.tar")
    assert answer.code == 2 and "bundle.json can't be read" in answer.err
