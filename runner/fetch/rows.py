"""Rows of a hub's data set to one Parquet file in runner's cache, with a record of what it is.

The hub's files are fetched and checked by this project; `datasets` reads them, and runs no code of
the repository. Imports datasets when it is called.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from runner.common import durable, locks
from runner.common.caches import file_sha256
from runner.common.errors import RefusedError
from runner.fetch import hub, modelscope
from runner.fetch.fetched import Fetched
from runner.fetch.files import RemoteFile
from runner.fetch.refusals import gated, is_connection_error
from runner.plans.sources import HubKind, rows_file

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

_SPLIT_NAME = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class Asked:
    """One split of a hub's data set."""

    kind: HubKind
    id: str
    revision: str | None
    """None is the hub's default branch."""
    name: str | None
    """The configuration; None is the default."""
    split: str
    """A split's name, or a slice of it as `datasets` writes it ("train[:1000]")."""

    @property
    def target(self) -> Path:
        """The Parquet file in the cache."""
        return rows_file(self.kind, self.id, self.revision, self.name, self.split)


def fetch_rows(asked: Asked, *, quiet: bool, say: Callable[[str], None]) -> Fetched:
    """Bring one split of a data set to the cache, whole or not at all.

    Raises:
        RefusedError: `datasets` is not installed, no such configuration or split, a data set
            that a script makes, no rows, too little room, wrong content.
        Exception: of the hubs' clients (see runner.fetch.refusals).
    """
    datasets = _datasets()
    asked.target.parent.mkdir(parents=True, exist_ok=True)
    with _staging(asked.target, say) as staging:
        if asked.kind == "hub":
            found = hub.look_up("dataset", asked.id, asked.revision)
            commit, what = found.commit, f"{asked.id}@{found.commit[:7]}"
            say(f"hub:{what} ({asked.split}) -> {asked.target}")
            builder = _builder(datasets, asked.id, asked.name, commit, staging, what)
            files, came = _bring_split(builder, asked.id, commit, asked.split, what, quiet, say)
        else:
            folder, commit, files, came = modelscope.fetch_data_files(
                asked.id, asked.revision, asked.name, quiet=quiet, say=say
            )
            what = f"modelscope:{asked.id}@{commit}"
            builder = _builder(datasets, str(folder), asked.name, None, staging, what)
            inside = [path for part in _narrow(builder, asked.split, what) for path in part]
            _require_inside(inside, f"{folder.resolve()}/", what)
        rows = _prepare(datasets, builder, asked.split, staging, what)
        if len(rows) == 0:
            raise RefusedError(f"{what} has no rows in its split {asked.split!r}")
        made = staging / "rows.parquet"
        rows.to_parquet(str(made))
        return _publish(made, asked, commit, rows, files, came)


def _datasets() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise RefusedError(
            "fetching a data set needs the `datasets` package", "pip install 'runner[train]'"
        ) from error
    datasets.disable_progress_bars()
    return datasets


