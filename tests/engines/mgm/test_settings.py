"""The settings of an MGM job: defaults, profiles, what is refused, and the table of sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from runner.common.errors import SpecError
from runner.engines.mgm import sources
from runner.engines.mgm.job import MgmSettings
from runner.engines.mgm.plan import PlannedMgm, plan_mgm
from tests.engines.mgm.cases import planned, rendered, settings

JOB = Path(__file__).parents[3] / "jobs/mgm-10k-lora.yaml"


def job() -> MgmSettings:
    record = yaml.safe_load(JOB.read_text())
    return MgmSettings.model_validate(
        {key: value for key, value in record.items() if key in MgmSettings.model_fields}
    )


def test_the_job_is_the_baseline_with_lora_within_16_gib() -> None:
    given = job()
    assert given.profile == "16GiB"
    assert given.finetune.lora.model_dump() == {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "bias": "none",
    }
    plan = plan_mgm(given, python="python3", base_folder=Path("/jobs"))
    assert plan.pretrain.global_batch_size == 256
    assert plan.finetune.global_batch_size == 128
    assert plan.finetune.per_device_train_batch_size == 1
    assert plan.finetune.model_max_length == 1024
    assert plan.substitutions == []


def test_the_job_and_the_table_of_sources_mean_the_same_places() -> None:
    given = job().model_dump()
    for source in sources.SOURCES:
        if source.field in (None, "infer") or source.field.endswith("image_folder"):
            continue
        value: Any = given
        for part in source.field.split("."):
            value = value[part]
        assert value == f"mgm/{source.target}", source.name
    for path in (
        given["infer"][name] for name in ("textvqa_questions", "textvqa_images", "mmbench")
    ):
        assert any(path.endswith(end) for end in sources.SOURCES[-1].expects)


def test_a_source_names_what_it_is_checked_by() -> None:
    for source in sources.SOURCES:
        if source.kind == "git":
            assert source.revision is not None
            assert len(source.revision) == 40
        if source.kind == "hub":
            assert set(source.expects) <= set(source.files)
    assert sources.source_of("pretrain.data_path").rows == 10_000
    with pytest.raises(KeyError):
        sources.source_of("no such field")


def test_a_plan_survives_being_written_and_read() -> None:
    plan = planned(variant="smoke")
    assert PlannedMgm.model_validate_json(plan.model_dump_json()) == plan
    assert PlannedMgm.model_validate_json(rendered(plan)["mgm/plan.json"]) == plan


@pytest.mark.parametrize(
    "changes",
    [
        {"experiment_name": "../out"},
        {"experiment_name": "-x"},
        {"profile": "80GiB"},
        {"finetune": {"lora": {"bias": "lora_only"}}},
        {"finetune": {"lora": {"lora_alpha": 32.5}}},  # the real parser takes whole numbers
        {"finetune": {"bits": 2}},
        {"finetune": {"gradient_accumulation_steps": 127}},
        {"pretrain": {"lora": {"r": 8}}},
        {"max_samples": 0},
        {"toolkit": ""},
    ],
)
def test_what_upstream_can_not_do_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**changes)


def test_inference_on_a_gpu_that_is_not_the_runs_is_refused() -> None:
    with pytest.raises(SpecError, match="no such GPU"):
        planned(settings(infer={"cuda_index": 1}))
    plan = planned(settings(infer={"cuda_index": 1}), gpus=("GPU-a", "GPU-b"))
    assert "env CUDA_VISIBLE_DEVICES=GPU-b" in rendered(plan)["launch.sh"]


def test_a_smoke_says_what_it_is_not() -> None:
    plan = planned(variant="smoke")
    assert plan.substitutions == ["smoke: 5 steps of 1 and 1 samples instead of 256 and 128"]
    assert "# SUBSTITUTED: smoke" in rendered(plan)["launch.sh"]


def test_a_default_question_is_said_to_be_one() -> None:
    plan = planned(settings(pretrain={"questions": None}))
    assert "every pretraining row asks" in plan.substitutions[0]
