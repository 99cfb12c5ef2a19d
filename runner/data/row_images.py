"""The images that a row names, as it writes them.

Imports the standard library and this package's `formats` and `row_problems`.
"""

from __future__ import annotations

from collections.abc import Mapping

from runner.data.formats import FormatOptions
from runner.data.row_problems import RowProblems

_IMAGE_KEYS = ("image", "images")

MEDIA_KEYS = (*_IMAGE_KEYS, "video", "videos", "audio", "audios")

MEDIA = frozenset(MEDIA_KEYS)


def images_of(
    row: Mapping[str, object], options: FormatOptions, problems: RowProblems
) -> tuple[str, ...]:
    """The row's image paths as it writes them; `image` is one path or a list, `images` a list."""
    for key in MEDIA_KEYS:
        if not row.get(key):
            continue
        if key not in _IMAGE_KEYS:
            problems.fail(key, "video and audio are not supported", row[key], "text and images")
        if not options.vision:
            problems.fail(
                key,
                "a text model can't read images",
                row[key],
                "give vision.model, or rows without",
            )
    if row.get("image") and row.get("images"):
        problems.fail("images", "is given beside image", row["images"], "one of image and images")
    paths = image_names(row)
    if paths is None:
        key = "image" if row.get("image") else "images"
        problems.fail(key, "is not a list of image paths", row[key], "paths of image files")
    return paths


def image_names(row: Mapping[str, object]) -> tuple[str, ...] | None:
    """The images of a row as it names them; None where what it holds is no list of names."""
    key = "image" if row.get("image") else "images"
    held = row.get(key) or []
    paths = [held] if key == "image" and isinstance(held, str) else held
    if not isinstance(paths, list) or not all(isinstance(p, str) and p for p in paths):
        return None
    return tuple(paths)
