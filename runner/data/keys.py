"""What makes two rows the same: hashes of their normalised text. Pure; numpy to draw rows."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from runner.data.messages import Message, Tools, compared_texts, tools_text

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

KEY_BYTES = 16


def normalised(text: str) -> str:
    """`text` as it is compared: width (NFKC), case and white space aside.

    Full-width letters become plain ones, case is folded, any run of white space is one space and
    none is left at the ends. Case is folded between two NFKC passes, since each can undo the other.
    """
    if text.isascii():  # NFKC leaves ASCII as it is, and folding its case is lower()
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def row_keys(
    messages: Sequence[Message], images: Sequence[str] = (), tools: Tools | None = None
) -> tuple[bytes, bytes]:
    """(prompt key, row key), each KEY_BYTES long.

    The prompt is the images, the tools and all turns before the last assistant answer; the row is
    all of it, and which of its answers are left untrained. `images` are texts that identify each
    image.
    """
    last = len(messages) - 1
    while last >= 0 and messages[last]["role"] != "assistant":
        last -= 1
    # a normalised text holds no newline, so no two conversations give the same lines
    parts = ["image " + image for image in images]
    if tools:
        parts.append("tools " + tools_text(tools))
    for message in messages[:last]:
        parts.append(message["role"])
        parts += map(normalised, compared_texts(message))
    state = blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES)
    prompt = state.digest()
    parts = [""]
    for message in messages[last:]:
        parts.append(message["role"])
        parts += map(normalised, compared_texts(message))
    for index, message in enumerate(messages):
        if not message.get("trained", True):
            parts.append(f"untrained {index}")
    state.update("\n".join(parts).encode("utf-8", "surrogatepass"))
    return prompt, state.digest()


def draw_numbers(keys: Sequence[bytes], seed: int) -> NDArray[numpy.uint64]:
    """Where each key stands in the order that `seed` draws: a numpy array of 64-bit numbers.

    Keys are hashes already, so their first half, mixed with the seed's own hash by the finalizer of
    splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), is
    as good as another hash of both. The same in any process and on any machine.
    """
    import numpy

    salt = blake2b(str(seed).encode(), digest_size=8).digest()
    found = numpy.frombuffer(b"".join(keys), dtype="<u8")[::2] ^ numpy.frombuffer(salt, "<u8")
    found = (found ^ (found >> 30)) * numpy.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> 27)) * numpy.uint64(0x94D049BB133111EB)
    return found ^ (found >> 31)
