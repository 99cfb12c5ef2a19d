"""Ask the hub, or the mirror in HF_ENDPOINT, for one small file's header; a process of its own.

With the argument `modelscope`, ModelScope, or MODELSCOPE_ENDPOINT. Standard library, and certifi's
list of authorities where it is installed. Reads addresses from the environment rather than from
arguments, which other users of the machine could see. Prints one JSON object: `{"status": 200}`, or
`{"failure": "refused|timeout|name|tls|proxy|other", "text": "..."}`.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib
import os
import socket
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from typing import IO

from runner.common import terminal

DEFAULT_ENDPOINT = "https://huggingface.co"
MODELSCOPE_ENDPOINT = "https://modelscope.cn"
# Downloads start with this very request, for each file.
FILE = "HuggingFaceTB/SmolLM2-135M-Instruct/resolve/main/config.json"
SOCKET_SECONDS = 4.0


class _AnyAnswer(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: where it leads is not asked."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> None:
        return None


def ask(endpoint: str) -> dict[str, int | str]:
    """The HTTP status that `endpoint` answers with, or why there is none."""
    try:
        with _opener().open(_request(endpoint), timeout=SOCKET_SECONDS) as response:
            return {"status": response.status}
    except urllib.error.HTTPError as error:
        return {"status": error.code}
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return {"failure": _kind(reason), "text": str(reason) or type(reason).__name__}


def _request(endpoint: str) -> urllib.request.Request:
    """HEAD of the file; a user and password in the endpoint become a header, as the hub does."""
    parts = urllib.parse.urlsplit(endpoint)
    user, _, address = parts.netloc.rpartition("@")
    url = f"{parts.scheme}://{address}{parts.path.rstrip('/')}/{FILE}"
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - http(s), checked before
    request.add_header("User-Agent", "runner-doctor")
    if user:
        basic = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    return request


def _opener() -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError, OSError, ssl.SSLError):
        context.load_verify_locations(importlib.import_module("certifi").where())
    return urllib.request.build_opener(_AnyAnswer, urllib.request.HTTPSHandler(context=context))


def _kind(reason: object) -> str:
    if isinstance(reason, TimeoutError) or "timed out" in str(reason):
        return "timeout"
    if isinstance(reason, ConnectionRefusedError):
        return "refused"
    if isinstance(reason, socket.gaierror):
        return "name"
    if isinstance(reason, ssl.SSLError):
        return "tls"
    return "proxy" if "Tunnel connection failed" in str(reason) else "other"


def modelscope_endpoint() -> str:
    """ModelScope's address by its client's rules."""
    said = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or ""
    address = said.strip().rstrip("/") or MODELSCOPE_ENDPOINT
    return address if "://" in address else f"https://{address}"


if __name__ == "__main__":
    other = sys.argv[1:] == ["modelscope"]
    where = modelscope_endpoint() if other else os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
    terminal.put_json(ask(where))
