"""Bundles changed in every way, through unbundle and the commands on what comes out of it.

None ends in a traceback, starts a program, writes outside of its folder or signals a process.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import runner.cli
from runner.common import processes as liveness
from runner.engines.registry import ENGINES
from runner.plans.plan_file import plan_yaml
from tests.report.laid_runs import lay_run
from tests.security.made_bundles import Made, as_earlier, bundled, lay, made_of, script_job
from tests.support.command import Answer, run_cli
from tests.support.soaking import examples

CANARY = "CANARY"
"""Stands in what is drawn for a program that nothing may start."""
OUTSIDE = "OUTSIDE"
"""Stands for a folder beside the one in which bundles are unpacked."""
PID = 4_100_000_000
"""Stands for a process that nothing may signal."""


@dataclass(frozen=True)
class Scene:
    """What the mutated bundles are let loose on."""

    base: Path
    bundles: list[Path]
    other: Path
    """A run of this user's own."""
    process: subprocess.Popen[bytes]

    @property
    def program(self) -> Path:
        return self.base / "program"

    def filled_in(self, content: bytes) -> bytes:
        """The words that stand for the canaries, as they are here."""
        pid = self.process.pid
        named = {CANARY: str(self.program), OUTSIDE: str(self.base / "outside"), str(PID): str(pid)}
        for word, value in named.items():
            content = content.replace(word.encode(), value.encode())
        return content


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    base = tmp_path_factory.mktemp("scene")
    script, _ = lay(base / "laid", script_job(base / "jobs"))
    itself, _ = lay(base / "laid", script_job(base / "itself", "train"))
    native = lay_run(base / "laid", budget="6GiB", device="cpu")
    made = [bundled(script, ("data", "adapter"), base / "hashes")[0]]
    made += [bundled(itself, ("data",), base / "hashes")[0]]
    made += [as_native(made[0], native.plan.read_bytes())]
    made += [as_earlier(made[0], f"touch {base}/ran\n")]
    (base / "outside").mkdir()
    (base / "outside" / "mine").write_text("mine")
    (base / "program").write_text(f"#!/bin/sh\ntouch '{base}/ran'\n")
    (base / "program").chmod(0o755)
    bundles = [base / f"{number}.tar" for number in range(len(made))]
    for path, each in zip(bundles, made, strict=True):
        path.write_bytes(each.archive())
    with subprocess.Popen(["sleep", "10000"]) as process, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNNER_CACHE", str(base / "cache"))
        patch.setenv("PATH", "/nonexistent")  # nor docker, nor git
        patch.setattr(runner.cli, "app", typer.main.get_command(runner.cli.app))
        patch.setattr("runner.launch.wait.START_SECONDS", 0.0)
        yield Scene(base, bundles, script.path, process)
        process.kill()


def as_native(made: Made, plan: bytes) -> Made:
    """A run of the native engine, as far as the records say so."""
    record = yaml.safe_load(plan)
    digest = record.pop("plan_hash")
    manifest = json.loads(made.files["manifest.json"])
    manifest |= {"plan": record, "plan_hash": digest, "rendered": {}, "files": []}
    data = {"rows_read": 1, "format": "x", "train_rows": 1, "eval_rows": 1}
    result = {"best": {"eval_loss": 1.0, "step": 1}, "stopped_early": "x"}
    files = {name: content for name, content in made.files.items() if "/" not in name}
    files |= {"manifest.json": json.dumps(manifest).encode(), "plan.yaml": plan}
    files |= {"data.json": json.dumps(data).encode(), "adapter/adapter_config.json": b"{}"}
    files |= {"engine/result.json": json.dumps(result).encode(), "memory.jsonl": b"{}\n"}
    run = "demo-identity/20261125-183738-" + digest[:7]
    return Made(files, {**made.index, "places": {}, "run": run, "plan_hash": digest})


