"""Loss of known answers, row by row, without keeping logits. Imports torch when called.

Only the logits that predict a trained token are computed (transformers' `logits_to_keep`), for
one batch at a time; what is kept of them is a sum for each row.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from runner.data.encoded import IGNORED_LABEL, Encoded


def answer_losses(
    model: Any, rows: Sequence[Encoded], pad_id: int, extra: Mapping[str, Any] | None = None
) -> list[tuple[float, int]]:
    """(nats, tokens) of each row: its cross-entropy summed over the tokens that carry loss.

    `extra` is what else the model is given (pixel_values). Rows are padded on the right, as in
    training; the loss is taken in fp32 whatever the model's precision. A row's first token is
    predicted by nothing and never counts.
    """
    import torch
    from torch.nn import functional

    width = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [pad_id] * (width - len(row.input_ids)) for row in rows])
    mask = torch.tensor(
        [[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows]
    )
    labels = torch.tensor(
        [row.labels + [IGNORED_LABEL] * (width - len(row.labels)) for row in rows]
    )
    targets = labels[:, 1:]  # what position i has to predict
    places = (targets != IGNORED_LABEL).any(dim=0).nonzero().flatten()
    keeps = _keeps_logits(model)
    options = {"logits_to_keep": places.to(model.device)} if keeps else {}
    with torch.inference_mode():
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            use_cache=False,
            **options,
            **{name: value.to(model.device) for name, value in (extra or {}).items()},
        ).logits
        if not keeps:
            logits = logits[:, places]
        out = []
        for row, wanted in enumerate(targets[:, places]):
            trained = wanted != IGNORED_LABEL
            nats = functional.cross_entropy(
                logits[row][trained.to(logits.device)].float(),
                wanted[trained].to(logits.device),
                reduction="sum",
            )
            out.append((float(nats), int(trained.sum())))
    return out


def _keeps_logits(model: Any) -> bool:
    """Whether the model under any adapter takes the positions whose logits are wanted."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters
