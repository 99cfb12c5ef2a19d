"""A claim as the text of a file, and back. Pure: bytes in, a Claim or None out.

Anybody writes such files, so every number and every text has its bounds here, and whatever is not
a claim within them is none.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict

from runner.machine.leases.kernel import LARGEST_PID
from runner.machine.leases.models import Lease

LARGEST_BYTES = 16 * 1024
_AHEAD_NANOSECONDS = 1_000_000_000
_LONGEST_TEXT = 200
_LONGEST_PATH = 4096
_MOST_CARDS = 256
_WORD = re.compile(r"[!-~]{1,128}")
_OUR_OWN = ("uid", "user", "orphans")
"""Not taken from a file, and not written."""


def encode_claim(claim: Lease) -> bytes:
    """The file's content."""
    record = {name: value for name, value in asdict(claim).items() if name not in _OUR_OWN}
    return json.dumps({"schema_version": 1, **record}).encode() + b"\n"


def decode_claim(content: bytes, uid: int, user: str, now: int) -> Lease | None:
    """The claim in a file, or None where it is none.

    Args:
        uid: the file's owner, by the kernel, and `user` the name.
        now: nanoseconds since the machine was started: a number beyond is nobody's.
    """
    record = decode_record(content, LARGEST_BYTES)
    if record is None:
        return None
    try:
        return Lease(
            number=_whole(record["number"], 1, now + _AHEAD_NANOSECONDS),
            run=plain(_text(record["run"])),
            folder=_path(record["folder"]),
            uid=uid,
            user=user,
            pid=_whole(record["pid"], 1, LARGEST_PID),
            start_ticks=_whole(record["start_ticks"], 0, 2**63),
            boot_id=_word(record.get("boot_id")),
            pid_namespace=_word(record.get("pid_namespace")),
            count=_whole(record["count"], 1, _MOST_CARDS),
            budget_bytes=None
            if record["budget_bytes"] is None
            else _whole(record["budget_bytes"], 1, 2**60),
            share=_switch(record["share"]),
            allowed=None if record["allowed"] is None else _words(record["allowed"]),
            cards=_words(record["cards"]),
            since_unix_seconds=_seconds(record["since_unix_seconds"]),
        )
    except (KeyError, ValueError):
        return None


def decode_record(content: bytes, largest: int) -> dict[str, object] | None:
    """The JSON object in a file that anybody wrote, or None: no other text, no key twice, no NaN.

    Numbers have at most twenty digits.
    """
    if len(content) > largest:
        return None
    try:
        record = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_once,
            parse_int=_short,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def plain(text: str) -> str:
    """Somebody else's text, fit for a terminal and not endless."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[: _LONGEST_TEXT + 1])
    return shown if len(shown) <= _LONGEST_TEXT else shown[: _LONGEST_TEXT - 1] + "…"


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key twice")
    return record


def _short(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a number that is too long")
    return int(digits)


def _no_number(name: str) -> None:
    raise ValueError(name)


def _whole(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError("out of range")
    return value


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("no number")
    if not math.isfinite(value) or not 0 <= value < 2**40:
        raise ValueError("out of range")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def _path(value: object) -> str:
    """An absolute path; one that is no UTF-8 is held by surrogates, as Python does."""
    path = _text(value)
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError("no absolute path")
    return path


def _word(value: object) -> str | None:
    if value is None:
        return None
    if not _WORD.fullmatch(_text(value)):
        raise ValueError("no word")
    return str(value)


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MOST_CARDS:
        raise ValueError("no list of words")
    found = tuple(word for each in value if (word := _word(each)) is not None)
    if len(set(found)) < len(value):
        raise ValueError("a word twice, or none")
    return found
