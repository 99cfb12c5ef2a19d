"""cuDNN's attention, which plans for each new shape, is left out; said and recorded."""

from __future__ import annotations

import pytest
import torch

from runner.engines.sft.inside.model.attention import AVOIDS_RECOMPILING, avoid_plan_building
from runner.engines.sft.inside.stack import stack_record
from runner.engines.sft.inside.train import train
from runner.plans.container.argv import PASSED_ON_PREFIXES
from tests.engines.sft.in_process import plan_of


@pytest.fixture(autouse=True)
def cudnn_put_back() -> object:
    yield torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(True)


def test_cudnn_is_left_out_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AVOIDS_RECOMPILING, raising=False)
    said = avoid_plan_building()
    assert said is not None and "without cuDNN" in said
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_the_users_own_way_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AVOIDS_RECOMPILING, "1")
    assert avoid_plan_building() is None
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_training_on_a_gpu_does_so_before_its_first_tensor_and_records_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(AVOIDS_RECOMPILING, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(train, "start_record", lambda _: None)
    rows = tmp_path / "rows.jsonl"  # type: ignore[operator]
    rows.write_text("{}\n")
    plan = plan_of(tmp_path, rows)  # type: ignore[arg-type]
    plan = plan.model_copy(update={"launch": plan.launch.model_copy(update={"device": "cuda"})})
    train._ready_torch(plan)
    assert "attention without cuDNN's kernels" in capfd.readouterr().err
    assert stack_record()["switches"]["sdp.cudnn"] is False


def test_a_container_gets_what_the_user_said_of_cudnn() -> None:
    assert AVOIDS_RECOMPILING.startswith(PASSED_ON_PREFIXES)
