"""The report of prepared rows in words. Pure; standard library and this package only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from runner.data.image_words import image_lines
from runner.data.report_types import LeftOutRecord, MixRecord, PreparedRecord, SourceRecord

NAMED = 10  # lines that a message names
UNUSED_SHOWN = 20  # keys that a message names
NEAR_NAMED = 3
OLD_RULE = "width, case and white space apart"
"""By which reports of before compared rows."""


def name_of(source: SourceRecord) -> str:
    """A source's file name, or its id on a hub."""
    place = str(source["place"])
    return PurePosixPath(place).name if place.startswith("/") else place


def cleaning_lines(report: PreparedRecord) -> list[str]:
    """What was left out and why, and what was mixed, a line each; nothing where all was kept."""
    sources = report["sources"]
    out = []
    for source in sources:
        out += table_lines(source, f"{name_of(source)}: " if len(sources) > 1 else "")
        beside = f" of {name_of(source)}" if len(sources) > 1 else ""
        for left_out, what in (
            (source.get("empty"), "with an empty prompt or answer"),
            (source.get("untrained"), "whose marks leave no answer to train"),
            (source.get("duplicates"), "that repeat an earlier one"),
            (source.get("conflicts"), "with another answer to the same prompt"),
            (source.get("leaked"), "whose prompt is on another side"),
        ):
            if left_out is not None and left_out["rows"]:  # a report of before has not all
                shown = _left_out(source, left_out, sources)
                out.append(f"{left_out['rows']:,} rows{beside} {what} are left out: {shown}")
        out += _kind_lines(source, beside)
    leakage = report["leakage"]
    if leakage["mode"] == "keep":
        for (split, other), number in leaks(leakage):
            out.append(
                f"WARNING: {number:,} {split} rows have a prompt that is in {other} too "
                f"({leakage.get('rule', OLD_RULE)}); the job keeps them (data.leakage)"
            )
    looser = leakage.get("by_case_and_width_alone")
    for (split, other), number in leaks(looser if isinstance(looser, Mapping) else {}):
        out.append(
            f"WARNING: {number:,} {split} rows differ from prompts in {other} by case, width or "
            "white space alone; data.clean.ignore: [white_space, case, width] takes them for the "
            "same"
        )
    out += near_lines(report)
    if report["mix"]:
        out.append(mix_line(report["mix"], sources))
    images = report.get("images")
    if images:
        out += image_lines(images)
    return out


def _kind_lines(source: SourceRecord, beside: str) -> list[str]:
    """What rows hold beside texts: reasoning, tools, marks, and keys that nothing reads."""
    out = []
    held = (
        (source.get("reasoning_turns"), "answers with reasoning of their own"),
        (source.get("tool_call_turns"), "answers that call tools"),
        (source.get("rows_with_tools"), "rows with tool definitions"),
    )
    shown = [f"{count:,} {words}" for count, words in held if count]
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


def leaks(leakage: Mapping[str, object]) -> list[tuple[tuple[str, str], int]]:
    """((split, other split), rows) of each pair of splits that share prompts."""
    found = []
    for key, number in leakage.items():
        split, between, other = key.partition("_in_")
        if between and number and isinstance(number, int):
            found.append(((split, other), number))
    return found


def table_lines(source: SourceRecord, head: str = "") -> list[str]:
    """How a CSV or TSV file was read, and what in its cells may not be meant; [] for others."""
    table = source.get("table")
    if not table:
        return []
    quotes = "quotes are plain characters"
    if table["quote"] != "none":
        inside = "doubled" if table["escape"] == "doubled" else "after a backslash"
        quotes = f"{table['quote']} quotes around cells, {inside} within"
    blank = f", {table['blank_lines']:,} of them blank" if table["blank_lines"] else ""
    if table.get("delimiter_line"):  # not in reports of before
        blank += ", the first of them sep=, which names the delimiter"
    mark = " with a byte order mark" if table["byte_order_mark"] else ""
    out = [
        f"{head}{table['lines']:,} lines{blank} -> a header and {table['rows']:,} rows of "
        f"{len(table['columns'])} cells; {table['delimiter']}-separated, {quotes}, "
        f"{table['encoding'].upper()}{mark}, lines end in {table['line_end']}"
    ]
    if table["because"] not in ("no cell is quoted", "quotes stand around cells"):
        out.append(f"{head}{table['because']}")
    for cells, words in (
        (table["with_line_breaks"], "have a cell that holds line breaks"),
        (table["with_tabs"], "have a cell that holds tabs"),
    ):
        if cells["rows"]:
            shown = named(cells["first_lines"], cells["rows"])
            out.append(f"{head}{cells['rows']:,} rows {words}: {shown}")
    if table["joined_lines"]["rows"]:
        joined = table["joined_lines"]
        out.append(
            f"WARNING: {head}{joined['rows']:,} rows span lines that would each be a row by "
            f"themselves were quotes plain characters (data.table.quote: none): "
            f"{named(joined['first_lines'], joined['rows'])}"
        )
    return out


def near_lines(report: PreparedRecord) -> list[str]:
    """Held-out rows that nearly repeat a training row; [] where there are none."""
    near = report.get("near_duplicates")
    if not near:
        return []
    if near["looked_at"] is None:
        return [f"near duplicates were not looked for: {near['because']}"]
    sources = report["sources"]
    out = []
    for split, number in near["rows"].items():
        if not number:
            continue
        shown = ", ".join(
            f"{name_of(sources[one['source']])}:{one['line']} as "
            f"{name_of(sources[one['train_source']])}:{one['train_line']} "
            f"({one['similarity']:.0%})"
            for one in [each for each in near["first"] if each["side"] == split][:NEAR_NAMED]
        )
        more = " ..." if number > NEAR_NAMED else ""
        out.append(
            f"WARNING: {number:,} {split} rows are near duplicates of training rows (MinHash, at "
            f"least {near['similarity']:.0%} alike): {shown}{more}"
        )
    return out


def _left_out(source: SourceRecord, left_out: LeftOutRecord, sources: list[SourceRecord]) -> str:
    """ "lines 3 (as 1), 8 (as other.jsonl:4) and 12 more"."""
    shown: Sequence[object] = left_out["first_lines"]
    others = left_out.get("first_repeat")
    if others:
        shown = [
            f"{line} (as {_beside(source, sources[other['source']])}{other['line']})"
            for line, other in zip(shown, others, strict=True)
        ]
    return named(shown, left_out["rows"])


def _beside(source: SourceRecord, other: SourceRecord) -> str:
    return "" if other["place"] == source["place"] else f"{name_of(other)}:"


def mix_line(mix: MixRecord, sources: list[SourceRecord]) -> str:
    """ "mix 3:1 -> 760 task.jsonl + 253 identity.jsonl (each 2 or 3 times)"."""
    parts = []
    for portion in mix["portions"]:
        words = f" ({portion['words']})" if portion["words"] else ""
        parts.append(f"{portion['drawn']:,} {name_of(sources[portion['source']])}{words}")
    return f"mix {mix['ratio']} -> {' + '.join(parts)}"


def named(lines: Sequence[object], rows: int) -> str:
    """ "lines 3, 8 and 12 more": the first few, and how many rows there are besides."""
    shown = ", ".join(map(str, lines[:NAMED]))
    more = rows - len(lines[:NAMED])
    return f"lines {shown}" + (f" and {more:,} more" if more else "")
