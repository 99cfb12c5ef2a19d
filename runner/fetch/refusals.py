"""Explain failures of the hubs' clients in the words of this project. Standard library only.

httpx, requests, urllib3 and the hubs' own errors share no base class, and their classes moved
between releases: they are told by the names in their ancestry.
"""

from __future__ import annotations

import errno
import os
import re

from runner.common.errors import RefusedError, RunnerError
from runner.common.hub_address import DEFAULT_ENDPOINT, modelscope_endpoint

WAYS_OUT = (
    "HF_ENDPOINT names a mirror; modelscope:OWNER/NAME takes it from ModelScope; "
    "--set model=FOLDER (or data.train=FILE) takes a copy; runner smoke runs with a stand-in"
)
_CONNECTION = {"TransportError", "ConnectionError", "NetworkError", "Timeout", "ServerError"}


def is_connection_error(error: BaseException) -> bool:
    """The other side could not be reached, or fell silent; a later try may succeed."""
    names = _names(error)
    # requests' errors are OSErrors too; a full disk or a missing permission is no connection's
    return bool(names & (_CONNECTION | {"RequestTimeoutError"})) or isinstance(
        error, ConnectionError | TimeoutError
    )


def refusal(error: BaseException, what: str, kind: str) -> RunnerError | None:
    """The refusal for `error` met while fetching `what`, or None where it is a defect of ours.

    Args:
        kind: "hub" or "modelscope".
    """
    if isinstance(error, RunnerError):
        return error
    names, status = _names(error), _status(error)
    token = "HF_TOKEN" if kind == "hub" else "MODELSCOPE_API_TOKEN"
    has = "the one in use was not accepted" if _has_token(kind) else f"{token} is not set"
    if "OfflineModeIsEnabled" in names:
        return RefusedError(f"{what} is not on this machine, and the network is forbidden", unset())
    if "GatedRepoError" in names:
        return gated(what)
    if "RevisionNotFoundError" in names:
        return RefusedError(
            f"there is no such revision: {what}",
            "name a branch, a tag or a commit of it: OWNER/NAME@REVISION",
        )
    if names & {"RepositoryNotFoundError", "NotExistError", "DatasetNotFoundError"} or (
        status == 404 and "EntryNotFoundError" not in names
    ):
        return RefusedError(
            f"{_where(kind)} has no {what}, or shows it to members only",
            f"check the name; a private one needs {token} ({has})",
        )
    if status in (401, 403) or names & {"AuthenticationError", "PermissionDeniedError"}:
        return RefusedError(
            f"{_where(kind)} refuses access to {what} (HTTP {status or 403})",
            f"it needs a token with the right to read it in {token} ({has})",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RefusedError(
            f"the disk is full: {what} can't be stored",
            "make room; what has come so far is kept, and the same command continues",
        )
    if is_connection_error(error):
        return RefusedError(
            f"{_where(kind)} could not be reached for {what}: {said(error)}",
            f"the same command continues where it stopped; {WAYS_OUT}",
        )
    if status is not None or "HfHubHTTPError" in names or "APIError" in names:
        return RefusedError(
            f"{_where(kind)} answers HTTP {status or '?'} for {what}: {said(error)}",
            "try again later, or name a mirror in HF_ENDPOINT",
        )
    if isinstance(error, OSError):
        return RefusedError(f"{what} can't be stored: {said(error)}", "look at the folder's rights")
    return None


def gated(what: str, folder: str = "") -> RefusedError:
    """The refusal of a repository whose owners let in whom they know.

    Args:
        folder: "datasets/" for a data set's page.
    """
    page = f"{endpoint('hub')}/{folder}{what.partition('@')[0]}"
    has = "the one in use was not let in" if _has_token("hub") else "HF_TOKEN is not set"
    return RefusedError(
        f"{what} is gated: its owners ask who takes it, and this is nobody they let in",
        f"accept their terms at {page}, then set HF_TOKEN ({has})",
    )


def endpoint(kind: str) -> str:
    """The address that is asked, without a user and password that it may hold."""
    if kind == "hub":
        text = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    else:
        text = modelscope_endpoint()
    scheme, mark, rest = text.rstrip("/").rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def unset() -> str:
    """What to do where a variable forbids the network."""
    return f"unset HF_HUB_OFFLINE and its like, run runner fetch where there is one; or {WAYS_OUT}"


def said(error: BaseException) -> str:
    """The error's first line, short; addresses in it lose what is secret: signatures, passwords."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = re.sub(r"://[^/@\s]*@", "://", text)
    words = [word.partition("?")[0] if "://" in word else word for word in text.split()]
    return " ".join(words)[:200]


def _where(kind: str) -> str:
    name = "the hub" if kind == "hub" else "ModelScope"
    return f"{name} ({endpoint(kind)})"


def _has_token(kind: str) -> bool:
    if kind == "modelscope":
        return bool(os.environ.get("MODELSCOPE_API_TOKEN"))
    return bool(os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"))


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "status_code", None)
    return status if isinstance(status, int) else None
