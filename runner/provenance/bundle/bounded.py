"""JSON of an index, taken apart piece by piece: how much memory it may take is known beforehand.

Standard library only. `json.loads` makes objects of whatever comes, tens of bytes for each byte of
text; and a model that refuses a million entries keeps a million complaints. Here the text is
bounded, so is all that is not an entry of the one long list, and each entry is given away alone.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

MAX_BYTES = 32 << 20
MAX_HEAD_BYTES = 4 << 20
"""Of all that is not in the long list."""
MAX_HEAD_VALUES = 50_000
MAX_ENTRY_BYTES = 16 << 10
"""Of one entry of it: a path of MAX_NAME_BYTES, however it is escaped, and a hash."""
MAX_KEYS = 64
_SPACE = re.compile(rb"[ \t\n\r]*")


class Malformed(Exception):
    """It is no such JSON; the message says where."""


class Reader:
    """One JSON object, read once from its start to its end."""

    had_list = False
    """Whether the long list was there."""

    def __init__(self, content: bytes) -> None:
        """Raises Malformed where it is too long."""
        if len(content) > MAX_BYTES:
            raise Malformed(f"it has more than {MAX_BYTES} bytes")
        self._content, self._at = content, 0  # as text it could be four times as long
        self._head_bytes, self._head_values = MAX_HEAD_BYTES, MAX_HEAD_VALUES

    def items(self, each_of: str) -> Iterator[tuple[str, object]]:
        """Key and value in their order; of the list under `each_of`, its entries one by one.

        Raises Malformed where it is no object, a key comes twice, or it holds more than it may.
        """
        self._need("{")
        keys: set[str] = set()
        more = not self._take("}")
        while more:
            key = self._key(keys)
            self._need(":")
            if key == each_of:
                self.had_list = True
                for entry in self._entries():
                    yield key, entry
            else:
                yield key, self._head_value()
            more = not self._take("}")
            if more:
                self._need(",")
        if self._next():
            raise Malformed(f"something follows its end, at byte {self._at}")

    def _key(self, keys: set[str]) -> str:
        if self._next() != '"':
            self._wrong("a key")
        key = self._head_value()
        if key in keys or len(keys) >= MAX_KEYS:
            raise Malformed("a key comes twice" if key in keys else "it has too many keys")
        keys.add(key)
        return str(key)

    def _entries(self) -> Iterator[object]:
        self._need("[")
        if self._take("]"):
            return
        while True:
            yield self._entry()
            if self._take("]"):
                return
            self._need(",")

    def _entry(self) -> object:
        """An object without objects in it: it ends at the first brace that is in no string."""
        if self._next() != "{":
            self._wrong("a file's record")
        end = self._content.find(b"}", self._at, self._at + MAX_ENTRY_BYTES)
        if end < 0:
            self._wrong("the end of a file's record")
        try:
            return self._decode(end + 1 - self._at)
        except Malformed:
            return self._decode(MAX_ENTRY_BYTES)  # a brace in its name

    def _head_value(self) -> Any:
        self._next()
        start = self._at
        value = self._decode(self._head_bytes)
        self._head_bytes -= self._at - start
        self._head_values -= _count(value, self._head_values)
        if self._head_bytes <= 0 or self._head_values <= 0:
            raise Malformed("it says more than an index has to say")
        return value

    def _decode(self, most: int) -> Any:
        """The value that begins here, of at most so many bytes."""
        piece = self._content[self._at : self._at + most]
        try:
            text, _ = codecs.utf_8_decode(piece)  # what is cut in mid-letter ends before it
            value, length = _DECODER.raw_decode(text)
        except UnicodeDecodeError:
            raise Malformed(f"it is no UTF-8 after byte {self._at}") from None
        except (ValueError, RecursionError):
            raise Malformed(f"it is no JSON at byte {self._at}") from None
        self._at += length if text.isascii() else len(text[:length].encode())
        return value

    def _next(self) -> str:
        """The next character that is no space; "" at the end."""
        found = _SPACE.match(self._content, self._at)
        self._at = found.end() if found else self._at
        return self._content[self._at : self._at + 1].decode("latin-1")

    def _take(self, sign: str) -> bool:
        if self._next() != sign:
            return False
        self._at += 1
        return True

    def _need(self, sign: str) -> None:
        if not self._take(sign):
            self._wrong(sign)

    def _wrong(self, expected: str) -> NoReturn:
        raise Malformed(f"it is no JSON of an index: expected {expected} at byte {self._at}")


def _count(value: object, most: int) -> int:
    """How many values there are in a value; it stops counting above `most`."""
    count, left = 0, [value]
    while left and count <= most:
        each = left.pop()
        count += 1
        if isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list):
            left += each
    return count


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse)
