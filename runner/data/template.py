"""Render conversations through a chat template, with its clock and random draws fixed.

Imports the standard library, this package's `control_tokens`, `formats` and `messages`, and
runner.data.rows_plan; jinja2 and transformers when called. The tokenizer is passed in; what holds
for it is kept on it (`fix_template`).

transformers gives templates a clock (strftime_now), and Jinja a `random` filter and `lipsum`. Rows
are rendered again and again: for their masks, after a resume, when a run is reproduced or its model
is asked. Each time the same text has to come, so the day and the seed are the plan's.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypedDict

from runner.common.errors import RefusedError
from runner.data.control_tokens import ControlTokens, Policy, Rendered
from runner.data.formats import IMAGE_MARK
from runner.data.messages import REASONING_KEYS
from runner.data.rows_plan import RowsPlan
from runner.data.tokenizer_type import Tokenizer

_ATTRIBUTE = "runner_template"
_DATE = re.compile(r"\bstrftime_now\b")
_RANDOM = re.compile(r"\|\s*random\b|\blipsum\s*\(|['\"]random['\"]")
_GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "strftime_now"}
_GIVEN |= {"raise_exception", "dict", "namespace", "range", "lipsum", "cycler", "joiner"}
_GIVEN |= {"additional_special_tokens", *(f"{name}_token" for name in _TOKENS)}
# Of a message, what is ours and no template's.
_OWN_KEYS = ("trained",)

Turn = Mapping[str, object]
"""A turn as `apply_chat_template` takes it: role, content, reasoning_content, tool_calls, name."""


@dataclass(frozen=True)
class TemplateSettings:
    """What is fixed for a run's rows and prompts, whenever they are rendered."""

    date: datetime.date | None = None  # what strftime_now tells, at 00:00; None: today
    seed: int = 0  # of `random` and `lipsum`
    special_tokens: Policy = "text"  # what becomes of them in a row's text
    kept: frozenset[str] = frozenset()  # special tokens that rows may hold: an image's


@dataclass(frozen=True)
class TemplateReads:
    """What a template asks for besides the row."""

    date: bool
    randomness: bool
    unset: tuple[str, ...]  # names that nothing sets: always undefined, which templates ask about


class TemplateRecord(TypedDict):
    """What a template reads and was told, as data.json has it."""

    date: str | None
    random_seed: int | None
    unset: list[str]
    special_tokens: Policy


class AuditedTemplate(TemplateRecord):
    """The same, and what a person is told of it."""

    notes: list[str]


class TemplateError(Exception):
    """A template refuses a conversation; the message is its own words."""


def fix_template(tokenizer: Tokenizer, settings: TemplateSettings) -> None:
    """Hold `settings` for all that is rendered with this tokenizer from now on."""
    setattr(tokenizer, _ATTRIBUTE, settings)


def settings_for(plan: RowsPlan) -> TemplateSettings:
    """What a plan fixes."""
    return TemplateSettings(
        date=datetime.date.fromisoformat(plan.template_date) if plan.template_date else None,
        seed=plan.training.seed,
        special_tokens=plan.data.special_tokens,
        kept=frozenset([IMAGE_MARK] if plan.vision is not None else []),
    )


def keep_special_token(tokenizer: Tokenizer, text: str) -> None:
    """Let rows hold this special token, as one that stands for an image."""
    settings = settings_of(tokenizer)
    fix_template(tokenizer, replace(settings, kept=settings.kept | {text}))


def settings_of(tokenizer: Tokenizer) -> TemplateSettings:
    """What `fix_template` was told last, or the defaults."""
    found = getattr(tokenizer, _ATTRIBUTE, None)
    return found if isinstance(found, TemplateSettings) else TemplateSettings()


def template_text(tokenizer: Tokenizer) -> str:
    """The chat template; of several by name ("default", "tool_use"), all of them."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        return "\n".join(str(text) for text in template.values())
    return str(template or "")


def template_name(tokenizer: Tokenizer) -> str:
    """The chat template as messages name it."""
    return f"the chat template of {tokenizer_name(tokenizer)}"


def tokenizer_name(tokenizer: Tokenizer) -> str:
    """The folder or id that a tokenizer came from."""
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def template_reads(tokenizer: Tokenizer) -> TemplateReads:
    """What the tokenizer's template asks for, told from its text."""
    return _reads(template_text(tokenizer))


@lru_cache(maxsize=16)
def _reads(text: str) -> TemplateReads:
    return TemplateReads(bool(_DATE.search(text)), bool(_RANDOM.search(text)), _unset(text))


def _unset(text: str) -> tuple[str, ...]:
    import jinja2
    import jinja2.meta

    environment = jinja2.Environment(  # noqa: S701 - only parsed
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        parsed = environment.parse(_GENERATION.sub("", text))
    except jinja2.TemplateError:
        return ()  # said when it is rendered
    return tuple(sorted(jinja2.meta.find_undeclared_variables(parsed) - _GIVEN))


def template_key(tokenizer: Tokenizer) -> list[object]:
    """What of the settings decides the ids, JSON-ready: equal keys, equal text."""
    settings, reads = settings_of(tokenizer), template_reads(tokenizer)
    return [
        _day(settings).isoformat() if reads.date else None,
        settings.seed if reads.randomness else None,
        settings.special_tokens,
        sorted(settings.kept),
    ]


def template_record(tokenizer: Tokenizer) -> TemplateRecord:
    """What the template reads and was told, for data.json."""
    settings, reads = settings_of(tokenizer), template_reads(tokenizer)
    return {
        "date": _day(settings).isoformat() if reads.date else None,
        "random_seed": settings.seed if reads.randomness else None,
        "unset": list(reads.unset),
        "special_tokens": settings.special_tokens,
    }


def template_notes(tokenizer: Tokenizer) -> list[str]:
    """What a person is told of it; nothing where the template reads the row alone."""
    settings, reads = settings_of(tokenizer), template_reads(tokenizer)
    notes = []
    life = "for all of a run: its resumes, evaluate, chat and reproduce take the same"
    if reads.date:
        notes.append(
            f"{template_name(tokenizer)} writes today's date: {_day(settings).isoformat()} {life}"
            + ("" if settings.date else " day only where the plan says one, and this one does not")
        )
    if reads.randomness:
        notes.append(f"{template_name(tokenizer)} draws at random: by seed {settings.seed} {life}")
    return notes


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Turn],
    *,
    generation_prompt: bool,
    tools: Sequence[Mapping[str, object]] | None = None,
    control: ControlTokens | None = None,
) -> Rendered:
    """The conversation as text, with the places of special tokens that its rows' text wrote.

    `control` tells special tokens apart; without it none is looked for. Raises TemplateError where
    the template refuses, in its own words.
    """
    try:
        return _rendered(tokenizer, messages, generation_prompt, tools, control, as_text=False)
    except TemplateError:
        if not any(message.get("tool_calls") for message in messages):
            raise
        try:
            return _rendered(tokenizer, messages, generation_prompt, tools, control, as_text=True)
        except TemplateError:
            pass
        raise


def _rendered(
    tokenizer: Tokenizer,
    messages: Sequence[Turn],
    generation_prompt: bool,
    tools: Sequence[Mapping[str, object]] | None,
    control: ControlTokens | None,
    *,
    as_text: bool,
) -> Rendered:
    settings = settings_of(tokenizer)
    given = [as_templates_take(message, as_text=as_text) for message in messages]
    defined: list[object] | None = list(tools) if tools else None
    marks = None
    if control is not None:
        given, defined, marks = control.mark(given, defined)
    try:
        with _held_still(tokenizer, settings, messages):
            text = tokenizer.apply_chat_template(
                given, tools=defined, tokenize=False, add_generation_prompt=generation_prompt
            )
    except Exception as error:  # templates raise whatever they like
        raise TemplateError(str(error) or type(error).__name__) from error
    return Rendered(str(text)) if marks is None else marks.remove(str(text))


def require_steady(tokenizer: Tokenizer, messages: Sequence[Turn]) -> None:
    """Refuse a template that writes the same conversation otherwise the second time.

    Raises RefusedError.
    """
    first, again = (render(tokenizer, messages, generation_prompt=True).text for _ in range(2))
    if first != again:
        raise RefusedError(
            f"{template_name(tokenizer)} writes the same conversation otherwise each time, so "
            "nothing trained on it could be repeated",
            "give the tokenizer a template that reads the conversation alone",
        )


def as_templates_take(message: Turn, *, as_text: bool = False) -> dict[str, object]:
    """The message without what is ours, its reasoning under each name that templates read.

    Arguments of tool calls are objects, since most templates put them through `tojson`, which would
    write JSON text in quotes; `as_text` makes them JSON text, for those that write that as it is.
    """
    out: dict[str, object] = {key: value for key, value in message.items() if key not in _OWN_KEYS}
    told = next((out[key] for key in REASONING_KEYS if out.get(key) is not None), None)
    if told is not None:
        out = {**dict.fromkeys(REASONING_KEYS, told), **out}
    calls = out.get("tool_calls")
    if calls and isinstance(calls, Iterable):
        out["tool_calls"] = [_call(call, as_text) for call in calls]
    return out


def _call(call: object, as_text: bool) -> object:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], as_text)}
    arguments = call.get("arguments")
    if isinstance(arguments, str) and not as_text:
        with contextlib.suppress(ValueError):
            parsed = json.loads(arguments)
            if isinstance(parsed, dict):
                return {**call, "arguments": parsed}
    if as_text and arguments is not None and not isinstance(arguments, str):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return dict(call)


@contextlib.contextmanager
def _held_still(
    tokenizer: Tokenizer, settings: TemplateSettings, messages: Sequence[Turn]
) -> Iterator[None]:
    reads = template_reads(tokenizer)
    with contextlib.ExitStack() as stack:
        if reads.date:
            stack.enter_context(_day_is(_day(settings)))
        if reads.randomness:
            stack.enter_context(_draws_by(settings.seed, messages))
        yield


@contextlib.contextmanager
def _day_is(day: datetime.date) -> Iterator[None]:
    """transformers' strftime_now looks up `datetime` in its module each time it is called."""
    from transformers.utils import chat_template_utils as module

    midnight = datetime.datetime.combine(day, datetime.time())

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return midnight if tz is None else midnight.replace(tzinfo=tz)

    before = module.datetime
    module.datetime = Clock
    try:
        yield
    finally:
        module.datetime = before


@contextlib.contextmanager
def _draws_by(seed: int, messages: Sequence[Turn]) -> Iterator[None]:
    """Jinja draws by Python's own generator: seeded by the row, and put back as it was.

    By the first turn after the system's, so that a conversation draws alike however many of its
    turns are rendered.
    """
    first = next((m for m in messages if m["role"] != "system"), messages[0])
    before = random.getstate()
    random.seed(f"{seed} {first.get('content')}")
    try:
        yield
    finally:
        random.setstate(before)


def _day(settings: TemplateSettings) -> datetime.date:
    return settings.date or datetime.date.today()
