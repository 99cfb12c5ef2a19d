"""Where each source of the MGM toolkit is asked for: its own address, or a mirror's.

Standard library only. As a process (`python -m runner.engines.mgm.fetch.address data|toolkit`) it
says whether that host answers, as runner.common.hub_address does.
"""

from __future__ import annotations

import os
import re
import sys
import urllib.parse

from runner.common import hub_address as hub
from runner.common import terminal
from runner.common.errors import RefusedError
from runner.engines.mgm.sources import MGM_REPOSITORY, SOURCES, MgmSource

DATA_ENDPOINT = "MGM_DATA_ENDPOINT"
"""Stands for scheme and host of the challenge's files; their paths stay as they are."""
REPOSITORY = "MGM_REPOSITORY"
"""A git address in place of the toolkit's own."""


def address(source: MgmSource) -> str:
    """The address or the hub id that `source` is fetched from.

    Raises RefusedError where a variable names what can't be one.
    """
    if source.kind == "git":
        said = os.environ.get(REPOSITORY) or source.where
        if said.startswith("-") or re.match(r"\w+::", said):  # an option; a transport that executes
            raise RefusedError(f"{REPOSITORY} is no address of a repository: {said[:80]!r}")
        return said
    if source.kind == "hub":
        return source.where
    mirror = os.environ.get(DATA_ENDPOINT)
    if not mirror:
        if source.sha256 is None and not source.where.startswith("https://"):
            raise RefusedError(
                f"{source.name} is published over plain http and its sha256 is not known, so that "
                "anyone on the way could send something else",
                f"{DATA_ENDPOINT} names a server that you trust",
            )
        return source.where
    if not re.match(r"https?://[^/]", mirror):
        raise RefusedError(
            f"{DATA_ENDPOINT} is no http(s) address: {shown(mirror)!r}",
            "such as http://mirror.lan:8000; the files' own paths are added to it",
        )
    return mirror.rstrip("/") + urllib.parse.urlsplit(source.where).path


def shown(text: str) -> str:
    """An address as it may be printed and recorded: without user, password and query."""
    return re.sub(r"://[^/@\s]*@", "://", text).partition("?")[0]


def origin(text: str) -> str | None:
    """Scheme and host of an http(s) address, with the user and password it may hold; else None."""
    match = re.match(r"https?://[^/]+", text)
    return match[0] if match else None


def of_kind(which: str) -> str | None:
    """The origin of the data, or of the toolkit; None where it is not reached over HTTP."""
    if which == "toolkit":
        return origin(os.environ.get(REPOSITORY) or MGM_REPOSITORY)
    return origin(address(next(source for source in SOURCES if source.kind == "archive")))


if __name__ == "__main__":
    found = of_kind(sys.argv[1])
    terminal.put_json(hub.ask(found) if found else {"status": 200})
