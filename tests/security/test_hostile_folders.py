"""Hostile run folders through the commands that read them: random records, pipes, links, no end.

Each example spoils some records of a whole run, and runs commands on it in this process. Whatever
is in the folder: an exit code that is documented, no traceback, nothing that a terminal obeys, no
signal, no program, nothing written outside, and no waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runner.cli
from runner.common import processes as liveness
from runner.engines.registry import ENGINES
from runner.engines.render import read_any_plan
from runner.plans.plan_file import plan_yaml
from runner.runs.folder import RunFolder
from tests.security.hostile_runs import EVIL, NAMES, RECORDS, lay_hostile, text_of, unfit
from tests.support.command import run_cli
from tests.support.soaking import examples

COMMANDS = (
    ("ps", "--all", "--json"),
    ("ps", "--all"),
    ("report", "RUN"),
    ("report", "RUN", "--json"),
    ("logs", "RUN"),
    ("stop", "RUN"),
    ("verify", "RUN", "OTHER"),
)
CODES = (0, 1, 2, 3)
FOLDERS = ("engine", "checkpoints", "logs", "attempts", "phases", "stages", "evaluations")
LONGEST_SECONDS = 600
"""Only what waits for a pipe takes as long, however busy the machine is."""
MOST_MIB = 700


@dataclass
class Scene:
    """A runs folder with a run to spoil, another that is whole, and what must stay as it is."""

    folder: RunFolder
    other: RunFolder
    template: Path
    sleeper: subprocess.Popen[bytes]
    canary: Path
    """A file outside, to which links lead."""
    program: Path
    """A program that leaves a trace."""

    @property
    def trace(self) -> Path:
        return self.program.with_suffix(".ran")

    def restore(self) -> None:
        if self.sleeper.poll() is not None:
            self.sleeper = subprocess.Popen(["sleep", "1000000"])
        shutil.rmtree(self.folder.path)
        shutil.copytree(self.template, self.folder.path)

    def named(self) -> dict[str, Any]:
        """The record of a process of ours that is none of the run's."""
        ticks = liveness.start_ticks(self.sleeper.pid)
        return {"pid": self.sleeper.pid, "start_ticks": ticks, "boot_id": liveness.boot_id()}

    def outside(self) -> dict[str, tuple[int, int]]:
        """Every file outside of the run, with size and time of its last change."""
        found = {}
        for parent, folders, names in os.walk(self.canary.parent):
            if Path(parent) == self.folder.path.parent:
                folders[:] = [one for one in folders if one != self.folder.path.name]
            for name in names:
                status = (Path(parent) / name).lstat()
                found[f"{parent}/{name}"] = (status.st_size, status.st_mtime_ns)
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    place = tmp_path_factory.mktemp("hostile")
    folder, other = lay_hostile(place / "runs"), lay_hostile(place / "runs")
    shutil.copytree(folder.path, place / "template")
    canary, program = place / "canary", place / "program"
    canary.write_text("as it was\n")
    program.write_text(f"#!/bin/sh\necho ran >> {program}.ran\n")
    program.chmod(0o755)
    before = os.getcwd()  # noqa: PTH109
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.cli, "app", typer.main.get_command(runner.cli.app))
        patch.setenv("RUNNER_CONTAINER_CLI", "/bin/false")
        patch.setenv("RUNNER_CACHE", str(place / "cache"))
        os.chdir(place)
        sleeper = subprocess.Popen(["sleep", "1000000"])
        scene = Scene(folder, other, place / "template", sleeper, canary, program)
        try:
            yield scene
        finally:
            os.chdir(before)
            scene.sleeper.kill()
            scene.sleeper.wait()


# -- what may stand in a record's place

