"""One line of `runner doctor`'s report. Imports the standard library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    """problem: runs fail here, or are not guarded; warning: some can; skipped: not asked."""
    found: str
    advice: str | None = None
    """What to do; None where nothing needs doing."""
