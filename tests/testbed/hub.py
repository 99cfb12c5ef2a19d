"""A hub on this machine: the parts of the Hugging Face hub's and ModelScope's APIs that fetching
uses, over real HTTP, with faults to order. Standard library only.

As on the real one, large files are a redirect to another origin ("localhost" for "127.0.0.1"),
which has to take ranges and must not be sent the token.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

LARGE = (".safetensors", ".parquet", ".bin")
BLOCK_BYTES = 64 * 1024
RIGHT_TOKEN = "hf_right"  # noqa: S105 - opens nothing but this server


@dataclass
class Repository:
    """One repository with one commit."""

    files: dict[str, bytes]
    type: Literal["model", "dataset"] = "model"
    access: Literal["open", "private", "gated"] = "open"
    token: str = RIGHT_TOKEN

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    range: str | None
    token: bool
    status: int


@dataclass
class FakeHub:
    """The server's state; tests write it and read what was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    drop_after: dict[str, list[int]] = field(default_factory=dict)
    """File -> bytes after which the next connections for it break, one entry each."""
    corrupt: set[str] = field(default_factory=set)
    """Files whose content comes with its first byte changed."""
    bytes_per_second: float | None = None
    ranges: bool = True
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """The requests whose path holds `part`."""
        return [r for r in self.requests if part in r.path and r.method == method]


