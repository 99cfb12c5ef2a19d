"""confusion.png: the confusion matrices of a model and its base. Imports matplotlib, scikit-learn.

Labels are drawn in a font that has all their characters. Where none is installed (Chinese on a
bare server), classes are numbered instead, and evaluation.json says which number is which: a
picture full of boxes says nothing.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.common import durable

MOST_CLASSES = 40
"""More don't fit a picture that can be read; the matrix stands in evaluation.json whole."""
_DEFAULT_FONT = "DejaVu Sans"
_BOX_FONTS = ("Last Resort",)  # they have a box for every character there is
_LONGEST_LABEL = 24  # characters
_DOTS_PER_INCH = 150


def draw(
    confusion: Mapping[str, Any], path: Path, title: str, names: Mapping[str, str]
) -> list[str] | None:
    """Write the picture whole; the labels as drawn are returned, None where there are too many.

    Args:
        confusion: the confusion record of `metrics.classification`: labels, a matrix for "model"
            and mostly one for "base". The last row and column are the unparseable answers'.
        title: what was measured, in a few words.
        names: how the matrices of "model" and "base" are headed.

    Raises OSError where the disk refuses.
    """
    import matplotlib as mpl
    import numpy as np

    mpl.use("Agg", force=True)
    from matplotlib import pyplot
    from sklearn.metrics import ConfusionMatrixDisplay

    labels = list(confusion["labels"])
    if len(labels) - 1 > MOST_CLASSES:
        return None
    family = font_with("".join(labels))
    shown = [_short(label) for label in labels]
    if family is None:
        shown = [*map(str, range(1, len(labels))), labels[-1]]
    matrices = {who: np.array(confusion[who]) for who in ("model", "base") if who in confusion}
    if not any(matrix[:, -1].any() for matrix in matrices.values()):
        # every answer was a label: no row or column for those that were none
        shown = shown[:-1]
        matrices = {who: matrix[:-1, :-1] for who, matrix in matrices.items()}
    wide = max(map(len, shown)) > 4
    side = 2.0 + 0.6 * len(shown) + (0.06 * max(map(len, shown)) if wide else 0)
    with mpl.rc_context({"font.family": [family or _DEFAULT_FONT]}):
        figure, axes = pyplot.subplots(
            1,
            len(matrices),
            figsize=(side * len(matrices), side),
            squeeze=False,
            layout="constrained",
        )
        for (who, matrix), place in zip(matrices.items(), axes[0], strict=True):
            ConfusionMatrixDisplay(matrix, display_labels=shown).plot(
                ax=place,
                cmap="Blues",
                colorbar=False,
                values_format="d",
                xticks_rotation=45 if wide else "horizontal",
            )
            answered = "answered" if family else "answered (see evaluation.json)"
            place.set(title=names[who], xlabel=answered, ylabel="expected")
            place.set_xticks(place.get_xticks(), shown, ha="right" if wide else "center")
        if font_with(title):  # a file's name can be Chinese too
            figure.suptitle(title, fontsize="medium")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
        pyplot.close(figure)
    durable.write_bytes(path, buffer.getvalue())
    return shown


def font_with(text: str) -> str | None:
    """The family of an installed font that has every character of `text`; None: there is none."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    wanted = {ord(character) for character in text if not character.isspace()}
    fonts = font_manager.fontManager.ttflist
    order = sorted(
        (font for font in fonts if not font.name.startswith(_BOX_FONTS) and _upright(font)),
        key=lambda font: (font.name != _DEFAULT_FONT, "sans" not in font.name.lower(), font.name),
    )
    for font in order:
        try:
            have = FT2Font(font.fname).get_charmap()
        except (OSError, RuntimeError):  # gone since the list was made, or no font after all
            continue
        if wanted <= have.keys():
            return str(font.name)
    return None


def legend(labels: Sequence[str], shown: Sequence[str]) -> dict[str, str]:
    """Which label stands for which, where the picture draws it otherwise."""
    return {told: label for told, label in zip(shown, labels, strict=False) if told != label}


def _upright(font: Any) -> bool:
    return font.style == "normal" and str(font.weight) in ("400", "normal", "regular", "book")


def _short(label: str) -> str:
    one_line = " ".join(label.split())
    if len(one_line) <= _LONGEST_LABEL:
        return one_line
    return one_line[: _LONGEST_LABEL - 1] + "…"
