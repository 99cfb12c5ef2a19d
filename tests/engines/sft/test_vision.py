"""Image-text models: put together exactly, trained where they should be, fed with the right images.

Tiny random models (a CLIP tower of 16 patches), real images where ../shared has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import RefusedError, RunnerError, SpecError
from runner.data.encoded import IGNORED_LABEL
from runner.data.masks import encode
from runner.engines.load import load_job
from runner.engines.sft.facts import gather
from runner.engines.sft.inside.images import (
    IMAGES,
    ImageTextCollator,
    for_trainer,
    image_processor,
    read_image,
    require_images,
)
from runner.engines.sft.inside.model import standin
from runner.engines.sft.inside.model.tokenizer import IMAGE_TOKEN, add_image_token, load_tokenizer
from runner.engines.sft.inside.model.vision.compose import (
    adapter_targets,
    load_vision_model,
    vision_model_on_meta,
)
from runner.engines.sft.inside.model.vision.config import image_tokens, image_tokens_of
from runner.engines.sft.inside.model.vision.projector import (
    PROJECTOR,
    freeze_all_but_projector,
    load_projector,
    projector_alone,
    projector_parameters,
    ready_projector,
    save_projector,
)
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan

PATCHES = 16
# openai/clip-vit-large-patch14-336's own preprocessor_config.json, as old as its names, made small
PREPROCESSOR = {
    "crop_size": 56,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 56,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, a tower, two language models and a LLaVA stand-in."""
    import torch
    from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("vision")
    row = {"conversations": [{"from": "human", "value": "What is this?"}], "images": ["a.png"]}
    (folder / "rows.json").write_text(json.dumps([row] * 20))
    for kind in ("gemma", "llava-gemma"):
        standin.make(kind, folder / kind, folder / "rows.json")
    set_seed(0)
    part = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    clip = CLIPConfig(
        text_config={**part, "vocab_size": 99, "max_position_embeddings": 16},
        vision_config={**part, "image_size": 56, "patch_size": 14},
        projection_dim=16,
    )
    CLIPModel(clip).save_pretrained(folder / "clip")
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    tokenizer = standin.train_tokenizer(standin.CHATML, iter(["What is this?"] * 9))
    untied = LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=False,
        num_key_value_heads=2,
        **{**part, "num_hidden_layers": 2, "num_attention_heads": 4},
    )
    LlamaForCausalLM(untied).to(torch.float32).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder


def plan_of(place: Path, text: str = "gemma", tower: str = "clip", **vision: Any) -> SftPlan:
    """A plan whose weights are the folders `text` and `tower` of `place`."""
    job = {
        "model": str(place / text),
        "vision": {"model": str(place / tower), **vision},
        "method": "lora",
        "data": {"train": str(place / "rows.json")},
        "launch": {"device": "cpu"},
    }
    path = place / "job.yaml"
    path.write_text(json.dumps(job))
    loaded = load_job(str(path), [])
    return make_plan(loaded, gather(loaded))


def composed(place: Path, dtype: str = "float32", **options: Any) -> Any:
    import torch
    from transformers import set_seed

    set_seed(7)
    return load_vision_model(plan_of(place, **options), getattr(torch, dtype))


@pytest.fixture(scope="module")
def batch_rows(place: Path) -> list[dict[str, Any]]:
    """Eight rows of one image each, of different sizes and colours."""
    from PIL import Image

    plan = plan_of(place)
    tokenizer, _ = load_tokenizer(plan)
    add_image_token(tokenizer)
    rows = []
    for number in range(8):
        path = place / f"{number}.png"
        Image.new("RGB", (40 + 9 * number, 70), (30 * number, 90, 200)).save(path)
        row = encode(
            tokenizer,
            [
                {"role": "user", "content": IMAGE_TOKEN * PATCHES + "\nWhat is this?"},
                {"role": "assistant", "content": "a colour " * (number + 1)},
            ],
            None,
        )
        rows.append({"input_ids": row.input_ids, "labels": row.labels, IMAGES: [str(path)]})
    return rows