NAMES = st.sampled_from(
    [
        *(
            "launch.sh",
            "termination.json",
            "supervisor.json",
            "queue.json",
            "container.id",
            ".lock",
        ),
        *("checkpoints/checkpoint-1/seal.json", "origin.json", "engine/rank-0.json", "bundle.json"),
        *(
            "container.json",
            "stages/a.json",
            "attempts/1/launch.sh",
            "psutil.py",
            "sitecustomize.py",
        ),
        *("../x", "../../runs/x", "a/../../x", f"{OUTSIDE}/x", f"/{OUTSIDE}/x", "/tmp/x", "", "."),
        *(
            "inputs/../../x",
            "inputs/x",
            "inputs",
            "output",
            "adapter/x.py",
            "model/pytorch_model.bin",
        ),
        *("events.jsonl", "memory.jsonl", "data.json", "advice.json", "prediction.json"),
        *("checkpoints/best.json", "engine/failure.json", "images.sha256", "row-hashes/train"),
        *(
            "a\x1b[2Jb",
            "logs/\x1b]52;c;x\x07.log",
            "x" * 300,
            "d/" * 900 + "x",
            "\udc80",
            "output/ü",
        ),
    ]
)
VALUES = st.sampled_from(
    [
        *(None, True, -1, 0, 1, PID, 2**31, 2**63, 10**30, 10**400, 1e300, 1.5),
        *("", "x", CANARY, f"{OUTSIDE}/x", "../x", "/dev/zero", "completed", "lost", "running"),
        *(
            "\x1b]52;c;eA==\x07",
            "\x1b[2J\r\n",
            "\u202e",
            "x" * 5000,
            "${x}",
            "$(touch ran)",
            "a" * 64,
        ),
        *([], [[]], [None], ["x"], [1, 2], {}, {"": None}, {"path": "x"}, {"x": [1]}),
    ]
)
CONTENTS = st.sampled_from(
    [
        *(b"", b"{}", b"[]", b"null", b"[" * 3000, b"{" * 3000, b"9" * 5000, b"NaN", b"\x00\xff"),
        *(b"#!/bin/sh\nexec CANARY\n", b"raise SystemExit(1)\n", b"&a [*a, *a]\n", b"a: &a [1]\n"),
        b'{"schema_version": 1, "reason": "completed", "exit_code": 0}',
        b'{"schema_version": 9, "reason": "new", "results": {"reason": "new"}}',
        b'{"pid": 4100000000, "start_ticks": TICKS, "handles": ["SIGUSR1"], "phase": "training"}',
        b'{"argv": ["CANARY", "run"], "name": "x"}',
        b'{"kind": "started", "pid": 4100000000, "start_ticks": TICKS}\n',
    ]
)
RECORDS = st.sampled_from(
    [
        *("manifest.json", "plan.yaml", "sources.json", "metrics.jsonl", "events.jsonl"),
        *("data.json", "engine/result.json", "memory.jsonl", "logs/train.log"),
    ]
)
STEPS = st.lists(st.integers(0, 40), min_size=1, max_size=4)
MUTATIONS = st.one_of(
    st.tuples(st.just("add"), NAMES, CONTENTS),
    st.tuples(st.just("replace"), RECORDS, CONTENTS),
    st.tuples(st.just("rename"), st.integers(0, 20), NAMES),
    st.tuples(st.just("remove"), st.integers(0, 20), st.none()),
    st.tuples(st.just("executable"), st.integers(0, 20), st.none()),
    st.tuples(st.just("index"), STEPS, VALUES),
    st.tuples(st.just("plan"), STEPS, VALUES),
    st.tuples(st.just("record"), st.tuples(RECORDS, STEPS), VALUES),
    st.tuples(st.just("record"), st.tuples(st.just("manifest.json"), STEPS), VALUES),
)
DAMAGES = st.integers(0, 3).flatmap(lambda one: st.none() if one else WHOLE)
WHOLE = st.one_of(
    st.tuples(st.just("packed"), st.none()),
    st.tuples(st.just("bomb"), st.none()),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True)),
    st.tuples(st.just("index"), st.binary(max_size=300)),
)


def put(record: Any, steps: list[int], value: Any) -> None:
    """Put a value somewhere into JSON: at each level the key of that number."""
    for number, step in enumerate(steps):
        keys = list(record) if isinstance(record, dict) else list(range(len(record)))
        if not keys:
            return
        key = keys[step % len(keys)]
        if number == len(steps) - 1 or not isinstance(record[key], dict | list):
            record[key] = copy.deepcopy(value)  # what is drawn again is to be as it was
            return
        record = record[key]


def mutate(made: Made, mutation: tuple[str, Any, Any]) -> None:
    kind, where, value = mutation
    names = sorted(made.files)
    match kind:
        case "add" | "replace":
            made.files[where] = value
        case "rename":
            made.files[value] = made.files.pop(names[where % len(names)])
        case "remove":
            made.files.pop(names[where % len(names)])
        case "executable":
            made.executable.add(names[where % len(names)])
        case "index":
            put(made.index, where, value)
        case "plan":
            with contextlib.suppress(KeyError, TypeError, ValueError, RecursionError):
                manifest = json.loads(made.files["manifest.json"])
                put(manifest["plan"], where, value)
                plan = ENGINES[manifest["plan"]["engine"]].plan_type.model_validate(
                    manifest["plan"]
                )
                made.files["plan.yaml"] = plan_yaml(plan).encode()
                manifest |= {"plan_hash": plan.hash, "rendered": {}}
                made.files["manifest.json"] = json.dumps(manifest).encode()
        case "record":
            name, steps = where
            with contextlib.suppress(KeyError, ValueError, RecursionError):
                record = json.loads(
                    made.files[name].splitlines()[0] if "jsonl" in name else made.files[name]
                )
                put(record, steps, value)
                made.files[name] = json.dumps(record).encode() + b"\n"


