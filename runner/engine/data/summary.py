"""The report of prepared rows in words. Pure; standard library and this package only."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from runner.engine.data.image_words import image_lines

NAMED = 10  # lines that a message names


def name_of(source: dict[str, Any]) -> str:
    """A source's file name, or its id on a hub."""
    place = str(source["place"])
    return PurePosixPath(place).name if place.startswith("/") else place


def cleaning_lines(report: dict[str, Any]) -> list[str]:
    """What was left out and why, and what was mixed, a line each; nothing where all was kept."""
    words = {
        "empty": ("with an empty prompt or answer", "are left out"),
        "duplicates": ("that repeat an earlier one", "are left out"),
        "conflicts": ("with another answer to the same prompt", "are left out"),
        "leaked": ("whose prompt is on another side", "are left out"),
    }
    sources = report["sources"]
    out = []
    for source in sources:
        beside = f" of {name_of(source)}" if len(sources) > 1 else ""
        for key, (what, done) in words.items():
            if source[key]["rows"]:
                shown = named(source[key]["first_lines"], source[key]["rows"])
                out.append(f"{source[key]['rows']:,} rows{beside} {what} {done}: {shown}")
    leakage = report["leakage"]
    if leakage["mode"] == "keep":
        for key, number in leakage.items():
            if key != "mode" and number:
                side, _, other = key.partition("_in_")
                out.append(
                    f"WARNING: {number:,} {side} rows have a prompt that is in {other} too; the "
                    "job keeps them (data.leakage)"
                )
    if report["mix"]:
        out.append(mix_line(report))
    if report.get("images"):
        out += image_lines(report["images"])
    return out


def mix_line(report: dict[str, Any]) -> str:
    """ "mix 3:1 -> 760 task.jsonl + 253 identity.jsonl (each 2 or 3 times)"."""
    parts = []
    for portion in report["mix"]["portions"]:
        words = f" ({portion['words']})" if portion["words"] else ""
        parts.append(f"{portion['drawn']:,} {name_of(report['sources'][portion['source']])}{words}")
    return f"mix {report['mix']['ratio']} -> {' + '.join(parts)}"


def named(lines: list[Any], rows: int) -> str:
    """ "lines 3, 8 and 12 more": the first few, and how many rows there are besides."""
    shown = ", ".join(map(str, lines[:NAMED]))
    more = rows - len(lines[:NAMED])
    return f"lines {shown}" + (f" and {more:,} more" if more else "")
