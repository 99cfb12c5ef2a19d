"""From prepared rows to what a trainer takes: token ids and labels in an Arrow file on disk.

Imports runner.data; datasets, numpy and pyarrow when called. No torch; the tokenizer is
passed in. Rows stream, so that training sets larger than memory work.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runner.common import durable, terminal
from runner.common.errors import RefusedError
from runner.data.audit import Audit, audit, sample, sample_places
from runner.data.cache import make_once, no_room
from runner.data.encoded import Encoded, Line, Row
from runner.data.formats import IMAGE_MARK
from runner.data.masks import encode_rows
from runner.data.messages import Message
from runner.data.prepare import prepare
from runner.data.prepared import Prepared, PreparedRow, Split
from runner.data.summary import cleaning_lines, name_of, named
from runner.data.template import keep_special_token, template_key, tokenizer_name
from runner.data.token_stats import TokenStats
from runner.engines.sft.plan import SftPlan

ENCODING_VERSION = 3
"""Raised with every change that gives other ids or labels, so that no cache of before is reused."""
_WRITE_ROWS = 1000  # at most in memory before they are written
_WRITE_TOKENS = 1_000_000
_ENCODED: tuple[Split, ...] = ("train", "eval")


@dataclass(frozen=True)
class PreparedRows:
    """What is trained and evaluated on, and how it came about."""

    train: Any
    """datasets.Dataset on disk: input_ids and labels, of one length a row; images, a list of paths,
    where any row has some. In a smoke the longest row is first."""
    eval: Any
    """The same; with no rows where the job holds none out."""
    prepared: Prepared
    train_audit: Audit
    eval_audit: Audit

    def lines(self) -> list[str]:
        """What a person is told."""
        audit_, report = self.train_audit, self.prepared.report
        first = report["sources"][0]
        read = " + ".join(f"{source['read']:,}" for source in report["sources"])
        test = self.prepared.counts["test"]
        out = [
            f"data {read} rows ({first['format']}: {first['because']}) -> "
            f"{len(self.train):,} train / {len(self.eval):,} eval"
            + (f" / {test:,} test" if test else "")
            + f"; {audit_.supervised_share:.0%} of tokens supervised; longest {audit_.longest}"
            + (f" of {audit_.max_length}" if audit_.max_length else ""),
            *cleaning_lines(report),
            f"end of turn {audit_.end_of_turn_text!r} is trained in {audit_.end_of_turn_rows} of "
            f"{audit_.rows} rows"
            if audit_.end_of_turn_trained
            else "WARNING: no end of turn is trained, so the model will not learn to stop",
        ]
        out += audit_.template["notes"]
        images = ", or part of an image," if "images" in self.train.column_names else ""
        for name, part in (("train", self.train_audit), ("eval", self.eval_audit)):
            if part.truncated:
                out.append(f"{part.truncated} {name} rows were cut to {part.max_length} tokens")
            if part.lost:
                out.append(
                    f"WARNING: {part.lost} {name} rows lost every trained token{images} by that "
                    f"cut and are left out: {named(part.lost_lines, part.lost)}"
                )
            out += part.notes
        return out

    def report(self) -> dict[str, Any]:
        """data.json.

        For each source in `prepared`, read = empty + duplicates + conflicts + leaked + train + eval
        + test; train_rows is what all sources draw, less the rows that the cut to max_length lost.
        """
        prepared = self.prepared.report
        sources = prepared["sources"]
        empty = [source["empty"] for source in sources if source["role"] in ("train", "mixed")]
        return {
            "schema_version": 2,
            "rows_read": sum(source["read"] for source in sources),
            "format": sources[0]["format"],
            "because": sources[0]["because"],
            "dropped_empty": {
                "rows": sum(one["rows"] for one in empty),
                "first_lines": empty[0]["first_lines"],
            },
            "train_rows": len(self.train),
            "eval_rows": len(self.eval),
            "test_rows": self.prepared.counts["test"],
            "train": self.train_audit.to_record(),
            "eval_lost": self.eval_audit.lost,
            "prepared_in": str(self.prepared.folder),
            "prepared": prepared,
        }


def prepare_rows(
    plan: SftPlan,
    tokenizer: Any,
    samples: int = 2,
    image_tokens: int = 0,
    say: Callable[[str], None] | None = None,
) -> PreparedRows:
    """Everything between the data files and the trainer; made once and then reused.

    Args:
        plan: a plan of one training.
        samples: training rows that the audit shows as text, the longest among them.
        image_tokens: how many tokens stand for an image; each "<image>" of a row with images is
            repeated so often.
        say: gets a line now and then while many rows are read; without, stderr does.

    Raises SpecError or RefusedError: as `prepare` does; truncation that leaves nothing to train on;
    a tokenizer that has no token for images.
    """
    say = say or _say
    if image_tokens:
        keep_special_token(tokenizer, IMAGE_MARK)
    prepared = prepare(plan, say=say)
    encoding = _Encoding(tokenizer, plan.training.max_length, image_tokens)
    root = prepared.folder.parent
    folder = root / f"{prepared.folder.name}-{encoding.key()}"
    try:
        make_once(folder, lambda staging: _encode_sides(encoding, prepared, staging, say))
    except OSError as error:
        raise no_room(root, error) from error

    tallies = {
        side: TokenStats.from_record(
            json.loads((folder / f"{side}.json").read_text(encoding="utf-8"))
        )
        for side in _ENCODED
    }
    train = _dataset(folder, "train")
    shown = _samples(encoding, prepared, folder, tallies["train"], train, samples)
    if plan.variant == "smoke":
        train = _longest_first(train, folder)
    return PreparedRows(
        train=train,
        eval=_dataset(folder, "eval"),
        prepared=prepared,
        train_audit=audit(tokenizer, tallies["train"], shown),
        eval_audit=audit(tokenizer, tallies["eval"], []),
    )


@dataclass(frozen=True)
class _Encoding:
    """How rows become ids."""

    tokenizer: Any
    max_length: int | None
    image_tokens: int

    def key(self) -> str:
        """Equal for tokenizers and settings that give equal ids."""
        tokenizer = self.tokenizer
        parts = [
            ENCODING_VERSION,
            version("tokenizers"),
            version("transformers"),
            type(tokenizer).__name__,
            tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else "",
            tokenizer.chat_template,
            {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            self.max_length,
            self.image_tokens,
            template_key(tokenizer),
        ]
        canonical = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def messages(self, row: PreparedRow) -> list[Message]:
        """The row's messages with room for its images."""
        if not row.images or not self.image_tokens:
            return row.messages
        room = IMAGE_MARK * self.image_tokens
        return [
            {**message, "content": message["content"].replace(IMAGE_MARK, room)}
            for message in row.messages
        ]

    def image_id(self) -> int:
        """The id of the token that stands for a piece of an image. Raises RefusedError: none."""
        ids = self.tokenizer.encode(IMAGE_MARK, add_special_tokens=False)
        if len(ids) != 1:
            raise RefusedError(
                f"the tokenizer has no token {IMAGE_MARK}, which stands for an image",
                "add it as a special token, or take a model that reads images",
            )
        return int(ids[0])


