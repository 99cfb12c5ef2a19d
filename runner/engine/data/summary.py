"""The report of prepared rows in words. Pure; standard library only."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

NAMED = 10  # lines that a message names
UNUSED_SHOWN = 20  # keys that a message names
_NONE: dict[str, Any] = {"rows": 0}  # of a report of before


def name_of(source: dict[str, Any]) -> str:
    """A source's file name, or its id on a hub."""
    place = str(source["place"])
    return PurePosixPath(place).name if place.startswith("/") else place


def cleaning_lines(report: dict[str, Any]) -> list[str]:
    """What was left out and why, and what was mixed, a line each; nothing where all was kept."""
    words = {
        "empty": ("with an empty prompt or answer", "are left out"),
        "untrained": ("whose marks leave no answer to train", "are left out"),
        "duplicates": ("that repeat an earlier one", "are left out"),
        "conflicts": ("with another answer to the same prompt", "are left out"),
        "leaked": ("whose prompt is on another side", "are left out"),
    }
    sources = report["sources"]
    out = []
    for source in sources:
        beside = f" of {name_of(source)}" if len(sources) > 1 else ""
        for key, (what, done) in words.items():
            if source.get(key, _NONE)["rows"]:
                shown = named(source[key]["first_lines"], source[key]["rows"])
                out.append(f"{source[key]['rows']:,} rows{beside} {what} {done}: {shown}")
        out += _kind_lines(source, beside)
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
    return out


def _kind_lines(source: dict[str, Any], beside: str) -> list[str]:
    """What rows hold beside texts: reasoning, tools, marks, and keys that nothing reads."""
    out = []
    held = {
        "reasoning_turns": "answers with reasoning of their own",
        "tool_call_turns": "answers that call tools",
        "rows_with_tools": "rows with tool definitions",
    }
    shown = [f"{source[key]:,} {words}" for key, words in held.items() if source.get(key)]
    if shown:
        out.append(f"rows{beside} hold {', '.join(shown)}")
    if source.get("rows_filled_with_nulls"):
        out.append(
            f"tool calls or definitions of {source['rows_filled_with_nulls']:,} rows{beside} are "
            "read without the nulls that a Parquet table fills them up with"
        )
    for name, counts in source.get("marks", {}).items():
        out.append(
            f"mark {name}{beside}: {counts['untrained']:,} not trained, {counts['trained']:,} "
            "trained"
        )
    if source.get("untrained_turns"):
        number = source["untrained_turns"]
        out.append(f"{number:,} answers{beside} are not trained, as their rows' marks say")
    unused = list(source.get("unused", {}).items())
    if unused:
        keys = ", ".join(f"{key} ({number:,})" for key, number in unused[:UNUSED_SHOWN])
        more = len(unused) - UNUSED_SHOWN
        out.append(f"unused{beside}: {keys}" + (f" and {more:,} keys more" if more > 0 else ""))
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
