"""The inputs of a plan: the files of a manifest, and the parts of a plan with their paths.

Pure, but for looking whether something is there and for listing a model's folder. Imports pydantic
and the common ground of jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from runner.jobs.model import JobModel

Group = Literal["data", "model", "code"]
Key = tuple[str | int, ...]
IMAGES = "data.image_folder"
"""Of an image-text plan: the folder that the images which rows name start from."""
_MODEL_SUFFIXES = (
    *(".json", ".safetensors", ".bin", ".model", ".txt", ".py", ".jinja", ".gguf", ".tiktoken"),
)


class FileRecord(JobModel):
    """A file or folder that the run read."""

    what: str = Field(description="The field that named it (data.train), or part/NAME (model/...)")
    path: str = Field(description="Where it lay; hub:ID@REVISION where the trainer fetched it")
    kind: Literal["file", "folder", "images", "remote"] = Field(
        description="images: those that rows name, in the folder that their names start from"
    )
    sha256: str | None = Field(
        None,
        description="Of a folder or images: over the files' names and hashes; None: was not hashed",
    )
    size_bytes: int | None = None
    files: int | None = Field(None, description="How many files they are")


@dataclass(frozen=True)
class Part:
    """One thing that a plan reads."""

    what: str
    """As the manifest names its file: `data.train`, `model`, `inputs.0`; with its training's name
    before it where there are several (`align: data.train`)."""
    group: Group
    path: str | None
    """Where it lies; None of what the trainer itself fetches."""
    keys: tuple[Key, ...]
    """The fields of the plan that say so."""
    id: str | None = None
    """On a hub, as a job names it; None of files of the user's own."""
    revision: str | None = None


@dataclass(frozen=True)
class ImageNames:
    """The images of one source of rows."""

    field: str
    """The source's, in the job."""
    root: Path
    names: list[str]
    """As the rows write them, sorted; those that are not there are left out: of rows without an
    answer nobody looks for them."""

    def files(self) -> Iterator[tuple[str, Path]]:
        """(what tells an image among those of a training, the file)."""
        for name in self.names:
            yield f"{self.field} {name}", self.root / name


def is_here(path: str | Path | None) -> bool:
    """Whether something lies there; what the user may not look at does not."""
    try:
        return path is not None and Path(path).exists()
    except OSError:
        return False


def model_files(what: str, folder: Path) -> Iterator[FileRecord]:
    """What transformers can read of a model's folder: configuration, tokenizer, code, weights."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        yield FileRecord(what=what, path=str(folder), kind="folder")
        return
    safe = any(path.suffix == ".safetensors" for path in files)
    for path in files:
        if path.suffix not in _MODEL_SUFFIXES or (safe and path.suffix == ".bin"):
            continue
        yield FileRecord(what=f"{what}/{path.name}", path=str(path), kind="file")