texts = st.one_of(
    st.sampled_from(
        [EVIL, "", "\ud800", "\udcff", "a\nb", "../../../etc", "/", "\0", "x" * 70_000]
    ),
    st.text(max_size=20),
)
figures = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 10**400, -(10**30), 1e300, -1e308, 5e-324]),
    st.sampled_from([float("nan"), float("inf"), -0.0, 253_000_000_000, 1.7e9]),
    st.integers(),
    st.floats(),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), figures, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=6,
)
ENDLESS = (
    *(b"", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 6_000, b"-" + b"9" * 5_000),
    *(b"NaN", b"null", b"[]", b'"text"', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"\x00" * 100),
    *(b"[" + b"{}," * 1_200_000 + b"{}]", b"{}\n" * 300_000, b"x" * 3_000_000),
    *(b'{"reason": "completed", "reason": ["failed"]}', b"1e999", b'{"pid": 1' + b"0" * 4_400),
)
BOMBS = (
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n"
        for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "a: " + "[" * 5_000,
    "- " * 3_000 + "x",
    "schema_version: 1\nengine: sft\nplan_hash: " + ":".join(["1"] * 500_000),
    "plan_hash: 0x" + "f" * 100_000,
    "- x\n" * examples(100_000, 200_000),
    "{" * 2_000,
    "!!python/object/apply:os.system ['touch /tmp/never']",
    "? [a]\n: b",
    "a: !!binary AAAA",
    'job: "\\ud800"',
    f"{EVIL}: 1",
    "schema_version: 99\nplan_hash: 1",
    "schema_version: 1\nplan_hash: [1]\nengine: [sft]",
)
PLANS: dict[str, Any] = {
    "job": EVIL,
    "description": EVIL,
    "substitutions": [EVIL, "a\nb"],
    "warnings": [EVIL],
    "timeout_minutes": 1e308,
    "python": EVIL,
    "on_end": EVIL,
    "budget.limit_bytes": 0,
    "budget.grace_seconds": -1.0,
    "launch.gpu_indices": [2**40, -1],
    "launch.gpu_uuids": [EVIL],
    "launch.num_processes": 10**30,
    "model.id": EVIL,
    "training.max_steps": 10**25,
    "training.learning_rate": 1e308,
}
"""Fields of a plan whose hash fits all the same: its author works it out anew."""


def evil_plan(text: str, changes: dict[str, Any]) -> str:
    """The plan changed and signed with its own hash; the plan as it was where it can't be."""
    record = yaml.safe_load(text)
    for name, value in changes.items():
        inner, *names = record, *name.split(".")
        for part in names[:-1]:
            inner = inner[part]
        inner[names[-1]] = value
    record.pop("plan_hash")
    try:
        return plan_yaml(ENGINES[record["engine"]].plan_type.model_validate(record))
    except ValueError:
        return text


