"""Servers that send more than they said, less, without an end, or from another, plain address.

Real HTTP, and real TLS with an authority of the test's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import RefusedError
from runner.engines.mgm.fetch.address import address
from runner.engines.mgm.sources import SOURCES
from runner.fetch import stream
from runner.fetch.files import RemoteFile
from runner.fetch.secure import require_no_downgrade
from runner.fetch.stream import download, partial_file

pytest.importorskip("huggingface_hub")
KIB = 1024
CONTENT = bytes(range(256)) * 4 * 64  # 64 KiB


@dataclass
class Served:
    """What a server answers to every GET; it counts what it could send."""

    content: bytes = CONTENT
    states_size: bool = True
    endless: bool = False
    redirect: str | None = None
    sent: int = 0
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def serving(state: Served, tls: ssl.SSLContext | None = None) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            state.asked.append(f"{self.command} {self.path}")
            if state.redirect:
                self.send_response(302)
                self.send_header("Location", state.redirect)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(200)
            self.close_connection = True
            self.send_header("Connection", "close")
            if state.states_size:
                self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()
            if self.command == "HEAD":
                return None
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(state.content)
                    state.sent += len(state.content)
                    if not state.endless:
                        return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
    state.url = f"{scheme}://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fetch(url: str, size_bytes: int | None, folder: Path, sha256: str | None = None) -> Path:
    target = folder / "file.bin"
    file = RemoteFile("file.bin", size_bytes, sha256)
    download(f"{url}/file.bin", {}, file, target, quiet=True, say=lambda _: None)
    return target


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How large the partial file was, after each block that was written."""
    seen: list[int] = [0]

    class Watched(stream.FileProgress):
        def update(self, more: int) -> None:
            super().update(more)
            seen.append(self.bytes)

    monkeypatch.setattr(stream, "FileProgress", Watched)
    return seen


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(stream.time, "sleep", lambda _: None)


@pytest.mark.parametrize("states_size", [True, False])
@pytest.mark.parametrize("endless", [True, False])
def test_no_byte_is_written_past_the_stated_size(
    tmp_path: Path, largest: list[int], states_size: bool, endless: bool
) -> None:
    with serving(Served(states_size=states_size, endless=endless)) as server:
        with pytest.raises(RefusedError, match="came with another content than the hub states"):
            fetch(server.url, 10 * KIB, tmp_path)
        assert server.sent < 64 * 1024 * KIB
    assert max(largest) <= 10 * KIB
    assert not (tmp_path / "file.bin").exists()
    assert not partial_file(tmp_path / "file.bin").exists()


def test_one_that_says_itself_that_it_sends_more_is_not_read_at_all(
    tmp_path: Path, largest: list[int]
) -> None:
    with serving(Served()) as server:
        with pytest.raises(RefusedError, match="65536 bytes for 10240"):
            fetch(server.url, 10 * KIB, tmp_path)
        assert len(server.asked) == 1
    assert max(largest) == 0


def test_what_lay_here_before_is_not_added_to_past_the_size(
    tmp_path: Path, largest: list[int]
) -> None:
    partial_file(tmp_path / "file.bin").write_bytes(b"x" * 9 * KIB)
    endless = Served(states_size=False, endless=True)  # and it knows no ranges
    with serving(endless) as server, pytest.raises(RefusedError, match="another content"):
        fetch(server.url, 10 * KIB, tmp_path)
    assert max(largest) <= 10 * KIB
    assert list(tmp_path.glob("*incomplete*")) == []


def test_one_that_sends_less_is_asked_again_and_then_given_up(tmp_path: Path) -> None:
    with serving(Served(b"short", states_size=True)) as server:
        with pytest.raises(ConnectionError, match="ended at byte"):
            fetch(server.url, 10 * KIB, tmp_path)
        assert len(server.asked) >= stream.TRIES_WITHOUT_A_BYTE
    assert not (tmp_path / "file.bin").exists()


def test_an_endless_file_of_unstated_size_ends_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: list[int]
) -> None:
    monkeypatch.setattr(stream, "_room", lambda out: 500 * KIB)
    told = "sends more than 500 KiB and states no size"
    endless = Served(states_size=False, endless=True)
    with serving(endless) as server, pytest.raises(RefusedError, match=told):
        fetch(server.url, None, tmp_path)
    assert max(largest) <= 500 * KIB
    assert not (tmp_path / "file.bin").exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def test_the_room_is_what_the_disk_has_but_for_what_is_kept_free(tmp_path: Path) -> None:
    import shutil

    with (tmp_path / "x").open("wb") as out:
        free = shutil.disk_usage(tmp_path).free
        assert abs(stream._room(out) - (free - stream.SPARE_BYTES)) < 1 << 30


@pytest.mark.parametrize("states_size", [True, False])
@pytest.mark.parametrize("size_bytes", [len(CONTENT), None])
def test_the_right_file_comes(tmp_path: Path, states_size: bool, size_bytes: int | None) -> None:
    with serving(Served(states_size=states_size)) as server:
        target = fetch(server.url, size_bytes, tmp_path, hashlib.sha256(CONTENT).hexdigest())
    assert target.read_bytes() == CONTENT


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Key and certificate of localhost, which is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        pytest.skip(f"openssl: {made.stderr[-200:]}")
    return key, certificate


@pytest.fixture
def server_tls(authority: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority[1], authority[0])
    return context


