"""A bundle made in one folder, reproduced to the bit in a fresh container without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from runner.containers.images import Image
from tests.support.containers import Bench
from tests.testbed.docker import Daemon

pytestmark = pytest.mark.e2e


def test_a_run_in_a_container_goes_on_in_its_image_from_other_paths(bench: Bench) -> None:
    rows = bench.place.folder / "rows.txt"
    rows.write_text("3.0\n2.5\n")
    more = {"inputs": [rows.name], "arguments": ["{inputs.0}"]}
    job = bench.script('sort "$1" > result.txt\n', **more)
    done = bench.place.call("train", job, "--json")
    assert done.code == 0, done.err
    packed = bench.place.call("bundle", "@last", "--with", "data", "-o", "b.tar", "--json")
    assert packed.code == 0, packed.err
    assert bench.image in packed.json["image"]
    shutil.rmtree(bench.place.folder / "runs")
    rows.unlink()
    (bench.place.folder / "job.sh").unlink()
    unpacked = bench.place.call("unbundle", "b.tar")
    assert unpacked.code == 0 and "runner image save and load bring it" in unpacked.out
    refused = bench.place.call("reproduce", "@last")
    assert (
        refused.code == 3 and "runs the script" in refused.err and "in a container" in refused.err
    )
    again = bench.place.call("reproduce", "@last", "--trust-remote-code", "--json")
    assert again.code == 0, again.out + again.err
    assert again.json["identical"] is True


def inside(image: Image, script: str, *, writable: Path) -> str:
    """What a script prints in a new container that sees this folder alone, and no network."""
    argv = ["docker", "run", "--rm", "--network", "none", "--env", "OMP_NUM_THREADS=1"]
    argv += ["--user", f"{os.geteuid()}:{os.getegid()}", "--workdir", str(writable)]
    argv += ["--mount", f"type=bind,source={writable},target={writable}"]
    done = subprocess.run(
        [*argv, image.id, "bash", "-euc", script], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SCRIPT = """
engine: script
script: train.sh
inputs: [rows.txt]
arguments: ["{inputs.0}"]
"""


def test_a_bundle_is_reproduced_to_the_bit_in_a_fresh_container(
    docker_daemon: Daemon, train_image: Image, tmp_path: Path
) -> None:
    """By the image's own runner, which has nothing but the bundle: no folder of the first's."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (first / "rows.txt").write_text("3.0\n2.5\n")
    (first / "train.sh").write_text('sort "$1" > result.txt\n')
    (first / "job.yaml").write_text(SCRIPT)
    made = inside(
        train_image,
        "runner train job.yaml --on local --json; runner bundle @last --with data -o b.tar >&2",
        writable=first,
    )
    assert json.loads(made)["reason"] == "completed"
    (first / "b.tar").rename(second / "moved.tar")
    shutil.rmtree(first)
    told = inside(
        train_image,
        "runner unbundle moved.tar >&2; runner reproduce @last --trust-remote-code --json",
        writable=second,
    )
    answer = json.loads(told)
    assert answer["identical"] is True, answer["differences"]
    replay = Path(answer["folder"])
    assert json.loads((replay / "termination.json").read_text())["reason"] == "completed"
    assert (replay / "output" / "result.txt").read_text() == "2.5\n3.0\n"
