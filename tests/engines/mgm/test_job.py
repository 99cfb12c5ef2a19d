"""`mgm-10k-lora` as a user meets it: rendered, refused, smoked, gone on with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.common.errors import RunnerError
from runner.engines.load import load_job
from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.mgm.smoke import STAND_IN, checked_flags
from runner.engines.render import read_any_plan, render
from runner.engines.resolve import make_any_plan
from runner.launch.resume import latest_of
from runner.plans.base import Plan
from runner.runs.create import create_run
from runner.runs.folder import RunFolder
from tests.support.command import Answer

JOB = "mgm-10k-lora"
EDITABLE = {  # the baseline's editable part, by field
    "experiment_name": "mine",
    "pretrain.data_path": "/rows.jsonl",
    "pretrain.image_folder": "/images",
    "pretrain.per_device_train_batch_size": "8",
    "pretrain.dataloader_num_workers": "2",
    "pretrain.learning_rate": "0.002",
    "finetune.per_device_train_batch_size": "2",
    "finetune.learning_rate": "0.00003",
    "finetune.model_max_length": "512",
    "finetune.bits": "4",
    "finetune.lora.r": "8",
    "finetune.lora.lora_alpha": "64",
    "finetune.lora.lora_dropout": "0.2",
    "logging_steps": "7",
    "save_steps": "17",
    "save_total_limit": "3",
    "max_samples": "77",
    "num_train_epochs": "2",
    "image_size_aux": "512",
}


def plan_of(*sets: str, variant: str = "train") -> MgmPlan:
    loaded = load_job(JOB, list(sets))
    plan, _ = make_any_plan(loaded, "smoke" if variant == "smoke" else "train")
    assert isinstance(plan, MgmPlan)
    return plan


@pytest.mark.parametrize("field", EDITABLE)
def test_a_set_reaches_the_rendered_script(field: str, cli: Callable[..., Answer]) -> None:
    before = cli("render", JOB, "--json")
    after = cli("render", JOB, "--json", "--set", f"{field}={EDITABLE[field]}")
    assert (before.code, after.code) == (0, 0), after.err
    one, two = json.loads(before.out), json.loads(after.out)
    assert one["plan_hash"] != two["plan_hash"]
    scripts = (one["files"]["launch.sh"], two["files"]["launch.sh"])
    value = str(float(EDITABLE[field])) if "rate" in field else EDITABLE[field]
    added = set(scripts[1].splitlines()) - set(scripts[0].splitlines())
    assert any(value.rstrip("0") in line or EDITABLE[field] in line for line in added), added


def test_both_variants_render_clean_and_read_back(tmp_path: Path) -> None:
    for variant in ("train", "smoke"):
        plan = plan_of(variant=variant)
        files = render(plan)
        (tmp_path / "plan.yaml").write_text(files["plan.yaml"])
        assert read_any_plan(tmp_path / "plan.yaml") == plan
        script = tmp_path / "launch.sh"
        script.write_text(files["launch.sh"])
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert plan_of().hash != plan_of(variant="smoke").hash


def test_what_is_absent_is_refused_before_anything_starts(
    cli: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = cli("train", JOB)
    assert answer.code == 3
    for field in ("toolkit", "model_name_or_path", "vision_tower_aux", "finetune.data_path"):
        assert f"{field}: no " in answer.err
    assert "runner fetch mgm-10k-lora" in answer.err
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_can_not_be_the_baselines_is_refused(cli: Callable[..., Answer]) -> None:
    answer = cli("render", JOB, "--set", "finetune.gradient_accumulation_steps=3")
    assert answer.code == 2
    assert "128" in answer.err and "finetune.gradient_accumulation_steps" in answer.err


def test_a_flag_that_the_parser_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(variant="smoke")
    assert checked_flags(plan) > 60
    from runner.engines.mgm import smoke as smoke_mgm

    fewer = {name: flag for name, flag in smoke_mgm.recorded_flags().items() if name != "--lora_r"}
    monkeypatch.setattr(smoke_mgm, "recorded_flags", lambda: fewer)
    with pytest.raises(RunnerError, match="--lora_r"):
        checked_flags(plan)


def test_the_smoke_without_the_toolkit_says_what_it_did_instead(
    cli: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/whole_runs trains the stand-in with all other jobs: here nothing trains."""
    from runner.launch import plan as planning
    from runner.launch import smoke

    def ended(folder: RunFolder, plan: Plan, *_: object, **__: object) -> int:
        end = {"schema_version": 1, "reason": "completed", "exit_code": 0, "message": "all done"}
        folder.write_json(folder.termination, {**end, "steps": plan.planned_steps})
        folder.write_json(folder.engine_result, {"checks": {"reload": {"loaded": True}}})
        return 0

    monkeypatch.setattr(planning, "make_stand_in", lambda *_: None)
    monkeypatch.setattr(smoke, "predict_smoke", lambda *_: None)
    monkeypatch.setattr(smoke, "keep_measurement", lambda *_: None)
    monkeypatch.setattr(smoke, "start_and_follow", ended)
    done = cli("smoke", JOB, "--max-steps", "2", "--json")
    assert done.code == 0, done.err
    (record,) = json.loads(done.out)["jobs"]
    assert record["passed"] and record["steps"] == 4
    first, second, *_ = record["substitutions"]
    assert f"native {STAND_IN} in place of the MGM toolkit, which was not run" in first
    assert "flags of the rendered commands were checked" in second and "nothing else" in second
    (run,) = (tmp_path / "runs" / JOB).iterdir()
    report = cli("report", str(run))
    assert report.out.count("in place of the MGM toolkit") >= 1, report


