"""Which files of a run's inputs may leave this machine.

Imports the standard library, runner.common.errors, runner.provenance and this package's
`gathering`. What a container may have put into the run folder does not choose what leaves the
machine: no link is followed out of an input's folder whose content is not known by hash.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from runner.common.errors import RefusedError
from runner.plans.inputs import FileRecord, Part
from runner.provenance.bundle.gathering import Gathering

_SECRET_FILES = re.compile(
    r"\.env(\..+)?|[._]netrc|\.git-credentials|\.pypirc|\.npmrc|\.htpasswd|credentials(\.json)?"
    r"|id_(rsa|dsa|ecdsa|ed25519)|.+\.(pem|key|p12|pfx|keystore)",
    re.IGNORECASE,
)
_SECRET_FOLDERS = {".ssh", ".aws", ".gnupg", ".docker", ".kube"}
_HARMLESS = re.compile(r"\.env\.(example|sample|template|dist)", re.IGNORECASE)


def require_input(
    gathered: Gathering, part: Part, file: Path, root: Path, record: FileRecord | None
) -> None:
    """That a file of an input may leave this machine.

    A link out of the input's folder is as good as a file where the run's own hash says what is
    in it: a hub's cache is made of such. Else nobody knows what it leads to by now.
    """
    real = Path(os.path.realpath(file))
    leads_out = not real.is_relative_to(os.path.realpath(root))
    refuse_secrets(part.what, part.group, file, root)
    if leads_out:
        refuse_secrets(part.what, part.group, real, Path(real.anchor))
    if record is not None and record.sha256 is not None:
        return
    if leads_out:
        raise RefusedError(
            f"{part.what}: {file} is a link to {real}, and the run did not hash what it read",
            f"put the file itself there, or leave {part.group} out of --with",
        )
    if gathered.foreign is not None and not real.is_relative_to(gathered.foreign.resolve()):
        raise RefusedError(
            f"{part.what}: {file} is a file of this machine, which a run that is not your own "
            "names without a hash",
            f"leave {part.group} out of --with",
        )


def refuse_secrets(what: str, group: str, path: Path, root: Path) -> None:
    inside = root in path.parents and root.is_dir()
    steps = path.parent.relative_to(root).parts if inside else ()
    bad = _SECRET_FILES.fullmatch(path.name) and not _HARMLESS.fullmatch(path.name)
    if bad or _SECRET_FOLDERS.intersection(steps):
        raise RefusedError(
            f"{what}: {path} looks like a file of secrets, and is not bundled",
            f"move it out of there and run anew, or leave {group} out of --with",
        )
