"""Read rows of a data set on the Hugging Face hub, or in the cache of `datasets`.

Imports the standard library; datasets only when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

from runner.common.errors import RefusedError
from runner.data.read import Row, shorten


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
