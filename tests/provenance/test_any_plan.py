"""Whatever a plan says, its manifest fits the schema and gives the same plan again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.resolve import make_any_plan
from runner.engines.sft.facts import gather
from runner.engines.sft.resolve import make_plan
from runner.plans.base import Plan
from runner.provenance.compare import Side, differences, first_of, settings_of
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import read_manifest
from runner.provenance.recorder import ManifestRecorder
from runner.provenance.replay import plan_of, wrong_inputs
from runner.runs.create import create_run
from runner.runs.outcome import Outcome, Reason
from tests.plans.test_render import JOBS, on_cpu, on_gpus
from tests.provenance.test_manifest import validate
from tests.support.command import REPOSITORY
from tests.support.soaking import examples

END = Outcome(Reason.FAILED, 1, "it was only begun", started_unix_seconds=1, ended_unix_seconds=2)


@st.composite
def any_plan(draw: st.DrawFn) -> Plan:
    name = draw(st.sampled_from([*JOBS, "mgm-10k-lora"]))
    path = str(REPOSITORY / "jobs" / f"{name}.yaml")
    if name == "mgm-10k-lora":
        return make_any_plan(load_job(path, ["launch.on=local"]), "train")[0]
    sets = [f"description={json.dumps(draw(st.text(max_size=20)))}"]
    if not name.startswith("llava"):
        sets += [
            f"launch.num_processes={draw(st.sampled_from([1, 2]))}",
            f"launch.deepspeed={draw(st.sampled_from(['none', 'zero2', 'zero3']))}",
            f"training.max_grad_norm={draw(st.floats(0.1, 9.0))!r}",
            f"training.seed={draw(st.integers(0, 2**32 - 1))}",
        ]
    loaded = load_job(path, sets)
    host = draw(st.sampled_from([on_cpu, on_gpus]))
    return make_plan(loaded, host(gather(loaded)), draw(st.sampled_from(["train", "smoke"])))


@settings(max_examples=examples(15, 200), deadline=None)
@given(plan=any_plan())
def test_a_manifest_of_any_plan_validates_and_gives_it_again(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan
) -> None:
    root = tmp_path_factory.mktemp("runs")
    folder = create_run(root, plan.job, plan.short_hash, plan.variant, render(plan))
    warned: list[str] = []
    keeper = ManifestRecorder(folder, warned.append)
    keeper.begin(plan, resume=False)
    keeper.complete(plan, END, lambda: False)
    assert warned == []
    validate(json.loads(folder.manifest.read_text()))
    manifest = read_manifest(folder.manifest)
    assert plan_of(manifest) == plan
    assert all(each.sha256 or each.kind == "remote" or manifest.notes for each in manifest.files)
    assert list(wrong_inputs(manifest, plan, Hasher(root / "cache"))) == []
    # what only says where things lie is no setting, or two machines would always differ
    here = (str(REPOSITORY), str(Path.home()))
    for setting, value in settings_of(manifest.plan).items():
        assert not str(value).startswith(here), setting
    assert first_of(differences(Side(manifest), Side(manifest))) is None or any(
        each.sha256 is None for each in manifest.files
    )


def test_every_setting_that_is_hashed_is_named() -> None:
    """Another plan hash is never left unexplained."""
    loaded = load_job(str(REPOSITORY / "jobs" / "demo-identity.yaml"))
    facts = on_cpu(gather(loaded))
    base = make_plan(loaded, facts)
    for text in (
        "lora.r=8",
        "training.max_steps=7",
        "data.split.seed=3",
        "budget.host_memory=9GiB",
    ):
        other = make_plan(load_job(str(REPOSITORY / "jobs" / "demo-identity.yaml"), [text]), facts)
        ours, theirs = (settings_of(each.model_dump(mode="json")) for each in (base, other))
        field = text.split("=")[0].replace("budget.host_memory", "budget.limit_bytes")
        assert [name for name in ours if ours[name] != theirs[name]] == [field]
    threads = make_plan(loaded, replace(facts, cores=facts.cores + 1))
    ours, theirs = (settings_of(each.model_dump(mode="json")) for each in (base, threads))
    assert [n for n in ours if ours[n] != theirs[n]] == ["launch.threads_per_process"]
