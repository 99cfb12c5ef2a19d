"""Images of the rows that are measured: room for them in the text, and what the model sees.

Imports runner.engines.sft.inside.images; torch and Pillow when called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.data.formats import IMAGE_MARK
from runner.data.messages import Message
from runner.engines.sft.inside.images import ImageProcessor, image_processor
from runner.engines.sft.plan import SftPlan


@dataclass(frozen=True)
class ImageInputs:
    """The images' side of a model that reads them."""

    processor: ImageProcessor
    token: int  # id of the token that stands for a piece of an image

    def room(self, messages: Sequence[Message], images: Sequence[str]) -> list[Message]:
        """The messages with as many image tokens as the row's images take, as they are trained."""
        if not images:
            return list(messages)
        room = IMAGE_MARK * self.processor.tokens_per_image
        return [
            {**message, "content": message["content"].replace(IMAGE_MARK, room)}
            for message in messages
        ]

    def whole(self, ids: Sequence[int], images: Sequence[str]) -> bool:
        """Whether no part of an image was cut off."""
        return list(ids).count(self.token) == len(images) * self.processor.tokens_per_image

    def inputs(self, images: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The model's extra inputs for rows with these image files, in the rows' order.

        Raises RunnerError naming an image that can't be read.
        """
        paths = [path for row in images for path in row]
        if not paths:
            return {}
        return {"pixel_values": self.processor([self.processor.read(path) for path in paths])}


def load_sight(plan: SftPlan, tokenizer: Any) -> ImageInputs | None:
    """None for a text model. Raises RefusedError where the processor can't be had."""
    if plan.vision is None:
        return None
    token = int(tokenizer.convert_tokens_to_ids(IMAGE_MARK))
    return ImageInputs(image_processor(plan), token)
