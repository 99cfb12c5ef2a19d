"""Find the caches of runner and of the hubs' clients; hash a file.

Imports the standard library only.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache for models that runner makes: $RUNNER_CACHE, else ~/.cache/runner."""
    if given := os.environ.get("RUNNER_CACHE"):
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "runner"


def hub_cache() -> Path:
    """huggingface_hub's cache of downloads, by its own rules."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def file_sha256(path: Path) -> str:
    """Content hash of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
