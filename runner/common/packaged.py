"""Find the job files, script templates and image recipes that come with runner.

A wheel carries them inside the package; a checkout (an editable install too) keeps them at its
root. Imports only the standard library.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def jobs_folder() -> Path:
    """The folder of the job files, their schema and (in data/) their sample data."""
    return _folder("jobs")


def templates_folder() -> Path:
    """The folder of the Jinja templates of the launch scripts."""
    return _folder("shell")


def docker_folder() -> Path:
    """The folder of the Dockerfiles and the locks of their packages."""
    return _folder("docker")


def _folder(name: str) -> Path:
    packaged = _PACKAGE / "_packaged" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name
