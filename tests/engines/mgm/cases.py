"""What the tests of the MGM engine share: settings, plans, and run folders made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from runner.engines.mgm.job import MgmSettings
from runner.engines.mgm.plan import PlannedMgm, plan_mgm
from runner.engines.mgm.render import render_mgm

STAGES = Path(__file__).parents[3] / "runner" / "engines" / "mgm" / "stages"


def settings(**changes: Any) -> MgmSettings:
    """Settings with made-up paths; `changes` by field, parts as mappings that are merged in."""
    record: dict[str, Any] = {
        "toolkit": "zoo/MGM",
        "model_name_or_path": "zoo/gemma-2b-it",
        "vision_tower": "zoo/OpenAI/clip-vit-large-patch14-336",
        "vision_tower_aux": "zoo/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
        "pretrain": {"data_path": "rows/pretrain.jsonl", "questions": "rows/stage_1.json"},
        "finetune": {"data_path": "rows/finetune.json"},
    }
    for name, value in changes.items():
        record[name] = {**record.get(name, {}), **value} if isinstance(value, Mapping) else value
    return MgmSettings.model_validate(record)


def planned(
    given: MgmSettings | None = None,
    *,
    variant: Literal["train", "smoke"] = "train",
    device: Literal["cuda", "cpu"] = "cuda",
    base_folder: Path = Path("/srv"),
    python: str = sys.executable,
    gpus: tuple[str, ...] = ("0",),
) -> PlannedMgm:
    return plan_mgm(
        given or settings(),
        variant=variant,
        device=device,
        gpus=gpus,
        python=python,
        base_folder=base_folder,
    )


def rendered(plan: PlannedMgm) -> dict[str, str]:
    return render_mgm(plan, title="test", version="0")


def write_run(plan: PlannedMgm, folder: Path) -> Path:
    """The run folder of `plan`, and its launch script."""
    for name, text in rendered(plan).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "launch.sh"


def run_stage(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A stage script in a process of its own."""
    return subprocess.run(
        [sys.executable, STAGES / f"{name}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Rows as JSONL, or as a JSON array by the name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        json.dumps(rows)
        if path.suffix == ".json"
        else "".join(json.dumps(row) + "\n" for row in rows)
    )
    path.write_text(text, encoding="utf-8")
    return path


# what preflight looks for by name; the toolkit's folder is on its Python's path
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "open_clip", "timm", "cv2")
GEMMA = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "head_dim": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 64,
}


class Zoo:
    """A job on everything that preflight looks for, all of it tiny, in a folder of its own."""

    def __init__(self, folder: Path, *, rows: int = 600) -> None:
        self.folder = folder
        self.images = folder / "rows/images"
        self.images.mkdir(parents=True)
        self.job = folder / "tiny.yaml"
        self.pretrain, self.finetune = folder / "rows/pretrain.jsonl", folder / "rows/finetune.json"
        self._weights()
        self.draw("0.png")
        self.write_rows([pretrain_row(number) for number in range(rows)])
        write_rows(self.finetune, [finetune_row(number) for number in range(rows)])
        self.write_job()

    def _weights(self) -> None:
        toolkit, base = self.folder / "MGM", self.folder / "gemma-2b-it"
        clip, aux = self.folder / "openai/clip", self.folder / "openclip-convnext-large-d-320"
        for name in ("mgm/train/train.py", "mgm/model/builder.py"):
            put(toolkit / name, "pass\n")
        for name in PACKAGES:
            put(toolkit / name / "__init__.py", "")
        put(base / "config.json", json.dumps(GEMMA))
        put(base / "tokenizer_config.json", "{}")
        put(base / "model.safetensors.index.json", '{"weight_map": {"a": "m.safetensors"}}')
        put(base / "m.safetensors", "x" * 1000)
        put(clip / "config.json", '{"hidden_size": 8}')
        put(clip / "preprocessor_config.json", "{}")
        put(clip / "model.safetensors", "x" * 1000)
        put(aux / "open_clip_config.json", "{}")
        put(aux / "open_clip_pytorch_model.bin", "x" * 1000)

    def write_rows(self, rows: list[Any]) -> None:
        write_rows(self.pretrain, rows)

    def write_job(self, **changes: Any) -> None:
        """The job file; `changes` by field, parts as mappings that are merged in."""
        record: dict[str, Any] = {
            "engine": "mgm",
            "python": sys.executable,
            "toolkit": "MGM",
            "model_name_or_path": "gemma-2b-it",
            "vision_tower": "openai/clip",
            "vision_tower_aux": "openclip-convnext-large-d-320",
            "pretrain": {"data_path": "rows/pretrain.jsonl"},
            "finetune": {"data_path": "rows/finetune.json"},
            "open_images": "all",
            "launch": {"device": "cpu"},
        }
        for name, value in changes.items():
            merged = {**record.get(name, {}), **value} if isinstance(value, Mapping) else value
            record[name] = merged
        self.job.write_text(json.dumps(record))

    def draw(self, name: str, mode: str = "RGB", **options: Any) -> Path:
        """A picture of 4 x 4 pixels."""
        from PIL import Image

        path = self.images / name
        Image.new(mode, (4, 4)).save(path, **options)
        return path


def pretrain_row(number: int) -> dict[str, Any]:
    return {"id": f"{number}", "text": "<__dj__image>\na dot", "images": ["images/0.png"]}


def finetune_row(number: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dot."}]
    return {"id": f"{number}", "image": "images/0.png", "conversations": turns}


def put(path: Path, text: str) -> None:
    """A file with the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
