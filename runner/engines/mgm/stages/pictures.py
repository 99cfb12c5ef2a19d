"""Is each image there, can it be decoded, and does the toolkit's loader show what viewers show?

The loader is Image.open(...).convert("RGB") (train.py): it knows no more than 8 bits, no EXIF
orientation and no transparency. What would be clipped is refused; what is trained otherwise than
viewers show it is said. Standard library, PIL inside functions; Python 3.10.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

if __package__:
    from .finding import Finding
else:  # in a run folder the scripts lie beside each other
    from finding import Finding  # type: ignore[import-not-found, no-redef]

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_REMARKS = {
    "turned": "have an EXIF orientation, which the toolkit ignores: they are trained as stored",
    "transparent": "have transparent parts, which the toolkit fills with the colours hidden there",
    "animated": "have several frames, of which the first is trained",
    "CMYK": "are in CMYK, which is turned to RGB without a colour profile",
}


def image_candidates(folder: str, image: str) -> list[str]:
    """Where upstream would read an image from (train.py's OCR and Visual Genome rules)."""
    if "ocr" in image:
        return [str(Path(folder, name)) for name in (image, image.replace(".jpg", ".png"))]
    if "VG_100K" in image:
        image = image.replace("VG_100K_2", "images").replace("VG_100K", "images")
    return [str(Path(folder, image))]


def find_images(
    images: Iterable[str], folder: str, there: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    """Paths of the images found and names of those that are absent, each once."""
    found: dict[str, None] = {}
    absent: dict[str, None] = {}
    for image in images:
        path = next((each for each in image_candidates(folder, image) if there(each)), None)
        if path is None:
            absent[image] = None
        else:
            found[path] = None
    return list(found), list(absent)


def spread(items: Sequence[str], count: int | str) -> Sequence[str]:
    """`count` of the items at even distances, or "all"."""
    if count == "all" or int(count) >= len(items):
        return items
    return [items[number * len(items) // int(count)] for number in range(int(count))]


def flaw_of(image: Image.Image) -> str | None:
    """Why the loader would not show an opened image as it is; None where it does.

    Numbers beyond 8 bits are clipped at 255, not scaled (Pillow#3011): a 16-bit picture is white.
    """
    if not image.mode.startswith("I") and image.mode != "F":
        image.convert("RGB")
        return None
    low, high = image.getextrema()
    return (
        f"numbers from {low:g} to {high:g} in mode {image.mode}, which the toolkit clips to 0 to "
        "255; store it in 8 bits"
    )


def _least_opacity(image: Image.Image) -> float:
    low = image.convert("RGBA").getchannel("A").getextrema()[0]
    return low if isinstance(low, int | float) else low[0]


def remarks_of(image: Image.Image) -> list[str]:
    """In which ways an image is trained otherwise than viewers show it; keys of _REMARKS."""
    told = []
    if image.getexif().get(_ORIENTATION, 1) not in (0, 1):
        told.append("turned")
    alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if alpha and _least_opacity(image) < 255:
        told.append("transparent")
    if getattr(image, "n_frames", 1) > 1:
        told.append("animated")
    if image.mode == "CMYK":
        told.append("CMYK")
    return told


def open_images(
    paths: Sequence[str], say: Callable[[str], None]
) -> tuple[list[str], dict[str, list[str]]]:
    """What is wrong with images, each with its reason, and remarks -> the paths they are true of.

    Says how many are done, each thousand.
    """
    from PIL import Image

    problems: list[str] = []
    remarks: dict[str, list[str]] = {}
    for number, path in enumerate(paths, 1):
        try:
            with Image.open(path) as image:
                if (flaw := flaw_of(image)) is not None:
                    problems.append(f"{path}: {flaw}")
                    continue
                for remark in remarks_of(image):
                    remarks.setdefault(remark, []).append(path)
        except Exception as error:  # PIL raises many kinds; each is a row that upstream would swap
            problems.append(f"{path}: {error}")
        if number % 1000 == 0:
            say(f"images opened: {number} of {len(paths)}")
    return problems, remarks


def image_findings(
    stage: str,
    images: Sequence[str],
    plan: Mapping[str, Any],
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[Finding]:
    """Every image of a training is looked for, as many as asked are opened (trap 13)."""
    findings, folder = [], plan[stage]["image_folder"]
    found, absent = find_images(images, folder, os.path.isfile)
    chosen = spread(found, plan["open_images"])
    broken, remarks = open_images(chosen, say)
    say(
        f"images of {stage}: {len(found)} there, {len(absent)} absent; {len(chosen)} opened "
        f"({'all' if len(chosen) == len(found) else 'a sample'}), {len(broken)} broken"
    )
    for remark, paths in remarks.items():
        what = _REMARKS[remark]
        warn(f"{stage}: {len(paths)} of {len(chosen)} opened images {what}, such as {paths[0]}")
    if absent:
        told = f"all images of the rows ({len(absent)} absent, such as {absent[0]})"
        findings.append(Finding(f"{stage}.image_folder", folder, told))
    if broken:
        told = f"images that the toolkit can train ({len(broken)} are not, such as {broken[0]})"
        findings.append(Finding(f"{stage}.image_folder", folder, told))
    return findings