@st.composite
def spoilt(draw: st.DrawFn) -> list[Callable[[Scene], None]]:
    """What is done to a run: some of its records and folders replaced."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    done = [_record(draw, name) for name in names]
    if draw(st.integers(0, 3)) == 0:
        done.append(_folder(draw, draw(st.sampled_from(FOLDERS))))
    if draw(st.booleans()):
        done.append(_without_a_verdict)
    return done


def _without_a_verdict(scene: Scene) -> None:
    path = scene.folder.termination
    if path.is_file() and not path.is_symlink():
        path.unlink()


def _record(draw: st.DrawFn, name: str) -> Callable[[Scene], None]:
    kind = draw(st.sampled_from(["bytes", "endless", "record", "value", "odd", "named"]))
    if kind == "bytes":
        content = draw(st.binary(max_size=300))
    elif kind == "endless":
        content = draw(st.sampled_from(ENDLESS))
    elif kind == "odd":
        odd = draw(st.sampled_from(ODD))
        return lambda scene: _replace(scene, name, odd)
    elif name == "plan.yaml":
        return _plan(draw)
    elif kind == "value" or name not in RECORDS:
        content = text_of(name, draw(values)).encode(errors="surrogatepass")
    else:
        record = RECORDS[name]
        chosen = draw(st.lists(st.sampled_from(sorted(record)), min_size=1, max_size=4))
        changed = {**record, **{key: draw(values) for key in chosen}}
        named = kind == "named"

        def write(scene: Scene) -> None:
            whole = {**changed, "argv": [str(scene.program), "run"]}
            if named:
                whole |= scene.named()
            _write(scene, name, text_of(name, whole).encode(errors="surrogatepass"))

        return write
    return lambda scene: _write(scene, name, content)


def _plan(draw: st.DrawFn) -> Callable[[Scene], None]:
    if draw(st.booleans()):
        bomb = draw(st.sampled_from(BOMBS))
        return lambda scene: _write(scene, "plan.yaml", bomb.encode(errors="surrogatepass"))
    names = draw(st.lists(st.sampled_from(sorted(PLANS)), min_size=1, max_size=3, unique=True))
    changes = {name: PLANS[name] for name in names}

    def write(scene: Scene) -> None:
        text = evil_plan((scene.template / "plan.yaml").read_text(), changes)
        _write(scene, "plan.yaml", text.encode())

    return write


ODD = ("pipe", "device", "socket", "folder", "loop", "passwd", "canary", "sparse", "gone", "root")


def _folder(draw: st.DrawFn, name: str) -> Callable[[Scene], None]:
    odd = draw(st.sampled_from([*ODD, "names"]))
    return lambda scene: _replace(scene, name, odd)


def _replace(scene: Scene, name: str, odd: str) -> None:
    path = scene.folder.path / name
    if odd == "names":
        path.mkdir(exist_ok=True)
        for one in ("rank-\u00b2.json", "checkpoint-\u0663", "checkpoint-" + "9" * 200, "\u00b2"):
            (path / one).mkdir()
        os.mkdir(os.fsencode(path) + b"/rank-0\xff\x1b[2J.json")  # noqa: PTH102
        return
    if not path.parent.is_dir() or path.parent.is_symlink():
        return  # the folder that it lay in was replaced before
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if odd == "pipe":
        os.mkfifo(path)
    elif odd == "device":
        with contextlib.suppress(OSError):
            os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    elif odd == "socket":
        with socket.socket(socket.AF_UNIX) as one, contextlib.suppress(OSError):
            one.bind(str(path))  # a name may be too long for one
    elif odd == "folder":
        path.mkdir()
    elif odd == "loop":
        path.symlink_to(path.name)
    elif odd in ("passwd", "canary", "root"):
        path.symlink_to({"passwd": "/etc/passwd", "root": "/"}.get(odd, scene.canary))
    elif odd == "sparse":
        with path.open("wb") as stream:
            stream.truncate(1 << 42)


def _write(scene: Scene, name: str, content: bytes) -> None:
    path = scene.folder.path / name
    with contextlib.suppress(OSError):  # the folder that it lay in was replaced before
        path.parent.mkdir(exist_ok=True)
        if not path.parent.is_symlink():
            path.write_bytes(content)


# -- the commands


class Waited(BaseException):
    """No Exception: nothing in runner may take it for an error that it knows."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def over(number: int, frame: object) -> None:
        raise Waited(f"over {LONGEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory_mib(name: str) -> int:
    """What the kernel counts for this process under `name` in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [each for each in lines if each.startswith(f"{name}:")]
    return int(line.split()[1]) >> 10


def forget_the_peak() -> int:
    """Begin VmHWM anew, which other tests have driven up; what is held now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)
    return memory_mib("VmRSS")


def check(scene: Scene, commands: tuple[tuple[str, ...], ...] = COMMANDS) -> None:
    """Run them; nothing comes of it but words."""
    outside = scene.outside()
    held = forget_the_peak()
    named = {"RUN": scene.folder.name, "OTHER": scene.other.name}
    for command in commands:
        with in_time():
            answer = run_cli(*(named.get(word, word) for word in command))
        told = f"{command}: {answer.code} {answer.err[-2000:]}"
        assert answer.code in CODES, told
        assert "Traceback" not in answer.err and "bug in runner" not in answer.err, told
        assert unfit(answer.out) == [] and unfit(answer.err) == [], told
        if "--json" in command and answer.code == 0:
            json.loads(answer.out)
        if command[0] == "ps":  # one bad folder takes no other out of the list
            assert answer.code == 0 and scene.other.name in answer.out, told
        assert scene.sleeper.poll() is None, f"{command} ended a foreign process"
    assert not scene.trace.exists(), "a program of the folder was run"
    cache = str(scene.canary.parent / "cache")
    now = {name: seen for name, seen in scene.outside().items() if not name.startswith(cache)}
    assert now == {n: s for n, s in outside.items() if not n.startswith(cache)}
    taken = memory_mib("VmHWM") - held
    assert taken < MOST_MIB, f"{taken} MiB of memory were taken"


