"""The contract's 13 traps, a test each: what upstream's script does wrong can't happen here."""

from __future__ import annotations

import json
import math
import os
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import SpecError
from runner.engines.mgm.command import stage_flags
from runner.engines.mgm.render import zero2_offload
from runner.engines.mgm.stages import attempt, infer, pictures, preflight, room, watch_loss
from tests.engines.mgm.cases import planned, rendered, run_stage, settings
from tests.engines.mgm.test_launch import Case, make_case

VOCABULARY = 256_000


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def test_trap_1_a_failed_training_does_not_go_on_into_the_evaluation(case: Case) -> None:
    script = case.script.read_text()
    assert "set -euo pipefail" in script
    assert "| tee" not in script
    code, _ = case.run(STUB_FAIL="train.py")
    assert code == 7
    assert case.ran() == ["preflight.py", "train.py MGM-2B-Pretrain-default"]


def test_trap_2_no_comment_ends_a_command(case: Case) -> None:
    lines = case.script.read_text().splitlines()
    for line, following in pairwise(lines):
        if line.endswith("\\"):
            assert not following.lstrip().startswith("#")
            assert "#" not in line
    trained = [line for line in lines if line.startswith("  --output_dir")]
    assert len(trained) == 2
    assert case.run()[0] == 0  # under set -e a flag run as a command would end it


def test_trap_3_a_wrong_batch_fails_and_a_crashed_check_does_too(case: Case) -> None:
    with pytest.raises(ValueError, match="does not go into 256"):
        settings(pretrain={"per_device_train_batch_size": 200})
    given = settings(finetune={"gradient_accumulation_steps": 64})
    with pytest.raises(SpecError, match="= 64"):
        planned(given)
    with pytest.raises(SpecError, match="GPUs 3"):
        planned(gpus=("0", "1", "2"))
    plan = planned().model_dump(mode="json")
    assert preflight.batch_findings(plan) == []
    plan["pretrain"]["gradient_accumulation_steps"] = 63
    (finding,) = preflight.batch_findings(plan)
    assert str(finding) == (
        "pretrain.gradient_accumulation_steps: 1 x 63 x 1 processes = 63 where 256 is expected"
    )
    # a preflight that can't even start is a failed run
    (case.folder / "run/mgm/plan.json").write_text("{")
    assert run_stage("preflight", "--plan", case.folder / "run/mgm/plan.json", "--run", ".")
    assert (
        run_stage("preflight", "--plan", case.folder / "run/mgm/plan.json", "--run", ".").returncode
        != 0
    )


def test_trap_4_every_path_is_absolute_and_the_script_runs_from_anywhere(case: Case) -> None:
    plan = planned(base_folder=Path("/srv"))
    for stage in ("pretrain", "finetune"):
        for name, value in stage_flags(plan, stage):  # type: ignore[arg-type]
            if name.endswith(("_path", "_folder", "tower", "_aux")) and name != "--image_size_aux":
                assert value.startswith(("/srv/", "data/"))  # or in the run folder, see below
    for line in rendered(plan)["launch.sh"].splitlines():
        for name in ("--data_path", "--output_dir", "--pretrain_mm_mlp_adapter"):
            if line.strip().startswith(name):
                assert line.split()[1].startswith(('"$RUN_FOLDER"/', "/srv/"))
    assert case.run()[0] == 0  # started in /
    relative = plan.model_dump(mode="json") | {"toolkit": "training"}
    assert preflight.absolute_findings(relative)[0].field == "toolkit"


def test_trap_5_a_checkpoint_of_another_run_is_never_gone_on_from(tmp_path: Path) -> None:
    output = tmp_path / "training_dirs/MGM-2B-Finetune-default"
    make_checkpoint(output, 2)
    attempt.write_whole(output / attempt.ATTEMPT, json.dumps({"purpose": ["smoke"]}))
    told = attempt.prepare(tmp_path, output, ["train"], resume=True, processes=1)
    assert "its command changed" in told
    assert [path.name for path in output.iterdir()] == [attempt.ATTEMPT]
    assert (tmp_path / "earlier/1/MGM-2B-Finetune-default/checkpoint-2").is_dir()


def test_trap_5_smoke_and_training_have_folders_of_their_own() -> None:
    for variant in ("train", "smoke"):
        script = rendered(planned(variant=variant))["launch.sh"]  # type: ignore[arg-type]
        assert '--output_dir "$RUN_FOLDER"/training_dirs/' in script


def test_trap_6_lora_is_in_the_finetune_stage_alone() -> None:
    for variant in ("train", "smoke"):
        plan = planned(variant=variant)  # type: ignore[arg-type]
        assert not [name for name, _ in stage_flags(plan, "pretrain") if "lora" in name]
        assert dict(stage_flags(plan, "finetune"))["--lora_enable"] == "True"
        assert rendered(plan)["launch.sh"].count("--lora_enable") == 1


