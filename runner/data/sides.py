"""Write the final rows to disk: a Parquet file for each split.

Imports this package; numpy and pyarrow when called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.data.ingest import Taken, content_schema
from runner.data.ledger import Ledger
from runner.data.prepared import SIDES

_WRITE_ROWS = 20_000


def content_file(work: Path, index: int) -> Path:
    return work / f"content-{index}.parquet"


def write_sides(folder: Path, work: Path, taken: Sequence[Taken], ledger: Ledger) -> dict[str, int]:
    """Write the rows of each side, source by source; rows of each, repeats counted."""
    import numpy
    import pyarrow
    import pyarrow.parquet

    schema = content_schema().insert(0, pyarrow.field("source", pyarrow.int16()))
    written: dict[str, int] = dict.fromkeys(SIDES, 0)
    writers = {
        name: pyarrow.parquet.ParquetWriter(
            folder / f"{name}.parquet", schema, compression="zstd", compression_level=1
        )
        for name in SIDES
    }
    try:
        for index, one in enumerate(taken):
            first = one.first_id
            with pyarrow.parquet.ParquetFile(
                content_file(work, index), pre_buffer=False
            ) as content:
                for group in range(content.num_row_groups):
                    table = content.read_row_group(group)
                    stop = first + table.num_rows
                    ids, sides, times = ledger.decided(first, stop)
                    for side, name in enumerate(SIDES):
                        chosen = sides == side
                        places = numpy.repeat(ids[chosen] - first, times[chosen])
                        for start in range(0, len(places), _WRITE_ROWS):
                            part = table.take(places[start : start + _WRITE_ROWS])
                            of = numpy.full(part.num_rows, index, dtype="i2")
                            writers[name].write_table(
                                part.add_column(0, schema.field(0), pyarrow.array(of))
                            )
                        written[name] += len(places)
                    first = stop
    finally:
        for writer in writers.values():
            writer.close()
    return written
