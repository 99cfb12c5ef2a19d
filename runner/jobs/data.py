"""Where a job's rows come from and what is done with them before training.

Imports pydantic and runner.jobs.model only; nothing here touches a file.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from runner.jobs.model import MAX_SEED, ConflictError, JobModel

DataFormat = Literal["auto", "messages", "conversations", "alpaca", "text_label", "data_juicer"]


def _background(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"white|black|gray|#[0-9a-fA-F]{6}", value):
        return value
    raise ValueError("expected white, black, gray, or six hexadecimal digits such as '#7f7f7f'")


Background = Annotated[str, BeforeValidator(_background, json_schema_input_type=str)]


class SplitSettings(JobModel):
    """Rows held out of training, for evaluation while training and for the test after it."""

    eval: float = Field(0.1, gt=0, lt=1, description="Share of the rows for evaluation, 0 to 1.")
    test: float = Field(
        0.0, ge=0, lt=1, description="Share of the rows for `runner evaluate` alone, 0 to 1."
    )
    stratify: str | None = Field(
        None,
        description="A key of the rows (label, task, ...) whose values keep their shares on every "
        "side of the split.",
    )
    seed: int = Field(
        42,
        ge=0,
        le=MAX_SEED,
        description="Seed of the draw; the same seed and rows always give the same split.",
    )

    @model_validator(mode="after")
    def _something_trains(self) -> SplitSettings:
        if self.eval + self.test >= 1:
            raise ConflictError("test", "eval and test together leave no rows to train on")
        return self


class CleanSettings(JobModel):
    """Which rows are left out, each kind counted; those with an empty prompt or answer are."""

    duplicates: Literal["drop", "keep"] = Field(
        "drop", description="Rows that repeat an earlier row of the same source: all turns alike."
    )
    conflicts: Literal["drop", "keep"] = Field(
        "keep",
        description="Rows alike but for the last answer: drop leaves all of them out (for "
        "labels), keep all in (for free answers).",
    )
    ignore: list[Literal["white_space", "case", "width", "punctuation"]] = Field(
        ["white_space"],
        description="What does not count where rows are compared, for duplicates, conflicts, "
        "leakage and splits: white_space (but between two numbers), case, width (NFKC: full-width, "
        "superscript and ligature forms are the plain ones), punctuation; [] compares to the "
        "letter.",
    )


class TableSettings(JobModel):
    """How CSV and TSV files are written. auto: told once from all lines of a file, and said."""

    delimiter: Literal["auto", "comma", "tab", "semicolon", "pipe"] = Field(
        "auto",
        description="What separates two cells; auto: a comma in .csv, a tab in .tsv, or the one "
        "that fits every row if that does not.",
    )
    quote: Literal["auto", "double", "single", "none"] = Field(
        "auto",
        description="Which quotes enclose cells; none: a quote is a character of the text.",
    )
    escape: Literal["auto", "doubled", "backslash"] = Field(
        "auto", description="How a quote within quotes is written: twice, or after a backslash."
    )
    encoding: Literal[
        "auto",
        "utf-8",
        "utf-16",
        "utf-16-le",
        "utf-16-be",
        "gb18030",
        "big5",
        "shift_jis",
        "euc_jp",
        "euc_kr",
        "cp1251",
        "cp1252",
        "iso-8859-1",
    ] = Field("auto", description="auto: by the byte order mark, else UTF-8.")


class MixedSource(JobModel):
    """Rows that are mixed into those of data.train."""

    rows: str = Field(min_length=1, description="The rows, written like data.train.")
    ratio: float = Field(1.0, gt=0, description="This source's part, beside data.mix.ratio.")
    sample: str | None = Field(
        None, description="A small file of the same layout for a smoke, like data.sample."
    )


class MixSettings(JobModel):
    """Other sources mixed into the training rows by ratio; evaluation rows are not repeated."""

    ratio: float = Field(
        gt=0, description="The part of data.train: 3 beside a ratio of 1 draws three rows of four."
    )
    sources: list[MixedSource] = Field(min_length=1, description="The rows that are mixed in.")
    fit: Literal["repeat", "cut"] = Field(
        "repeat",
        description="How the counts meet the ratio: repeat uses every row and repeats those of the "
        "sources that are too small; cut repeats none and draws from those that are too large.",
    )
    seed: int = Field(42, ge=0, le=MAX_SEED, description="Seed of the rows that are drawn.")


class HubData(JobModel):
    """Which part of a hub data set is read (`train: hub:...` or `modelscope:...`)."""

    name: str | None = Field(None, description="The data set's configuration name.")
    split: str = Field("train", description="The split that data.train reads from the hub.")
    eval_split: str = Field(
        "validation", description="The split that data.eval reads from the hub."
    )
    test_split: str = Field("test", description="The split that data.test reads from the hub.")


class DataSettings(JobModel):
    """Where rows come from and how they become conversations."""

    train: str = Field(
        min_length=1,
        description="Training rows: a .json, .jsonl, .csv, .tsv or .parquet file, or "
        "hub:OWNER/NAME[@REVISION], or modelscope:OWNER/NAME[@REVISION]. A relative path is "
        "looked for beside the job file, then in the current folder; given by --set, in the "
        "current folder.",
    )
    eval: str | None = Field(
        None, description="Evaluation rows, same form as train. Without it, see split."
    )
    format: DataFormat = Field(
        "auto",
        description="How a row is laid out; auto detects it from the keys and says why, or "
        "refuses where more than one layout fits.",
    )
    test: str | None = Field(
        None, description="Rows for `runner evaluate`, same form as train. Without it, see split."
    )
    split: SplitSettings | None = Field(
        None, description="Hold rows of train out for evaluation and test."
    )
    columns: dict[str, str] = Field(
        {},
        description="Columns (or keys of rows) that are called otherwise: our name, then the "
        "file's, e.g. {text: review, label: sentiment}.",
    )
    table: TableSettings = Field(
        TableSettings(), description="How CSV and TSV files are written, where auto is wrong."
    )
    clean: CleanSettings = Field(CleanSettings(), description="Rows that are left out.")
    leakage: Literal["refuse", "remove", "keep"] = Field(
        "refuse",
        description="Rows of eval or test whose prompt is trained on too (compared by "
        "data.clean.ignore): refuse the job, remove them from training, or warn and keep them.",
    )
    mix: MixSettings | None = Field(None, description="Other rows to mix in, by ratio.")
    hub: HubData = Field(HubData(), description="Details of a hub data set.")
    system: str | None = Field(
        None, description="System message put before every conversation that has none."
    )
    prompt: str = Field(
        "{text}",
        description="text_label only: the user message; {text} stands for the row's text.",
    )
    labels: dict[str, str] | None = Field(
        None, description="text_label only: the answer for each label, e.g. {'0': negative}."
    )
    placeholders: dict[str, str] = Field(
        {}, description="Text for {{name}} placeholders in the rows, e.g. {name: Rue}."
    )
    image_folder: str | None = Field(
        None,
        description="Folder that the rows' image paths start from; without it, the rows' own.",
    )
    image_background: Background = Field(
        "white",
        description="What shows through an image's transparency: white, black, gray or '#rrggbb'.",
    )
    questions: str | None = Field(
        None,
        description="data_juicer only: a LLaVA JSON file whose question for the same id is asked; "
        "without it, a general question is.",
    )
    ignore_keys: list[str] = Field(
        [],
        description="Keys of rows and of their turns that are left unread, e.g. [weight] where it "
        "is no mark of what is trained.",
    )
    special_tokens: Literal["text", "allow", "refuse"] = Field(
        "text",
        description="How to treat a special token in a row's own text "
        "(<|im_end|>): text encodes it as text, allow leaves it a control token, refuse refuses "
        "the row; counted and reported.",
    )
    max_rows: int | None = Field(
        None, ge=1, le=10**12, description="Read at most this many rows; a count."
    )
    sample: str | None = Field(
        None,
        description="A small file of the same layout, beside the job file, that a smoke takes "
        "where the training rows are not on the machine.",
    )

    @model_validator(mode="after")
    def _one_source_each(self) -> DataSettings:
        if self.eval is not None and self.split is not None:
            raise ConflictError(
                "eval", "data.eval and data.split both name evaluation rows; keep one"
            )
        if self.test is not None and self.split is not None and self.split.test:
            raise ConflictError(
                "test", "data.test and data.split.test both name test rows; keep one"
            )
        named = {"train": self.train, "eval": self.eval, "test": self.test}
        hub = self.hub
        parts = {"train": hub.split, "eval": hub.eval_split, "test": hub.test_split}
        for name, other in (("eval", "train"), ("test", "train"), ("test", "eval")):
            text = named[name]
            if text is None or text != named[other]:
                continue
            if not text.startswith(("hub:", "modelscope:")):
                rows = {"train": "training", "eval": "evaluation"}[other]
                raise ConflictError(
                    name, f"names the {rows} rows; data.split holds some of them out"
                )
            if parts[name] == parts[other]:
                what = {"train": "trained on", "eval": "evaluated while training"}[other]
                raise ConflictError(f"hub.{name}_split", f"names the split that is {what}")
        mixed = self.mix.sources if self.mix else []
        given = [self.train, self.eval, self.test, self.sample]
        given += [text for source in mixed for text in (source.rows, source.sample)]
        tables = [text for text in given if text and text.lower().endswith((".csv", ".tsv"))]
        if self.table != TableSettings() and not tables:
            raise ConflictError("table", "has no effect: no rows are a .csv or .tsv file")
        if len(set(self.columns.values())) < len(self.columns):
            raise ConflictError("columns", "gives one column two names; keep one")
        if "{text}" not in self.prompt:
            raise ConflictError("prompt", "does not contain {text}")
        return self