def test_trap_7_the_model_that_is_evaluated_is_the_merged_one(case: Case) -> None:
    case.run()
    ran = case.ran()
    assert ran.index("merge.py MGM-2B-Finetune-default-merged") < ran.index("load.py")
    assert ran.index("load.py") < ran.index("infer.py")
    models = [
        line.split()[1]
        for line in case.script.read_text().splitlines()
        if line.strip().startswith("--model ")
    ]
    assert models
    assert all(model.endswith("MGM-2B-Finetune-default-merged") for model in models)


@pytest.mark.parametrize(
    ("field", "path", "word"),
    [
        ("model_name_or_path", "/w/qwen-2b", "gemma"),
        ("model_name_or_path", "/w/Gemma-2b-it", "gemma"),
        ("model_name_or_path", "/w/mistral/gemma-2b-it", "mistral"),
        ("vision_tower", "/w/clip-vit-large-patch14-336", "openai"),
        ("vision_tower_aux", "/w/convnext-large-d-320", "openclip"),
        ("vision_tower_aux", "/w/openclip-ConvNeXt-large-d-320", "convnext"),
        ("vision_tower_aux", "/w/openclip-convnext-base-w-320", "large"),
    ],
)
def test_trap_8_a_name_that_selects_another_class_is_refused(
    field: str, path: str, word: str
) -> None:
    assert word in str(preflight.name_findings(field, path)[0])


def test_trap_8_the_runs_own_names_select_the_right_class(tmp_path: Path) -> None:
    plan = planned(settings(experiment_name="Try-1"))
    for field in ("model_name_or_path", "vision_tower", "vision_tower_aux"):
        assert preflight.name_findings(field, getattr(plan, field)) == []
    assert preflight.run_name_findings(plan.merged_name) == []
    assert preflight.run_name_findings("llava-7b")
    # and the base is in shards with an index
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "index" in str(preflight.index_findings(tmp_path)[0])
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-1.safetensors" in str(preflight.index_findings(tmp_path)[0])
    (tmp_path / "model-1.safetensors").write_bytes(b"x")
    assert preflight.index_findings(tmp_path) == []


def test_trap_9_zero_2_is_rendered_and_nothing_fractional() -> None:
    zero = json.loads(zero2_offload())["zero_optimization"]
    assert zero["stage"] == 2
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert not [name for name in zero if "stage3" in name or "prefetch" in name]


def test_trap_10_logits_and_host_memory_are_reckoned_before() -> None:
    assert room.logits_bytes(1, 1024, VOCABULARY) == 500 * 2**20
    gemma = {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "num_hidden_layers": 18,
    }
    trained = room.trained_parameters(gemma, 1024, 2880, 16)
    beside = room.trained_parameters(gemma, 1024, 2880, 0)
    assert round((trained - beside) / 1e6, 1) == 19.6  # the contract's figures
    assert round(beside / 1e6, 1) == 13.3 or round(beside / 1e6, 1) == 13.2
    assert round(trained / 1e6, 1) == 32.9
    # a full finetuning of 2.5e9 parameters: 16 bytes x 1.5 each, the run that was killed with -9
    full = room.host_bytes_needed(0, 0, 2_500_000_000, 1)
    assert full == 60_000_000_000
    meminfo = "MemTotal: 64 kB\nMemAvailable:   33554432 kB\n"
    assert room.available_bytes(meminfo, None, None, None) == 32 * 2**30
    assert room.available_bytes(meminfo, "max", "0", "") == 32 * 2**30
    limit, used = str(8 * 2**30), str(3 * 2**30)
    assert room.available_bytes(meminfo, limit, used, "anon 5\n") == 5 * 2**30
    stat = f"anon 5\ninactive_file {2**31}\n"  # weights that were read before
    assert room.available_bytes(meminfo, limit, used, stat) == 7 * 2**30


@pytest.mark.parametrize("loss", [3e11, math.nan, math.inf, 0.0, 49.9])
def test_trap_11_an_absurd_loss_is_none_of_a_training(loss: float) -> None:
    assert watch_loss.absurd_losses([(1, 2.0), (2, loss), (3, 2.0)], VOCABULARY) is not None


@pytest.mark.parametrize("loss", ["3e11", "NaN"])
def test_trap_11_an_absurd_loss_fails_the_run(case: Case, loss: str) -> None:
    code, out = case.run(STUB_LOSS=loss)
    assert code == 1
    assert "this training failed" in out
    assert case.ran() == ["preflight.py", "train.py MGM-2B-Pretrain-default"]


def test_trap_11_plausible_losses_pass_and_a_run_worse_than_guessing_does_not() -> None:
    assert watch_loss.absurd_losses([(1, 12.4), (2, 9.0), (3, 3.0)], VOCABULARY) is None
    assert watch_loss.absurd_losses([(1, 30.0), (2, 4.0), (7, 3.0)], VOCABULARY) is None
    assert "guessing" in str(watch_loss.absurd_losses([(1, 2.0), (2, 40.0)], VOCABULARY))
    assert watch_loss.absurd_losses([], VOCABULARY) == "no loss was logged"


