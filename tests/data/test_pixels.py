"""Image files as RGB: each of Pillow's modes by its stated way, broken files by their reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from runner.data import pixels
from runner.data.pixels import UnreadableImage, background_colour, decode

GREY = numpy.tile(numpy.arange(0, 256, 4, dtype="uint8"), (16, 1))  # 16 x 64, a ramp
COLOURS = numpy.stack([GREY, GREY[:, ::-1], numpy.full_like(GREY, 90)], axis=2)
ALPHA = numpy.full_like(GREY, 128)


def pixel(path: Path, at: tuple[int, int] = (0, 0), **options: Any) -> tuple[int, ...]:
    return tuple(decode(path, **options).image.getpixel(at))


def array(path: Path, **options: Any) -> Any:
    return numpy.asarray(decode(path, **options).image).astype(int)


def save(image: Any, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


# 16 and 32 bits


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, order: str, suffix: str) -> None:
    ramp = numpy.tile(numpy.linspace(0, 65535, 64).round(), (16, 1)).astype(order)
    found = decode(save(Image.fromarray(ramp), tmp_path / f"x.{suffix}"))
    assert found.conversions == {"scaled_16_bit"}
    wanted = (ramp.astype(float) / 257).round()
    got = numpy.asarray(found.image)
    assert (abs(got[:, :, 0] - wanted) <= 1).all()
    assert (got[:, :, 0] == got[:, :, 1]).all() and (got == 255).mean() < 0.03


def test_the_sixteen_bit_image_that_was_nearly_all_white(shared: Path) -> None:
    got = numpy.asarray(decode(shared / "cases" / "v-16bit" / "g16.png").image)
    assert (got == 255).mean() < 0.05 and len(numpy.unique(got)) > 50


def test_sixteen_bit_colours_keep_their_high_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rgb16.png"
    path.write_bytes(_png16(2, [(0xABCD, 0x1234, 0xFF00)] * 4))
    found = decode(path)
    assert found.image.getpixel((0, 0)) == (0xAB, 0x12, 0xFF)
    assert found.conversions == {"scaled_16_bit"}


def test_twelve_bits_in_sixteen_are_of_twelve(tmp_path: Path) -> None:
    image = Image.fromarray(numpy.full((4, 4), 65535, dtype="uint16"))
    path = save(image, tmp_path / "x.tif")
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<HHI", 258, 3, 1)) + 8
    content[at : at + 2] = struct.pack("<H", 12)
    path.write_bytes(content)
    with Image.open(path) as opened:
        if not opened.mode.startswith("I;16"):
            pytest.skip("this Pillow has another mode for 12 bits")
        assert pixels._bits_a_sample(opened) == 12
    assert pixel(path) == (255, 255, 255)


@pytest.mark.parametrize(
    ("low", "high", "mode", "wanted", "done"),
    [
        (0, 255, "I", (0, 255), set()),
        (0, 65535, "I", (0, 255), {"scaled_16_bit"}),
        (-500, 1_000_000, "I", (0, 255), {"scaled_32_bit"}),
        (7_000_000, 7_000_000, "I", (0, 0), {"scaled_32_bit"}),
        (0.0, 1.0, "F", (0, 255), {"scaled_32_bit"}),
        (0.0, 0.5, "F", (0, 128), {"scaled_32_bit"}),
        (0.0, 200.0, "F", (0, 200), set()),
        (-3.0, 3.0, "F", (0, 255), {"scaled_32_bit"}),
    ],
)
def test_numbers_without_a_white_of_their_own(
    tmp_path: Path, low: float, high: float, mode: str, wanted: tuple[int, int], done: set[str]
) -> None:
    kind = "int32" if mode == "I" else "float32"
    image = Image.fromarray(numpy.array([[low, high]] * 2, dtype=kind))
    assert image.mode == mode
    found = decode(save(image, tmp_path / "x.tif"))
    assert [found.image.getpixel((at, 0))[0] for at in (0, 1)] == list(wanted)
    assert found.conversions == done


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(numpy.array([[0.5, numpy.nan]], dtype="float32"))
    with pytest.raises(UnreadableImage, match="no numbers"):
        decode(save(image, tmp_path / "x.tif"))


# transparency


def _transparent(mode: str) -> Any:
    """A picture, half of it opaque, of red (or grey) with alpha 128 elsewhere."""
    rgba = Image.new("RGBA", (8, 8), (200, 0, 0, 128))
    rgba.paste((10, 20, 30, 255), (0, 0, 4, 8))
    if mode == "PA":
        return rgba.convert("RGB").quantize(8).convert("PA")
    return {
        "RGBA": rgba,
        "RGBa": rgba.convert("RGBa"),
        "LA": rgba.convert("LA"),
        "La": rgba.convert("LA").convert("La"),
    }[mode]


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La"])
@pytest.mark.parametrize("background", ["white", "black", "gray", "#0a141e"])
def test_alpha_is_composited_on_the_stated_colour(mode: str, background: str) -> None:
    image = _transparent(mode)
    below = numpy.array(background_colour(background))
    rgba = image.convert("LA").convert("RGBA") if mode == "La" else image.convert("RGBA")
    above = numpy.asarray(rgba).astype(float)
    share = above[:, :, 3:] / 255
    wanted = above[:, :, :3] * share + below * (1 - share)
    got, blended = pixels._on_background(image, background_colour(background))
    assert blended and got.mode == "RGB"
    assert abs(numpy.asarray(got) - wanted).max() <= 1.5


def test_an_alpha_that_hides_nothing_is_no_conversion(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS).convert("RGBA")
    found = decode(save(image, tmp_path / "x.png"))
    assert found.conversions == frozenset()
    assert (numpy.asarray(found.image) == COLOURS).all()


def test_hidden_colours_of_a_transparent_png_do_not_show(tmp_path: Path) -> None:
    path = save(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), tmp_path / "x.png")
    assert pixel(path) == (255, 255, 255)
    assert pixel(path, background="#102030") == (0x10, 0x20, 0x30)
    assert decode(path).conversions == {"alpha_composited"}


def test_palettes_with_a_transparent_colour_and_without(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 10, 20])
    assert pixel(save(image, tmp_path / "plain.png")) == (250, 10, 20)
    for name, transparency in (("index.gif", 1), ("bytes.png", b"\xff\x00")):
        path = save(image, tmp_path / name, transparency=transparency)
        assert pixel(path) == (255, 255, 255), name
        assert decode(path).conversions == {"alpha_composited"}, name


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 8, 9)), ("1", 0)])
def test_one_transparent_value_of_a_png(tmp_path: Path, mode: str, key: Any) -> None:
    image = Image.new(mode, (4, 4), key)
    path = save(image, tmp_path / "x.png", transparency=key)
    assert pixel(path) == (255, 255, 255)
    assert pixel(path, background="black") == (0, 0, 0)


def test_one_transparent_value_of_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "g16.png"
    path.write_bytes(_png16(0, [(500,), (65535,), (500,), (0,)], key=struct.pack(">H", 500)))
    assert array(path)[:, :, 0].tolist() == [[255, 255], [255, 0]]
    assert array(path, background="black")[:, :, 0].tolist() == [[0, 255], [0, 0]]
    assert decode(path).conversions == {"scaled_16_bit", "alpha_composited"}
    path.write_bytes(
        _png16(2, [(500, 600, 700)] * 2 + [(0, 0, 0)] * 2, key=struct.pack(">HHH", 500, 600, 700))
    )
    assert array(path)[0, 0].tolist() == [255, 255, 255]
    assert array(path)[1, 0].tolist() == [0, 0, 0]


# colours


def test_every_mode_of_pillow_becomes_rgb_of_eight_bits() -> None:
    """None is left to chance: the library's own list is gone through."""
    for mode in Image.MODES:
        image = Image.new(mode, (6, 4))
        image.format = "PNG"
        found = pixels._decoded(image_file(image), set(), (255, 255, 255))
        assert found.image.mode == "RGB" and found.image.size == (6, 4), mode