def surroundings(hub: FakeHub, folder: Path) -> dict[str, str | None]:
    """Environment variables in which `hub` is the only one, with caches under `folder`.

    None takes a variable away: a proxy would get to see what is meant for this machine.
    """
    away: dict[str, str | None] = {
        name: None
        for name in os.environ
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "HUGGING", "MODELSCOPE"))
    }
    return {
        **away,
        "TRANSFORMERS_OFFLINE": None,
        "HF_ENDPOINT": hub.url,
        "MODELSCOPE_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HOME": str(folder),
        "RUNNER_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }


@contextlib.contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve `hub` on a free port."""

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def _route(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path).strip("/")
        query = dict(urllib.parse.parse_qsl(parts.query))
        words = path.split("/")
        if words[:2] == ["api", "v1"]:
            self._modelscope(words[2:], query)
        elif words[0] == "api" and words[1] in ("models", "datasets"):
            self._api(words[1].removesuffix("s"), words[2:], query)
        elif words[0] == "cdn":
            self._cdn(words[1])
        elif "resolve" in words:
            dataset = words[0] == "datasets"
            words = words[1:] if dataset else words
            self._resolve("/".join(words[:2]), words[3], "/".join(words[4:]))
        else:
            self._error(404, "EntryNotFound")

    # The Hugging Face hub ------------------------------------------------------------------------

    def _repository(self, identity: str) -> Repository | None:
        found = self.state.repositories.get(identity)
        said = self.headers.get("Authorization", "")
        if found is None or (found.access == "private" and said != f"Bearer {found.token}"):
            self._error(401 if not said else 404, "RepoNotFound")
            return None
        return found

    def _right(self, found: Repository) -> bool:
        said = self.headers.get("Authorization", "")
        if found.access == "gated" and said != f"Bearer {found.token}":
            self._error(403 if said else 401, "GatedRepo")
            return False
        return True

    def _api(self, type_: str, words: list[str], query: dict[str, str]) -> None:
        identity, rest = "/".join(words[:2]), words[2:]
        found = self._repository(identity)
        if found is None:
            return None
        revision = rest[1] if len(rest) > 1 else "main"
        if found.type != type_:
            return self._error(404, "RepoNotFound")
        if revision not in ("main", found.commit):
            return self._error(404, "RevisionNotFound")
        if not rest or rest[0] == "revision":
            blobs = query.get("blobs") in ("true", "True", "1")
            siblings = [self._sibling(path, found, blobs) for path in found.files]
            return self._json(
                {
                    "id": identity,
                    "sha": found.commit,
                    "private": found.access == "private",
                    "gated": "manual" if found.access == "gated" else False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "siblings": siblings,
                }
            )
        if rest[0] == "tree":
            return self._tree(found, "/".join(rest[2:]), query.get("recursive") == "true")
        if rest[0] == "paths-info":
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length).decode()
            if "json" in self.headers.get("Content-Type", ""):
                paths = json.loads(body)["paths"]
            else:
                paths = [value for key, value in urllib.parse.parse_qsl(body) if key == "paths"]
            entries = [self._entry(path, found) for path in paths if path in found.files]
            folders = {path for path in paths if any(n.startswith(f"{path}/") for n in found.files)}
            entries += [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
            return self._json(entries)
        return self._error(404, "EntryNotFound")

    def _tree(self, found: Repository, folder: str, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in found.files if path.startswith(prefix)]
        if folder and not inside:
            return self._error(404, "EntryNotFound")
        entries = []
        folders = set()
        for path in inside:
            rest = path.removeprefix(prefix)
            if "/" in rest:
                folders.add(prefix + rest.partition("/")[0])
            if recursive or "/" not in rest:
                entries.append(self._entry(path, found))
        entries += [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        return self._json(entries)

    def _sibling(self, path: str, found: Repository, blobs: bool) -> dict[str, Any]:
        entry = self._entry(path, found)
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                lfs = entry["lfs"]
                sibling["lfs"] = {"size": lfs["size"], "sha256": lfs["oid"], "pointerSize": 134}
        return sibling

    def _entry(self, path: str, found: Repository) -> dict[str, Any]:
        content = found.files[path]
        entry: dict[str, Any] = {
            "type": "file",
            "path": path,
            "size": len(content),
            "oid": _git_name(content),
        }
        if path.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def _resolve(self, identity: str, revision: str, path: str) -> None:
        found = self._repository(identity)
        if found is None or not self._right(found):
            return None
        if revision not in ("main", found.commit):
            return self._error(404, "RevisionNotFound")
        content = found.files.get(path)
        if content is None:
            return self._error(404, "EntryNotFound")
        headers = {"X-Repo-Commit": found.commit}
        if not path.endswith(LARGE):
            return self._content(path, content, {**headers, "ETag": f'"{_git_name(content)}"'})
        sha256 = hashlib.sha256(content).hexdigest()
        headers |= {
            "X-Linked-Etag": f'"{sha256}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"http://localhost:{self.state.port}/cdn/{sha256}",
        }
        return self._send(302, b"", headers)

    def _cdn(self, sha256: str) -> None:
        for found in self.state.repositories.values():
            for path, content in found.files.items():
                if hashlib.sha256(content).hexdigest() == sha256:
                    return self._content(path, content, {"ETag": f'"{sha256}"'})
        return self._error(404, "EntryNotFound")

    # ModelScope ----------------------------------------------------------------------------------

    def _modelscope(self, words: list[str], query: dict[str, str]) -> None:
        identity, rest = "/".join(words[1:3]), words[3:]
        found = self.state.repositories.get(identity)
        if found is None or words[0] != f"{found.type}s":
            return self._send(404, json.dumps({"Code": 10010205001, "Message": "no"}).encode(), {})
        if rest in (["repo", "files"], ["repo", "tree"]):
            files = [
                {
                    "Path": path,
                    "Name": path.rpartition("/")[2],
                    "Size": len(content),
                    "Sha256": hashlib.sha256(content).hexdigest(),
                    "Type": "blob",
                }
                for path, content in found.files.items()
            ]
            return self._json({"Code": 200, "Success": True, "Data": {"Files": files}})
        if rest == ["repo"]:
            path = query.get("FilePath", "")
            if path in found.files:
                return self._content(path, found.files[path], {})
        return self._send(404, json.dumps({"Code": 404, "Message": "no"}).encode(), {})

    # Answers -------------------------------------------------------------------------------------

    def _content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        if path in self.state.corrupt:
            content = bytes([content[0] ^ 0xFF]) + content[1:]
        status, body, said = 200, content, self.headers.get("Range")
        if said and self.state.ranges:
            first, _, last = said.removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last or len(content) - 1)
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            status, body = 206, content[start : stop + 1]
            last_byte = start + len(body) - 1
            headers["Content-Range"] = f"bytes {start}-{last_byte}/{len(content)}"
        breaks = self.state.drop_after.get(path) if self.command == "GET" else None
        return self._send(status, body, headers, breaks.pop(0) if breaks else None)

    def _json(self, record: Any) -> None:
        self._send(200, json.dumps(record).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], break_after: int | None = None
    ) -> None:
        self.state.requests.append(
            Request(
                self.command,
                self.path,
                self.headers.get("Range"),
                "Authorization" in self.headers,
                status,
            )
        )
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(ConnectionError):  # the client was killed, or has seen enough
            for start in range(0, len(body), BLOCK_BYTES):
                block = body[start : start + BLOCK_BYTES]
                if break_after is not None and start + len(block) > break_after:
                    self.wfile.write(block[: break_after - start])
                    self.close_connection = True
                    return
                self.wfile.write(block)
                if self.state.bytes_per_second:
                    time.sleep(len(block) / self.state.bytes_per_second)


def _git_name(content: bytes) -> str:
    start = f"blob {len(content)}\0".encode()
    return hashlib.sha1(start + content, usedforsecurity=False).hexdigest()
