"""A line of a report: a label, then its text. Imports runner.common."""

from __future__ import annotations

from runner.common.terminal import indented

_LABEL = 12


def labelled(label: str, text: str) -> str:
    return f"{label:<{_LABEL - 1}} {indented(text, _LABEL)}"


def loss_figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
