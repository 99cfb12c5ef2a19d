"""Compare two runs by their manifests. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from runner.provenance.compared import Compared, compare, manifest_folder
from runner.runs.find import default_root


def compare_runs(run: str, other: str, *, runs: Path | None = None) -> Compared:
    """Two runs, and all in what they differ.

    Raises RunnerError where a manifest is missing or damaged, UsageError where both are one.
    """
    root = runs or default_root()
    return compare(manifest_folder(run, root), manifest_folder(other, root))
