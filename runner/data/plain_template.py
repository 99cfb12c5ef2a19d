"""A plain chat template for a tokenizer that has none.

Imports `runner.common.errors` and this package's `template`.
"""

from __future__ import annotations

from runner.common.errors import RefusedError
from runner.data.template import tokenizer_name
from runner.data.tokenizer_type import Tokenizer

# The space before an answer is rendered with it, not with the generation prompt: tokenizers join
# a space to the word that follows, and a prompt that ends in one would cut that token in two.
_PLAIN_TEMPLATE = (
    "%(bos)s"
    "{%% for message in messages %%}"
    "{%% if message['role'] == 'assistant' %%}"
    "{{ 'Assistant: ' + message['content'] + eos_token + '\\n' }}"
    "{%% else %%}"
    "{{ message['role'] | capitalize + ': ' + message['content'] + '\\n' }}"
    "{%% endif %%}"
    "{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ 'Assistant:' }}{%% endif %%}"
)


def ensure_chat_template(tokenizer: Tokenizer) -> str | None:
    """Give a tokenizer without a chat template a plain one; returns a sentence that says so.

    Returns None, and changes nothing, where there is a template. The plain template writes
    "User: ...\\nAssistant: ...<eos>\\n"; a beginning-of-sequence token is written where the
    tokenizer would add one by itself. Raises RefusedError where there is no eos token either: a
    model trained so could not learn to stop.
    """
    if tokenizer.chat_template:
        return None
    name = tokenizer_name(tokenizer)
    if not tokenizer.eos_token:
        raise RefusedError(
            f"the tokenizer {name} has neither a chat template nor an eos token",
            "set eos_token in its tokenizer_config.json, or take a model with a chat template",
        )
    probe = list(tokenizer("x")["input_ids"])
    adds_bos = tokenizer.bos_token_id is not None and probe[:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = _PLAIN_TEMPLATE % {"bos": "{{ bos_token }}" if adds_bos else ""}
    return (
        f"{name} has no chat template; a plain one is used instead: "
        f'"User: …", "Assistant: …{tokenizer.eos_token}", one turn on each line'
    )
