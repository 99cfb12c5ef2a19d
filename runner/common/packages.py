"""Which packages this interpreter has. Standard library only."""

from __future__ import annotations

import importlib.metadata


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
