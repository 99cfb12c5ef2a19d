"""What opening the rows' images gave, in words. Pure; standard library only."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: dict[str, str] = {
    "exif_turned": "turned by EXIF's orientation",
    "alpha_composited": "with transparency, put on {background}",
    "scaled_16_bit": "of 16 bits, scaled to 8",
    "scaled_32_bit": "of 32 bits, scaled to 8",
    "other_colours": "in CMYK, YCbCr, LAB or HSV, made RGB",
    "animated": "animated or of several pages, the first one taken",
    "wrong_suffix": "of another format than their names say",
}
"""What was done to images besides reading them (pixels.Conversion), and what of their names."""


def image_lines(record: Mapping[str, object]) -> list[str]:
    """What a person is told of the images."""
    told = [
        f"{count:,} {words.format(background=record['background'])}"
        for name, words in WORDS.items()
        if (count := record.get(name)) and isinstance(count, int)
    ]
    number = record["files"]
    files = f"{number:,} images, all of them opened" if number != 1 else "1 image, opened"
    return [files + (": " + "; ".join(told) if told else "")]
