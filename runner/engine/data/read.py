"""Read rows from a data file or a hub data set, and name the exact place where one is broken.

Imports the standard library; pyarrow (parquet) and datasets (hub) only when they are needed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from runner.errors import Problem, RefusedError, SpecError, nearest

Row = dict[str, Any]

MAX_CELL_CHARACTERS = 64 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


def shorten(value: object, limit: int = 80) -> str:
    """A value as one line of at most `limit` characters, for error messages."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    # a lone surrogate can't be printed; show it as its escape instead
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    text = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_rows(path: Path, field: str = "data.train") -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of a .json, .jsonl, .ndjson, .csv, .tsv or .parquet file.

    The number is 1-based: the line in a .jsonl, .ndjson, .csv or .tsv file (a header is line 1),
    the row in a .json array or a .parquet file. `field` is the job's field that names the file.

    The file is looked at on the first row asked for, not at the call. Raises SpecError, with one
    Problem, where the file is missing, empty, of an unknown kind, not UTF-8 or broken.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        _fail(
            path,
            None,
            field,
            "unknown kind of data file",
            value=path.suffix or path.name,
            expected="one of " + ", ".join(_READERS),
            near=nearest(path.suffix.lower(), _READERS) if path.suffix else None,
        )
    if not path.is_file():
        _fail_missing(path, field)
    found = False
    try:
        for number, row in reader(path, field):
            found = True
            yield number, row
    except OSError as error:
        _fail(path, None, field, f"can't be read: {error.strerror or error}", cause=error)
    if not found:
        _fail(path, None, field, "the file is empty", expected="at least one row")


def read_hub(
    dataset_id: str, revision: str | None, config: str | None, split: str
) -> Iterator[tuple[int, Row]]:
    """Yield (1-based row number, row) of a data set on the Hugging Face hub, or in its cache.

    Raises RefusedError where `datasets` is not installed, the hub can't be reached and the cache
    holds no copy, or the data set, revision, config or split does not exist there.
    """
    try:
        import datasets
    except ImportError as error:
        raise RefusedError(
            f"reading {dataset_id} needs the `datasets` package", "pip install 'runner[train]'"
        ) from error
    what = f"{dataset_id}{'@' + revision if revision else ''}"
    try:
        rows = datasets.load_dataset(
            dataset_id, name=config, split=split, revision=revision, streaming=False
        )
    except FileNotFoundError as error:  # datasets.DatasetNotFoundError is one
        raise RefusedError(
            f"the hub has no data set {what}: {shorten(str(error), 200)}",
            "check the name and the revision; a private or gated one needs HF_TOKEN",
        ) from error
    except ValueError as error:
        raise RefusedError(
            f"{what} can't be read with config {config!r}, split {split!r}: "
            f"{shorten(str(error), 200)}",
            "the message lists what the data set offers",
        ) from error
    except Exception as error:
        # httpx, urllib3 and hub errors share no base class: tell them by their names
        if not _is_connection_error(error):
            raise
        raise RefusedError(
            f"could not reach the hub for {what}: {shorten(str(error), 200)}",
            "set HF_ENDPOINT to a mirror; or, with a copy in the cache, set HF_HUB_OFFLINE=1 and "
            "HF_DATASETS_OFFLINE=1 (unset them if they are set and there is no copy); or download "
            "the file and give its path",
        ) from error
    for number, row in enumerate(rows, start=1):
        yield number, dict(row)


def _is_connection_error(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(
        names & {"TransportError", "HTTPError", "HfHubHTTPError", "OfflineModeIsEnabled"}
    )


def _fail(
    path: Path,
    line: int | None,
    field: str,
    problem: str,
    *,
    value: object | None = None,
    expected: str | None = None,
    near: str | None = None,
    cause: Exception | None = None,
) -> NoReturn:
    where = str(path) if line is None else f"{path}:{line}"
    shown = None if value is None else shorten(value)
    raise SpecError([Problem(where, field, problem, shown, expected, near)]) from cause


def _fail_missing(path: Path, field: str) -> NoReturn:
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _READERS)
        inside = f"a file; the folder holds {shorten(', '.join(names))}" if names else "a file"
        _fail(path, None, field, "is a folder", expected=inside)
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent  # name the first part of the path that does not exist
    near = nearest(missing.name, (p.name for p in missing.parent.iterdir()))
    what = "no such file" if missing == path else f"no such folder: {missing}"
    _fail(
        path,
        None,
        field,
        what,
        value=path.name if missing == path else missing.name,
        near=str(missing.parent / near) if near else None,
    )