def _encode_sides(
    encoding: _Encoding, prepared: Prepared, folder: Path, say: Callable[[str], None]
) -> None:
    for side in _ENCODED:
        tally = _encode_side(encoding, prepared, side, folder, say)
        if prepared.counts[side]:
            tally.require_text(tokenizer_name(encoding.tokenizer))
            tally.require_rows()
        durable.write_json(folder / f"{side}.json", tally.record())


def _encode_side(
    encoding: _Encoding,
    prepared: Prepared,
    side: Split,
    folder: Path,
    say: Callable[[str], None],
) -> TokenStats:
    """Write SIDE.arrow and, beside it, each kept row's length and place among the prepared rows."""
    import numpy
    import pyarrow

    place_of = _line_names(prepared)
    tally = TokenStats(encoding.max_length)
    has_images = any(row.images for row in prepared.rows(side)) if encoding.image_tokens else False
    image_id = encoding.image_id() if has_images else None
    fields = [
        ("input_ids", pyarrow.list_(pyarrow.int32())),
        ("labels", pyarrow.list_(pyarrow.int32())),
    ]
    if has_images:
        fields.append(("images", pyarrow.list_(pyarrow.string())))
    schema = pyarrow.schema(fields)
    kept: list[tuple[Any, ...]] = []
    tokens = 0
    with (
        pyarrow.OSFile(str(folder / f"{side}.arrow"), "wb") as stream,
        pyarrow.ipc.new_stream(stream, schema) as writer,
        (folder / f"{side}.lengths").open("wb") as lengths,
        (folder / f"{side}.places").open("wb") as places,
    ):

        def flush() -> None:
            if not kept:
                return
            at, *columns = zip(*kept, strict=True)
            named_columns = dict(zip(schema.names, columns, strict=False))
            writer.write_batch(pyarrow.record_batch(named_columns, schema=schema))
            numpy.array([len(ids) for ids in columns[0]], dtype="<i4").tofile(lengths)
            numpy.array(at, dtype="<i8").tofile(places)
            kept.clear()

        for at, (row, encoded) in enumerate(_encoded(encoding, prepared, side)):
            whole = (
                image_id is None
                or not encoded.truncated
                or encoded.input_ids.count(image_id) == len(row.images) * encoding.image_tokens
            )
            if tally.add(place_of(row), encoded, whole=whole):
                kept.append((at, encoded.input_ids, encoded.labels, row.images))
                tokens += len(encoded.input_ids)
                if len(kept) == _WRITE_ROWS or tokens > _WRITE_TOKENS:
                    flush()
                    tokens = 0
            if (at + 1) % 200_000 == 0:
                say(f"{at + 1:,} {side} rows tokenized")
        flush()
    return tally


