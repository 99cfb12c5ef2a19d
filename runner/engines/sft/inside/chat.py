"""Talk to a run's model: `python -m runner.engines.sft.inside.chat RUN_FOLDER PLAN`.

PLAN says how the model is loaded. Imports torch, transformers.

Answers are greedy (the same question always gets the same answer), in the training's own chat
template, with the job's system message, and end at the turn's end as it was trained. With --base
the base model answers beside the trained one, each in a conversation of its own.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.common import terminal
from runner.common.errors import RunnerError, bug
from runner.common.tensors_only import load_tensors_only
from runner.data.masks import prompt_ids, special_texts
from runner.data.messages import Message
from runner.engines.render import read_plan
from runner.engines.sft.inside.evaluate.generate import Generated, Greedy
from runner.engines.sft.inside.evaluate.thinking import ThinkMarks, part_thinking, thinking_line
from runner.engines.sft.inside.quiet import silence_libraries
from runner.engines.sft.inside.subjects import Active, load_subjects, on_available_device
from runner.engines.sft.plan import SftPlan
from runner.runs.folder import RunFolder


@dataclass
class Speaker:
    """A model that answers while `active()` is entered, and what was said with it so far."""

    name: str  # run or base
    model: Any
    active: Active = nullcontext
    messages: list[Message] = field(default_factory=list)


class Talker:
    """A run's model, and its base beside it where asked for, with their tokenizer."""

    def __init__(
        self, folder: RunFolder, plan: SftPlan, *, base: bool, max_new_tokens: int
    ) -> None:
        from runner.engines.sft.inside.model.tokenizer import load_tokenizer

        self._limit = max_new_tokens
        self._system = plan.data.system
        self._allows_special = plan.data.special_tokens == "allow"
        self.tokenizer, self.notes = load_tokenizer(plan)
        there = on_available_device(plan)
        if there is not plan:
            self.notes.append("answering on CPU: no GPU is to be had now")
        self.speakers = [
            Speaker("base" if subject.name == "base" else "run", subject.model, subject.active)
            for subject in load_subjects(there, folder, with_base=base)
        ]
        self.greedy = Greedy(self.tokenizer, max_new_tokens)
        self.forget()

    def forget(self) -> None:
        """Start a new conversation."""
        for speaker in self.speakers:
            speaker.messages = [{"role": "system", "content": self._system}] if self._system else []

    def special_note(self, prompt: str) -> str | None:
        """What is said of special tokens that a prompt spells out; None where it has none."""
        found = list(dict.fromkeys(special_texts(self.tokenizer, prompt)))
        if not found:
            return None
        how = "left special tokens" if self._allows_special else "encoded as text"
        return f"special tokens in the prompt ({', '.join(found)}) are {how}"

    def answer(self, speaker: Speaker, prompt: str, streamer: Any = None) -> Generated:
        """The speaker's next turn; both turns join its conversation.

        What it thought goes along apart from what it said, so that the chat template decides
        whether it is written again.
        """
        import torch

        question: Message = {"role": "user", "content": prompt}
        asked = [*speaker.messages, question]
        # as training wrote prompts: a special token that is typed in is text
        ids = torch.tensor(prompt_ids(self.tokenizer, [asked]), device=speaker.model.device)
        with torch.no_grad(), speaker.active():
            out = speaker.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self._limit,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=self.greedy.stop_ids,
                pad_token_id=self.tokenizer.pad_token_id,
                streamer=streamer,
            )
        made = self.greedy.read(out[0, ids.shape[1] :].tolist())
        made = replace(made, text=made.text.strip())
        reply: Message = {"role": "assistant", "content": made.text}
        if made.thinking:
            reply["reasoning_content"] = made.thinking
        speaker.messages = [*asked, reply]
        return made


def main() -> int:
    """Command line; exit code 0 or that of the refusal."""
    load_tensors_only()
    parser = argparse.ArgumentParser(
        prog="python -m runner.engines.sft.inside.chat", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("plan", type=Path, help="by which its model is loaded")
    parser.add_argument("--base", action="store_true", help="the base model answers too")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--thinking", choices=("show", "strip"), default="show")
    parser.add_argument(
        "--prompt-from-stdin", action="store_true", help="answer standard input and print JSON"
    )
    arguments = parser.parse_args()
    try:
        return _talk(arguments)
    except RunnerError as error:
        terminal.say("\n".join(error.lines()))
        return error.exit_code
    except Exception as error:  # a model, or its chat template, from who knows where
        terminal.say("\n".join(bug(error).lines()))
        return 1


def _talk(arguments: argparse.Namespace) -> int:
    folder = RunFolder(arguments.folder)
    plan = read_plan(arguments.plan)
    silence_libraries(plan)
    terminal.say("runner: loading the model")
    talker = Talker(folder, plan, base=arguments.base, max_new_tokens=arguments.max_new_tokens)
    for note in talker.notes:
        terminal.say(f"runner: {note}")
    if arguments.prompt_from_stdin:
        prompt = sys.stdin.read()
        if special := talker.special_note(prompt):
            terminal.say(f"runner: {special}")
        answers = {speaker.name: talker.answer(speaker, prompt) for speaker in talker.speakers}
        record: dict[str, Any] = {"prompt": prompt}
        for name, made in answers.items():
            prefix = "" if name == "run" else "base_"
            record[f"{prefix}answer"] = made.text
            if made.thinking is not None:
                record[f"{prefix}thinking"] = made.thinking
                record[f"{prefix}thinking_closed"] = made.closed
        terminal.put_json(record)
        return 0
    return _converse(talker, shows_thinking=arguments.thinking == "show")


def _converse(talker: Talker, *, shows_thinking: bool) -> int:
    terminal.say("Type a message; /new starts over, /quit or Ctrl-D ends.")
    width = max(len(speaker.name) for speaker in talker.speakers)
    while True:
        try:
            prompt = input(f"{'you':<{width}}> ").strip()
        except (EOFError, KeyboardInterrupt):
            terminal.say()
            return 0
        if prompt in ("/quit", "/exit"):
            return 0
        if prompt == "/new":
            talker.forget()
            continue
        if not prompt:
            continue
        if special := talker.special_note(prompt):
            terminal.say(f"runner: {special}")
        for speaker in talker.speakers:
            terminal.put(f"{speaker.name:<{width}}> ", end="")
            try:
                hidden = None if shows_thinking else talker.greedy.marks
                streamer = answer_streamer(talker.tokenizer, hidden)
                made = talker.answer(speaker, prompt, streamer)
                if hidden and made.thinking is not None:
                    terminal.say(thinking_line(made.thinking, closed=made.closed))
            except KeyboardInterrupt:
                terminal.say("\n(stopped)")


def answer_streamer(tokenizer: Any, hidden: ThinkMarks | None = None) -> Any:
    """What prints an answer as it comes: a model may say anything, escape sequences too.

    With `hidden` nothing is printed of a think block that these marks part from the answer.
    """
    from transformers import TextStreamer

    class Cleaned(TextStreamer):
        waiting = ""  # text of which it is not known yet whether it is thinking
        told = hidden is None

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if not self.told and hidden is not None:
                self.waiting += text
                text = ""
                parted = part_thinking(self.waiting, hidden, finished=stream_end)
                if stream_end or (parted.answer and not _may_begin(self.waiting, hidden)):
                    self.told, text = True, parted.answer
            terminal.put(text, end="\n" if stream_end else "")

    return Cleaned(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _may_begin(text: str, marks: ThinkMarks) -> bool:
    """Whether `text` is the beginning of a mark that has not come whole yet."""
    bare = text.lstrip()
    return any(mark.startswith(bare) for mark in (*(o for o, _ in marks.pairs), marks.lead))


if __name__ == "__main__":
    # what it is asked and answers comes from the user's own terminal, or from `runner chat -p`
    terminal.guard_streams(*(() if "--prompt-from-stdin" in sys.argv else ("stdin", "stdout")))
    sys.exit(main())