def test_the_same_command_goes_on_with_the_stages_that_are_done(tmp_path: Path) -> None:
    plan = plan_of()
    folder = create_run(tmp_path, plan.job, plan.short_hash, plan.variant, render(plan))
    earlier = latest_of(plan, tmp_path)
    assert earlier is not None and earlier.kept is None
    folder.stages.mkdir()
    (folder.stages / "cap.json").write_text("{}")
    earlier = latest_of(plan, tmp_path)
    assert earlier is not None and earlier.kept == "its stages that are done (cap)"
    assert (folder.path / "mgm" / "preflight.py").is_file()


def test_without_the_toolkits_image_the_smoke_stands_in_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With --on docker the train image may be there and the toolkit's not."""
    from runner.engines.mgm.smoke import smoke_plan

    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\necho 'Error: No such image: runner-mgm' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("RUNNER_CONTAINER_CLI", str(program))
    plan, facts, why = smoke_plan(load_job(JOB, ["launch.on=docker"]), 3)
    assert isinstance(plan, MgmPlan) and plan.planned_steps == 6
    assert why is not None and "runner-mgm" in why
    assert facts.place.container is None


def test_the_toolkit_of_the_image_serves_where_there_is_no_other(tmp_path: Path) -> None:
    from dataclasses import replace

    from runner.containers.cli import ContainerCli
    from runner.containers.images import Image, ImageFacts
    from runner.engines.mgm.resolve import IMAGE_TOOLKIT, absent, make_mgm_plan
    from runner.plans.facts import gather_host
    from runner.plans.placement import Container, Placement

    loaded = load_job(JOB)
    image = Image("runner-mgm:1", "sha256:" + "1" * 64, {"dev.runner.kind": "mgm"}, 1, "")
    box = Container(ContainerCli("/usr/bin/docker"), image, ImageFacts("3.10", {}, None))
    facts = replace(gather_host(loaded.job), place=Placement(box, ""))
    plan = make_mgm_plan(loaded, facts, "smoke")
    assert plan.mgm.toolkit == IMAGE_TOOLKIT
    assert plan.python == "/opt/runner/bin/python"
    assert "toolkit" not in [each.field for each in absent(plan.mgm)]
    own = load_job(JOB, [f"toolkit={tmp_path}"])
    assert make_mgm_plan(own, facts, "smoke").mgm.toolkit == str(tmp_path)
