"""An image file as RGB of 8 bits: a stated way for each of Pillow's modes (docs/vision.md).

Imports Pillow and numpy when called; no torch. Files are told by their content, never by their
names, and nothing outside of Pillow is started for one (EPS would need Ghostscript).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image, ImageFile, TiffImagePlugin

Conversion = Literal[
    "exif_turned",
    "alpha_composited",
    "scaled_16_bit",
    "scaled_32_bit",
    "other_colours",
    "animated",
]
"""What was done to an image besides reading it."""

MAX_PIXELS = 178_956_970
"""Above this Pillow takes a file for a decompression bomb: half a gigabyte as RGB."""
MAX_ASPECT = 200
"""Long side over short side, as Qwen2-VL's processor has it: the short side is scaled to the
tower's size, and the long one with it."""
DEFAULT_BACKGROUND = "white"
_NAMED = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
_ORIENTATION = 0x0112  # the tag, in EXIF as in TIFF
_BITS = 258  # TIFF's BitsPerSample
_COLOURS = ("CMYK", "YCbCr", "LAB", "HSV")


class UnreadableImage(Exception):
    """An image that can't be read; its text says why, without the file's name."""


@dataclass(frozen=True)
class Decoded:
    """An image that was read."""

    image: Image.Image
    """A Pillow image of mode RGB, the way up that viewers show it."""
    conversions: frozenset[Conversion]
    format: str
    """Pillow's name of the file's format."""


