"""Ten million rows through clean, split and mix: how long, how much memory, and are counts right?

`python benchmarks/ten_million.py [--rows N] [--folder DIR]` writes rows with duplicates, conflicts
and empty answers in known numbers, prepares them as `runner data` would, in this process, and exits
1 where a count is wrong or the peak of resident memory is above the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runner.common.caches import file_sha256
from runner.data.prepare import prepare
from runner.data.prepared import Prepared
from runner.jobs.data import DataSettings
from runner.plans.rows import PlannedData, PlannedRows

GIB = 1 << 30
LABELS = ("positive", "negative", "neutral")
_TEXT = """the film hotel notebook service room battery screen was is rather very quite slow fast
loud bright 房间 服务 很好 不错 电池 屏幕 声音 有点 and but because although again never always
delivery came broken fine worth money Überraschung café naïve 早餐 前台 态度 value for price"""
WORDS = _TEXT.split()

# of each thousand rows of the first source
EMPTY, DUPLICATES, CONFLICTS = 1, 20, 2
KEPT = 1000 - EMPTY - DUPLICATES - CONFLICTS


def text_of(number: int) -> str:
    """A text of 6 to 60 words that no other number has."""
    state = (number * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
    words = [f"#{number}"]
    for _ in range(6 + state % 55):
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        words.append(WORDS[(state >> 33) % len(WORDS)])
    return " ".join(words)


def write_reviews(path: Path, rows: int) -> None:
    """text_label rows; `rows` is a multiple of 1000."""
    first = ""
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            place, label = number % 1000, LABELS[number % 3]
            text = text_of(number)
            if place == 0:
                first, first_label = text, label
            elif place == 1:
                label = " "
            elif place < 2 + DUPLICATES:  # other case, white space or width: the same all the same
                text, label = _disguised(first, place), first_label
            elif place == 2 + DUPLICATES:
                clashing, other = text, LABELS[(number + 1) % 3]
            elif place == 3 + DUPLICATES:
                text, label = clashing, other
            row = {"text": text, "label": label}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_identity(path: Path, rows: int) -> None:
    """alpaca rows."""
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            row = {"instruction": f"Who are you, {text_of(-1 - number)}?", "output": "A runner."}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _disguised(text: str, way: int) -> str:
    if way % 3 == 0:
        return text.upper().replace("SS", "ss")
    if way % 3 == 1:
        return "  " + text.replace(" ", " \t")
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def plan_of(train: Path, mixed: Path) -> Any:
    """As much of a plan as `prepare` looks at."""

    def planned(path: Path) -> PlannedData:
        return PlannedData(kind="file", path=str(path), sha256=file_sha256(path))

    return SimpleNamespace(
        data=DataSettings.model_validate(
            {
                "train": str(train),
                "prompt": "Positive, negative or neutral?\n{text}",
                "clean": {"conflicts": "drop", "ignore": ["white_space", "case", "width"]},
                "split": {"eval": 0.05, "test": 0.05, "stratify": "label", "seed": 42},
                "mix": {"ratio": 4, "sources": [{"rows": str(mixed), "ratio": 1}]},
            }
        ),
        rows=PlannedRows(train=planned(train), mixed=[planned(mixed)]),
        vision=None,
    )


def wrong_counts(prepared: Prepared, rows: int, mixed: int) -> list[str]:
    """What does not add up, in words."""
    thousands = rows // 1000
    kept = KEPT * thousands
    held = round(kept * 0.05)
    reviews, identity = prepared.report["sources"]
    train = kept - 2 * held
    found = {
        "read": (reviews["read"], rows),
        "empty": (reviews["empty"]["rows"], EMPTY * thousands),
        "duplicates": (reviews["duplicates"]["rows"], DUPLICATES * thousands),
        "conflicts": (reviews["conflicts"]["rows"], CONFLICTS * thousands),
        "eval": (reviews["eval"], held),
        "train": (reviews["train"], kept - reviews["eval"] - reviews["test"]),
        "mixed rows": (identity["train"], mixed),
        "mixed drawn": (identity["drawn"], round(reviews["train"] / 4)),
        "train side": (prepared.counts["train"], reviews["train"] + round(reviews["train"] / 4)),
    }
    wrong = [f"{name}: {got:,}, not {want:,}" for name, (got, want) in found.items() if got != want]
    if abs(reviews["test"] - held) > len(LABELS) or abs(reviews["train"] - train) > len(LABELS):
        wrong.append(f"test: {reviews['test']:,}, not about {held:,}")
    strata = prepared.report["split"]["strata"]
    return wrong + [
        f"{label}: {sides[side]:,} {side} rows of {sum(sides.values()):,}"
        for label, sides in strata.items()
        for side in ("eval", "test")
        if abs(sides[side] - sum(sides.values()) * 0.05) >= 1
    ]


def run(rows: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Generate, prepare and check; the figures."""
    train, identity = folder / "reviews.jsonl", folder / "identity.jsonl"
    mixed = max(1000, rows // 20)
    say(f"writing {rows:,} + {mixed:,} rows to {folder}")
    write_reviews(train, rows)
    write_identity(identity, mixed)
    plan = plan_of(train, identity)
    before = _peak()
    os.environ["RUNNER_CACHE"] = str(folder / "cache")
    started = time.monotonic()
    prepared = prepare(plan, say=say)
    seconds = time.monotonic() - started
    return {
        "rows": rows + mixed,
        "bytes": train.stat().st_size + identity.stat().st_size,
        "seconds": round(seconds, 1),
        "rows_per_second": round((rows + mixed) / seconds),
        "peak_rss_bytes_before": before,
        "peak_rss_bytes": _peak(),
        "sides": prepared.counts,
        "wrong": wrong_counts(prepared, rows, mixed),
    }


def _peak() -> int:
    """The largest resident memory of this process so far, in bytes.

    Not getrusage's ru_maxrss, which a process inherits from the larger one that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> int:
    """Exit code 0, or 1 where a count or the memory is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="a multiple of 1000")
    parser.add_argument("--folder", type=Path, help="where rows and cache are written for a while")
    parser.add_argument("--limit", type=int, default=GIB, help="peak resident memory, in bytes")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ten-million-", dir=options.folder))
    try:
        rows = max(1, options.rows // 1000) * 1000
        figures = run(rows, folder, lambda line: print(line, file=sys.stderr, flush=True))
    finally:
        shutil.rmtree(folder)
    print(json.dumps(figures, indent=1))
    over = figures["peak_rss_bytes"] > options.limit
    if over:
        print(f"peak memory is above {options.limit:,} bytes", file=sys.stderr)
    return 1 if over or figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
