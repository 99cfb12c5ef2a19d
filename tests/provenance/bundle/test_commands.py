"""`runner bundle`, `unbundle` and `reproduce --at`: the real commands on a real run of a second."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.benches import make_bench, manifest_of
from tests.support.command import run_cli
from tests.support.workplace import Finished, Workplace

SCRIPT_LOG = "echo the licence is $MY_LICENCE\n"

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Moved:
    """Another machine: bundles of a run, whose own folder is gone."""

    place: Workplace
    run: str
    gone: Path
    """Where the first machine's folder went, for what was left out."""
    answers: dict[str, Any]

    def call(self, *arguments: str) -> Finished:
        """In a process of its own, as what starts a run needs it."""
        return self.place.call(*arguments)

    def quick(self, *arguments: str) -> Finished:
        """In this process."""
        with contextlib.chdir(self.place.folder):
            answer = run_cli(*arguments)
        return Finished(answer.code, answer.out, answer.err)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Moved:
    base = tmp_path_factory.mktemp("machines")
    first, second = base / "it's the first", base / "the second"
    first.mkdir()
    second.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_LICENCE", "licence-of-1234")
        patch.setenv("MY_TOKEN", "token-of-1234")
        bench = make_bench(first)
        script = first / "train.sh"
        script.write_text(f"{SCRIPT_LOG}echo $MY_TOKEN\n{script.read_text()}")
        with (first / "job.yaml").open("a") as job:
            job.write("on_end: touch told\ncontainer: {secrets: [MY_LICENCE]}\n")
        (first / ".env").write_text("A_KEY=of-the-folder\n")
        run = bench.train()
        (run / ".env").write_text("B_KEY=of-the-run\n")
        (run / "checkpoints" / "checkpoint-1").mkdir()
        (run / "checkpoints" / "checkpoint-1" / "state.pt").write_bytes(b"x")
        answers = {}
        for name, more in {"bare.tar.gz": [], "whole.tar": ["--with", "data"]}.items():
            done = bench.call("bundle", "@last", *more, "-o", str(second / name), "--json")
            assert done.code == 0, done.err
            answers[name] = done.json
        again = bench.call("bundle", "@last", "--with", "data", "-o", "again.tar")
        assert again.code == 0, again.err
        same = (first / "again.tar").read_bytes() == (second / "whole.tar").read_bytes()
        assert same, "the same run gives the same bytes"
    first.rename(base / "gone")
    return Moved(
        Workplace(second),
        manifest_of(base / "gone" / run.relative_to(first))["run"],
        base / "gone",
        answers,
    )


def test_a_run_is_reproduced_where_nothing_of_the_first_machine_is(moved: Moved) -> None:
    answer = moved.answers["whole.tar"]
    assert answer["contains"] == ["data"] and answer["lacks"] == []
    unpacked = moved.quick("unbundle", "whole.tar", "--json")
    assert unpacked.code == 0, unpacked.err
    assert unpacked.json["folder"] == str(moved.place.folder / "runs" / moved.run)
    assert unpacked.json["next"] == f"runner reproduce {moved.run}"
    assert moved.quick("report", moved.run).code == 0
    refused = moved.call("reproduce", moved.run)
    assert (
        refused.code == 3 and "came in a bundle, and reproducing it runs the script" in refused.err
    )
    done = moved.call("reproduce", moved.run, "--trust-remote-code", "--json")
    assert done.code == 0, done.out + done.err
    assert done.json["identical"] is True
    (places,) = (each for each in done.json["differences"] if each["what"] == "places")
    assert places["text"] == "places: other paths with the same content: script, inputs.0"
    again = Path(done.json["folder"])
    assert not (again / "told").exists(), "on_end of another's machine"
    told = moved.quick("verify", moved.run, str(again))
    assert told.code == 0 and "other paths with the same content" in told.out
    # and on from here: a bundle of what came in one
    more = moved.quick("bundle", moved.run, "--with", "data", "-o", "third.tar", "--json")
    assert more.code == 0, more.err
    assert moved.quick("unbundle", "third.tar", "third").code == 0
    inputs = moved.place.folder / "third" / "inputs"
    assert sorted(path.name for path in inputs.rglob("*.*")) == [
        *("inputs.0", "rows.txt", "train.sh")
    ]