def _decode(path: Path, field: str, raw: bytes, line: int | None, offset: int) -> str:
    """UTF-8 text of bytes that start at `offset` of the file; says which byte is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        if line is None:
            line = raw[: error.start].count(b"\n") + 1
        utf16 = offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        _fail(
            path,
            line,
            field,
            f"not UTF-8: byte 0x{raw[error.start]:02x} at byte offset {at}",
            expected="UTF-8" + (" (the file looks like UTF-16: convert it)" if utf16 else ""),
            cause=error,
        )


def _read_text(path: Path, field: str) -> str:
    """The whole file's text, a byte-order mark left out."""
    raw = path.read_bytes()
    skipped = len(_BOM) if raw.startswith(_BOM) else 0
    return _decode(path, field, raw[skipped:], None, skipped)


def _read_jsonl(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    offset = 0
    with path.open("rb") as stream:
        for line, raw in enumerate(stream, start=1):
            start, offset = offset, offset + len(raw)
            if line == 1 and raw.startswith(_BOM):
                raw, start = raw[len(_BOM) :], len(_BOM)
            text = _decode(path, field, raw, line, start)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                _fail(
                    path,
                    line,
                    field,
                    f"line {line} is not JSON: {_reason(error)}",
                    value=text.strip(),
                    expected="one JSON object on each line",
                    near="a .json file" if line == 1 and text.strip() in "[{" else None,
                    cause=error,
                )
            if not isinstance(row, dict):
                _fail(
                    path,
                    line,
                    field,
                    f"line {line} is {_kind(row)}, not a JSON object",
                    value=text.strip(),
                    expected="one JSON object on each line",
                )
            yield line, row


def _read_json(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    text = _read_text(path, field)
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        # objects one after the other are .jsonl under the wrong name
        many = error.msg == "Extra data" and text.lstrip().startswith("{")
        lines = text.split("\n")
        _fail(
            path,
            error.lineno,
            field,
            f"line {error.lineno} is not JSON: {_reason(error)}",
            value=lines[error.lineno - 1].strip() if error.lineno <= len(lines) else None,
            expected="an array of objects",
            near=f"{path.stem}.jsonl (one object on each line)" if many else None,
            cause=error,
        )
    except RecursionError as error:
        _fail(path, 1, field, "nested too deeply", expected="an array of objects", cause=error)
    if not isinstance(rows, list):
        held = (
            nearest("data", [k for k, v in rows.items() if isinstance(v, list)])
            if (isinstance(rows, dict))
            else None
        )
        _fail(
            path,
            1,
            field,
            f"the file holds {_kind(rows)}, not an array of objects",
            value=sorted(rows)[:8] if isinstance(rows, dict) else rows,
            expected="an array of objects: [{...}, {...}]",
            near=f"the array under its key {held!r}" if held else None,
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            _fail(
                path,
                number,
                field,
                f"row {number} is {_kind(row)}, not an object",
                value=row,
                expected="an array of objects: [{...}, {...}]",
            )
        yield number, row


def _read_csv(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    return _read_table(path, field, ",")


def _read_tsv(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    return _read_table(path, field, "\t")


def _read_table(path: Path, field: str, delimiter: str) -> Iterator[tuple[int, Row]]:
    text = _read_text(path, field)
    if not text.strip():
        return
    # the module's limit of 128 KiB a cell is a process-wide setting: long documents exceed it
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            _fail(
                path,
                line,
                field,
                f"the row at line {line} is broken: {error}",
                expected='cells with quotes inside written as ""',
                cause=error,
            )
        if cells is None:
            return
        if header is None:
            header = cells
            names = [name.strip() for name in header]
            if len(set(names)) != len(names) or "" in names:
                _fail(
                    path,
                    line,
                    field,
                    "the header has an empty name or one name twice",
                    value=delimiter.join(header),
                    expected="one distinct name for each column",
                )
            header = names
        elif cells:  # a blank line is no row
            if len(cells) != len(header):
                _fail(
                    path,
                    line,
                    field,
                    f"the row at line {line} has {len(cells)} cells, the header {len(header)}",
                    value=delimiter.join(cells),
                    expected=f"{len(header)} cells: {', '.join(header)}",
                )
            yield line, dict(zip(header, cells, strict=True))
        line = reader.line_num + 1


def _read_parquet(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    if path.stat().st_size == 0:
        return
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RefusedError(
            f"reading {path} needs pyarrow", "pip install 'runner[train]', or convert it to .jsonl"
        ) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        _fail(
            path,
            number + 1,
            field,
            f"not readable as parquet: {shorten(str(error), 200)}",
            expected="a complete parquet file",
            cause=error,
        )


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


_READERS: dict[str, Callable[[Path, str], Iterator[tuple[int, Row]]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
