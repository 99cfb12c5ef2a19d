"""The tokenizer of a plan, as it trains and answers. Imports transformers when called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.common.errors import RefusedError, RunnerError
from runner.data.plain_template import ensure_chat_template
from runner.data.template import fix_template, settings_for
from runner.data.tokenizer_files import require_tokenizer_files
from runner.engines.sft.inside.model.remote_code import remote_code_refused
from runner.engines.sft.plan import SftPlan

IMAGE_TOKEN = "<image>"  # noqa: S105


def location(plan: SftPlan) -> tuple[str, dict[str, Any]]:
    """What from_pretrained is called with: a folder, or a hub id and its revision."""
    model = plan.model
    options: dict[str, Any] = {"trust_remote_code": plan.trust_remote_code}
    if model.folder is not None:
        return model.folder, options
    if model.revision:
        options["revision"] = model.revision
    return model.id, options


def load_tokenizer(plan: SftPlan) -> tuple[Any, list[str]]:
    """The tokenizer, able to chat and to pad, and a line for whatever had to be substituted.

    What its chat template reads besides a row is the plan's from then on.

    Raises RefusedError where it can't be had; SpecError where the folder lacks its files.
    """
    from transformers import AutoTokenizer

    place, options = location(plan)
    if plan.model.folder is not None:
        require_tokenizer_files(Path(plan.model.folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        raise unreachable(plan, error) from None
    if plan.vision is not None:
        add_image_token(tokenizer)
    fix_template(tokenizer, settings_for(plan))
    notes = []
    substituted = ensure_chat_template(tokenizer)
    if substituted:
        notes.append(substituted)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(
            f"the tokenizer has no pad token; its end token {tokenizer.eos_token!r} pads "
            "(labels are masked by position, so the end of a turn is still trained)"
        )
    return tokenizer, notes


def add_image_token(tokenizer: Any) -> int:
    """Make "<image>" one special token of `tokenizer`, where it is not yet; its id."""
    from transformers import AddedToken

    known = tokenizer.get_added_vocab()
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if IMAGE_TOKEN not in known or IMAGE_TOKEN not in special:
        token = AddedToken(IMAGE_TOKEN, special=True, normalized=False, lstrip=False, rstrip=False)
        tokenizer.add_tokens([token], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def unreachable(plan: SftPlan, error: Exception) -> RunnerError:
    """The refusal for weights that from_pretrained could not load."""
    place, _ = location(plan)
    return remote_code_refused(error, f"the model {place}") or RefusedError(
        f"the model {place} can't be loaded: {first_line(error)}",
        "give a folder with --set model=FOLDER, or check the network, HF_ENDPOINT (a mirror) and "
        "HF_HUB_OFFLINE",
    )


def first_line(error: Exception) -> str:
    """What an error says, its first line; the name of its kind where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
