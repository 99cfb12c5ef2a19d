"""The formats that rows come in, and what a job says about its rows beyond their format.

Imports the standard library and this package's `messages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from runner.data.messages import Message, Tools, is_trained

Format = Literal["messages", "conversations", "alpaca", "text_label", "data_juicer"]

FORMATS: tuple[Format, ...] = get_args(Format)

# A format fits a row that has all of these keys.
REQUIRED_KEYS: Mapping[Format, tuple[str, ...]] = MappingProxyType(
    {
        "messages": ("messages",),
        "conversations": ("conversations",),
        "alpaca": ("instruction", "output"),
        "text_label": ("text", "label"),
        "data_juicer": ("text", "images"),
    }
)

# What stands in a text for an image, in the order of the row's images.
IMAGE_MARK = "<image>"

NO_IMAGES: tuple[str, ...] = ()


@dataclass(frozen=True)
class FormatOptions:
    """What a job says about its rows beyond their format."""

    # The system turn of rows that bring none of their own; None: no system turn is added.
    system: str | None = None
    # text_label: the user turn; every {text} in it is replaced by the row's text.
    prompt: str = "{text}"
    # text_label: what to answer for each label, keyed by the label as text. None: labels must be
    # strings already and are the answers.
    labels: Mapping[str, str] | None = None
    # What replaces {{name}} in contents. Empty: contents are left as they are.
    placeholders: Mapping[str, str] = field(default_factory=dict)
    # Whether the model takes images; without, rows that hold any are refused.
    vision: bool = False
    # data_juicer: the user turn for each row's id. None: one of GENERAL_QUESTIONS is asked.
    questions: Mapping[str, str] | None = None
    # Keys of rows and of their turns that are left unread, whatever they are called.
    ignored: frozenset[str] = frozenset()
    # Keys of rows that are read beside the format's own (data.split.stratify).
    read_otherwise: frozenset[str] = frozenset()


class Conversation(NamedTuple):
    """A row as messages, its images as the row writes them, and its tool definitions."""

    messages: list[Message]
    images: tuple[str, ...] = NO_IMAGES
    tools: Tools | None = None


def has_answer(conversation: Conversation) -> bool:
    """Whether the marks of a row leave any of its answers trained."""
    return any(is_trained(message) for message in conversation.messages)