def damaged(archive: bytes, damage: tuple[str, Any] | None) -> bytes:
    match damage:
        case ("packed", _):
            return gzip.compress(archive)
        case ("bomb", _):
            return gzip.compress(archive + bytes(1 << 26))
        case ("cut", where):
            return archive[: int(where * len(archive))]
        case ("flip", where):
            content = bytearray(archive)
            content[int(where * len(content))] ^= 1
            return bytes(content)
    return archive


def seen_outside(scene: Scene, place: Path) -> dict[str, Any]:
    """All that lies beside the folder in which a bundle was unpacked."""
    found = {}
    for path in scene.base.rglob("*"):
        if place in (path, *path.parents) or path.is_relative_to(scene.base / "cache"):
            continue
        about = path.lstat()
        found[str(path)] = (about.st_mode, about.st_size, about.st_mtime_ns)
    return found


def check(answer: Answer, command: list[str]) -> None:
    told = f"{command}: {answer.err[-3000:]}"
    assert "bug in runner" not in answer.err and "Traceback" not in answer.err, told
    assert answer.code in (0, 1, 2, 3), told


@settings(
    max_examples=examples(25, 2000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    which=st.integers(0, 3),
    mutations=st.lists(MUTATIONS, min_size=1, max_size=3),
    damage=DAMAGES,
)
def test_a_mutated_bundle_does_nothing_but_lie_there(
    scene: Scene, which: int, mutations: list[tuple[str, Any, Any]], damage: tuple[str, Any] | None
) -> None:
    made = made_of(scene.bundles[which].read_bytes())
    for mutation in mutations:
        if made.files:
            mutate(made, mutation)
    ticks = str(liveness.start_ticks(scene.process.pid)).encode()
    made.files = {
        scene.filled_in(name.encode(errors="surrogateescape")).decode(
            errors="surrogateescape"
        ): scene.filled_in(content).replace(b"TICKS", ticks)
        for name, content in made.files.items()
    }
    made.index = json.loads(scene.filled_in(json.dumps(made.index).encode()))
    index = made.sealed() if damage is None or damage[0] != "index" else damage[1]
    archive = damaged(made.archive(index), damage)
    with tempfile.TemporaryDirectory(dir=scene.base) as name, contextlib.chdir(name):
        place = Path(name)
        before = seen_outside(scene, place)
        (place / "b.tar").write_bytes(archive)
        through_all(scene, place)
        assert seen_outside(scene, place) == before
        assert not (scene.base / "ran").exists()
        assert not list(place.rglob("ran"))
        assert scene.process.poll() is None
        assert liveness.start_ticks(scene.process.pid) is not None


def through_all(scene: Scene, place: Path) -> None:
    done = run_cli("unbundle", "b.tar")
    check(done, ["unbundle"])
    for letter in (done.out + done.err).replace("\n", ""):
        assert letter.isprintable(), (letter, done)
    if done.code:
        assert done.code in (2, 3), done
        assert [path.name for path in place.iterdir()] == ["b.tar"], done
        return
    event("opened")
    (run,) = (path for path in (place / "runs").glob("*/*") if path.is_dir())
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names.isdisjoint({"launch.sh", "termination.json", "container.json", "origin.json"})
    assert not [name for name in names if name.startswith(("checkpoints/check", "stages/", "mgm/"))]
    for command in (
        ["ps", "--all"],
        ["ps", "--json"],
        ["report", str(run)],
        ["report", str(run), "--json"],
        ["verify", str(run), str(scene.other)],
        ["diff", str(scene.other), str(run), "--json"],
        ["stop", str(run)],
        ["wait", str(run)],
        ["reproduce", str(run), "--at", "inputs.0=/nonexistent"],
        ["chat", str(run), "-p", "hi"],
        ["bundle", str(run), "-o", "again.tar"],
        ["rm", str(run), "--yes"],
    ):
        check(run_cli(*command), command)


def test_the_bundles_that_are_mutated_open_as_they_are(scene: Scene, tmp_path: Path) -> None:
    """So that the property is of bundles, and not of noise."""
    for number, archive in enumerate(scene.bundles):
        with contextlib.chdir(tmp_path):
            answer = run_cli("unbundle", str(archive), f"run-{number}")
        assert answer.code == 0, answer
