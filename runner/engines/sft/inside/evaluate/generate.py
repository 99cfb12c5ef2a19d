"""Greedy answers to many prompts at once. Imports torch and transformers when called.

A prompt is rendered exactly as training renders what stands before an answer (data/masks.py),
padded on the left, and ended at the end of turn as it was trained. In fp32 an answer does not
depend on what it was batched with; in bf16 and fp16, rounding can tip two almost equal tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runner.data.masks import end_of_turn_ids
from runner.engines.sft.inside.evaluate.thinking import (
    part_thinking,
    special_texts,
    think_marks,
    without_specials,
)

Seen = Callable[[Sequence[int]], dict[str, Any]]
"""For some of the prompts, by their places: more inputs of the model (pixel_values)."""


@dataclass(frozen=True)
class Generated:
    """What a model wrote behind a prompt."""

    text: str  # without special tokens, and without think blocks where they are stripped
    tokens: int  # the end of turn, if there is one, included
    finished: bool  # ended by itself; False: it was cut at the longest answer
    thinking: str | None = None  # what was stripped; None: nothing was
    closed: bool = True  # False: it was cut within its think block, and `text` is empty


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in groups of at most `size`, alike in length so that little is padded.

    The longest come first: what does not fit in memory fails at the start, not at the end.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]


def longest_sequence(model: Any) -> int | None:
    """Positions that the model has, in tokens; None where its config does not say."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    return int(positions) if positions else None


class Greedy:
    """Answers by the most likely token each time, whatever the model's own defaults."""

    def __init__(
        self, tokenizer: Any, max_new_tokens: int, *, strips_thinking: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.stop_ids = list(end_of_turn_ids(tokenizer))
        self.marks = think_marks(tokenizer) if strips_thinking else None
        self.specials = special_texts(tokenizer)

    def answer(
        self, model: Any, prompts: Sequence[Sequence[int]], seen: Seen | None = None
    ) -> list[Generated]:
        """One answer to each prompt (token ids); `seen` gives what else the model is shown.

        A prompt that leaves no position for an answer gets an empty, unfinished one, and one that
        leaves fewer than `max_new_tokens` is asked by itself, so that it shortens no other's.
        """
        positions = longest_sequence(model)
        out = [Generated("", 0, False)] * len(prompts)
        groups: dict[int, list[int]] = {}
        for index, ids in enumerate(prompts):
            room = self.max_new_tokens if positions is None else positions - len(ids)
            groups.setdefault(min(room, self.max_new_tokens), []).append(index)
        for limit, group in groups.items():
            if limit > 0:
                extra = seen(group) if seen else {}
                told = self._generate(model, [prompts[index] for index in group], limit, extra)
                for index, ids in zip(group, told, strict=True):
                    out[index] = self.read(ids)
        return out

    def _generate(
        self, model: Any, prompts: Sequence[Sequence[int]], limit: int, extra: dict[str, Any]
    ) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig

        width = max(len(ids) for ids in prompts)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        # in place of the model's own, whose repetition penalty and sampling would still apply
        model.generation_config = GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=self.stop_ids or None,
            pad_token_id=pad,
        )
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                **{name: value.to(model.device) for name, value in extra.items()},
            )
        rows: list[list[int]] = made[:, width:].tolist()
        return rows

    def read(self, ids: Sequence[int]) -> Generated:
        """The text up to the first end of turn; what stands behind it is padding."""
        ends = [index for index, token in enumerate(ids) if token in self.stop_ids]
        length = ends[0] if ends else len(ids)
        made = Generated(self._decode(ids[:length]), length + bool(ends), bool(ends))
        if self.marks is None:
            return made
        # marks of thinking can be special tokens
        whole = self._decode(ids[:length], skip_special_tokens=False)
        parted = part_thinking(whole, self.marks, finished=made.finished)
        if parted.thinking is None:
            return made
        text, thinking = (
            without_specials(part, self.specials) for part in (parted.answer, parted.thinking)
        )
        return replace(made, text=text, thinking=thinking, closed=parted.closed)

    def bare(self, text: str) -> str:
        """A text of the rows as a generated one is read: without think blocks, if they go."""
        if self.marks is None:
            return text
        parted = part_thinking(text, self.marks)
        return text if parted.thinking is None or not parted.answer else parted.answer

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return str(
            self.tokenizer.decode(
                list(ids),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        )
