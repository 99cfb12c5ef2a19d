"""Configs of models whose weights are not here: the hub's cache, runner's own table, or the hub.

Imports transformers when called. Weights are never fetched for a config. The table (configs.json)
holds the published figures of models that jobs name, so that memory can be predicted offline.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from runner.common.errors import RefusedError
from runner.engines.sft.inside.model.remote_code import remote_code_refused
from runner.engines.sft.plan import PlannedModel, SftPlan
from runner.plans.sources import offline_switch

TABLE = Path(__file__).with_name("configs.json")


@cache
def _table() -> dict[str, dict[str, Any]]:
    """Hub id in lower case -> entry of configs.json."""
    entries = json.loads(TABLE.read_text(encoding="utf-8"))["models"]
    return {name.lower(): entry for entry in entries for name in entry["ids"]}


def bundled(identity: str) -> dict[str, Any] | None:
    """The entry of a hub id in runner's table: its config's figures and its parameters; or None."""
    return _table().get(identity.lower())


def model_config(model: PlannedModel, *, trust_remote_code: bool = False) -> tuple[Any, str | None]:
    """transformers' config of a model, and a note where it comes from runner's table.

    A folder's own config comes first, then the hub's cache, the table, and the hub.

    Raises:
        RefusedError: there is no config to be had.
    """
    from transformers import AutoConfig

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        if model.folder is not None:
            return AutoConfig.from_pretrained(model.folder, **options), None
        if model.revision:
            options["revision"] = model.revision
        entry = bundled(model.id)
        if model.kind == "hub":
            try:
                found = AutoConfig.from_pretrained(model.id, local_files_only=True, **options)
                return found, None
            except (OSError, ValueError) as error:
                if refused := remote_code_refused(error, f"the model {model.id}"):
                    raise refused from None
        if entry is not None:
            figures = dict(entry["config"])
            config = AutoConfig.for_model(figures.pop("model_type"), **figures)
            return config, f"the config of {model.id} is from runner's own table"
        if model.kind == "hub" and offline_switch() is None:
            return AutoConfig.from_pretrained(model.id, **options), None
    except (OSError, ValueError) as error:
        name = model.folder or model.id
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise remote_code_refused(error, f"the model {name}") or RefusedError(
            f"the config of {name} can't be had: {reason}",
            "give a folder with config.json: --set model=FOLDER",
        ) from None
    raise RefusedError(
        f"the config of {model.id} is not on this machine, nor in runner's table",
        "runner fetch JOB brings the model; a folder with config.json alone will do: "
        "--set model=FOLDER",
    )


def skeleton_config(plan: SftPlan) -> tuple[Any, list[str]]:
    """The config of the plan's model, image tower included, and what of it is not its own.

    Raises RefusedError as model_config, and where tower and language model do not fit.
    """
    if plan.vision is None:
        config, note = model_config(plan.model, trust_remote_code=plan.trust_remote_code)
        return config, [note] if note else []
    from runner.engines.sft.inside.model.vision.config import compose_config, vision_config

    if plan.model.folder is not None and plan.vision.model.folder is not None:
        return vision_config(plan), []
    text, first = model_config(plan.model, trust_remote_code=plan.trust_remote_code)
    tower, second = model_config(plan.vision.model)
    notes = [note for note in (first, second) if note]
    if text.get_text_config() is not text:  # a LLaVA checkpoint, tower and projector in it
        return text, notes
    # without its tokenizer: "<image>" is a token behind the last
    return compose_config(plan, text, tower, int(text.vocab_size)), notes
