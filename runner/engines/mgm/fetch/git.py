"""The MGM toolkit at its pinned commit, by git. Standard library, and the program `git`.

Nothing of the repository is executed: no hooks, no filters, no submodules, no other transports.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from runner.common.errors import RefusedError
from runner.engines.mgm.fetch.address import REPOSITORY, address, shown
from runner.engines.mgm.fetch.place import install, making, require_free, size_of
from runner.engines.mgm.fetch.record import new_record
from runner.engines.mgm.sources import MgmSource
from runner.fetch.refusals import said

SAFE = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.autocrlf=false",
    "submodule.recurse=false",
    "protocol.ext.allow=never",
    "fetch.fsckObjects=true",
    "gc.auto=0",
    "http.lowSpeedLimit=1000",  # bytes a second, below which for a minute it is given up
    "http.lowSpeedTime=60",
    "advice.detachedHead=false",
)
ATTRIBUTES = "* -filter -text -ident -eol -working-tree-encoding -export-subst\n"
"""Above the repository's own .gitattributes: every file comes out as it was put in."""


def fetch_git(
    source: MgmSource, base: Path, *, say: Callable[[str], None]
) -> tuple[dict[str, object], int]:
    """The record of `source`, now in its place, and the bytes that came over the network (packed).

    Raises:
        RefusedError: no git, the repository can't be reached or lacks the commit, or what came is
            not the commit.
    """
    git = shutil.which("git")
    target, where, commit = base / source.target, address(source), source.revision
    if commit is None:
        raise RefusedError(f"{source.name} has no pinned commit, without which it is not fetched")
    if git is None:
        raise RefusedError(
            f"{source.name} is fetched by git, which is not on this machine",
            "install git (apt-get install git); or --set toolkit=FOLDER names a copy: MGM at "
            f"commit {commit}",
        )
    require_free(target, source.field or "toolkit")
    say(f"{source.name}: {shown(where)}@{commit[:7]} -> {target}")
    with making(target) as made:
        told = f"{source.name} from {shown(where)}"
        _git(git, made, told, "init", "--quiet", "--template=")
        info = made / ".git" / "info"
        info.mkdir(exist_ok=True)
        (info / "attributes").write_text(ATTRIBUTES)
        _git(git, made, told, "fetch", "--quiet", "--depth=1", "--no-tags", "--", where, commit)
        got = _git(git, made, told, "rev-parse", "--verify", "FETCH_HEAD^{commit}")
        if got != commit:
            raise RefusedError(
                f"{told} is at {got[:12]} where commit {commit[:12]} was asked for",
                f"{REPOSITORY} has to name a copy of {source.where}",
            )
        _git(git, made, told, "fsck", "--full", "--strict", "--no-dangling", "--no-progress")
        _git(git, made, told, "checkout", "--quiet", "--detach", "--force", commit)
        head = _git(git, made, told, "rev-parse", "HEAD")
        changed = _git(git, made, told, "status", "--porcelain", "--ignored", "--no-renames")
        lacking = [path for path in source.expects if not (made / path).exists()]
        if head != commit or changed or lacking:
            raise RefusedError(
                f"{told} is not commit {commit[:12]} as it is here: "
                f"{lacking[0] + ' is not in it' if lacking else changed.splitlines()[:1] or head}",
                "look at the disk, and whether the pin in runner's table of sources is right",
            )
        came = size_of(made / ".git" / "objects")[1]
        files, size = size_of(made)
        record = new_record(
            source,
            shown(where),
            size_bytes=size,
            sha256=None,
            verified=[
                f"git commit {commit} (SHA-1): HEAD is it, git fsck --strict finds nothing, the "
                "files are the commit's"
            ],
            authenticated=True,
            revision=commit,
            file_count=files,
        )
        # the record is no change of the toolkit
        (info / "exclude").write_text("/runner-source.json\n")
        install(made, target, record)
    return record, came


def _git(git: str, folder: Path, told: str, *arguments: str) -> str:
    """What git answers; its last words as RefusedError where it fails."""
    options = [part for setting in SAFE for part in ("-c", setting)]
    done = subprocess.run(
        [git, *options, *arguments],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return done.stdout.strip()
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith(("fatal:", "error:"))), "")
    if "No space left on device" in done.stderr:
        raise RefusedError(f"the disk is full: {told} can't be stored", "make room")
    raise RefusedError(
        f"{told}: git {arguments[0]} fails: {said(RuntimeError(reason or ' '.join(lines[-1:])))}",
        f"{REPOSITORY} names a mirror, which has to have the pinned commit; or --set "
        "toolkit=FOLDER takes a copy",
    )


def _environment() -> dict[str, str]:
    """The user's own, for proxies and authorities, without what points git elsewhere."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in ("GIT_SSL_CAINFO", "GIT_SSH", "GIT_SSH_COMMAND")
    }
    return {
        **kept,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "LC_ALL": "C",
    }