@pytest.fixture(scope="module")
def collator(place: Path) -> ImageTextCollator:
    plan = plan_of(place)
    tokenizer, _ = load_tokenizer(plan)
    add_image_token(tokenizer)
    return ImageTextCollator(tokenizer, image_processor(plan))


# composing


@pytest.mark.parametrize("text", ["gemma", "llama"])
def test_every_weight_of_both_checkpoints_is_there_to_the_bit(place: Path, text: str) -> None:
    import torch
    from safetensors.torch import load_file

    model = composed(place, text=text)
    state = model.state_dict()
    language = load_file(place / text / "model.safetensors")
    tower = load_file(place / "clip" / "model.safetensors")
    rows = language["model.embed_tokens.weight"].shape[0]
    seen = set()
    for name, tensor in language.items():
        own = f"model.language_model.{name.removeprefix('model.')}"
        own = "lm_head.weight" if name == "lm_head.weight" else own
        ours = state[own][:rows] if tensor.shape != state[own].shape else state[own]
        assert torch.equal(ours, tensor), name
        seen.add(own)
    for name, tensor in tower.items():
        if name.startswith("vision_model."):
            own = f"model.vision_tower.{name.removeprefix('vision_model.')}"
            if own in state:
                assert torch.equal(state[own], tensor), name
                seen.add(own)
    left = {name for name in state if name not in seen and PROJECTOR not in name}
    assert left <= ({"lm_head.weight"} if text == "gemma" else set())  # tied: the embedding itself


def test_the_image_token_gets_a_mean_row_and_a_tied_head_stays_tied(place: Path) -> None:
    import torch

    model = composed(place)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    token, rows = model.config.image_token_index, embeddings.weight.shape[0]
    assert head.weight is embeddings.weight
    assert rows % 64 == 0 and token < rows == model.config.text_config.vocab_size
    mean = embeddings.weight[:token].mean(dim=0)
    torch.testing.assert_close(embeddings.weight[token], mean)
    assert float(embeddings.embed_scale) == pytest.approx(8.0)  # Gemma scales by sqrt(hidden)

    model = composed(place, text="llama")
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    token = model.config.image_token_index
    assert head.weight is not embeddings.weight
    for weight in (embeddings.weight, head.weight):
        torch.testing.assert_close(weight[token], weight[:token].mean(dim=0))


def test_the_projector_is_drawn_by_the_seed_and_the_tower_is_frozen(place: Path) -> None:
    import torch
    from transformers import set_seed

    first, again = composed(place), composed(place)
    for name, tensor in projector_parameters(first).items():
        assert torch.equal(tensor, projector_parameters(again)[name])
    set_seed(8)
    other = load_vision_model(plan_of(place), torch.float32)
    assert not all(
        torch.equal(a, b)
        for a, b in zip(
            projector_parameters(first).values(), projector_parameters(other).values(), strict=True
        )
    )
    assert not any(p.requires_grad for p in first.model.vision_tower.parameters())
    assert all(p.requires_grad for p in first.model.language_model.parameters())