def _encoded(
    encoding: _Encoding, prepared: Prepared, side: Split
) -> Iterator[tuple[PreparedRow, Encoded]]:
    """Each row beside its ids. `encode_rows` reads ahead: the rows it holds are kept here."""
    waiting: deque[PreparedRow] = deque()
    places = [source["place"] for source in prepared.report["sources"]]

    def conversations() -> Iterator[Row]:
        for row in prepared.rows(side):
            waiting.append(row)
            # an error names the file, whatever else is read
            yield f"{places[row.source]}:{row.line}", encoding.messages(row), row.tools

    for encoded in encode_rows(encoding.tokenizer, conversations(), encoding.max_length):
        yield waiting.popleft(), encoded


def _line_names(prepared: Prepared) -> Callable[[PreparedRow], Line]:
    """How a row's origin is named: its line, with the file where rows come from several."""
    sources = prepared.report["sources"]
    alone = sum(source["role"] in ("train", "mixed") for source in sources) == 1
    names = [name_of(source) for source in sources]
    return lambda row: row.line if alone else f"{names[row.source]}:{row.line}"


def _samples(
    encoding: _Encoding,
    prepared: Prepared,
    folder: Path,
    tally: TokenStats,
    train: Any,
    wanted: int,
) -> list[Any]:
    import numpy

    chosen = sample_places(tally.rows, tally.longest_at, wanted)
    if not chosen:
        return []
    places = numpy.memmap(folder / "train.places", dtype="<i8", mode="r")
    rows = prepared.pick("train", [int(places[index]) for index in chosen])
    place_of = _line_names(prepared)
    return [
        sample(
            encoding.tokenizer,
            place_of(row),
            encoding.messages(row),
            encoding.max_length,
            train[index]["input_ids"],
            row.tools,
        )
        for index, row in zip(chosen, rows, strict=True)
    ]


def _dataset(folder: Path, side: Split) -> Any:
    from datasets import Dataset

    return Dataset.from_file(str(folder / f"{side}.arrow"))


def _longest_first(rows: Any, folder: Path) -> Any:
    import numpy

    lengths = numpy.fromfile(folder / "train.lengths", dtype="<i4")
    return rows.select(numpy.argsort(-lengths, kind="stable"))


def _say(line: str) -> None:
    terminal.say(f"runner: {line}")
