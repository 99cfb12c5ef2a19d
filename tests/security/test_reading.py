"""Reading what others wrote: nothing is waited for, nothing is followed, nothing has no end."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.common import durable
from runner.common.tail import Tail
from runner.runs import checkpoints
from tests.security.hostile_runs import lay_hostile
from tests.support.command import Answer
from tests.support.soaking import examples


class Waited(BaseException):
    """No Exception: nothing in runner may take it for an error that it knows."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    def over(number: int, frame: object) -> None:
        raise Waited

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "no regular file"


def device(path: Path) -> str:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    except OSError:
        pytest.skip("only root makes devices")
    return "no regular file"


def link(path: Path) -> str:
    path.symlink_to("/etc/passwd")
    return "a link"


def loop(path: Path) -> str:
    path.symlink_to(path.name)
    return "a link"


def folder(path: Path) -> str:
    path.mkdir()
    return "a folder"


ODD = (pipe, device, link, loop, folder)


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_regular_file_is_refused_in_words(
    make: Callable[[Path], str], tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    kind = make(path)
    with pytest.raises(OSError, match=kind):
        durable.open_record(path)
    assert durable.read_json(path) is None
    assert list(durable.read_jsonl(path)) == []
    assert durable.last_jsonl(path) is None
    assert durable.read_word(path) == ""
    assert list(Tail(path).read()) == [] and list(Tail(path, newest_bytes=9).read()) == []


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000])
def test_a_name_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        durable.open_record(tmp_path / name)


def test_a_link_into_a_cache_of_links_is_followed_where_it_is_meant(tmp_path: Path) -> None:
    """The hub's cache is made of them."""
    (tmp_path / "blob").write_text("[1]")
    (tmp_path / "index.json").symlink_to("blob")
    assert durable.read_json(tmp_path / "index.json") is None
    assert durable.read_json(tmp_path / "index.json", follow_link=True) == [1]


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 100_000, '{"a":' * 65 + "1" + "}" * 65, "9" * 41, "-" + "9" * 10_000),
        *("[" + "0," * 1_000_001 + "0]", "NaN]", ""),
    ],
    ids=lambda one: f"{one[:6]}-{len(one)}",
)
def test_json_beyond_the_bounds_is_damaged(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        durable.parse_record(text)
    (tmp_path / "record.json").write_text(text)
    assert durable.read_json(tmp_path / "record.json") is None


def test_digits_in_a_text_are_no_figure() -> None:
    assert durable.parse_record(json.dumps({"sha": "9" * 64, "n": 10**39})) == {
        "sha": "9" * 64,
        "n": 10**39,
    }


def test_a_record_without_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"1")
    os.truncate(path, 1 << 43)
    began = time.process_time()
    assert durable.read_json(path) is None
    assert list(durable.read_jsonl(path)) == []
    assert durable.last_jsonl(path) is None
    assert list(Tail(path).read()) == []
    assert time.process_time() - began < 10


def test_a_line_without_end_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"n": 1}\n' + b"x" * (3 << 20) + b'\n{"n": 2}\n' + b"\xff\n[1]\n7\n{}\n")
    assert list(durable.read_jsonl(path)) == [{"n": 1}, {"n": 2}, {}]
    assert list(Tail(path).read()) == [{"n": 1}, {"n": 2}, {}]


def test_a_file_of_short_lines_ends_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"{}\n" * 1000)
    assert len(list(durable.read_jsonl(path, 100 * durable.SHORTEST_LINE_BYTES))) == 100


lines = st.lists(st.one_of(st.binary(max_size=30), st.just(b'{"n": 1}'), st.just(b'{"n": "\xff"}')))


@settings(max_examples=examples(200, 10_000), deadline=None)
@given(lines, st.lists(st.integers(1, 40), max_size=8))
def test_a_tail_gives_what_the_whole_file_gives(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], pieces: list[int]
) -> None:
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    whole = b"".join(one + b"\n" for one in content)
    tail, found, done = Tail(path), [], 0
    for size in [*pieces, len(whole)]:
        with path.open("ab") as stream:
            stream.write(whole[done : done + size])
        done += size
        found += list(tail.read())
    assert found == list(durable.read_jsonl(path))


