"""A run in a container: its image in the manifest, no secret anywhere, the same again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runner.containers.images import Image
from runner.engines.script.plan import ScriptPlan
from tests.provenance.test_manifest import validate
from tests.support.containers import Bench

BODY = """
[[ $(cat /run/secrets/runner/MY_LICENCE) == "licence-of-1234" ]] || exit 9
seq 3 > result.txt
"""

pytestmark = pytest.mark.e2e


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


LOCAL = "[[ $MY_LICENCE ]] && seq 3 > result.txt\n"


def local_run(bench: Bench) -> Path:
    secrets = {"secrets": ["MY_LICENCE"]}
    job = bench.script(LOCAL, launch={"on": "local"}, container=secrets)
    done = bench.place.call("train", job, "--json")
    assert done.code == 0, done.err
    return Path(done.json["folder"])


def test_a_run_of_this_machine_is_reproduced_in_an_image_and_said_to_be_moved(
    bench: Bench,
    train_image: Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_LICENCE", "licence-of-1234")
    run = local_run(bench)
    moved = bench.place.call("reproduce", str(run), "--on", "docker")
    assert moved.code == 1, moved.out + moved.err
    assert f"SUBSTITUTE the image {train_image.name} and what is in it" in moved.err
    head = f"different  versions: image: no image (none) → {train_image.name}"
    assert moved.out.startswith(head)
    assert "the same all the same" in moved.out


def test_without_an_image_of_ours_it_is_not_moved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_LICENCE", "licence-of-1234")
    run = local_run(bench)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/nobody.sock")
    refused = bench.place.call("reproduce", str(run), "--on", "docker")
    assert refused.code == 3 and "Docker daemon" in refused.err, refused.err
    assert len(list(run.parent.iterdir())) == 1
