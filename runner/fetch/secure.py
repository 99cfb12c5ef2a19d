"""Refuse a redirect from https to http, wherever a server redirects to.

One session for all that huggingface_hub and this project ask for, and a check in `requests`, which
ModelScope's client uses. Imports huggingface_hub and requests when called.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

from runner.common.errors import RefusedError

_CHECKED = "_runner_checks_redirects"


def require_no_downgrade(before: str, after: str) -> None:
    """Refuse the redirect of an https address to one without TLS.

    Args:
        after: as the server says it, relative or whole.

    Raises RefusedError with both hosts; addresses may hold what is secret.
    """
    target = urllib.parse.urlsplit(urllib.parse.urljoin(before, after))
    if before.lower().startswith("https:") and target.scheme.lower() != "https":
        host = urllib.parse.urlsplit(before).hostname
        raise RefusedError(
            f"https://{host} redirects to {target.scheme}://{target.hostname}, where anyone on the "
            "way could send something else",
            "nothing was taken from there; a proxy or a mirror may be at fault",
        )


def session() -> Any:
    """huggingface_hub's HTTP session, which follows no redirect from https to http."""
    from huggingface_hub.utils import get_session

    client: Any = get_session()
    hooks = client.event_hooks["response"]
    if _check_response not in hooks:
        hooks.append(_check_response)
    return client


def _check_response(response: Any) -> None:
    if response.has_redirect_location:
        require_no_downgrade(str(response.url), response.headers["Location"])


def check_requests() -> None:
    """Have every session of `requests` in this process follow no redirect from https to http."""
    import requests

    kind: Any = requests.Session
    if getattr(kind, _CHECKED, False):
        return
    plain = kind.get_redirect_target

    def get_redirect_target(self: Any, response: Any) -> Any:
        target = plain(self, response)
        if target:
            require_no_downgrade(str(response.url), target)
        return target

    kind.get_redirect_target = get_redirect_target
    setattr(kind, _CHECKED, True)