def test_a_pipe_that_takes_a_files_place_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"n": 1}\n')
    tail = Tail(path)
    assert list(tail.read()) == [{"n": 1}]
    path.unlink()
    os.mkfifo(path)
    assert list(tail.read()) == []


def test_the_jobs_of_the_folder_one_stands_in(cli: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    for number, make in enumerate(ODD):
        make(tmp_path / "jobs" / f"odd{number}.yaml")
    endless = tmp_path / "jobs" / "endless.yaml"
    endless.touch()
    os.truncate(endless, 1 << 42)
    for command in (["jobs"], ["jobs", "--json"], ["show", "odd0"], ["show", "jobs/odd1.yaml"]):
        answer = cli(*command)
        assert answer.code in (0, 2) and "bug in runner" not in answer.err, answer
    answer = cli("check", "endless")
    assert answer.code == 2 and "is too long" in answer.err


# -- checkpoints


def sealed(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / checkpoints.SEAL).write_text(json.dumps({"files": files}))
    return folder


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret", "a/../../../etc/passwd"])
def test_a_seal_reads_nothing_outside(name: str, tmp_path: Path) -> None:
    facts = {"size_bytes": Path("/etc/passwd").stat().st_size, "sha256": "0"}
    wrong = checkpoints.damage(sealed(tmp_path / "checkpoint-1", {name: facts}))
    assert wrong is not None and "is not in it" in wrong


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("by_size", [True, False])
def test_a_checkpoint_of_pipes_and_links_is_damaged(
    make: Callable[[Path], str], by_size: bool, tmp_path: Path
) -> None:
    place = sealed(tmp_path / "checkpoint-1", {"weights": {"size_bytes": 0, "sha256": "0"}})
    kind = make(place / "weights")
    wrong = checkpoints.damage(place, by_size=by_size)
    assert wrong is not None and kind in wrong


def test_a_checkpoint_that_is_a_hole_is_not_hashed_for_days(tmp_path: Path) -> None:
    facts = {"size_bytes": 1 << 42, "sha256": "0"}
    place = sealed(tmp_path / "checkpoint-1", {"weights": facts})
    (place / "weights").touch()
    os.truncate(place / "weights", 1 << 42)
    wrong = checkpoints.damage(place)
    assert wrong is not None and "mostly a hole" in wrong


def test_names_that_look_like_checkpoints(tmp_path: Path) -> None:
    for name in ("checkpoint-7", "checkpoint-\u0663", "checkpoint-" + "9" * 200, "checkpoint-1\n"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints.listed(tmp_path)] == ["checkpoint-7"]


# -- commands that lock


@pytest.mark.parametrize("command", [["rm", "--yes"], ["prune", "--failed", "--yes"]])
@pytest.mark.parametrize("make", [pipe, link])
def test_a_lock_that_is_a_pipe_or_a_link_is_not_waited_for_nor_written(
    make: Callable[[Path], str],
    command: list[str],
    cli: Callable[..., Answer],
    tmp_path: Path,
) -> None:
    run = lay_hostile(tmp_path / "runs")
    run.lock.unlink()
    make(run.lock)
    before = Path("/etc/passwd").read_bytes()
    names = [run.name] if command[0] == "rm" else []
    answer = cli(command[0], *names, *command[1:])
    assert "bug in runner" not in answer.err and answer.code in (0, 1, 2, 3)
    assert Path("/etc/passwd").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_run_that_may_not_be_looked_into_takes_no_other_out_of_the_list(
    cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared runs folder; of the closed one it is said that its verdict can't be read."""
    with tempfile.TemporaryDirectory() as there:
        Path(there).chmod(0o755)
        root = Path(there, "runs")
        closed, other = lay_hostile(root), lay_hostile(root)
        monkeypatch.chdir(there)
        for words in (["ps", "--all"], ["report", closed.name]):  # imported while it can be
            assert cli(*words).code == 0
        closed.path.chmod(0o700)
        os.seteuid(65534)
        try:
            answer, told = cli("ps", "--all"), cli("report", closed.name)
        finally:
            os.seteuid(0)
    assert answer.code == 0 and other.name in answer.out, answer
    assert "termination.json can't be read: Permission denied" in answer.out
    assert told.code in (1, 2, 3) and "bug in runner" not in told.err
