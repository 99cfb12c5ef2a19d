"""What a plan does not use is as not installed for the process that trains it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from runner.common.own_python import code_argv
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.unused_packages import SPARED, used_packages
from tests.engines.sft.in_process import make_rows, plan_of


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SftPlan:
    folder = tmp_path_factory.mktemp("unused")
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    return plan_of(model, make_rows(folder / "rows.jsonl"))


def changed(plan: SftPlan, part: str = "", **fields: Any) -> SftPlan:
    if not part:
        return plan.model_copy(update=fields)
    return plan.model_copy(update={part: getattr(plan, part).model_copy(update=fields)})


def test_a_plan_uses_what_its_method_optimizer_launch_and_trackers_need(plan: SftPlan) -> None:
    assert used_packages(plan) == set()
    assert used_packages(changed(plan, method="qlora")) == {"bitsandbytes"}
    assert used_packages(changed(plan, "training", optim="adamw_8bit")) == {"bitsandbytes"}
    assert used_packages(changed(plan, "launch", deepspeed="zero2")) == {"deepspeed"}
    assert used_packages(changed(plan, "tracking", report_to=["tensorboard"])) == set()
    assert used_packages(changed(plan, "tracking", report_to=["wandb"])) == {
        *("scipy", "sklearn", "wandb")
    }
    assert used_packages(changed(plan, trust_remote_code=True)) == set(SPARED)


@pytest.mark.slow
@pytest.mark.e2e
def test_the_stack_imports_nothing_of_what_is_left_out_and_else_all_as_before() -> None:
    pytest.importorskip("trl")
    pytest.importorskip("bitsandbytes")
    code = """
import importlib.util, json, sys
from runner.engines.sft.unused_packages import SPARED, leave_out
leave_out(set(SPARED) - {"bitsandbytes"})
import runner.engines.sft.inside.train.trainer
import peft.import_utils
try:
    import wandb
    told = None
except ModuleNotFoundError as error:
    told = str(error)
there = {name for name, module in sys.modules.items() if module is not None}
print(json.dumps([
    sorted({name.split(".")[0] for name in there} & set(SPARED)),
    importlib.util.find_spec("deepspeed") is None, told, peft.import_utils.is_bnb_available(),
]))
"""
    done = subprocess.run(code_argv(code), capture_output=True, text=True, check=True)
    imported, hidden, told, quantizes = json.loads(done.stdout.splitlines()[-1])
    assert imported == ["bitsandbytes"]
    assert hidden and "wandb" in told
    assert quantizes