@pytest.fixture
def trusted(authority: tuple[Path, Path]) -> Iterator[None]:
    """huggingface_hub's client as it is, but for whom it trusts."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    plain = _http.default_client_factory
    kind = type(plain())

    def make() -> Any:
        context = ssl.create_default_context(cafile=str(authority[1]))
        return kind(verify=context, follow_redirects=True, timeout=None)

    set_client_factory(make)
    yield
    set_client_factory(plain)


@pytest.mark.usefixtures("trusted")
def test_a_redirect_from_https_to_http_is_not_followed(
    tmp_path: Path, server_tls: ssl.SSLContext
) -> None:
    from runner.engines.mgm.fetch.download import _look

    plain = Served()
    with serving(plain), serving(Served(redirect=f"{plain.url}/x"), server_tls) as server:
        with pytest.raises(RefusedError, match=r"https://localhost redirects to http://127\.0\.0"):
            fetch(server.url, len(CONTENT), tmp_path)
        with pytest.raises(RefusedError, match="redirects to http:"):
            _look(f"{server.url}/file.bin")
    assert plain.asked == []
    assert not (tmp_path / "file.bin").exists()


@pytest.mark.usefixtures("trusted")
def test_one_to_https_is(tmp_path: Path, server_tls: ssl.SSLContext) -> None:
    target = Served()
    with serving(target, server_tls):
        first = Served(redirect=f"{target.url}/x")
        with serving(first, server_tls):
            assert fetch(first.url, len(CONTENT), tmp_path).read_bytes() == CONTENT


@pytest.mark.usefixtures("trusted")
def test_nor_does_the_hubs_own_client_follow_one(
    server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    from runner.fetch.hub import look_up

    plain = Served(b"{}")
    with serving(plain), serving(Served(redirect=f"{plain.url}/x"), server_tls) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.url)
        with pytest.raises(RefusedError, match="redirects to http:"):
            look_up("model", "o/m", None)
    assert plain.asked == []


def test_nor_does_modelscopes(
    server_tls: ssl.SSLContext, authority: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = pytest.importorskip("requests")
    from runner.fetch.secure import check_requests

    monkeypatch.setattr(
        requests.Session, "get_redirect_target", requests.Session.get_redirect_target
    )
    monkeypatch.setattr(requests.Session, "_runner_checks_redirects", False, raising=False)
    check_requests()
    check_requests()
    plain = Served()
    with serving(plain), serving(Served(redirect=f"{plain.url}/x"), server_tls) as server:
        told = pytest.raises(RefusedError, match="redirects to http:")
        with told:
            requests.get(server.url, verify=str(authority[1]), timeout=600)
    assert plain.asked == []


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ("https://a/x", "http://a/x", True),
        ("HTTPS://a/x", "HTTP://a/x", True),
        ("https://a/x", "ftp://a/x", True),
        ("https://a/x", "file:///etc/passwd", True),
        ("https://a/x", "/y", False),
        ("https://a/x", "//b/y", False),
        ("https://a/x", "https://b/y", False),
        ("http://a/x", "http://b/y", False),  # a mirror in the house, named by its user
        ("http://a/x", "https://b/y", False),
    ],
)
def test_what_is_a_downgrade(before: str, after: str, refused: bool) -> None:
    if not refused:
        return require_no_downgrade(before, after)
    with pytest.raises(RefusedError):
        require_no_downgrade(before, after)
    return None


# ModelScope's client, which reads as long as the server sends


def test_modelscope_is_held_to_the_stated_size_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.fetch import modelscope

    written = tmp_path / "written"

    class Api:
        def download_repo(self, *_: Any, progress_callbacks: list[Any], **__: Any) -> None:
            told = progress_callbacks[0]("model.safetensors", 100)
            with written.open("wb") as out:
                for _ in range(1000):
                    out.write(b"x" * 10)
                    told.update(10)

    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path))
    file = RemoteFile("model.safetensors", 100, None)
    with pytest.raises(RefusedError, match="more than 100 bytes for 100"):
        modelscope._bring(Api(), "o/m", "model", None, [file], tmp_path / "m", quiet=True)
    assert written.stat().st_size <= 110


# The challenge's files


def test_nothing_of_the_table_comes_in_the_clear_without_a_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MGM_DATA_ENDPOINT", raising=False)
    for source in SOURCES:
        if source.kind in ("file", "archive", "git"):
            assert source.where.startswith("https://") or source.sha256, source.name
    archive = next(source for source in SOURCES if source.kind == "archive")
    plain = replace(archive, where=archive.where.replace("https:", "http:"))
    with pytest.raises(RefusedError, match="plain http and its sha256 is not known"):
        address(plain)
    assert address(replace(plain, sha256="0" * 64)) == plain.where
    monkeypatch.setenv("MGM_DATA_ENDPOINT", "http://mirror.lan:8000")  # the user's own word
    assert address(plain).startswith("http://mirror.lan:8000/")


# Data sets


def test_a_data_set_takes_no_file_from_elsewhere() -> None:
    from runner.fetch.rows import _require_inside

    prefix = "hf://datasets/o/d@0123/"
    _require_inside([f"{prefix}a.parquet"], prefix, "o/d")
    for other in ("/root/.ssh/id_rsa", "http://a/b.json", "hf://datasets/o/e@1/a", f"{prefix}../x"):
        with pytest.raises(RefusedError, match="none of its own"):
            _require_inside([f"{prefix}a.parquet", other], prefix, "o/d")