@settings(
    max_examples=examples(40, 10_000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(spoilt())
def test_a_hostile_run_folder_is_told_in_words(
    scene: Scene, changes: list[Callable[[Scene], None]]
) -> None:
    scene.restore()
    for change in changes:
        change(scene)
    check(scene)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", NAMES)
def test_whatever_stands_in_a_records_place(scene: Scene, name: str, odd: str) -> None:
    scene.restore()
    _replace(scene, name, odd)
    turn = (NAMES.index(name) + ODD.index(odd)) % 2
    check(scene, COMMANDS[turn::2])
    _without_a_verdict(scene)
    check(scene, COMMANDS[1 - turn :: 2])


@pytest.mark.parametrize("odd", [*ODD, "names"])
@pytest.mark.parametrize("name", FOLDERS)
def test_whatever_stands_in_a_folders_place(scene: Scene, name: str, odd: str) -> None:
    scene.restore()
    _replace(scene, name, odd)
    _without_a_verdict(scene)
    check(scene)


@pytest.mark.parametrize("content", ENDLESS, ids=lambda one: f"{one[:8]!r}-{len(one)}")
def test_records_without_end(scene: Scene, content: bytes) -> None:
    for name in NAMES:
        scene.restore()
        _write(scene, name, content)
        check(scene, COMMANDS[NAMES.index(name) % 3 :: 3])


@pytest.mark.parametrize("bomb", range(len(BOMBS)))
def test_a_plan_that_multiplies(scene: Scene, bomb: int) -> None:
    scene.restore()
    _write(scene, "plan.yaml", BOMBS[bomb].encode(errors="surrogatepass"))
    with in_time():
        answer = run_cli("report", scene.folder.name)
    assert answer.code in (1, 2) and "bug in runner" not in answer.err, answer
    check(scene, COMMANDS[:4])
    assert not Path("/tmp/never").exists()


def test_the_plans_that_runner_writes_have_no_aliases_and_read_back(scene: Scene) -> None:
    scene.restore()
    plan = read_any_plan(scene.folder.plan)
    text = plan_yaml(plan)
    assert not [one for one in yaml.parse(text) if isinstance(one, yaml.AliasEvent)]
    assert evil_plan(text, {}) == text
    evil = evil_plan(text, {"description": EVIL})
    assert evil != text
    scene.folder.plan.write_text(evil)
    assert read_any_plan(scene.folder.plan).description == EVIL


def test_ps_runs_no_program_that_a_lost_run_names(scene: Scene) -> None:
    """Its container.json named one, and `ps` started it to ask after the container."""
    scene.restore()
    scene.folder.termination.unlink()
    record = {"schema_version": 1, "name": "x", "argv": [str(scene.program), "run", "--rm"]}
    scene.folder.container.write_text(json.dumps(record))
    for command in (["ps"], ["ps", "--all"], ["ps", "--json"]):
        answer = run_cli(*command)
        assert answer.code == 0 and scene.folder.name in answer.out
    assert not scene.trace.exists()


def test_what_is_not_read_is_said(scene: Scene) -> None:
    for name, odd, said in (
        ("memory.jsonl", "pipe", "memory.jsonl is no regular file"),
        ("metrics.jsonl", "canary", "metrics.jsonl is a link, which is not followed"),
        ("events.jsonl", "sparse", "events.jsonl is longer than 1024 MiB"),
        ("engine", "canary", "engine is no folder"),
        ("termination.json", "passwd", "termination.json can't be read: it is a link"),
        ("supervisor.json", "pipe", "supervisor.json can't be read: it is no regular file"),
    ):
        scene.restore()
        _replace(scene, name, odd)
        assert said in run_cli("report", scene.folder.name).out
        assert said in run_cli("ps", "--all").out
    scene.restore()
    _replace(scene, "logs/train.log", "pipe")
    assert "train.log of" in run_cli("logs", scene.folder.name).err