def background_colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255 each, of data.image_background (a name, or #rrggbb)."""
    if text in _NAMED:
        return _NAMED[text]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def named_otherwise(path: Path, found: str) -> bool:
    """Whether a file's suffix is that of another format than `found`, Pillow's name of its own."""
    image_module, _ = _pillow()
    told = image_module.registered_extensions().get(path.suffix.lower())
    alike = {"MPO": "JPEG", "DIB": "BMP", "CUR": "ICO"}
    return told is not None and alike.get(told, told) != alike.get(found, found)


def decode(path: str | Path, background: str = DEFAULT_BACKGROUND) -> Decoded:
    """The first frame of an image file, wholly decoded, as RGB of 8 bits a channel.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImage: it is empty, no image, broken, of more than MAX_PIXELS, or too long and
            narrow.
    """
    image_module, formats = _pillow()
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise UnreadableImage("it is empty (0 bytes)")
        with image_module.open(path, formats=formats) as image:
            _require_size(image)
            done: set[Conversion] = set()
            if _is_animated(image):
                done.add("animated")
            return _decoded(image, done, background_colour(background))
    except (UnreadableImage, FileNotFoundError):
        raise
    except image_module.DecompressionBombError:
        raise UnreadableImage(
            f"it has more than {MAX_PIXELS:,} pixels, which is the limit (a decompression bomb "
            "would take all memory)"
        ) from None
    except image_module.UnidentifiedImageError:
        raise UnreadableImage(_not_an_image(path)) from None
    except MemoryError:
        raise UnreadableImage("there is not memory enough to decode it") from None
    except Exception as error:  # a broken file fails in as many ways as there are decoders
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UnreadableImage(f"it is broken or cut short: {reason[0][:200]}") from None


@cache
def _pillow() -> tuple[ModuleType, list[str]]:
    """Pillow's Image module, and the formats that it may take a file for."""
    from PIL import Image

    Image.init()
    # up to the limit an image is as good as any other; what else it warns of (damaged EXIF, say)
    # comes from files of others, and would stand between the lines of a run
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL(\..*)?$")
    return Image, [name for name in Image.ID if name != "EPS"]


def _require_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImage(
            f"it has {width:,} x {height:,} = {width * height:,} pixels; at most {MAX_PIXELS:,} "
            "are read"
        )
    if not width or not height:
        raise UnreadableImage(f"it has no pixels ({width} x {height})")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableImage(
            f"it is {width:,} x {height:,}: at most {MAX_ASPECT} times as long as it is wide"
        )


def _is_animated(image: Image.Image) -> bool:
    """Whether the file holds several frames or pages, of which the first is taken."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # its second frame is broken: so there is one
        return True


def _not_an_image(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(512)
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the image itself (git lfs pull brings it)"
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "it is HEIC, which Pillow does not read; convert it to PNG or JPEG"
    if b"<svg" in start.lower():
        return "it is SVG, a drawing without pixels; convert it to PNG"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page, not an image: a download that failed, most likely"
    if start.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "it is PostScript (EPS), which is not read; convert it to PNG"
    return f"it is no image that Pillow knows, or its head is broken (it begins {start[:12]!r})"


def _decoded(
    opened: ImageFile.ImageFile, done: set[Conversion], background: tuple[int, int, int]
) -> Decoded:
    image: Image.Image = opened
    told = str(image.format)
    raw = " ".join(str(tile.args) for tile in opened.tile)
    bits = _bits_a_sample(image)
    turned = image.format == "TIFF" and _tiff_tags(image).get(_ORIENTATION, 1) in _turns()
    image.load()  # a TIFF is turned by Pillow here
    if image.mode in _COLOURS:
        done.add("other_colours")
    if ";16" in raw and image.mode not in ("I", "F"):
        done.add("scaled_16_bit")  # of colours Pillow has kept each channel's high byte
    orientation, key = _orientation(image), _key_alpha(image, raw)
    if image.mode.startswith("I;16"):
        done.add("scaled_16_bit")
        image = _scaled(image, 0, 2**bits - 1)
    elif image.mode in ("I", "F"):
        image, how = _ranged(image, mode_16=image.format == "PPM" and image.mode == "I")
        done |= how
    if key is not None:
        image = image.convert("RGB")
        image.putalpha(key)
    image, blended = _on_background(image, background)
    if blended:
        done.add("alpha_composited")
    if turned or orientation in _turns():
        done.add("exif_turned")
    if orientation in _turns():
        image = image.transpose(_turns()[orientation])
    return Decoded(image, frozenset(done), told)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where it has none, or none that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF is no damaged picture: viewers show it as it is
        return 1


@cache
def _turns() -> dict[int, Image.Transpose]:
    """EXIF orientation -> what puts the picture upright, as PIL.ImageOps.exif_transpose has it."""
    from PIL import Image

    way = Image.Transpose
    return {
        2: way.FLIP_LEFT_RIGHT,
        3: way.ROTATE_180,
        4: way.FLIP_TOP_BOTTOM,
        5: way.TRANSPOSE,
        6: way.ROTATE_270,
        7: way.TRANSVERSE,
        8: way.ROTATE_90,
    }


def _tiff_tags(image: Image.Image) -> TiffImagePlugin.ImageFileDirectory_v2:
    from PIL import TiffImagePlugin

    assert isinstance(image, TiffImagePlugin.TiffImageFile)  # noqa: S101 - its format is TIFF
    return image.tag_v2


def _bits_a_sample(image: Image.Image) -> int:
    """Bits of a sample of 16: fewer where a TIFF says so (12 bits lie in 16)."""
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        said = _tiff_tags(image).get(_BITS, (16,))
        first = int(said[0] if isinstance(said, tuple) else said)
        return first if 8 < first <= 16 else 16
    return 16


def _key_alpha(image: Image.Image, raw: str) -> Image.Image | None:
    """The opacity (mode L) of 16-bit samples of which one value is transparent (PNG's tRNS).

    None where there is no such value, or Pillow itself makes alpha of it.
    """
    import numpy
    from PIL import Image

    value = image.info.get("transparency")
    if value is None or not (image.mode.startswith("I") or (";16" in raw and image.mode == "RGB")):
        return None
    samples = numpy.asarray(image)
    if image.mode == "RGB":  # the value is of 16 bits, the samples are their high bytes
        opaque = (samples != numpy.array([part >> 8 for part in value])).any(axis=2)
        del image.info["transparency"]
    else:
        opaque = samples != value
    return Image.fromarray(opaque.astype("uint8") * 255)


def _scaled(image: Image.Image, low: float, high: float) -> Image.Image:
    """One channel with `low` to `high` as 0 to 255, rounded; mode L."""
    import numpy
    from PIL import Image

    samples = numpy.asarray(image).astype("float64")
    share = (samples - low) * (255.0 / (high - low)) if high > low else samples * 0.0
    return Image.fromarray((share.clip(0, 255) + 0.5).astype("uint8"))


def _ranged(image: Image.Image, *, mode_16: bool) -> tuple[Image.Image, set[Conversion]]:
    """A picture of 32-bit numbers (I, F), which have no white of their own, as mode L.

    0 to 255 is taken for 8 bits, up to 65,535 for 16; fractions within 0 to 1 for shares of white;
    all others are stretched from their least to their greatest. `mode_16`: the file says 16 bits.
    """
    import numpy

    samples = numpy.asarray(image)
    if mode_16:
        return _scaled(image, 0, 65535), {"scaled_16_bit"}
    low, high = float(samples.min()), float(samples.max())
    if not numpy.isfinite((low, high)).all():
        raise UnreadableImage("it holds values that are no numbers (NaN, or infinity)")
    if image.mode == "F" and low >= 0 and high <= 1:
        return _scaled(image, 0, 1), {"scaled_32_bit"}
    if low >= 0 and high <= 255:
        return _scaled(image, 0, 255), set()
    if low >= 0 and high <= 65535:
        return _scaled(image, 0, 65535), {"scaled_16_bit"}
    return _scaled(image, low, high), {"scaled_32_bit"}


def _on_background(
    image: Image.Image, background: tuple[int, int, int]
) -> tuple[Image.Image, bool]:
    """The image as RGB, and whether any of the background shows through."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB"), False
    if image.mode == "La":  # alpha multiplied in, which Pillow takes out again
        image = image.convert("LA")
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB"), False
    below = Image.new("RGBA", image.size, (*background, 255))
    below.alpha_composite(image)
    return below.convert("RGB"), True
