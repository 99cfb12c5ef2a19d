"""Where a model's turns stand in a rendered conversation, found by rendering prefixes of it.

Imports the standard library and this package's `messages`, `template` and `control_tokens`.

What stands between render(turns before, add_generation_prompt=True) and render(turns up to and with
the answer) is what a model has to write at that place. A template that rewrites earlier turns once
others follow breaks this for them: of those only what stands in the whole text too is trained.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runner.data.control_tokens import ControlTokens, Rendered
from runner.data.messages import Tools, is_trained
from runner.data.template import (
    TemplateError,
    Turn,
    render,
    require_steady,
    settings_of,
    template_name,
)
from runner.data.tokenizer_type import Tokenizer

# A word no template holds, to see what a template writes after an answer.
_PROBE = "runnerprobe"
_THINK_NAMES = "think|thinking|thought|reasoning|seed:think"
# What a generation prompt may continue with after the header of a turn (DeepSeek-R1, QwQ).
_OPENED = re.compile(rf"<({_THINK_NAMES})>\s*(?:</\1>\s*)?$")
_EMPTY_THINK = re.compile(rf"<({_THINK_NAMES})>\s*</\1>|\[THINK\]\s*\[/THINK\]")
_THOUGHT = re.compile(rf"<({_THINK_NAMES})>(.*?)</\1>", re.DOTALL)
_LONGEST_MARK = 40
_EDGES = ("\ue8d0", "\ue8d1")  # private characters around a content that is looked for
_NO_SYSTEM = (
    "this template takes no system turn here: leave data.system and the rows' system turns out (or "
    "put their text into the first question), or take a model whose template has one"
)
_NO_CALLS = "rows without, or a model that has tools"


@dataclass(frozen=True)
class Span:
    """Where an assistant turn stands in the rendered text, in characters."""

    start: int  # behind the generation prompt
    end: int  # behind all the template writes for the turn
    content_end: int | None  # behind the answer, before what ends the turn; None: not known
    ends: bool = True  # False: what ends the turn is written otherwise here than when it was last


@dataclass(frozen=True)
class Layout:
    """A conversation as text, and what of it a model has to write."""

    rendered: Rendered
    spans: list[Span]
    skipped: int = 0  # assistant turns that are not in the whole text as a model would write them
    reread: int = 0  # spans that stand behind another text than the model would be asked with
    opened: int = 0  # spans whose generation prompt continues with a think mark that they lack
    empty_think: int = 0  # spans that hold a think block with nothing in it
    left_out: tuple[str, ...] = ()  # what of the row the template does not write, a word each


class HiddenAnswerError(Exception):
    """A template whose generation prompt is the start of no turn."""


class Template:
    """A tokenizer's chat template, with what is asked of it only once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.name = template_name(tokenizer)
        settings = settings_of(tokenizer)
        self.control = ControlTokens(tokenizer, settings.kept, policy=settings.special_tokens)
        self.dummy, self.turn_suffix = self._probe()
        if framing := self._framing():
            self.control = replace(self.control, framing=framing)
        self.sound = False  # whether a plain question's answer is found as it would be asked for
        if self.dummy is not None:
            with contextlib.suppress(HiddenAnswerError, TemplateError):
                self.lay_out(self.dummy)
                self.sound = True

    def render(
        self, messages: Sequence[Turn], tools: Tools | None, *, generation_prompt: bool
    ) -> Rendered:
        """The conversation as text. Raises TemplateError in the template's own words."""
        return render(
            self.tokenizer,
            messages,
            generation_prompt=generation_prompt,
            tools=tools,
            control=self.control,
        )

    def lay_out(self, messages: Sequence[Turn], tools: Tools | None = None) -> Layout:
        """Render the conversation and find the assistant turns that carry loss.

        A turn counts if its prompt is the start of the text up to its end, and of the whole, and
        the whole has its answer as it stands there.

        Raises TemplateError where the template refuses, HiddenAnswerError where it can't be told
        for any turn where an answer begins.
        """
        rendered = self.render(messages, tools, generation_prompt=False)
        whole = rendered.text
        spans: dict[int, Span] = {}
        opened: set[int] = set()
        wanted = [index for index, message in enumerate(messages) if is_trained(message)]
        for index in wanted:
            found = self._find_turn(whole, messages, index, tools)
            if found is not None:
                spans[index], begins_to_think = found
                opened |= {index} if begins_to_think else set()
        skipped, reread = len(wanted) - len(spans), 0
        if wanted and not spans:
            last = self._find_content(whole, messages, wanted[-1], tools) if self.sound else None
            if last is None:
                raise HiddenAnswerError
            spans[wanted[-1]] = last
            skipped, reread = skipped - 1, 1
        left_out = list(_left_out(whole, messages, tools, spans))
        # where the template writes nothing of a turn, its end alone would be trained
        silent = [index for index, span in spans.items() if _is_silent(whole, span)]
        for index in silent:
            del spans[index]
        return Layout(
            rendered,
            list(spans.values()),
            skipped,
            reread,
            len(opened - set(silent)),
            sum(_has_empty_think(whole, span) for span in spans.values()),
            tuple(left_out),
        )

    def _find_turn(
        self, whole: str, messages: Sequence[Turn], index: int, tools: Tools | None
    ) -> tuple[Span, bool] | None:
        """The turn's place, and whether a think mark would follow its prompt; None: rewritten.

        Raises TemplateError where the template refuses what stands before the last turn.
        """
        last = index == len(messages) - 1
        try:
            prompt = self.render(messages[:index], tools, generation_prompt=True).text
            shown = whole
            if not last:
                told = self.render(messages[: index + 1], tools, generation_prompt=False)
                shown = told.text
        except TemplateError:
            if last or not index:
                raise
            return None  # the template takes no conversation that ends here
        begun = prompt if shown.startswith(prompt) else _OPENED.sub("", prompt)
        if not (shown.startswith(begun) and whole.startswith(begun)):
            return None
        span = self._span(shown, whole, len(begun), messages[index])
        return None if span is None else (span, begun != prompt)

    def _find_content(
        self, whole: str, messages: Sequence[Turn], index: int, tools: Tools | None
    ) -> Span | None:
        """The place of a turn's content in the whole text, found by marks around it."""
        content = str(messages[index].get("content") or "")
        bare = content.strip()
        if not bare or any(mark in whole for mark in _EDGES):
            return None
        before, _, after = content.partition(bare)
        marked = [*messages]
        marked[index] = {
            **messages[index],
            "content": before + _EDGES[0] + bare + _EDGES[1] + after,
        }
        try:
            text = self.render(marked, tools, generation_prompt=False).text
        except TemplateError:
            return None
        head, opening, rest = text.partition(_EDGES[0])
        body, closing, behind = rest.partition(_EDGES[1])
        if not (opening and closing) or head + body + behind != whole:
            return None
        start = len(head)
        return Span(start, len(whole), start + len(body))

    def why_refused(self, messages: Sequence[Turn], tools: Tools | None) -> str:
        """A way out of a refusal, found by asking the template for less."""
        plain = [message for message in messages if message["role"] != "system"]
        spoken = [m for m in messages if m["role"] != "tool" and not m.get("tool_calls")]
        bare = [message for message in plain if message in spoken]
        ways = (
            (plain, tools, _NO_SYSTEM),
            (messages, None, "this template takes no tool definitions: rows without `tools`"),
            (spoken, None, f"this template takes no tool calls: {_NO_CALLS}"),
            (bare, None, f"this template takes neither tool calls nor a system turn: {_NO_CALLS}"),
        )
        for less, defined, way in ways:
            fewer = len(less) < len(messages) or bool(tools and not defined)
            if fewer and less and self._takes(less, defined):
                return way
        if told := _out_of_turn(plain):
            return f"user and assistant in turn, the user first, as this template asks: {told}"
        return "rows that this template takes, or a tokenizer with another chat_template"

    def _takes(self, messages: Sequence[Turn], tools: Tools | None) -> bool:
        try:
            self.render(messages, tools, generation_prompt=False)
        except TemplateError:
            return False
        return True

    def _span(self, shown: str, whole: str, start: int, message: Turn) -> Span | None:
        """The turn's place, where `whole` has it as `shown`, in which it is the last, has it."""
        content_end = self._content_end(shown, start, str(message.get("content") or ""))
        same = _shared(shown, whole)
        if same == len(shown):
            return Span(start, same, content_end)
        if content_end is None or same < content_end:
            return None
        return Span(start, same, content_end, ends=False)

    def _content_end(self, shown: str, start: int, content: str) -> int | None:
        suffix = self.turn_suffix
        if suffix and shown.endswith(suffix) and len(shown) - len(suffix) >= start:
            return len(shown) - len(suffix)
        if content and shown.startswith(content, start):
            return start + len(content)
        return None

    def _probe(self) -> tuple[list[Turn] | None, str | None]:
        """A conversation the template takes, and what it writes behind an answer ("<|im_end|>\\n").

        None for what is not known: the template refuses both tries, or hides the answer.
        """
        dummy: list[Turn] = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": _PROBE},
        ]
        system: Turn = {"role": "system", "content": "Be brief."}
        for messages in (dummy, [system, *dummy]):  # some templates insist on a system turn
            try:
                text = self.render(messages, None, generation_prompt=False).text
                require_steady(self.tokenizer, messages)
            except TemplateError:
                continue
            _, found, suffix = text.rpartition(_PROBE)
            return (messages, suffix) if found else (messages, None)
        return None, None

    def _framing(self) -> frozenset[str]:
        """Added tokens that the template frames turns with, though they are not special ones."""
        if self.dummy is None:
            return frozenset()
        ordinary = [
            str(token.content)
            for token in self.tokenizer.added_tokens_decoder.values()
            if not token.special
        ]
        if not ordinary:
            return frozenset()
        try:
            asked = self.render(self.dummy[:-1], None, generation_prompt=False).text
        except TemplateError:
            asked = ""
        frame = asked + (self.turn_suffix or "")
        return frozenset(text for text in ordinary if text.strip() and text in frame)


