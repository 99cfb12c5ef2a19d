"""Compare version numbers. Imports the standard library; pure."""

from __future__ import annotations

import re


def version_numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def is_in_range(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as ">=5.17,<6"; a pre-release counts as its release."""
    have = version_numbers(version)
    for clause in filter(None, (part.strip() for part in wanted.split(","))):
        match = re.match(r"(>=|<=|==|!=|>|<)\s*(.+)", clause)
        if match is None:
            continue
        limit = version_numbers(match[2])
        width = max(len(have), len(limit))
        left = have + (0,) * (width - len(have))
        right = limit + (0,) * (width - len(limit))
        holds = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
            ">": left > right,
            "<": left < right,
        }[match[1]]
        if not holds:
            return False
    return True
