"""The settled rows onto disk: a Parquet file for each split.

Imports this package; numpy and pyarrow when called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.data.ingest import IngestResult
from runner.data.prepared import SPLITS
from runner.data.row_buffer import content_schema
from runner.data.row_index import RowIndex

_WRITE_ROWS = 20_000


def content_file(work: Path, index: int) -> Path:
    return work / f"content-{index}.parquet"


def write_splits(
    folder: Path, work: Path, ingested: Sequence[IngestResult], row_index: RowIndex
) -> dict[str, int]:
    """Write the rows of each split, source by source; rows of each, repeats counted."""
    import numpy
    import pyarrow
    import pyarrow.parquet

    schema = content_schema().insert(0, pyarrow.field("source", pyarrow.int16()))
    written: dict[str, int] = dict.fromkeys(SPLITS, 0)
    writers = {
        name: pyarrow.parquet.ParquetWriter(
            folder / f"{name}.parquet", schema, compression="zstd", compression_level=1
        )
        for name in SPLITS
    }
    try:
        for index, one in enumerate(ingested):
            first = one.first_id
            with pyarrow.parquet.ParquetFile(
                content_file(work, index), pre_buffer=False
            ) as content:
                for group in range(content.num_row_groups):
                    table = content.read_row_group(group)
                    stop = first + table.num_rows
                    ids, splits, times = row_index.decided(first, stop)
                    for split, name in enumerate(SPLITS):
                        chosen = splits == split
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
