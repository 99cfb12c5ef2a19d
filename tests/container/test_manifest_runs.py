"""A run in a container: its image in the manifest, no secret anywhere, the same again."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.container.images import default_name
from runner.plan_script import ScriptPlan
from tests.container.conftest import Bench
from tests.provenance.test_manifest import validate

BODY = """
[[ $(cat /run/secrets/runner/MY_LICENCE) == "licence-of-1234" ]] || exit 9
seq 3 > result.txt
"""


def test_a_run_in_a_container_is_reproduced_in_its_image(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_LICENCE", "licence-of-1234")
    job = bench.script(BODY, container={"secrets": ["MY_LICENCE"]})
    done = bench.place.call("train", job, "--json")
    assert done.code == 0, done.err
    run = Path(done.json["folder"])
    record = json.loads((run / "manifest.json").read_text())
    validate(record)
    assert record["image"]["id"] == json.loads((run / "container.json").read_text())["image_id"]
    assert record["argv"][1] == "run" and record["argv"][-1].endswith("launch.sh")
    assert record["secrets"] == ["MY_LICENCE"]
    for path in (path for path in run.rglob("*") if path.is_file()):
        assert b"licence-of-1234" not in path.read_bytes(), path
    again = bench.place.call("reproduce", str(run), "--json")
    assert again.code == 0, again.out + again.err
    assert again.json["identical"] is True
    made = json.loads((Path(again.json["folder"]) / "manifest.json").read_text())
    assert made["image"] == record["image"] and made["secrets"] == ["MY_LICENCE"]


def test_another_place_is_another_version_and_an_image_that_is_gone_is_named(bench: Bench) -> None:
    done = bench.place.call("train", bench.script("seq 3 > result.txt\n"), "--json")
    assert done.code == 0, done.err
    run = Path(done.json["folder"])
    here = bench.place.call("reproduce", str(run), "--on", "local")
    assert here.code == 1, here.err
    assert here.out.startswith(f"different  versions: image: {bench.image}")
    assert "SUBSTITUTE this machine and" in here.err
    assert f"in place of the image {bench.image}" in here.err
    shutil.rmtree(next(path for path in run.parent.iterdir() if path != run))
    record = json.loads((run / "manifest.json").read_text())
    record["plan"]["container"]["image_id"] = "sha256:" + "0" * 64
    record["plan_hash"] = ScriptPlan.model_validate(record["plan"]).hash
    (run / "manifest.json").write_text(json.dumps(record))
    refused = bench.place.call("reproduce", str(run))
    assert refused.code == 3
    assert "the image that the run had is not here" in refused.err and "image load" in refused.err
    assert len(list(run.parent.iterdir())) == 1


@contextlib.contextmanager
def default_image(bench: Bench) -> Iterator[str]:
    """runner's own image, or for the time being the bare one under its name."""
    name = default_name("train")
    had = bench.docker("images", "--quiet", name).strip()
    if not had:
        bench.docker("tag", bench.image, name)
    try:
        yield name
    finally:
        if not had:
            bench.docker("rmi", "--no-prune", name)


def test_a_run_of_this_machine_is_reproduced_in_an_image_and_said_to_be_moved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_LICENCE", "licence-of-1234")
    body = "[[ $MY_LICENCE ]] && seq 3 > result.txt\n"
    job = bench.script(body, launch={"on": "local"}, container={"secrets": ["MY_LICENCE"]})
    done = bench.place.call("train", job, "--json")
    assert done.code == 0, done.err
    run = Path(done.json["folder"])
    with default_image(bench) as image:
        moved = bench.place.call("reproduce", str(run), "--on", "docker")
    assert moved.code == 1, moved.out + moved.err
    assert f"SUBSTITUTE the image {image} and what is in it" in moved.err
    assert moved.out.startswith(f"different  versions: image: no image (none) → {image}")
    assert "the same all the same" in moved.out
