"""Keep secrets out of the report: which values they are, and how they are struck out. Pure.

Imports the standard library.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping

_SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_HUB_TOKEN",
    "MODELSCOPE_API_TOKEN",
    "WANDB_API_KEY",
)

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

_URLS = (*_PROXIES, "HF_ENDPOINT", "DOCKER_HOST")


def collect_secrets(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values that must not be printed, whatever program repeats them; longest first."""
    found = {environment.get(name, "") for name in _SECRETS}
    for name in _URLS:
        user, separator, _ = environment.get(name, "").rpartition("@")
        if separator:
            user = re.sub(r"^[a-z0-9+.-]+://", "", user, flags=re.IGNORECASE)
            password = user.partition(":")[2]
            found |= {user, password, urllib.parse.unquote(password)}
    # shorter ones would strike out innocent words; `mask_url` hides those where they stand
    return tuple(sorted((text for text in found if len(text) >= 6), key=len, reverse=True))


def mask_url(url: str) -> str:
    """A URL without its user, password and query: "http://***@proxy:3128"."""
    head, separator, rest = url.rpartition("@")
    if separator:
        scheme = re.match(r"[a-z0-9+.-]+://", head, re.IGNORECASE)
        url = f"{scheme[0] if scheme else ''}***@{rest}"
    return re.sub(r"[?#].*", "", url, flags=re.DOTALL)


def printable(text: str, secrets: tuple[str, ...]) -> str:
    """Fit for a terminal and for a stranger: no control characters, no secrets."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = re.sub(r"://[^/\s@]+@", "://***@", text)
    # a path that is no UTF-8, an escape sequence in what a program said
    text = text.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in text)