def test_a_composed_model_computes_what_the_parts_compute(
    place: Path, batch_rows: list[dict[str, Any]], collator: ImageTextCollator
) -> None:
    """By hand: text embeddings with the projected patches in the image tokens' places."""
    import torch
    from transformers import AutoModelForCausalLM, CLIPModel

    model = composed(place)
    batch = collator(batch_rows[:2])
    text = AutoModelForCausalLM.from_pretrained(place / "gemma")
    clip = CLIPModel.from_pretrained(place / "clip").vision_model
    with torch.no_grad():
        ours = model(
            **{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        ).logits
        states = clip(batch["pixel_values"], output_hidden_states=True).hidden_states
        patches = model.model.multi_modal_projector(states[-2][:, 1:])
        image = batch["input_ids"] == model.config.image_token_index
        embeds = text.get_input_embeddings()(batch["input_ids"].masked_fill(image, 0))
        embeds[image] = patches.reshape(-1, patches.shape[-1])
        theirs = text(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    known = theirs.shape[-1]
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(ours[..., :known][kept], theirs[kept], rtol=1e-4, atol=1e-5)


def test_the_number_format_is_the_plans(place: Path) -> None:
    model = composed(place, dtype="bfloat16")
    assert {str(p.dtype) for p in model.parameters()} == {"torch.bfloat16"}


@pytest.mark.parametrize("text", ["gemma", "llama", "llava-gemma"])
def test_the_count_without_weights_is_the_count_with_them(place: Path, text: str) -> None:
    options = {"text": text, "tower": text if text.startswith("llava") else "clip"}
    real, meta = composed(place, **options), vision_model_on_meta(plan_of(place, **options))
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert sum(p.numel() for p in meta.parameters()) == sum(p.numel() for p in real.parameters())
    shapes = {name: p.shape for name, p in real.named_parameters()}
    assert {name: p.shape for name, p in meta.named_parameters()} == shapes


def test_an_image_takes_a_token_a_patch_and_one_more_with_the_class_token(place: Path) -> None:
    assert image_tokens_of(plan_of(place)) == PATCHES
    assert image_tokens_of(plan_of(place, feature_select="full")) == PATCHES + 1
    assert image_tokens(composed(place, feature_select="full")) == PATCHES + 1


def test_the_image_token_is_added_once(place: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "gemma")
    before = len(tokenizer)
    token = add_image_token(tokenizer)
    assert add_image_token(tokenizer) == token == before
    assert len(tokenizer) == before + 1
    assert tokenizer.added_tokens_decoder[token].special
    ids = tokenizer(f"a{IMAGE_TOKEN * 3} b", add_special_tokens=False)["input_ids"]
    assert ids.count(token) == 3 and ids[1:4] == [token] * 3


# refusals


def test_a_tower_without_some_weights_is_refused(place: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(place / "clip", place / "broken", dirs_exist_ok=True)
    tensors = load_file(place / "clip" / "model.safetensors")
    gone = "vision_model.encoder.layers.1.mlp.fc1.weight"
    kept = {name: tensor for name, tensor in tensors.items() if name != gone}
    save_file(kept, place / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RefusedError, match=r"lacks 1 weights .*layers\.1\.mlp\.fc1\.weight"):
        composed(place, tower="broken")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_layer": -5}, "has 3 layers"),
        ({"feature_layer": 4}, "has 3 layers"),
        ({"tower": "gemma"}, "not a CLIP image tower"),
        ({"text": "clip"}, "no language model alone"),
        ({"text": "llava-gemma"}, "image tower of its own"),
        ({"text": "llava-gemma", "tower": "llava-gemma", "feature_layer": -3}, "trained with -2"),
    ],
)
def test_models_and_settings_that_do_not_fit_are_refused(
    place: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        composed(place, **options)


def test_images_of_another_size_than_the_towers_are_refused(place: Path) -> None:
    import shutil

    shutil.copytree(place / "clip", place / "large", dirs_exist_ok=True)
    (place / "large" / "preprocessor_config.json").write_text(
        json.dumps({**PREPROCESSOR, "crop_size": 70, "size": 70})
    )
    with pytest.raises(RefusedError, match=r"images of 70x70, but the tower takes 56x56"):
        image_processor(plan_of(place, tower="large"))
    (place / "large" / "preprocessor_config.json").unlink()
    with pytest.raises(RefusedError, match=r"vision\.model .*can't be loaded"):
        image_processor(plan_of(place, tower="large"))


# what is adapted, frozen, saved


def test_adapters_go_on_the_language_models_layers_alone(place: Path) -> None:
    model = composed(place)
    targets = adapter_targets(model)
    hit = [name for name, _ in model.named_modules() if re.fullmatch(targets, name)]
    assert len(hit) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in hit)
    some = adapter_targets(model, ["q_proj", "v_proj"])
    hit = [name for name, _ in model.named_modules() if re.fullmatch(some, name)]
    assert len(hit) == 2 * 2 and not any("vision" in name for name in hit)
    with pytest.raises(SpecError, match="has no such layer"):  # but the tower's
        adapter_targets(model, ["fc1"])


def test_the_projector_comes_back_from_its_file_and_no_other(place: Path, tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    model = composed(place, dtype="bfloat16")
    saved = save_projector(model, tmp_path / "projector.safetensors")
    content = (tmp_path / "projector.safetensors").read_bytes()
    assert saved == {"sha256": sha256(content).hexdigest(), "size_bytes": len(content)}
    with safe_open(tmp_path / "projector.safetensors", framework="pt") as stream:
        assert {stream.get_tensor(name).dtype for name in stream.keys()} == {torch.float32}  # noqa: SIM118
    other = composed(place, dtype="bfloat16")
    for parameter in projector_parameters(other).values():
        parameter.data.zero_()
    load_projector(other, tmp_path / "projector.safetensors")
    for name, tensor in projector_parameters(model).items():
        assert torch.equal(tensor, projector_parameters(other)[name])
    with pytest.raises(RunnerError, match=r"another model's.*linear_1\.weight 64x32"):
        load_projector(composed(place, text="llama"), tmp_path / "projector.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(RunnerError, match=r"torn\.safetensors can't be read"):
        load_projector(other, tmp_path / "torn.safetensors")


# batches


def test_a_batch_is_padded_on_the_right_with_images_in_the_order_of_rows(
    place: Path, batch_rows: list[dict[str, Any]], collator: ImageTextCollator
) -> None:
    import torch

    rows = [batch_rows[5], batch_rows[0], batch_rows[3]]
    batch = collator(rows)
    length = max(len(row["input_ids"]) for row in rows)
    assert batch["pixel_values"].shape == (3, 3, 56, 56)
    for index, row in enumerate(rows):
        own = len(row["input_ids"])
        assert batch["input_ids"][index, :own].tolist() == row["input_ids"]
        assert batch["labels"][index, :own].tolist() == row["labels"]
        assert batch["attention_mask"][index].tolist() == [1] * own + [0] * (length - own)
        assert set(batch["labels"][index, own:].tolist()) <= {IGNORED_LABEL}
        alone = collator([row])["pixel_values"][0]
        assert torch.equal(batch["pixel_values"][index], alone)
    text = [{"input_ids": [1, 2], "labels": [-100, 2], IMAGES: []}]
    assert "pixel_values" not in collator(text)


def test_labels_stand_on_the_answer_alone(
    place: Path, batch_rows: list[dict[str, Any]], collator: ImageTextCollator
) -> None:
    tokenizer = collator.tokenizer
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    for number, row in enumerate(batch_rows):
        trained = [token for token in row["labels"] if token != IGNORED_LABEL]
        assert row["input_ids"].count(image) == PATCHES and image not in trained
        text = tokenizer.decode(trained)
        assert text == ("a colour " * (number + 1)).strip() + "<end_of_turn>"


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    from PIL import Image

    with pytest.raises(RunnerError, match=r"gone\.png is not there"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(RunnerError, match=r"text\.png can't be read"):
        read_image(tmp_path / "text.png")
    Image.new("RGB", (300, 300), "red").save(tmp_path / "whole.jpg")
    half = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(half[: len(half) // 2])
    with pytest.raises(RunnerError, match=r"half\.jpg can't be read"):
        read_image(tmp_path / "half.jpg")
    Image.new("LA", (5, 5)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").mode == "RGB"


def test_an_image_without_its_tokens_is_named(
    batch_rows: list[dict[str, Any]], collator: ImageTextCollator
) -> None:
    cut = {name: values[:12] for name, values in batch_rows[0].items()}
    with pytest.raises(RunnerError, match=r"0\.png holds \d+ image tokens, not 1 x 16"):
        collator([cut])


def test_rows_without_an_image_are_refused_where_the_projector_alone_is_trained(
    batch_rows: list[dict[str, Any]],
) -> None:
    from datasets import Dataset

    rows = Dataset.from_list(batch_rows)
    require_images(rows)
    assert for_trainer(rows.rename_column(IMAGES, "images")).column_names == rows.column_names
    text = {"input_ids": [1], "labels": [1], IMAGES: []}
    with pytest.raises(RefusedError, match="1 of 9 rows have no image"):
        require_images(Dataset.from_list([*batch_rows, text]))
    with pytest.raises(RefusedError, match="8 of 8 rows have no image"):
        require_images(for_trainer(rows.remove_columns(IMAGES)))


# training, through TRL as the engine calls it


def trainer_of(
    model: Any, rows: list[dict[str, Any]], collator: ImageTextCollator, out: Path, **options: Any
) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    peft_config = options.pop("peft_config", None)
    arguments = SFTConfig(
        **{
            "output_dir": str(out),
            "max_steps": 5,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "max_length": None,
            "shuffle_dataset": False,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "remove_unused_columns": False,
            "prediction_loss_only": True,
            "activation_checkpointing": True,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **options,
        }
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=collator.tokenizer,
        data_collator=collator,
        peft_config=peft_config,
    )


def lora(model: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=adapter_targets(model),
        modules_to_save=[PROJECTOR],
    )


def trained(trainer: Any, **options: Any) -> tuple[set[str], list[float]]:
    """Train; the names of the tensors that moved, and the losses."""
    import torch

    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train(**options)
    after = trainer.model.state_dict()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return {name for name in before if not torch.equal(before[name], after[name])}, losses


@pytest.fixture(autouse=True)
def _quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()


def test_the_loss_is_that_of_a_plain_forward_pass(
    place: Path, batch_rows: list[dict[str, Any]], collator: ImageTextCollator, tmp_path: Path
) -> None:
    """TRL's fused head never builds the logits; over rows of unequal answers it has to agree."""
    import torch

    model = composed(place)
    trainer = trainer_of(model, batch_rows, collator, tmp_path)
    batch = collator(batch_rows)
    with torch.no_grad():
        plain = model(**batch)
        fused = trainer.compute_loss(model, dict(batch))
    shifted = batch["labels"][:, 1:]
    by_hand = torch.nn.functional.cross_entropy(
        plain.logits[:, :-1].transpose(1, 2), shifted, ignore_index=IGNORED_LABEL
    )
    torch.testing.assert_close(fused, by_hand, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain.loss, by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.e2e
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pretraining_moves_the_projector_and_nothing_else(
    place: Path,
    batch_rows: list[dict[str, Any]],
    collator: ImageTextCollator,
    tmp_path: Path,
    dtype: str,
) -> None:
    import torch

    model = composed(place, dtype=dtype)
    freeze_all_but_projector(model)
    with torch.no_grad():  # without autocast too, where a bf16 tower meets a float32 projector
        assert model(**collator(batch_rows[:2])).logits.isfinite().all()
    options = {"peft_config": projector_alone(), "bf16": dtype == "bfloat16"}
    trainer = trainer_of(model, batch_rows, collator, tmp_path, **options)
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(trainable) == 4 and all(PROJECTOR in name for name in trainable)
    moved, losses = trained(trainer)
    assert moved == trainable
    assert {p.dtype for p in projector_parameters(trainer.model).values()} == {torch.float32}
    assert len(losses) == 5 and all(0 < loss < 20 for loss in losses)
    save_projector(trainer.model, tmp_path / "projector.safetensors")
    fresh = composed(place)
    load_projector(fresh, tmp_path / "projector.safetensors")
    for name, tensor in projector_parameters(trainer.model).items():
        assert torch.equal(projector_parameters(fresh)[name], tensor)


@pytest.mark.e2e
def test_finetuning_moves_the_adapter_and_the_projector_and_never_enters_the_tower(
    place: Path, batch_rows: list[dict[str, Any]], collator: ImageTextCollator, tmp_path: Path
) -> None:
    model = composed(place)
    ready_projector(model)
    trainer = trainer_of(model, batch_rows, collator, tmp_path, peft_config=lora(model))
    graphs: list[bool] = []
    model.model.vision_tower.register_forward_hook(
        lambda *seen: graphs.append(seen[-1].last_hidden_state.requires_grad)
    )
    moved, losses = trained(trainer)
    assert {name for name in moved if "lora_B" in name} == {
        name for name in trainer.model.state_dict() if "lora_B" in name
    }
    assert all("lora_" in name or f"{PROJECTOR}.modules_to_save" in name for name in moved)
    assert sum(PROJECTOR in name for name in moved) == 4
    assert len(losses) == 5 and all(0 < loss < 20 for loss in losses)
    assert graphs and not any(graphs)


def test_a_batch_without_images_gives_the_projector_a_gradient_of_nothing(
    place: Path, batch_rows: list[dict[str, Any]], collator: ImageTextCollator
) -> None:
    """Several processes exchange gradients; one that has none for a weight stops them all."""
    import torch
    from peft import get_peft_model

    token = collator.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    row = batch_rows[0]
    kept = [index for index, i in enumerate(row["input_ids"]) if i != token]
    text = {name: [row[name][index] for index in kept] for name in ("input_ids", "labels")}
    batch = collator([text])
    plain = composed(place)(**batch).loss
    model = composed(place)
    ready_projector(model)
    model = get_peft_model(model, lora(model))
    loss = model(**batch).loss
    assert torch.equal(loss, plain)
    loss.backward()
    for parameter in projector_parameters(model).values():
        assert parameter.grad is not None and not parameter.grad.any()


@pytest.mark.e2e
@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_a_phase_goes_on_from_its_checkpoint_to_the_bit(
    place: Path,
    batch_rows: list[dict[str, Any]],
    collator: ImageTextCollator,
    tmp_path: Path,
    phase: str,
) -> None:
    """Without PEFT it would not: transformers saves LLaVA under names that its Trainer can't load,
    and goes on from untrained weights with a warning."""
    import torch

    def made() -> Any:
        model = composed(place)
        if phase == "pretrain":
            freeze_all_but_projector(model)
            config = projector_alone()
        else:
            ready_projector(model)
            config = lora(model)
        saving = {"save_strategy": "steps", "save_steps": 3, "peft_config": config}
        return trainer_of(model, batch_rows, collator, tmp_path, **saving)

    whole, again = made(), made()
    whole.train()
    checkpoint = tmp_path / "checkpoint-3"
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 200_000
    assert not (checkpoint / "model.safetensors").exists()
    again.train(resume_from_checkpoint=str(checkpoint))
    ours, theirs = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# real images


@pytest.mark.e2e
def test_five_steps_of_each_phase_on_real_images(place: Path, shared: Path, tmp_path: Path) -> None:
    import torch
    from transformers import set_seed

    folder = shared / "data" / "mgm_200"
    if not folder.is_dir():
        pytest.skip(f"no real image-text rows at {folder}")
    plan = plan_of(place, text="llava-gemma", tower="llava-gemma")
    tokenizer, _ = load_tokenizer(plan)
    token = add_image_token(tokenizer)
    collator = ImageTextCollator(tokenizer, image_processor(plan))
    rows = []
    for record in json.loads((folder / "data.llava.json").read_text())[:24]:
        human, answer = (turn["value"] for turn in record["conversations"])
        human = human.replace(IMAGE_TOKEN, IMAGE_TOKEN * PATCHES)
        row = encode(
            tokenizer,
            [{"role": "user", "content": human}, {"role": "assistant", "content": answer}],
            512,
        )
        assert token not in row.labels
        text = tokenizer.decode([i for i in row.labels if i != IGNORED_LABEL])
        assert text == answer.strip() + "<end_of_turn>"
        path = str(folder / record["image"])
        rows.append({"input_ids": row.input_ids, "labels": row.labels, IMAGES: [path]})

    set_seed(7)
    model = load_vision_model(plan, torch.float32)
    freeze_all_but_projector(model)
    pretrain = trainer_of(
        model, rows, collator, tmp_path / "pretrain", peft_config=projector_alone()
    )
    moved, losses = trained(pretrain)
    assert len(moved) == 4 and all(PROJECTOR in name for name in moved)
    assert len(losses) == 5 and all(0 < loss < 20 for loss in losses)
    save_projector(pretrain.model, tmp_path / "projector.safetensors")

    set_seed(7)
    model = load_vision_model(plan, torch.float32)
    load_projector(model, tmp_path / "projector.safetensors")
    ready_projector(model)
    finetune = trainer_of(model, rows, collator, tmp_path / "finetune", peft_config=lora(model))
    moved, losses = trained(finetune)
    assert sum("lora_B" in name for name in moved) == 14
    assert sum(PROJECTOR in name for name in moved) == 4
    assert len(losses) == 5 and all(0 < loss < 20 for loss in losses)
