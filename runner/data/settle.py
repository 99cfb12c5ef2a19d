"""What the job decides about rows that leak, splits without rows, and the mix.

Imports the standard library and this package.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from runner.common.errors import Problem, SpecError
from runner.data.account import ratio_words
from runner.data.compare import rule_words
from runner.data.ingest import IngestResult
from runner.data.mix import MixShare, mix_shares
from runner.data.prepared import SPLITS
from runner.data.row_index import EVAL, TEST, TRAIN, RowIndex
from runner.data.row_table import LeftOut
from runner.data.rows_plan import RowsPlan
from runner.data.sources import Source


def settle_leaks(
    plan: RowsPlan, sources: list[Source], row_index: RowIndex
) -> tuple[dict[str, object], dict[int, LeftOut]]:
    """What the splits share, and the rows that were left out for it."""
    mode = plan.data.leakage
    rule = rule_words(plan.data.clean.ignore)
    record: dict[str, object] = {"mode": mode, "rule": rule}
    looser: dict[str, int] = {}
    first: dict[str, list[dict[str, int]]] = {}
    problems = []
    for split, other in ((TEST, TRAIN), (EVAL, TRAIN), (EVAL, TEST)):
        number, named = row_index.leaks(split, other)
        name = f"{SPLITS[split]}_in_{SPLITS[other]}"
        record[name] = number
        looser[name] = row_index.looser_leaks(split, other)
        if named:
            keys = ("source", "line", "other_source", "other_line")
            first[name] = [dict(zip(keys, each, strict=True)) for each in named]
        if number and mode == "refuse":
            source, line = named[0][:2]
            shown = ", ".join(
                f"{line} (as {_short(sources[there].place)}:{at})"
                for own, line, there, at in named
                if own == source
            )
            use = {TRAIN: "trained on", TEST: "tested on"}[other]
            problems.append(
                Problem(
                    f"{sources[source].place}:{line}",
                    "data.leakage",
                    f"{number:,} {SPLITS[split]} rows have a prompt that is {use} too ({rule})",
                    f"lines {shown}" + (" ..." if number > len(named) else ""),
                    "sides that share no prompt; data.leakage: remove leaves such rows out of "
                    + ("training" if other == TRAIN else "eval"),
                )
            )
    if problems:
        raise SpecError(problems)
    record["by_case_and_width_alone"] = looser
    record["first"] = first
    leaked: dict[int, LeftOut] = {}
    if mode == "remove":
        # from eval first: its rows that are tested on count no more against training
        if record["eval_in_test"]:
            leaked = row_index.remove_leaks(EVAL, [TEST])
        if record["test_in_train"] or record["eval_in_train"]:
            for source, left_out in row_index.remove_leaks(TRAIN, [EVAL, TEST]).items():
                leaked[source] = leaked.get(source, LeftOut(0, [])).and_also(left_out)
    return record, leaked


def _short(place: str) -> str:
    return PurePosixPath(place).name if place.startswith("/") else place


def require_splits(
    plan: RowsPlan,
    sources: list[Source],
    ingested: list[IngestResult],
    counts: dict[tuple[int, int], int],
    left_out: list[dict[int, LeftOut]],
) -> None:
    """Raise SpecError where a source is used up, or a split that the job asks for has no rows."""
    problems = []
    for index, source in enumerate(sources):
        if not counts.get((index, source.split)):
            steps = {
                "with an empty prompt or answer": ingested[index].empties(),
                "marked as not trained": ingested[index].without_answer(),
            }
            for words, step in zip(("duplicates", "in conflict", "leaked"), left_out, strict=True):
                steps[words] = step.get(index, LeftOut(0, []))
            shown = ", ".join(f"{one.rows:,} {words}" for words, one in steps.items() if one.rows)
            text = f"none of {ingested[index].read:,} rows is left: {shown}"
            problems.append(Problem(source.place, source.field, text))
    settings = plan.data.split
    wanted = [(EVAL, settings.eval), (TEST, settings.test)] if settings else []
    for split, share in wanted:
        if share and not problems and not counts.get((0, split)):
            left = counts.get((0, TRAIN), 0)
            problems.append(
                Problem(
                    sources[0].place,
                    "data.split",
                    "can't hold rows out"
                    + (": all rows ask the same" if left > 1 else f" for {SPLITS[split]}"),
                    f"{left} rows",
                    "more rows with different prompts",
                )
            )
    if problems:
        raise SpecError(problems)


def settle_mix(
    plan: RowsPlan, sources: list[Source], counts: dict[tuple[int, int], int]
) -> dict[int, MixShare]:
    """Index of each mixed source -> what the mix takes of it; nothing where nothing is mixed."""
    mix = plan.data.mix
    if mix is None:
        return {}
    mixed = [index for index, source in enumerate(sources) if source.split == TRAIN]
    rows = [counts[index, TRAIN] for index in mixed]
    found = mix_shares(rows, [sources[index].ratio or 1.0 for index in mixed], mix.fit)
    for index, share in zip(mixed, found, strict=True):
        if not share.drawn:
            raise SpecError(
                [
                    Problem(
                        sources[index].place,
                        "data.mix",
                        "the ratio leaves no row of this source",
                        ratio_words([sources[at].ratio or 1.0 for at in mixed]),
                        "a larger part for it, or fit: repeat",
                    )
                ]
            )
    return dict(zip(mixed, found, strict=True))