def test_trap_12_a_benchmark_that_is_not_there_is_said_to_be_not_there(tmp_path: Path) -> None:
    done = run_stage(
        "infer",
        *("--benchmark", "textvqa", "--model", tmp_path / "mgm-2b", "--toolkit", tmp_path),
        *("--output", tmp_path / "out", "--questions", tmp_path / "absent.jsonl"),
    )
    assert done.returncode == 0
    assert "not run" in done.stdout
    record = json.loads((tmp_path / "out/infer.json").read_text())
    assert record["run"] is False
    assert "absent.jsonl is not there" in record["reason"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["infer.json"]
    assert infer.why_not("mmbench", tmp_path / "x.tsv", None, "cuda") is not None


def test_trap_13_absent_and_broken_images_fail_before_the_training(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "whole.jpg")
    (folder / "broken.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:100])
    plan: dict[str, Any] = {"open_images": "all", "pretrain": {"image_folder": str(folder)}}
    said: list[str] = []

    def findings(*images: str) -> list[str]:
        found = pictures.image_findings("pretrain", images, plan, said.append, said.append)
        return [str(each) for each in found]

    assert findings("whole.jpg") == []
    assert said[0] == "images of pretrain: 1 there, 0 absent; 1 opened (all), 0 broken"
    absent, broken = findings("whole.jpg", "absent.jpg", "broken.jpg")
    assert "1 absent, such as absent.jpg" in absent
    assert "1 are not, such as" in broken
    plan["open_images"] = 1
    findings("whole.jpg", "broken.jpg")
    assert "1 opened (a sample)" in said[-1]


def test_trap_13_upstreams_own_path_rules_are_kept(tmp_path: Path) -> None:
    found, absent = pictures.find_images(
        ["ocr_vqa/1.jpg", "vg/VG_100K_2/2.jpg", "vg/VG_100K/3.jpg"],
        "/d",
        {"/d/ocr_vqa/1.png", "/d/vg/images/2.jpg"}.__contains__,
    )
    assert found == ["/d/ocr_vqa/1.png", "/d/vg/images/2.jpg"]
    assert absent == ["vg/VG_100K/3.jpg"]


def make_checkpoint(output: Path, step: int, processes: int = 1) -> Path:
    """A finetuning checkpoint as DeepSpeed and transformers leave it, in outline."""
    folder = output / f"checkpoint-{step}"
    states = folder / f"global_step{step}"
    states.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "latest").write_text(states.name)
    names = ["mp_rank_00_model_states.pt"]
    names += [f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(processes)]
    for name in names:
        with zipfile.ZipFile(states / name, "w") as archive:
            archive.writestr("data", os.urandom(100))
    return folder


def test_resume_goes_on_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    output = tmp_path / "training_dirs/MGM-2B-Finetune-default"
    attempt.prepare(tmp_path, output, ["train"], resume=False, processes=1)
    for step in (2, 4, 6):
        make_checkpoint(output, step)
    torn = output / "checkpoint-6/global_step6/mp_rank_00_model_states.pt"
    torn.write_bytes(torn.read_bytes()[:-30])
    (output / "tmp-checkpoint-8").mkdir()
    told = attempt.prepare(tmp_path, output, ["train"], resume=True, processes=1)
    assert told.startswith("resumes from checkpoint-4; checkpoint-6:")
    assert sorted(path.name for path in output.iterdir()) == [attempt.ATTEMPT, "checkpoint-4"]
    assert sorted(path.name for path in (tmp_path / "earlier/1").iterdir()) == [
        "checkpoint-2",
        "checkpoint-6",
        "tmp-checkpoint-8",
    ]


def test_another_number_of_ranks_can_not_go_on(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 2, processes=2)
    assert attempt.checkpoint_flaw(checkpoint, 2) is None
    assert "for 1 ranks" in str(attempt.checkpoint_flaw(checkpoint, 1))


def test_a_pretraining_begins_anew_since_its_checkpoints_hold_no_optimizer(case: Case) -> None:
    output = case.folder / "run/training_dirs/MGM-2B-Pretrain-default"
    (output / "checkpoint-2").mkdir(parents=True)
    code, out = case.run("--resume")
    assert code == 0
    assert "from the start; this training can't resume from a checkpoint" in out
    assert not (output / "checkpoint-2").exists()


def test_the_stage_scripts_compile_for_python_3_10() -> None:
    """The toolkit's image has 3.10; where it is here, it is asked, else its grammar is."""
    import ast

    from tests.engines.mgm.cases import STAGES

    for path in STAGES.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 10))
        for node in tree.body:  # nothing but the standard library at a module's top
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names if isinstance(node, ast.Import)]
                assert not {str(name).split(".")[0] for name in names} & {
                    "torch",
                    "transformers",
                    "peft",
                    "PIL",
                    "mgm",
                    "runner",
                    "safetensors",
                }
