"""At most N rows of a JSONL file, drawn as upstream draws them; memory is 8 bytes a row.

    python cap.py --input ROWS.jsonl --output CAPPED.jsonl --max-samples N

Upstream seeds Python's generator with 1024 and takes random.sample(rows, N); the same indices come
out of sampling their numbers, so the rows and their order are upstream's. Standard library only.
"""

from __future__ import annotations

import argparse
import random
import sys
from array import array
from pathlib import Path
from typing import BinaryIO

if __package__:
    from .ending import refuse
    from .whole import whole_file
else:  # in a run folder the scripts lie beside each other
    from ending import refuse  # type: ignore[import-not-found, no-redef]
    from whole import whole_file  # type: ignore[import-not-found, no-redef]

UPSTREAM_SEED = 1024


def row_offsets(stream: BinaryIO) -> array[int]:
    """Where each row begins, in bytes; blank lines are no rows."""
    offsets, position = array("Q"), 0
    for line in stream:
        if line.strip():
            offsets.append(position)
        position += len(line)
    return offsets


def chosen_rows(count: int, max_samples: int) -> list[int] | range:
    """Numbers of the rows to keep, in the order they are written."""
    if count <= max_samples:
        return range(count)
    # not a secret: the very sample that upstream draws
    return random.Random(UPSTREAM_SEED).sample(range(count), max_samples)  # noqa: S311


def cap(source: Path, target: Path, max_samples: int) -> tuple[int, int]:
    """Rows read and rows written."""
    with source.open("rb") as rows:
        offsets = row_offsets(rows)
        kept = chosen_rows(len(offsets), max_samples)
        with whole_file(target, binary=True) as capped:
            for number in kept:
                rows.seek(offsets[number])
                capped.write(rows.readline().rstrip(b"\r\n") + b"\n")
    return len(offsets), len(kept)


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--max-samples", type=int, required=True)
    given = parser.parse_args()
    if given.max_samples < 1:
        parser.error(f"--max-samples: {given.max_samples} where 1 or more is expected")
    try:
        count, kept = cap(given.input, given.output, given.max_samples)
    except OSError as error:
        return refuse(f"cap: {error}")
    if not kept:
        return refuse(f"cap: {given.input} has no rows")
    print(f"cap: {kept:,} of {count:,} rows (at most {given.max_samples:,})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
