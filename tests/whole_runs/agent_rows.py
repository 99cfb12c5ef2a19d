"""Ten rows with tools and reasoning, written for these tests, and a tiny model on a real tokenizer.

Imports transformers when called.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def tool(name: str, **properties: str) -> dict[str, Any]:
    """A tool definition whose parameters have these types."""
    schema = {key: {"type": kind} for key, kind in properties.items()}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Ask for {name}.",
            "parameters": {"type": "object", "properties": schema, "required": list(schema)},
        },
    }


WEATHER, ADD = tool("weather", city="string"), tool("add", a="number", b="number")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def result(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **more}


ROWS: list[dict[str, Any]] = [
    # a call, its result, an answer
    {"tools": [WEATHER], "messages": [
        user("Is it warm in Bern?"), says(None, tool_calls=[call("weather", {"city": "Bern"})]),
        result('{"celsius": 21}'), says("Yes, 21 degrees.")]},
    # definitions and arguments as JSON text, as the OpenAI API gives them; a thought with the call
    {"tools": json.dumps([ADD]), "messages": [
        user("What is 20 and 22?"),
        says(None, reasoning_content="I had better add them.",
             tool_calls=[call("add", '{"a": 20, "b": 22}', id="call00001")]),
        result("42", tool_call_id="call00001", name="add"), says("It is 42.")]},
    # the bare function
    {"tools": [ADD["function"]], "messages": [
        user("1 and 1?"), says("", tool_calls=[{"name": "add", "arguments": {"a": 1, "b": 1}}]),
        result("2"), says("2")]},
    # two calls at once, as call turns
    {"tools": [WEATHER], "messages": [
        user("Bern or Basel?"),
        {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "Bern"}}'},
        {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "Basel"}}'},
        {"role": "tool_response", "content": "21"}, {"role": "tool_response", "content": "23"},
        says("Basel, by two degrees.")]},
    # reasoning under its other names, without a tool
    {"messages": [user("What is 2+2?"), says("4", reasoning_content="Two and two make four.")]},
    {"messages": [user("What is 3+2?"), says("5", thinking="Three and two make five.")]},
    {"messages": [user("What is 4+2?"), says("6", reasoning="Four and two make six.")]},
    # a think block in the text itself
    {"messages": [user("Odd or even: 7?"), says("<think>\nSeven is odd.\n</think>\n\nodd")]},
    # a tool that is there and not called for
    {"tools": [WEATHER, ADD], "messages": [user("Hello"), says("Hello! Ask me something.")]},
    # a first answer that is marked as not to be trained
    {"messages": [user("Capital of Peru?"), says("Quito", weight=0), user("Sure?"),
                  says("No: Lima.", reasoning_content="Quito is Ecuador's.")]},
]  # fmt: skip

THOUGHT = (
    "{%- set thought = message.reasoning_content or '' %}"
    "{%- set said = message.content or '' %}"
    "{%- if '</think>' in said %}"
    "{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set said = said.split('</think>')[-1].lstrip('\\n') %}"
    "{%- endif %}"
)


def thinking_template(template: str) -> str:
    """Qwen2.5's template with think blocks, after the behaviour of Qwen3.

    The turns behind the last question keep what was thought before them, empty or not; earlier ones
    lose it.
    """
    last = (
        "{%- set last = namespace(user=0) %}{%- for message in messages %}"
        "{%- if message.role == 'user' %}{%- set last.user = loop.index0 %}{%- endif %}"
        "{%- endfor %}"
    )
    block = (
        "{%- if loop.index0 > last.user and (loop.last or thought) %}"
        "{{- '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n' }}{%- endif %}"
    )
    plain = ' or (message.role == "assistant" and not message.tool_calls)'
    assert plain in template
    template = template.replace(plain, "")
    template = template.replace(
        "{%- for message in messages %}", last + "{%- for message in messages %}" + THOUGHT, 1
    )
    template = template.replace(
        "{{- '<|im_start|>' + message.role }}\n        {%- if message.content %}\n"
        "            {{- '\\n' + message.content }}",
        "{{- '<|im_start|>' + message.role }}" + block + "\n        {%- if said %}\n"
        "            {{- '\\n' + said }}",
    )
    assert block in template
    return template


def make_model(folder: Path, tokenizer_folder: Path, *, thinks: bool) -> Path:
    """A random model of some million weights on the real Qwen2.5 tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    if thinks:
        tokenizer.chat_template = thinking_template(tokenizer.chat_template)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


JOB = """
model: model
method: lora
lora: {r: 4, lora_alpha: 8, target_modules: all-linear}
data: {train: rows.jsonl, test: test.jsonl}
training: {max_steps: 2, max_length: 512, per_device_train_batch_size: 2, learning_rate: 1.0e-2}
evaluation: {task: exact_match, max_new_tokens: 8}
budget: {host_memory: 6GiB}
launch: {device: cpu}
tracking: {report_to: []}
"""


def write_place(folder: Path, tokenizer_folder: Path, *, thinks: bool = True) -> None:
    """The model, the rows (one of them held out for the test) and the job."""
    make_model(folder / "model", tokenizer_folder, thinks=thinks)
    asked = {
        "tools": [WEATHER],
        "messages": [
            user("Is it warm in Chur?"),
            says(None, tool_calls=[call("weather", {"city": "Chur"})]),
        ],
    }
    for name, rows in (("rows", ROWS), ("test", [asked])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "job.yaml").write_text(JOB)
