"""Settings that would change nothing are refused, by field and reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.command import Answer

CPU = "launch.device=cpu"


@pytest.mark.parametrize(
    ("sets", "field"),
    [
        (["launch.deepspeed=zero1"], "launch.deepspeed"),
        (["launch.deepspeed=zero3"], "launch.deepspeed"),
        (["launch.deepspeed=zero2"], "launch.offload"),
        ([CPU, "launch.deepspeed=zero2", "launch.offload=optimizer"], "launch.deepspeed"),
        (["launch.threads_per_process=2"], "launch.threads_per_process"),
        ([CPU, "launch.num_processes=2"], "launch.num_processes"),
        (["budget.oom_snapshot=true"], "budget.oom_snapshot"),
        ([CPU, "infer.cuda_index=1"], "infer.cuda_index"),
        ([CPU, "attn_implementation=flash_attention_2"], "attn_implementation"),
        (["pretrain.default_question=Why?"], "pretrain.default_question"),
    ],
)
def test_a_setting_without_effect_is_refused(
    sets: list[str], field: str, cli: Callable[..., Answer]
) -> None:
    words = [word for text in sets for word in ("--set", text)]
    answer = cli("render", "mgm-10k-lora", "--json", *words)
    assert answer.code == 2
    assert field in answer.err


@pytest.mark.parametrize(
    "sets",
    [
        ["launch.deepspeed=zero2", "launch.offload=optimizer"],  # what it does
        ["pretrain.questions=null", "pretrain.default_question=Why?"],
        [CPU],
    ],
)
def test_what_has_one_is_taken(sets: list[str], cli: Callable[..., Answer]) -> None:
    words = [word for text in sets for word in ("--set", text)]
    assert cli("render", "mgm-10k-lora", *words).code == 0


def test_columns_reach_the_conversion_and_leave_other_plans_as_they_were(
    cli: Callable[..., Answer],
) -> None:
    import json

    bare = json.loads(cli("render", "mgm-10k-lora", "--json").out)
    with_columns = cli(
        "render", "mgm-10k-lora", "--json", "--set", "pretrain.columns={text: caption}"
    )
    named = json.loads(with_columns.out)
    assert "--column text=caption" in named["files"]["launch.sh"]
    assert named["plan_hash"] != bare["plan_hash"]
    assert "--column" not in bare["files"]["launch.sh"]
