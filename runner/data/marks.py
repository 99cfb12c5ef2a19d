"""Marks in rows and turns that say whether an answer is trained: weight, train, loss, masked, ...

A mark whose meaning is plain is honoured; any other value or mark is refused by name. Where the
names come from: `weight` 0 or 1 is OpenAI's; `train`, `training`, `train_on_turn` and
`train_detail` are what axolotl's `message_field_training` and `message_field_training_detail`
name; `loss` and `loss_scale` are ms-swift's and xtuner's; `loss_weight` is LLaMA-Factory's;
`masked` (true: left out) is torchtune's; `mask` is NeMo's, a role there and a number elsewhere.
Pure.

Imports this package's `row_problems`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from enum import Enum
from functools import lru_cache

from runner.data.row_problems import RowProblems

_LETTERS = re.compile("[^a-z]")


class Kind(Enum):
    """What a mark's name says."""

    TRAIN = "1 or true: trained"
    SKIP = "1 or true: not trained"
    MASK = "either, by who wrote it"
    INPUT = "true: what is not an answer is trained too"
    LAST = "true: only the last answer is trained"
    DETAIL = "stretches of characters, each with a mark"


_NAMES: dict[Kind, str] = {
    Kind.TRAIN: "weight train training trained trainable is_trainable train_on_turn train_turn "
    "train_this learn learnable loss loss_weight loss_scale loss_mask has_loss with_loss need_loss "
    "compute_loss calculate_loss calc_loss use_loss output_with_loss supervise supervised "
    "sample_weight example_weight instance_weight turn_weight message_weight train_weight",
    Kind.SKIP: "masked is_masked mask_out no_loss skip_loss ignore_loss loss_ignore no_train "
    "do_not_train dont_train skip_train skip_training untrained ignore_in_loss exclude_from_loss",
    Kind.MASK: "mask masks train_mask training_mask assistant_mask assistant_masks "
    "completion_mask labels_mask label_mask attention_loss_mask token_weights token_weight",
    Kind.INPUT: "train_on_input train_on_inputs train_on_prompt train_on_prompts train_on_user "
    "train_on_system train_on_all train_on_everything input_with_loss",
    Kind.LAST: "mask_history train_on_last train_on_last_only train_on_last_turn last_only "
    "only_last_turn train_last_only only_last",
    Kind.DETAIL: "train_detail training_detail train_details training_details "
    "train_on_turn_detail loss_detail",
}
_KINDS = {_LETTERS.sub("", name): kind for kind, text in _NAMES.items() for name in text.split()}
_TEXTS = {
    **dict.fromkeys(("0", "0.0", "false", "no"), False),
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
}
ROLE_NAMES = {"system", "user", "human", "tool", "function", "observation"}


@lru_cache(maxsize=4096)
def kind_of(key: str) -> Kind | None:
    """What the key of a row or turn says about training; None: it is no mark.

    Case, underscores and dashes don't count: lossWeight is loss_weight.
    """
    return _KINDS.get(_LETTERS.sub("", key.lower()))


def marks_in(held: Mapping[str, object], aside: Collection[str] = ()) -> dict[str, object]:
    """The marks of a row or turn and their values; those under null or an empty text say nothing.

    `aside` are keys that the job says are something else.
    """
    return {
        key: value
        for key, value in held.items()
        if isinstance(key, str) and kind_of(key) and key not in aside and not _is_silent(value)
    }


def plain(value: object) -> bool | None:
    """True or false where the value is plainly one of them (0, 1, "false", ...), else None."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        return _TEXTS.get(value.strip().lower())
    return None


def turn_is_trained(
    marks: Mapping[str, object], role: str, name: str, problems: RowProblems
) -> bool | None:
    """What a turn's marks say: trained, not trained, or None for nothing.

    Args:
        marks: of `marks_in`.
        role: of the turn; only the assistant's can be trained.
        name: how the turn is called in an error: messages[3].

    Raises SpecError for a mark that can't be honoured, and for two that contradict each other.
    """
    said: bool | None = None
    by = ""
    for key, value in marks.items():
        trained = _read(key, value, f"{name}.{key}", role, problems)
        if trained is None:
            continue
        if trained and role != "assistant":
            problems.fail(
                f"{name}.{key}",
                f"marks a {role} turn as trained, and only the assistant's can be",
                value,
                "0 or false here, or no such key; data.ignore_keys leaves a key of rows unread",
            )
        if said is not None and said != trained:
            problems.fail(
                f"{name}.{key}", f"says otherwise than {by} of the same turn", value, "one mark"
            )
        said, by = trained, key
    return said


def row_is_trained(marks: Mapping[str, object], problems: RowProblems) -> tuple[bool | None, bool]:
    """(what a row's marks say of all its answers, whether only the last one is trained).

    Raises SpecError as `turn_is_trained` does.
    """
    said: bool | None = None
    by = ""
    last_only = False
    for key, value in marks.items():
        if kind_of(key) is Kind.LAST:
            last_only = last_only or _bool(key, value, key, problems)
            continue
        trained = _read(key, value, key, "row", problems)
        if trained is None:
            continue
        if said is not None and said != trained:
            problems.fail(key, f"says otherwise than {by} of the same row", value, "one mark")
        said, by = trained, key
    return said, last_only


def _read(key: str, value: object, name: str, role: str, problems: RowProblems) -> bool | None:
    kind = kind_of(key)
    if kind is Kind.DETAIL:
        problems.fail(
            name,
            "marks stretches of a turn, which can't be done: a turn is trained whole or not at all",
            value,
            "a mark of the whole turn, such as train: false; data.ignore_keys leaves a key unread",
        )
    if kind is Kind.MASK:
        _refuse_mask(key, value, name, problems)
        return None
    told = _bool(key, value, name, problems)
    if kind is Kind.INPUT:
        if told:
            problems.fail(
                name,
                "asks to train what is not the assistant's, which can't be done",
                value,
                "false, or no such key: only the assistant's turns are trained; data.ignore_keys "
                "leaves the key unread",
            )
        return None
    if kind is Kind.LAST:  # of a row; in a turn it says nothing that can be done
        problems.fail(name, "is a mark of rows, not of turns", value, f"{key} beside the turns")
    return told if kind is Kind.TRAIN else not told


def _bool(key: str, value: object, name: str, problems: RowProblems) -> bool:
    told = plain(value)
    if told is None:
        problems.fail(
            name,
            "weighs the loss, which can't be done: an answer is trained whole or not at all"
            if isinstance(value, int | float)
            else "is a mark of what is trained, and its value is not plainly yes or no",
            value,
            f"0, 1, true or false ({(kind_of(key) or Kind.TRAIN).value}); "
            f"data.ignore_keys: [{key}] leaves the key unread",
        )
    return told


def _refuse_mask(key: str, value: object, name: str, problems: RowProblems) -> None:
    """Take NeMo's `mask: User` (the turns of that role are not trained); refuse the rest."""
    if isinstance(value, str) and value.strip().lower() in ROLE_NAMES:
        return
    problems.fail(
        name,
        "can mean what is trained or what is not",
        value,
        "loss_mask (1: trained) or masked (true: not trained), each 0, 1, true or false; "
        f"data.ignore_keys: [{key}] leaves the key unread",
    )


def _is_silent(value: object) -> bool:
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
        or value == []
    )
