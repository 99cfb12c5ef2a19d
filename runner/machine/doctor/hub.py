"""The Hugging Face hub, or the mirror that stands in for it: does it answer, is there a token.

Imports the standard library, hub_address and the doctor's own modules.
"""

from __future__ import annotations

import os
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

from runner.common.hub_address import DEFAULT_ENDPOINT
from runner.common.own_python import module_argv
from runner.machine.doctor.check import Check
from runner.machine.doctor.masking import mask_url
from runner.machine.doctor.programs import ask_program, last_json, last_line

HUB_SECONDS = 5.0

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True)
class Hub:
    """The hub, or the mirror that stands in for it."""

    endpoint: str
    """Masked; empty where HF_ENDPOINT is set to nothing."""
    mirror: bool
    """HF_ENDPOINT names it."""
    offline: str | None
    """The switch that forbids the network, as NAME=VALUE."""
    proxy: str | None
    """The proxy that the endpoint is reached through, masked."""
    token: str | None
    """Where a token was found; never the token."""
    status: int | None = None
    """What it answered (HTTP); None where it did not, or was not asked."""
    failure: str = ""
    """One of hub_address's kinds, or "url" where the endpoint is no http(s) address."""
    text: str = ""
    """The failure in the system's words."""


def hub_home() -> Path:
    """huggingface_hub's own folder, by its own rules."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_HOME") or Path(cache) / "huggingface")


def hub_cache() -> Path:
    """Where downloaded weights and data lie."""
    return Path(os.environ.get("HF_HUB_CACHE") or hub_home() / "hub")


def ask_hub() -> Hub:
    """One request of at most HUB_SECONDS, in a process of its own: a name look-up has no bound."""
    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
    offline = next((n for n in _OFFLINE if _is_true(os.environ.get(n))), None)
    asked = Hub(
        endpoint=mask_url(endpoint),
        mirror="HF_ENDPOINT" in os.environ,
        offline=f"{offline}={os.environ[offline]}" if offline else None,
        proxy=_proxy(endpoint),
        token=_token(),
    )
    if offline:
        return asked
    if not re.match(r"https?://[^/]", endpoint):
        return replace(asked, failure="url")
    answer = ask_program(module_argv("runner.common.hub_address"), HUB_SECONDS)
    if answer.timed_out:
        return replace(asked, failure="timeout")
    told = last_json(answer.out) or {"failure": "other", "text": last_line(answer.err)}
    status = told.get("status")
    return replace(
        asked,
        status=status if isinstance(status, int) else None,
        failure=str(told.get("failure") or ""),
        text=str(told.get("text") or ""),
    )


def _is_true(value: str | None) -> bool:
    """As huggingface_hub reads its switches."""
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")


def _proxy(endpoint: str) -> str | None:
    try:
        parts = urllib.parse.urlsplit(endpoint)
    except ValueError:
        return None
    address = parts.netloc.rpartition("@")[2]
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None or urllib.request.proxy_bypass(address):
        return None
    return mask_url(proxy)


def _token() -> str | None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return name
    path = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
    try:
        return str(path) if path.stat().st_size > 0 else None
    except OSError:
        return None


def token_check(hub: Hub) -> Check:
    """Says whether there is a token, and where; never what it is."""
    if hub.token:
        return Check("hub token", "ok", f"set ({hub.token})")
    return Check("hub token", "ok", "not set: public models and data only")


def hub_check(hub: Hub) -> Check:
    if hub.offline:
        return Check("hub", "skipped", f"not asked: {hub.offline} (what is cached can be used)")
    place = hub.endpoint + (" (HF_ENDPOINT)" if hub.mirror else "")
    if hub.proxy:
        place += f" through the proxy {hub.proxy}"
    local = "what is on this machine still runs; HF_HUB_OFFLINE=1 saves the waiting"
    if hub.status is not None:
        if hub.status < 400:
            return Check("hub", "ok", f"{place} answers")
        advice = {
            401: "check HF_ENDPOINT and the mirror's password",
            404: "check HF_ENDPOINT: no hub seems to be there",
            407: "the proxy wants a user and password",
            429: "wait, or set HF_TOKEN for a larger share",
        }.get(hub.status, local)
        return Check("hub", "warning", f"{place} answers HTTP {hub.status}", advice)
    if hub.failure == "url":
        found = f"HF_ENDPOINT is no address: {hub.endpoint!r}"
        advice = "unset it, or write it with its scheme, such as https://hf-mirror.com"
        return Check("hub", "problem", found, advice)
    why, advice = {
        "refused": ("refused the connection", local),
        "timeout": (f"did not answer in {HUB_SECONDS:.0f} s", local),
        "name": ("has a name that can't be resolved", local),
        "tls": ("has a certificate that is not trusted", "name your authority in SSL_CERT_FILE"),
        "proxy": ("was not let through", "check the proxy and its password"),
    }.get(hub.failure, ("can't be reached", local))
    said = f": {hub.text}" if hub.text and hub.failure not in ("timeout", "refused") else ""
    return Check("hub", "warning", f"{place} {why}{said}", advice)