def image_file(image: Any) -> Any:
    image.tile = []
    return image


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
def test_opaque_colours_are_what_they_were(mode: str) -> None:
    plain = Image.fromarray(COLOURS)
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(plain, srgb, lab, outputMode="LAB")
    else:
        image = plain.convert(mode)
    grey = mode in ("L", "1", "P")
    wanted = numpy.asarray(image.convert("RGB") if grey else plain).astype(int)
    found = pixels._decoded(image_file(image), set(), (255, 255, 255))
    away = abs(numpy.asarray(found.image).astype(int) - wanted)
    assert away.max() <= (0 if grey else 40 if mode == "LAB" else 6)  # sRGB's edge is not LAB's
    assert away.mean() < 4
    named = {"other_colours"} if mode in ("CMYK", "YCbCr", "LAB", "HSV") else set()
    assert found.conversions == named


def test_a_cmyk_jpeg_as_adobe_writes_it_is_not_negative(tmp_path: Path) -> None:
    path = save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "red.jpg", quality=95)
    red, green, blue = pixel(path, (8, 8))
    assert red > 230 and green < 30 and blue < 30
    assert decode(path).conversions == {"other_colours"}


# which way up


def test_all_eight_orientations_as_viewers_show_them(tmp_path: Path) -> None:
    upright = Image.fromarray(COLOURS)
    for suffix, options in (("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = save(upright, tmp_path / f"{orientation}.{suffix}", exif=exif, **options)
            found = decode(path)
            with Image.open(path) as image:
                wanted = ImageOps.exif_transpose(image).convert("RGB")
            assert (numpy.asarray(found.image) == numpy.asarray(wanted)).all(), (
                orientation,
                suffix,
            )
            turned = {"exif_turned"} if orientation > 1 else set()
            assert found.conversions == turned, (orientation, suffix)


def test_the_turned_photograph_lies_as_the_plain_one(shared: Path) -> None:
    folder = shared / "cases" / "v-exif"
    found = decode(folder / "rot.jpg")
    assert found.conversions == {"exif_turned"}
    assert found.image.size == (120, 80)


def test_damaged_exif_is_no_damaged_picture(tmp_path: Path) -> None:
    path = save(Image.fromarray(COLOURS), tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(path).image.size == (64, 16)


def test_sixteen_bits_that_lie_on_their_side(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(numpy.zeros((4, 8), dtype="uint16"))
    found = decode(save(image, tmp_path / "x.png", exif=exif))
    assert found.image.size == (4, 8)
    assert found.conversions == {"exif_turned", "scaled_16_bit"}


# several frames


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_frame_is_taken_and_said(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    path = tmp_path / f"x.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    found = decode(path)
    assert found.image.getpixel((0, 0)) == (255, 0, 0)
    assert found.conversions == {"animated"}


# what can't be read


def test_broken_files_are_named_by_their_reason(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), "uint8")).save(
        whole, "JPEG"
    )
    cases = {
        b"": "it is empty",
        b"not an image at all": "no image that Pillow knows",
        b"<!DOCTYPE html><html>": "web page",
        b"<svg xmlns='x'></svg>": "SVG",
        b"version https://git-lfs.github.com/spec/v1\n": "Git LFS pointer",
        b"\0\0\0\x18ftypheic\0\0\0\0": "HEIC",
        b"%!PS-Adobe-3.0 EPSF-3.0\n": "PostScript",
        whole.getvalue()[:-300]: "broken or cut short",
        whole.getvalue()[:20]: "no image that Pillow knows",
    }
    path = tmp_path / "x.jpg"
    for content, reason in cases.items():
        path.write_bytes(content)
        with pytest.raises(UnreadableImage, match=reason):
            decode(path)
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "absent.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif"])
def test_half_a_file_of_any_format_is_broken(tmp_path: Path, suffix: str) -> None:
    noise = numpy.random.default_rng(1).integers(0, 255, (64, 64, 3), "uint8")
    path = save(Image.fromarray(noise), tmp_path / f"x.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImage):
        decode(path)


def test_a_wrong_suffix_does_not_matter_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(COLOURS).save(path, "PNG")
    assert (array(path) == COLOURS).all()
    assert pixels.named_otherwise(path, decode(path).format)
    assert not pixels.named_otherwise(tmp_path / "x.png", "PNG")
    assert not pixels.named_otherwise(tmp_path / "x.jpeg", "JPEG")
    assert not pixels.named_otherwise(tmp_path / "x.jpg", "MPO")
    assert not pixels.named_otherwise(tmp_path / "x", "PNG")


def test_a_decompression_bomb_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for size in ((30_000, 30_000), (20_000, 9_000)):
        path.write_bytes(_png_head(*size))
        with pytest.raises(UnreadableImage, match=r"178,956,970"):
            decode(path)


def test_large_images_below_the_limit_warn_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    pixels._pillow.cache_clear()
    path = save(Image.new("RGB", (15, 10)), tmp_path / "x.png")
    assert decode(path).image.size == (15, 10)
    assert not [one for one in recwarn if "bomb" in str(one.message)]


def test_a_thread_of_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="at most 200 times"):
        decode(save(Image.new("L", (1000, 2)), tmp_path / "x.png"))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    suffix=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA"]),
    cut=st.floats(0, 1),
    place=st.floats(0, 1),
    byte=st.integers(0, 255),
)
def test_damaged_files_are_read_or_refused_and_nothing_else(
    tmp_path: Path, suffix: str, cut: float, place: float, byte: int
) -> None:
    whole = io.BytesIO()
    Image.fromarray(COLOURS).save(whole, suffix)
    content = bytearray(whole.getvalue())
    content[int(place * (len(content) - 1))] = byte
    path = tmp_path / "damaged"
    path.write_bytes(content[: int(cut * len(content)) or 1])
    try:
        assert decode(path).image.mode == "RGB"
    except UnreadableImage as error:
        assert str(error)


def _chunk(kind: bytes, content: bytes) -> bytes:
    whole = kind + content
    return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))


def _png_head(width: int, height: int) -> bytes:
    """The start of a PNG that says it is so large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(b"\0"))


def _png16(kind: int, values: list[tuple[int, ...]], key: bytes | None = None) -> bytes:
    """A PNG of 2 x 2 pixels and 16 bits a sample; `kind`: 0 grey, 2 colours."""
    head = struct.pack(">IIBBBBB", 2, 2, 16, kind, 0, 0, 0)
    rows = b""
    for row in (values[:2], values[2:]):
        rows += b"\0" + b"".join(struct.pack(f">{len(one)}H", *one) for one in row)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + (_chunk(b"tRNS", key) if key else b"")
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )
