"""Talk to a run's model: `python -m runner.engine.chat RUN_FOLDER`. Imports torch, transformers.

Answers are greedy (the same question always gets the same answer), in the training's own chat
template, with the job's system message, and end at the turn's end as it was trained.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from runner.engine.data.masks import end_of_turn_ids
from runner.errors import RunnerError
from runner.folder import RunFolder
from runner.plan import Plan
from runner.render import read_plan


class Talker:
    """A loaded model with its tokenizer and the conversation so far."""

    def __init__(self, folder: RunFolder, plan: Plan, *, base: bool, max_new_tokens: int) -> None:
        import torch

        from runner.engine.model import load_adapter, load_model, load_tokenizer

        self._plan = plan
        self._limit = max_new_tokens
        self.tokenizer, self.notes = load_tokenizer(plan)
        model = load_model(plan)
        if not base:
            model = load_adapter(model, folder.adapter)
        device = "cuda" if plan.launch.device == "cuda" and torch.cuda.is_available() else "cpu"
        if device != plan.launch.device:
            self.notes.append("answering on CPU: no GPU is to be had now")
        self.model = model.to(device).eval()
        self._stop = list(end_of_turn_ids(self.tokenizer))
        self.forget()

    def forget(self) -> None:
        """Start a new conversation."""
        system = self._plan.data.system
        self._messages = [{"role": "system", "content": system}] if system else []

    def answer(self, prompt: str, streamer: Any = None) -> str:
        """The model's next turn; both turns join the conversation."""
        import torch

        self._messages.append({"role": "user", "content": prompt})
        text = self.tokenizer.apply_chat_template(
            self._messages, tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        ids = ids.to(self.model.device)
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids["input_ids"],
                attention_mask=ids["attention_mask"],
                max_new_tokens=self._limit,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=self._stop,
                pad_token_id=self.tokenizer.pad_token_id,
                streamer=streamer,
            )
        new = out[0, ids["input_ids"].shape[1] :].tolist()
        if new and new[-1] in self._stop:
            new = new[:-1]
        reply = str(self.tokenizer.decode(new, skip_special_tokens=True)).strip()
        self._messages.append({"role": "assistant", "content": reply})
        return reply


def main() -> int:
    """Command line; exit code 0 or that of the refusal."""
    parser = argparse.ArgumentParser(prog="python -m runner.engine.chat", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", action="store_true")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument(
        "--prompt-from-stdin", action="store_true", help="answer standard input and print JSON"
    )
    arguments = parser.parse_args()
    folder = RunFolder(arguments.folder)
    try:
        plan = read_plan(folder.plan)
        _quiet(plan)
        print("runner: loading the model", file=sys.stderr, flush=True)
        talker = Talker(folder, plan, base=arguments.base, max_new_tokens=arguments.max_new_tokens)
    except RunnerError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    for note in talker.notes:
        print(f"runner: {note}", file=sys.stderr)
    if arguments.prompt_from_stdin:
        prompt = sys.stdin.read()
        print(
            json.dumps(
                {"prompt": prompt, "answer": talker.answer(prompt), "base": arguments.base},
                ensure_ascii=False,
            )
        )
        return 0
    return _converse(talker)


def _converse(talker: Talker) -> int:
    from transformers import TextStreamer

    print("Type a message; /new starts over, /quit or Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            prompt = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return 0
        if prompt in ("/quit", "/exit"):
            return 0
        if prompt == "/new":
            talker.forget()
            continue
        if prompt:
            print("run> ", end="", flush=True)
            streamer = TextStreamer(talker.tokenizer, skip_prompt=True, skip_special_tokens=True)
            try:
                talker.answer(prompt, streamer)
            except KeyboardInterrupt:
                print("\n(stopped)", file=sys.stderr)


def _quiet(plan: Plan) -> None:
    """Only answers on stdout, and no progress bars of the libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if plan.model.kind != "hub":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