def test_what_it_lacks_is_named_and_checked_before_the_start(moved: Moved) -> None:
    (lacking,) = moved.answers["bare.tar.gz"]["lacks"]
    assert lacking["what"] == "inputs.0" and lacking["group"] == "data"
    (known,) = lacking["files"]
    unpacked = moved.quick("unbundle", "bare.tar.gz", "a new/place")
    assert unpacked.code == 0, unpacked.err
    assert f"lacks      inputs.0: rows.txt, 0 KiB, sha256 {known['sha256'][:12]}" in unpacked.out
    assert "runner reproduce '" in unpacked.out and "--at PART=PATH" in unpacked.out
    missing = moved.quick("reproduce", "a new/place")
    assert missing.code == 3
    assert "inputs.0: " in missing.err and "is not here" in missing.err
    assert "--at inputs.0=PATH" in missing.err
    wrong = moved.place.folder / "wrong.txt"
    wrong.write_text("1.0\n")
    other = moved.quick("reproduce", "a new/place", "--at", f"inputs.0={wrong}")
    assert other.code == 2
    assert f"{wrong} is another file than the run read: sha256 {known['sha256'][:12]}" in other.err
    assert not list((moved.place.folder / "runs").glob("job/*-replay-*"))
    near = moved.quick("reproduce", "a new/place", "--at", f"inptus.0={wrong}")
    assert near.code == 2 and "nearest: inputs.0" in near.err
    for text in ("inputs.0", "inputs.0=", "inputs.0=nowhere.txt"):
        assert moved.quick("reproduce", "a new/place", "--at", text).code == 2, text
    right = moved.gone / "rows.txt"
    done = moved.call(
        "reproduce", "a new/place", "--at", f"inputs.0={right}", "--trust-remote-code"
    )
    assert done.code == 0, done.out + done.err
    assert done.out.startswith("identical")


def test_only_what_is_on_the_list_goes_in_and_no_secret(moved: Moved) -> None:
    moved.quick("unbundle", "bare.tar.gz", "listed")
    run = moved.place.folder / "listed"
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {"manifest.json", "plan.yaml", "metrics.jsonl"} < names
    assert names.isdisjoint({"launch.sh", "termination.json", "supervisor.json", "container.json"})
    assert {"bundle.json", "job.yaml", "sources.json", "logs/train.log"} < names
    assert not any("checkpoint" in name or ".env" in name or "output" in name for name in names)
    for name in names:
        content = (run / name).read_bytes()
        for secret in (b"of-1234", b"of-the-folder", b"of-the-run"):
            assert secret not in content, name
    assert (run / "logs" / "train.log").read_text() == ("the licence is [MY_LICENCE]\n[MY_TOKEN]\n")
    notes = moved.answers["bare.tar.gz"]["notes"]
    assert "logs/train.log: values of secrets were struck out" in notes
    assert any(note.startswith("plan.yaml holds on_end") for note in notes)


def test_wrong_words_and_taken_places_are_refused(moved: Moved) -> None:
    taken = moved.place.folder / "taken.tar"
    taken.write_bytes(b"mine")
    moved.quick("unbundle", "whole.tar", "here")
    for arguments, told in (
        (["bundle", "here", "--with", "dtaa"], "nearest: data"),
        (["bundle", "here", "-o", "taken.tar"], "--force replaces it"),
        (["bundle", "here", "-o", "b.zip"], ".tar, .tar.gz, .tgz"),
        (["bundle", "here", "-o", "no/such/b.tar"], "there is no folder no/such"),
        (["bundle", "nothing-like-it"], "no run 'nothing-like-it'"),
        (["unbundle", "whole.tar", "here"], "is there already"),
        (["unbundle", "nowhere.tar"], "nowhere.tar can't be read: No such file"),
        (["unbundle", "taken.tar"], "cut short"),
        (["unbundle", "here"], "is a folder"),
    ):
        done = moved.quick(*arguments)
        assert done.code == 2, (arguments, done.err)
        assert told in done.err, (arguments, done.err)
    assert taken.read_bytes() == b"mine"
    assert moved.quick("bundle", "here", "-o", "taken.tar", "--force").code == 0
    assert taken.read_bytes() != b"mine"
    assert not [path for path in moved.place.folder.iterdir() if path.name.startswith(".")]


def test_a_run_that_is_not_what_it_was_is_not_bundled(moved: Moved) -> None:
    moved.quick("unbundle", "whole.tar", "changed")
    run = moved.place.folder / "changed"
    plan = (run / "plan.yaml").read_text()
    (run / "plan.yaml").write_text(plan + "#\n")
    done = moved.quick("bundle", "changed")
    assert done.code == 3 and "plan.yaml was changed after the run" in done.err
    (run / "plan.yaml").write_text(plan)
    rows = run / "inputs" / "inputs.0" / "rows.txt"
    rows.write_text("another\n")
    done = moved.quick("bundle", "changed", "--with", "data")
    assert done.code == 3 and "inputs.0: " in done.err and "another file than the run" in done.err
    again = moved.quick("reproduce", "changed")
    assert again.code == 3 and "another file than the run read" in again.err
    record = manifest_of(run)
    (run / "manifest.json").write_text(json.dumps({**record, "results": None}))
    done = moved.quick("bundle", "changed")
    assert done.code == 3 and "has no results" in done.err
    assert not list(moved.place.folder.glob("job-*"))


def test_a_folder_with_a_file_of_secrets_is_refused(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "rows.txt").write_text("1.5\n")
    (folder / ".env").write_text("KEY=x\n")
    job = (tmp_path / "job.yaml").read_text()
    job = job.replace("[rows.txt]", "[folder]").replace("{inputs.0}", "{inputs.0}/rows.txt")
    (tmp_path / "job.yaml").write_text(job)
    bench.train()
    done = bench.call("bundle", "@last", "--with", "data")
    assert done.code == 3
    assert ".env looks like a file of secrets" in done.err
    assert bench.call("bundle", "@last").code == 0
    shutil.rmtree(tmp_path / "runs")
