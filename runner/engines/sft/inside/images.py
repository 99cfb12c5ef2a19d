"""Images of image-text rows: read, prepared and batched while training.

Imports torch, transformers and Pillow when called. An image that can't be read ends the run by its
name; none is ever replaced by another (toolkits that draw another row train on something else).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common.errors import RefusedError, RunnerError
from runner.data.encoded import IGNORED_LABEL
from runner.data.pixels import DEFAULT_BACKGROUND, UnreadableImage, decode
from runner.engines.sft.inside.model.tokenizer import IMAGE_TOKEN
from runner.engines.sft.inside.model.vision.config import (
    image_tokens,
    place,
    unreachable,
    vision_config,
    whole_or_tower,
)
from runner.engines.sft.plan import SftPlan

IMAGES = "image_paths"
"""The column of a row's image files. Not "images": at that name SFTTrainer takes its own way with
image-text data, which wants a processor, unprocessed messages, and trains on the prompts too."""


@dataclass(frozen=True)
class ImageProcessor:
    """The tower's own preparation of images, and how many tokens it makes of each."""

    prepare: Any
    """transformers' image processor."""
    tokens_per_image: int
    background: str = DEFAULT_BACKGROUND
    """data.image_background: what shows through transparency."""

    def read(self, path: str | Path) -> Any:
        """The image as RGB. Raises RunnerError naming a file that can't be read."""
        return read_image(path, self.background)

    def __call__(self, images: Sequence[Any]) -> Any:
        """N Pillow images as the tower takes them: (N, 3, height, width) float32."""
        return self.prepare(images=list(images), return_tensors="pt")["pixel_values"]


def image_processor(plan: SftPlan) -> ImageProcessor:
    """The tower's own preparation of images, on Pillow, which needs no torchvision.

    Raises RefusedError where its preprocessor_config.json can't be had or gives another image size
    than the tower takes.
    """
    from transformers import AutoImageProcessor

    model = whole_or_tower(plan)
    field = "model" if model is plan.model else "vision.model"
    where, options = place(model)
    try:
        processor = AutoImageProcessor.from_pretrained(
            where, backend="pil", trust_remote_code=plan.trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        raise unreachable(model, error, field) from None
    config = vision_config(plan)
    takes = int(config.vision_config.image_size)
    gives = processor.crop_size if processor.do_center_crop else processor.size
    if (gives.height, gives.width) != (takes, takes):
        raise RefusedError(
            f"{field} {where}: preprocessor_config.json makes images of "
            f"{gives.height}x{gives.width}, but the tower takes {takes}x{takes}",
            "take the preprocessor_config.json that was published with these weights",
        )
    return ImageProcessor(processor, image_tokens(config), plan.data.image_background)


class ImageTextCollator:
    """Rows to a batch: ids, labels and mask padded on the right, images in the order of the rows.

    A row holds input_ids, labels and the paths of its images (`image_paths`); its input_ids hold
    the processor's tokens_per_image image tokens for each. The batch holds, with B rows, T tokens
    of the longest and N images of all rows together: input_ids, labels, attention_mask (B, T) int64
    and, where N > 0, pixel_values (N, 3, height, width) float32.
    """

    def __init__(self, tokenizer: Any, processor: ImageProcessor) -> None:
        self.tokenizer = tokenizer
        self._processor = processor
        self._token = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        self._pad = int(tokenizer.pad_token_id)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch. Raises RunnerError naming an image that can't be read or has no place."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        images = []
        for row in rows:
            ids, labels = list(row["input_ids"]), list(row["labels"])
            paths = list(row.get(IMAGES) or [])
            _require_places(ids, paths, self._token, self._processor.tokens_per_image)
            images += [self._processor.read(path) for path in paths]
            empty = longest - len(ids)
            columns["input_ids"].append(ids + [self._pad] * empty)
            columns["labels"].append(labels + [IGNORED_LABEL] * empty)
            columns["attention_mask"].append([1] * len(ids) + [0] * empty)
        batch = {name: torch.tensor(values) for name, values in columns.items()}
        if images:
            batch["pixel_values"] = self._processor(images)
        return batch


def read_image(path: str | Path, background: str = DEFAULT_BACKGROUND) -> Any:
    """The image as RGB, wholly decoded. Raises RunnerError naming a file that can't be read."""
    try:
        return decode(path, background).image
    except FileNotFoundError:
        raise RunnerError(f"the image {path} is not there", _HINT) from None
    except UnreadableImage as error:
        raise RunnerError(f"the image {path} can't be read: {error}", _HINT) from None


_HINT = "data.image_folder names the folder that the rows' image paths start from"


def for_trainer(rows: Any) -> Any:
    """A datasets.Dataset with its "images" under the name that the collator reads."""
    return rows.rename_column("images", IMAGES) if "images" in rows.column_names else rows


def require_images(rows: Any) -> None:
    """Refuse rows without an image, for a phase that trains the projector alone.

    Such a row never reaches the projector, so it would train nothing. `rows` is a datasets.Dataset
    as `for_trainer` gives it. Raises RefusedError with their number.
    """
    images = rows[IMAGES] if IMAGES in rows.column_names else [None] * len(rows)
    without = sum(not paths for paths in images)
    if without:
        raise RefusedError(
            f"{without} of {len(rows)} rows have no image, and the phase trains the projector "
            "alone, which such rows never reach",
            "leave them out, or let the phase train the adapter too (trains: [adapter, projector])",
        )


def _require_places(ids: list[int], paths: list[str], token: int, each: int) -> None:
    found = ids.count(token)
    if found != len(paths) * each:
        raise RunnerError(
            f"a row with the images {', '.join(map(str, paths)) or '(none)'} holds {found} image "
            f"tokens, not {len(paths)} x {each}",
            "training.max_length cuts into the images of long rows; raise it",
        )