def _shared(first: str, second: str) -> int:
    """Length of the beginning that both have, in characters."""
    if second.startswith(first):
        return len(first)
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _has_empty_think(whole: str, span: Span) -> bool:
    """Whether the turn holds an empty think block, begun by it or by the prompt before it."""
    text = whole[max(0, span.start - _LONGEST_MARK) : span.end]
    edge = min(span.start, _LONGEST_MARK)
    return any(found.end() > edge for found in _EMPTY_THINK.finditer(text))


def _is_silent(whole: str, span: Span) -> bool:
    end = span.end if span.content_end is None else span.content_end
    return not whole[span.start : end].strip()


def _out_of_turn(plain: Sequence[Turn]) -> str | None:
    """The first turn that does not follow its like, in words."""
    for index, message in enumerate(plain):
        if message["role"] != ("user", "assistant")[index % 2]:
            before = f" after {plain[index - 1]['role']}" if index else ""
            return f"turn {index + 1} is {message['role']}{before}"
    return None


def _left_out(
    whole: str, messages: Sequence[Turn], tools: Tools | None, spans: Mapping[int, Span]
) -> Iterator[str]:
    """A word for each part of the row that is not in its text, so that none goes in silence."""
    squeezed: list[str] = []

    def there(text: str) -> bool:
        text = text.strip()
        if text in whole:
            return True
        if not squeezed:
            squeezed.append("".join(whole.split()))
        bare = "".join(text.split())
        escaped = json.dumps(text, ensure_ascii=False)[1:-1]
        return bare in squeezed[0] or "".join(escaped.split()) in squeezed[0]

    for tool in tools or []:
        name = tool.get("function", tool).get("name") if isinstance(tool, dict) else None
        if isinstance(name, str) and not there(name):
            yield "tool definitions"
    for index, message in enumerate(messages):
        role, content = str(message["role"]), str(message.get("content") or "")
        reasoning = message.get("reasoning_content") or message.get("thinking")
        if isinstance(reasoning, str) and not there(reasoning):
            yield "reasoning"
        # a tool's name stands in its definition too
        span = spans.get(index)
        turn = whole if span is None else whole[span.start : span.end]
        calls: Any = message.get("tool_calls") or []
        for call in calls:
            function = call.get("function", call) if isinstance(call, dict) else {}
            name = function.get("name")
            if isinstance(name, str) and name not in turn:
                yield "tool calls"
        if not there(content):
            thoughts = [found[2] for found in _THOUGHT.finditer(content)]
            if role == "assistant" and thoughts:
                if not all(map(there, thoughts)):
                    yield "reasoning"
                content = _THOUGHT.sub("", content)
            if not there(content):
                yield "tool results" if role == "tool" else f"{role} turns"