@contextlib.contextmanager
def _staging(target: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """A folder for what is in the making, one process at a time, and gone afterwards."""
    folder = target.with_name(f".{target.stem}.making")
    busy = "another runner is fetching the same rows; waiting for it"
    with locks.locked(target.with_name(f".{target.stem}.lock"), waiting=lambda: say(busy)):
        shutil.rmtree(folder, ignore_errors=True)  # of a fetch that was killed
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _builder(
    datasets: ModuleType,
    source: str,
    name: str | None,
    commit: str | None,
    staging: Path,
    what: str,
) -> DatasetBuilder:
    """What `datasets` makes of the repository: its configuration and the files of each split."""
    try:
        return datasets.load_dataset_builder(
            source, name=name, revision=commit, cache_dir=str(staging / "arrow")
        )
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        if is_connection_error(error):
            raise
        if "gated dataset" in str(error):  # `datasets` hides the hub's own error
            raise gated(what, "datasets/") from error
        if "script" in str(error).lower():
            raise RefusedError(
                f"{what} is made by a script of its own, which is not run here",
                "the hub's branch refs/convert/parquet often has its rows: "
                "hub:OWNER/NAME@refs/convert/parquet; or download the rows and name the file",
            ) from error
        raise RefusedError(
            f"{what} can't be read with configuration {name or 'default'!r}: {_told(error)}",
            "data.hub.name names the configuration",
        ) from error


def _bring_split(
    builder: DatasetBuilder,
    identity: str,
    commit: str,
    split: str,
    what: str,
    quiet: bool,
    say: Callable[[str], None],
) -> tuple[list[RemoteFile], int]:
    """Fetch the files that the split is made of into the hub's cache, where `datasets` looks."""
    prefix = f"hf://datasets/{identity}@{commit}/"
    urls = [url for part in _narrow(builder, split, what) for url in part]
    _require_inside(urls, prefix, what)
    paths = [url.removeprefix(prefix) for url in urls]
    found = hub.look_up("dataset", identity, commit, paths)
    return found.files, hub.bring(found, found.files, quiet=quiet, say=say)


def _require_inside(files: list[str], prefix: str, what: str) -> None:
    """Refuse a data set whose card names files elsewhere: on this machine, or on any server."""
    outside = [file for file in files if not file.startswith(prefix) or ".." in file.split("/")]
    if outside:
        raise RefusedError(
            f"{what} names a file that is none of its own: {outside[0][:200]!r}",
            "data sets are taken where all of their files are in the repository",
        )


def _narrow(builder: DatasetBuilder, split: str, what: str) -> list[list[str]]:
    """Leave the builder the asked split's files alone; those files, as addresses or paths.

    `datasets` would otherwise fetch and prepare every split there is.
    """
    files = builder.config.data_files
    if not files:
        return []
    wanted = set(_SPLIT_NAME.findall(re.sub(r"\[[^\]]*\]", "", split)))
    lacking = sorted(wanted - {str(key) for key in files})
    if "all" in wanted:
        return [list(part) for part in files.values()]
    if lacking or not wanted:
        raise RefusedError(
            f"{what} has no split {(lacking or [split])[0]!r}; it has {', '.join(map(str, files))}",
            "data.hub.split, eval_split and test_split name the splits",
        )
    kept = type(files)({key: files[key] for key in files if str(key) in wanted})
    builder.config.data_files = kept
    return [list(part) for part in kept.values()]


def _prepare(
    datasets: ModuleType, builder: DatasetBuilder, split: str, staging: Path, what: str
) -> Dataset:
    try:
        builder.download_and_prepare(
            download_config=datasets.DownloadConfig(cache_dir=str(staging / "downloads")),
            verification_mode="no_checks",  # of all splits; the files' own hashes were checked
        )
        return builder.as_dataset(split=split)
    except Exception as error:
        cause = error.__cause__ or error
        if is_connection_error(cause) or isinstance(cause, MemoryError):
            raise
        if isinstance(cause, OSError) and cause.errno is not None:
            raise cause from error
        raise RefusedError(
            f"the rows of {what} can't be read: {_told(cause)}",
            "the data set's page on the hub shows whether others can",
        ) from error


def _publish(
    made: Path, asked: Asked, commit: str, rows: Dataset, files: list[RemoteFile], came: int
) -> Fetched:
    """The rows to their place, then their record, without which they don't count as there."""
    target = asked.target
    with made.open("rb") as stream:
        os.fsync(stream.fileno())
    sha256, size = file_sha256(made), made.stat().st_size
    record_file = target.with_suffix(".json")
    record_file.unlink(missing_ok=True)
    made.replace(target)
    durable.write_json(
        record_file,
        {
            "schema_version": 1,
            "kind": asked.kind,
            "id": asked.id,
            "asked": asked.revision,
            "revision": commit,
            "name": asked.name,
            "split": asked.split,
            "rows": len(rows),
            "columns": list(rows.column_names),
            "size_bytes": size,
            "sha256": sha256,
            "files": [
                {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
                for file in files
            ],
            "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
    return Fetched(target, commit, size, came, sha256, len(rows))


def _told(error: BaseException) -> str:
    """All of the message, in one line: what a data set offers stands below its first line."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
