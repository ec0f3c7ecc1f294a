"""ImageFetcher against servers on the loopback, which `allowed_hosts` lets through where a test means it to."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from unittest import mock

import httpcore
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backend import guarded_http, images
from backend.images import FetchPolicy, ImageError, ImageFetcher

PHOTO = b"\x89PNG not really, but nobody looks inside here"
LEGACY = "0123456789abcdef0123456789abcdef01234567"
PERSONAL = "eyJhbGciOi.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl"

HANG_S = 30
"""Far more than any answer takes on a busy machine, far less than for ever."""

Reply = tuple[int, dict[str, str], bytes]


class QuietServer(ThreadingHTTPServer):
    """Says nothing when a client hangs up early, as some tests make it do."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Server:
    """An HTTP server on a free port of the loopback; `replies` maps a path to what it answers."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {"/photo.png": (200, {}, PHOTO), "/data/upload/1/photo.png": (200, {}, PHOTO)}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._http = QuietServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self.port: int = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread.start()

    def tokens(self) -> list[str | None]:
        """The Authorization header of each request for a file."""
        return [headers.get("Authorization") for path, headers in self.requests if "/api/token/" not in path]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.requests.append((self.path, dict(self.headers)))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, headers, body = server.replies.get(self.path.partition("?")[0], (404, {}, b"nothing here"))
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - the name is http.server's

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


NewServer = Callable[[], Server]
NewFetcher = Callable[..., ImageFetcher]


@pytest.fixture
def new_server() -> Iterator[NewServer]:
    servers: list[Server] = []

    def new() -> Server:
        servers.append(Server())
        return servers[-1]

    yield new
    for server in servers:
        server.close()


@pytest.fixture
def server(new_server: NewServer) -> Server:
    return new_server()


@pytest.fixture
def new_fetcher() -> Iterator[NewFetcher]:
    with ExitStack() as stack:

        def new(**policy: Any) -> ImageFetcher:
            fetcher = ImageFetcher(FetchPolicy(**policy))
            stack.callback(fetcher.close)
            return fetcher

        yield new


@pytest.fixture
def studio(server: Server, new_fetcher: NewFetcher) -> ImageFetcher:
    """A fetcher whose Label Studio is `server`."""
    return new_fetcher(studio_url=server.url, studio_token=LEGACY)


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that does with its one connection whatever it likes, until the client is gone."""

    def run() -> None:
        connection, _ = listening.accept()
        with connection, listening:
            connection.recv(4096)
            try:
                serve(connection)
            except OSError:
                return

    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=run)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/photo.png"
    thread.join()


# --- what is fetched


def test_a_photo_over_http(server: Server, new_fetcher: NewFetcher) -> None:
    fetcher = new_fetcher(allowed_hosts=("127.0.0.1",))
    assert fetcher.fetch(f"{server.url}/photo.png") == PHOTO
    assert server.tokens() == [None]


def test_surrounding_space_is_no_part_of_the_address(server: Server, new_fetcher: NewFetcher) -> None:
    assert new_fetcher(allowed_hosts=("127.0.0.1",)).fetch(f"  {server.url}/photo.png\n") == PHOTO


@pytest.mark.parametrize(
    ("uri", "data"),
    [
        ("data:image/png;base64," + base64.b64encode(PHOTO).decode(), PHOTO),
        ("DATA:;BASE64,aGk=", b"hi"),
        ("data:image/png;base64,aG k%3D\n", b"hi"),
        ("data:,h%69", b"hi"),
    ],
)
def test_data_uris(new_fetcher: NewFetcher, uri: str, data: bytes) -> None:
    assert new_fetcher().fetch(uri) == data


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("data:image/png;base64,aGk", "broken base64"),
        ("data:image/png;base64,aG!k=", "broken base64"),
        ("data:image/png;base64,ü", "broken base64"),
        ("data:image/png;base64,\ud800", "no valid address"),
        ("data:image/png;base64", "without a comma"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64," + "A" * 4000, "larger than 1,000 bytes"),
        ("data:image/png;base64," + "A" * 40_000, "larger than 1,000 bytes"),
    ],
)
def test_broken_data_uris(new_fetcher: NewFetcher, uri: str, complaint: str) -> None:
    with pytest.raises(ImageError, match=complaint) as caught:
        new_fetcher(max_bytes=1000).fetch(uri)
    assert len(str(caught.value)) < 300


def test_an_upload_comes_from_label_studio_with_the_token(server: Server, studio: ImageFetcher) -> None:
    assert studio.fetch("/data/upload/1/photo.png") == PHOTO
    assert studio.fetch(f"{server.url}/data/upload/1/photo.png") == PHOTO
    assert server.tokens() == [f"Token {LEGACY}"] * 2


def test_label_studio_below_a_path(server: Server, new_fetcher: NewFetcher) -> None:
    server.replies = {"/studio/data/upload/1/photo.png": (200, {}, PHOTO)}
    fetcher = new_fetcher(studio_url=f"{server.url}/studio/", studio_token=LEGACY)
    for value in (
        "/data/upload/1/photo.png",
        "/studio/data/upload/1/photo.png",
        f"{server.url}/studio/data/upload/1/photo.png",
    ):
        assert fetcher.fetch(value) == PHOTO
    assert server.tokens() == [f"Token {LEGACY}"] * 3


def test_the_address_and_token_that_setup_brought(server: Server, new_fetcher: NewFetcher) -> None:
    got = new_fetcher().fetch("/data/upload/1/photo.png", studio_url=server.url, studio_token=LEGACY)
    assert got == PHOTO
    assert server.tokens() == [f"Token {LEGACY}"]


def test_a_configured_token_goes_to_the_configured_address_only(new_server: NewServer, new_fetcher: NewFetcher) -> None:
    configured, posing = new_server(), new_server()
    fetcher = new_fetcher(studio_url=configured.url, studio_token=LEGACY)
    assert fetcher.fetch("/data/upload/1/photo.png", studio_url=posing.url, studio_token="other") == PHOTO
    assert configured.tokens() == [f"Token {LEGACY}"]
    assert posing.requests == []
    with pytest.raises(ImageError, match="needs a token: set FORELABEL_STUDIO_URL"):
        new_fetcher(studio_token=LEGACY).fetch("/data/upload/1/photo.png", studio_url=posing.url)
    assert posing.requests == []


@pytest.mark.parametrize("uri", ["s3://bucket/a b/photo.png", "gs://bucket/photo.png", "azure-blob://box/photo.png"])
def test_cloud_files_are_signed_by_label_studio(new_server: NewServer, new_fetcher: NewFetcher, uri: str) -> None:
    server, bucket = new_server(), new_server()
    server.replies["/tasks/7/presign/"] = (303, {"Location": f"http://localhost:{bucket.port}/photo.png?sig=1"}, b"")
    fetcher = new_fetcher(studio_url=server.url, studio_token=LEGACY, allowed_hosts=("localhost",))
    assert fetcher.fetch(uri, task_id=7) == PHOTO
    asked = server.requests[0][0].partition("fileuri=")[2].replace("%3D", "=")
    assert base64.urlsafe_b64decode(asked).decode() == uri
    assert server.tokens() == [f"Token {LEGACY}"]
    assert bucket.tokens() == [None]


def test_cloud_files_that_label_studio_passes_through(server: Server, studio: ImageFetcher) -> None:
    server.replies["/tasks/7/presign/"] = (200, {}, PHOTO)
    assert studio.fetch("s3://bucket/photo.png", task_id=7) == PHOTO


def test_a_cloud_file_needs_a_task(studio: ImageFetcher) -> None:
    with pytest.raises(ImageError, match=r"s3://bucket/photo\.png needs a task id"):
        studio.fetch("s3://bucket/photo.png")


def test_a_cloud_file_needs_label_studio(new_fetcher: NewFetcher) -> None:
    with pytest.raises(ImageError, match="set FORELABEL_STUDIO_URL"):
        new_fetcher().fetch("s3://bucket/photo.png", task_id=1)


@pytest.mark.parametrize(
    "value",
    ["", "photo.png", "/etc/passwd", "file:///etc/passwd", "ftp://host/a.png", "//host/a.png", "/static/a.png",
     "C:\\a.png", "javascript:alert(1)", "../data/upload/1/photo.png", "upload/1/photo.png", "gopher://127.0.0.1/"],
)  # fmt: skip
def test_other_values_are_refused(server: Server, studio: ImageFetcher, value: str) -> None:
    with pytest.raises(ImageError, match="is no address that is fetched"):
        studio.fetch(value)
    assert server.requests == []


# --- tokens


def test_a_personal_access_token_is_exchanged_once(server: Server, new_fetcher: NewFetcher) -> None:
    server.replies["/api/token/refresh/"] = (200, {}, b'{"access": "short-lived"}')
    fetcher = new_fetcher(studio_url=server.url, studio_token=PERSONAL)
    assert fetcher.fetch_many(["/data/upload/1/photo.png"] * 12) == [PHOTO] * 12
    assert server.tokens() == ["Bearer short-lived"] * 12
    assert [path for path, _ in server.requests].count("/api/token/refresh/") == 1


def test_an_exchanged_token_is_renewed(
    server: Server, new_fetcher: NewFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "BEARER_LIFETIME_S", 0.0)
    server.replies["/api/token/refresh/"] = (200, {}, b'{"access": "first"}')
    fetcher = new_fetcher(studio_url=server.url, studio_token=PERSONAL)
    fetcher.fetch("/data/upload/1/photo.png")
    server.replies["/api/token/refresh/"] = (200, {}, b'{"access": "second"}')
    fetcher.fetch("/data/upload/1/photo.png")
    assert server.tokens() == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    "reply", [(401, {}, b"{}"), (200, {}, b"not json"), (200, {}, b"[]"), (200, {}, b'{"access": "a\\r\\nb"}')]
)
def test_a_personal_access_token_that_is_refused(server: Server, new_fetcher: NewFetcher, reply: Reply) -> None:
    server.replies["/api/token/refresh/"] = reply
    with pytest.raises(ImageError, match="did not exchange the personal access token") as caught:
        new_fetcher(studio_url=server.url, studio_token=PERSONAL).fetch("/data/upload/1/photo.png")
    assert PERSONAL not in str(caught.value)


@pytest.mark.parametrize("token", ["two words", "new\r\nline", "schlüssel"])
def test_a_token_that_is_none_is_not_repeated(server: Server, new_fetcher: NewFetcher, token: str) -> None:
    with pytest.raises(ImageError, match="copy it again") as caught:
        new_fetcher(studio_url=server.url, studio_token=token).fetch("/data/upload/1/photo.png")
    assert token not in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "complaint"), [(401, "does not take this token"), (404, "no such file"), (500, "HTTP 500")]
)
def test_label_studio_refuses(server: Server, studio: ImageFetcher, status: int, complaint: str) -> None:
    server.replies["/data/upload/1/photo.png"] = (status, {}, b"no")
    with pytest.raises(ImageError, match=complaint) as caught:
        studio.fetch("/data/upload/1/photo.png")
    assert LEGACY not in str(caught.value)
    assert LEGACY not in repr(FetchPolicy(studio_token=LEGACY))


@pytest.mark.parametrize("path", ["/photo.png", "/api/projects/1/export", "/data/../api/x", "/data/%2e%2e/api/x"])
def test_the_token_is_for_media_only(server: Server, studio: ImageFetcher, path: str) -> None:
    try:
        studio.fetch(f"{server.url}{path}")
    except ImageError as error:
        assert "HTTP 404" in str(error)
    assert server.tokens() == [None]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_token_does_not_follow_a_redirect(new_server: NewServer, new_fetcher: NewFetcher, name: str) -> None:
    server, other = new_server(), new_server()
    server.replies["/data/upload/1/moved.png"] = (302, {"Location": f"http://{name}:{other.port}/data/back.png"}, b"")
    other.replies["/data/back.png"] = (302, {"Location": f"{server.url}/data/upload/1/photo.png"}, b"")
    fetcher = new_fetcher(studio_url=server.url, studio_token=LEGACY, allowed_hosts=("127.0.0.1", "localhost"))
    assert fetcher.fetch("/data/upload/1/moved.png") == PHOTO
    assert other.tokens() == [None]
    assert server.tokens() == [f"Token {LEGACY}", None]


def test_a_redirect_within_label_studio_keeps_the_token(server: Server, studio: ImageFetcher) -> None:
    server.replies["/data/upload/1/old.png"] = (302, {"Location": "photo.png"}, b"")
    assert studio.fetch("/data/upload/1/old.png") == PHOTO
    assert server.tokens() == [f"Token {LEGACY}"] * 2


# --- hosts

PRIVATE = [
    "http://169.254.169.254/latest/meta-data/", "http://localhost/", "http://127.0.0.1:6379/",
    "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://127.1/", "http://017700000001/", "http://0/",
    "http://0.0.0.0/", "http://10.1.2.3/", "http://172.16.0.1/", "http://192.168.1.1/", "http://100.64.0.1/",
    "http://198.18.0.1/", "http://224.0.0.1/", "http://240.0.0.1/", "http://255.255.255.255/", "http://[::]/",
    "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:a9fe:a9fe]/", "http://[::127.0.0.1]/",
    "http://[fe80::1]/", "http://[fd00:ec2::254]/", "http://[fec0::1]/", "http://[ff02::1]/", "http://[2001:db8::1]/",
    "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "https://127.0.0.1/",
]  # fmt: skip


@pytest.mark.parametrize("url", PRIVATE)
def test_private_addresses_in_every_spelling(new_fetcher: NewFetcher, url: str) -> None:
    with (
        mock.patch.object(httpcore.SyncBackend, "connect_tcp", side_effect=AssertionError("connected")),
        pytest.raises(ImageError, match="no public address"),
    ):
        new_fetcher().fetch(url)


NO_ADDRESSES = [
    "http://0177.0.0.1/", "http:///a.png", "http://a b/", "http://\x00/", "http://①②⑦.0.0.1/", "http://127.0.0.1:99999/",
    "http://h:port/", "http://[::1", "http://" + "a" * 70_000, "http://" + "a" * 300 + ".example/", "http://[",
]  # fmt: skip


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_addresses_that_are_none(new_fetcher: NewFetcher, url: str) -> None:
    with pytest.raises(ImageError) as caught:
        new_fetcher().fetch(url)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert guarded_http.is_public(guarded_http.innermost(ip_address(address)))


def test_another_port_of_label_studios_host_is_private(new_server: NewServer, new_fetcher: NewFetcher) -> None:
    server, neighbour = new_server(), new_server()
    fetcher = new_fetcher(studio_url=server.url, studio_token=LEGACY)
    with pytest.raises(ImageError, match="no public address"):
        fetcher.fetch(f"{neighbour.url}/photo.png")
    assert neighbour.requests == []


def test_who_reaches_setup_does_not_reach_the_metadata_service(new_fetcher: NewFetcher) -> None:
    metadata = "http://169.254.169.254"
    with pytest.raises(ImageError, match="no public address"):
        new_fetcher().fetch(f"{metadata}/latest", studio_url=metadata)


def test_a_connection_is_not_passed_on_to_who_may_not_have_it(server: Server, new_fetcher: NewFetcher) -> None:
    fetcher = new_fetcher()
    assert fetcher.fetch(f"{server.url}/photo.png", studio_url=server.url) == PHOTO
    with pytest.raises(ImageError, match="no public address"):
        fetcher.fetch(f"{server.url}/photo.png", studio_url="http://elsewhere.example")


@pytest.mark.parametrize(
    "location", ["http://127.0.0.2:{port}/photo.png", "//127.0.0.2:{port}/photo.png", "http://0x7f000002:{port}/"]
)
def test_a_redirect_to_a_private_host_is_refused(new_server: NewServer, new_fetcher: NewFetcher, location: str) -> None:
    server, inner = new_server(), new_server()
    server.replies["/moved"] = (301, {"Location": location.format(port=inner.port)}, b"")
    with pytest.raises(ImageError, match=r"127\.0\.0\.2, which is no public address"):
        new_fetcher(allowed_hosts=("127.0.0.1",)).fetch(f"{server.url}/moved")
    assert inner.requests == []


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("file:///etc/passwd", "no http"),
        ("ftp://127.0.0.1/a", "no http"),
        ("data:,hello", "no http"),
        ("http://user:secret@127.0.0.1/photo.png", "carries a user name"),
        ("http://0177.0.0.1/", "no valid address"),
        ("http://127.0.0.1:99999/", "no http"),
        ("/moved", "more than 5 redirects"),
    ],
)
def test_redirects_to_nowhere(server: Server, new_fetcher: NewFetcher, location: str, complaint: str) -> None:
    server.replies["/moved"] = (302, {"Location": location}, b"")
    with pytest.raises(ImageError, match=complaint) as caught:
        new_fetcher(allowed_hosts=("127.0.0.1",)).fetch(f"{server.url}/moved")
    assert "secret" not in str(caught.value)
    assert len(server.requests) <= 6


def test_credentials_in_the_address_are_refused_and_not_repeated(server: Server, new_fetcher: NewFetcher) -> None:
    with pytest.raises(ImageError, match="carries a user name or a password") as caught:
        new_fetcher(allowed_hosts=("127.0.0.1",)).fetch(
            f"http://user:secret@127.0.0.1:{server.port}/photo.png?key=hidden"
        )
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert server.requests == []


def resolving_to(*answers: list[str]) -> Any:
    """getaddrinfo with these answers, one after the other."""
    found, real = iter(answers), socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        if host[0].isdigit():  # no name but the address that is connected to
            return real(host, port, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(found)]

    return mock.patch("socket.getaddrinfo", getaddrinfo)


def test_the_name_is_resolved_once_and_that_address_is_used(new_fetcher: NewFetcher) -> None:
    refused = httpcore.ConnectError("refused")
    with (
        resolving_to(["93.184.215.14"], ["127.0.0.1"]),
        mock.patch.object(httpcore.SyncBackend, "connect_tcp", side_effect=refused) as connect,
        pytest.raises(ImageError, match="cannot be reached"),
    ):
        new_fetcher().fetch("http://rebinding.example/photo.png")
    assert [call.args[0] for call in connect.call_args_list] == ["93.184.215.14"]


def test_one_private_address_among_public_ones_is_enough(new_fetcher: NewFetcher) -> None:
    with (
        resolving_to(["93.184.215.14", "127.0.0.1"]),
        mock.patch.object(httpcore.SyncBackend, "connect_tcp", side_effect=AssertionError("connected")),
        pytest.raises(ImageError, match=r"127\.0\.0\.1, which is no public address"),
    ):
        new_fetcher().fetch("http://rebinding.example/photo.png")


def test_the_host_keeps_its_name_though_the_address_is_fixed(server: Server, new_fetcher: NewFetcher) -> None:
    with resolving_to(["127.0.0.1"]):
        assert (
            new_fetcher(allowed_hosts=("Photos.example",)).fetch(f"http://photos.example:{server.port}/photo.png")
            == PHOTO
        )
    assert server.requests[0][1]["Host"] == f"photos.example:{server.port}"


def test_tls_asks_for_the_name(new_fetcher: NewFetcher) -> None:
    stream = mock.Mock(**{"start_tls.side_effect": httpcore.ConnectError("enough")})
    with (
        resolving_to(["93.184.215.14"]),
        mock.patch.object(httpcore.SyncBackend, "connect_tcp", return_value=stream),
        pytest.raises(ImageError, match="enough"),
    ):
        new_fetcher().fetch("https://photos.example/photo.png")
    assert stream.start_tls.call_args.args[1] == "photos.example"


def test_a_name_that_does_not_exist(new_fetcher: NewFetcher) -> None:
    with (
        mock.patch("socket.getaddrinfo", side_effect=socket.gaierror(-2, "Name or service not known")),
        pytest.raises(ImageError, match=r"no such host as nowhere\.example"),
    ):
        new_fetcher().fetch("http://nowhere.example/photo.png")


def test_proxies_of_the_environment_are_not_used(
    server: Server, new_fetcher: NewFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert new_fetcher(allowed_hosts=("127.0.0.1",)).fetch(f"{server.url}/photo.png") == PHOTO


# --- size and time


def test_a_body_that_declares_too_much(server: Server, new_fetcher: NewFetcher) -> None:
    server.replies["/photo.png"] = (200, {}, bytes(1001))
    fetcher = new_fetcher(allowed_hosts=("127.0.0.1",), max_bytes=1000)
    with pytest.raises(ImageError, match="larger than 1,000 bytes"):
        fetcher.fetch(f"{server.url}/photo.png")
    server.replies["/photo.png"] = (200, {}, bytes(1000))
    assert len(fetcher.fetch(f"{server.url}/photo.png")) == 1000


def test_a_body_without_end(new_fetcher: NewFetcher) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(10_000))

    with raw_server(serve) as url, pytest.raises(ImageError, match="larger than 100,000 bytes"):
        new_fetcher(allowed_hosts=("127.0.0.1",), max_bytes=100_000, timeout_s=HANG_S).fetch(url)


@pytest.mark.parametrize("part", ["nothing", "header", "body"])
def test_a_server_that_drips(new_fetcher: NewFetcher, part: str) -> None:
    """Every single read is quick; the whole is not."""

    def serve(connection: socket.socket) -> None:
        if part == "body":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        elif part == "header":
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            if part != "nothing":
                connection.sendall(b"x")
            elif connection.recv(1) == b"":
                return
            time.sleep(0.02)

    began = time.monotonic()
    with raw_server(serve) as url, pytest.raises(ImageError, match="did not arrive in time"):
        new_fetcher(allowed_hosts=("127.0.0.1",), timeout_s=0.5).fetch(url)
    assert time.monotonic() - began < HANG_S


def test_a_name_server_that_does_not_answer(new_fetcher: NewFetcher) -> None:
    answered = threading.Event()
    with (
        mock.patch("socket.getaddrinfo", side_effect=lambda *a, **k: answered.wait(HANG_S) and []),
        pytest.raises(ImageError, match="did not arrive in time"),
    ):
        new_fetcher(timeout_s=0.3).fetch("http://slow.example/photo.png")
    answered.set()


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ((200, {}, b""), "empty"),
        ((204, {}, b""), "HTTP 204"),
        ((404, {}, b"gone"), "HTTP 404"),
        ((302, {}, b""), "HTTP 302"),
        ((200, {"Content-Encoding": "br"}, b"\x0b"), "sent compressed"),
    ],
)
def test_answers_that_are_no_image(server: Server, new_fetcher: NewFetcher, reply: Reply, complaint: str) -> None:
    server.replies["/photo.png"] = reply
    with pytest.raises(ImageError, match=complaint):
        new_fetcher(allowed_hosts=("127.0.0.1",)).fetch(f"{server.url}/photo.png")


def test_a_body_that_breaks_off(new_fetcher: NewFetcher) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

    with raw_server(serve) as url, pytest.raises(ImageError, match="does not answer as a web server does"):
        new_fetcher(allowed_hosts=("127.0.0.1",)).fetch(url)


def test_nobody_listens(new_fetcher: NewFetcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ImageError, match="cannot be reached"):
        new_fetcher(allowed_hosts=("127.0.0.1",)).fetch(f"http://127.0.0.1:{port}/photo.png")


# --- local files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A served folder with photos in it, and a secret beside it."""
    root = tmp_path / "served"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "served-too").mkdir()
    (tmp_path / "served-too" / "secret.png").write_bytes(b"secret")
    for name in ("photo.png", "sub/two words.png", "sub/100%25.png", "a..b.png"):
        (root / name).write_bytes(name.encode())
    return root


@pytest.mark.parametrize(
    ("d", "name"),
    [
        ("photo.png", "photo.png"),
        ("/photo.png", "photo.png"),
        ("./sub//two%20words.png", "sub/two words.png"),
        ("sub%2Ftwo+words.png", "sub/two words.png"),
        ("sub/100%2525.png", "sub/100%25.png"),
        ("a..b.png", "a..b.png"),
        ("first&d=photo.png", "photo.png"),
    ],
)
def test_local_files_are_read_from_disk(root: Path, new_fetcher: NewFetcher, d: str, name: str) -> None:
    fetcher = new_fetcher(local_files_root=root, studio_url="http://127.0.0.1:9")
    assert fetcher.fetch(f"/data/local-files/?d={d}") == name.encode()
    assert fetcher.fetch(f"http://127.0.0.1:9/data/local-files?d={d}") == name.encode()


@pytest.mark.parametrize(
    "d",
    ["../secret.png", "..%2fsecret.png", "%2e%2e/secret.png", "%2E%2E%2Fsecret.png", "sub/../../secret.png",
     "/../secret.png", "....//....//secret.png/../../../secret.png", "..\\secret.png", "..%5csecret.png",
     "../../../../../../etc/passwd", "%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd", "../served-too/secret.png",
     "photo.png%00.png", ""],
)  # fmt: skip
def test_nothing_outside_the_root_is_read(root: Path, server: Server, new_fetcher: NewFetcher, d: str) -> None:
    fetcher = new_fetcher(local_files_root=root, studio_url=server.url, studio_token=LEGACY)
    with pytest.raises(ImageError, match="names no file below the folder that is served"):
        fetcher.fetch(f"/data/local-files/?d={d}")
    assert server.requests == []


@pytest.mark.parametrize(
    "d", ["%252e%252e%252fsecret.png", "{tmp}/secret.png", "%c0%ae%c0%ae/secret.png", "\uff0e\uff0e/secret.png"]
)
def test_spellings_that_lead_nowhere(root: Path, tmp_path: Path, new_fetcher: NewFetcher, d: str) -> None:
    with pytest.raises(ImageError, match="set FORELABEL_STUDIO_URL"):
        new_fetcher(local_files_root=root).fetch(f"/data/local-files/?d={d.format(tmp=tmp_path)}")


def test_links_may_not_lead_out(root: Path, tmp_path: Path, new_fetcher: NewFetcher) -> None:
    (root / "inside.png").symlink_to(root / "photo.png")
    (root / "outside.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "relative.png").symlink_to("../secret.png")
    (root / "loop.png").symlink_to("loop.png")
    fetcher = new_fetcher(local_files_root=root)
    assert fetcher.fetch("/data/local-files/?d=inside.png") == b"photo.png"
    for d in ("outside.png", "folder/secret.png", "relative.png"):
        with pytest.raises(ImageError, match="leads out of FORELABEL_LOCAL_FILES_ROOT"):
            fetcher.fetch(f"/data/local-files/?d={d}")
    with pytest.raises(ImageError, match="cannot be read"):
        fetcher.fetch("/data/local-files/?d=loop.png")


def test_a_root_that_is_a_link_is_fine(root: Path, tmp_path: Path, new_fetcher: NewFetcher) -> None:
    (tmp_path / "link").symlink_to(root)
    assert new_fetcher(local_files_root=tmp_path / "link").fetch("/data/local-files/?d=photo.png") == b"photo.png"


def test_what_is_no_plain_file_is_refused(root: Path, new_fetcher: NewFetcher) -> None:
    os.mkfifo(root / "pipe")
    fetcher = new_fetcher(local_files_root=root)
    for d in ("pipe", "sub", "."):
        with pytest.raises(ImageError, match="is no file"):
            fetcher.fetch(f"/data/local-files/?d={d}")


def test_local_files_have_the_same_size_limits(root: Path, new_fetcher: NewFetcher) -> None:
    (root / "large.png").write_bytes(bytes(1001))
    (root / "empty.png").touch()
    fetcher = new_fetcher(local_files_root=root, max_bytes=1000)
    with pytest.raises(ImageError, match="larger than 1,000 bytes"):
        fetcher.fetch("/data/local-files/?d=large.png")
    with pytest.raises(ImageError, match="empty"):
        fetcher.fetch("/data/local-files/?d=empty.png")


@pytest.mark.parametrize("with_root", [True, False])
def test_label_studio_has_the_other_local_files(
    root: Path, server: Server, new_fetcher: NewFetcher, with_root: bool
) -> None:
    server.replies["/data/local-files/"] = (200, {}, PHOTO)
    fetcher = new_fetcher(local_files_root=root if with_root else None, studio_url=server.url, studio_token=LEGACY)
    assert fetcher.fetch("/data/local-files/?d=elsewhere/a%20b.png") == PHOTO
    assert fetcher.fetch("/data/local-files/?d=photo.png/below-a-file.png") == PHOTO
    assert server.requests[0][0] == "/data/local-files/?d=elsewhere/a%20b.png"
    assert server.tokens() == [f"Token {LEGACY}"] * 2


# --- many at once


def test_many_in_order_and_one_bad_among_them(server: Server, studio: ImageFetcher) -> None:
    values = [f"data:,{n}" for n in range(40)]
    values[7:9] = ["/data/upload/1/photo.png", "/data/upload/1/missing.png"]
    got = studio.fetch_many(values, task_ids=list(range(40)))
    assert isinstance(got.pop(8), ImageError)
    assert got == [b"0", b"1", b"2", b"3", b"4", b"5", b"6", PHOTO, *(str(n).encode() for n in range(9, 40))]
    assert studio.fetch_many([]) == []


@pytest.mark.parametrize("hanging", [1, 20])
def test_many_end_at_the_deadline(new_fetcher: NewFetcher, hanging: int) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        stuck = f"http://127.0.0.1:{silent.getsockname()[1]}/photo.png"
        fetcher = new_fetcher(allowed_hosts=("127.0.0.1",), timeout_s=10 * HANG_S)
        began = time.monotonic()
        got = fetcher.fetch_many(["data:,first", *[stuck] * hanging, "data:,last"], deadline=began + 1)
        assert time.monotonic() - began < HANG_S
    assert got[0] == b"first"
    assert all(isinstance(result, ImageError) and "in time" in str(result) for result in got[1 : hanging + 1])
    assert got[-1] == b"last" or isinstance(got[-1], ImageError)


def test_a_deadline_that_has_passed(server: Server, new_fetcher: NewFetcher) -> None:
    fetcher = new_fetcher(allowed_hosts=("127.0.0.1",))
    got = fetcher.fetch_many([f"{server.url}/photo.png"] * 3, deadline=time.monotonic() - 1)
    assert all(isinstance(result, ImageError) for result in got)
    assert server.requests == []


def test_several_requests_at_once(server: Server, studio: ImageFetcher) -> None:
    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(studio.fetch_many, ["/data/upload/1/photo.png"] * 10) for _ in range(4)]
        assert all(job.result() == [PHOTO] * 10 for job in jobs)
    assert len(server.requests) == 40


# --- the policy, and anything at all


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://host", "http://", "http://user:secret@host", "\x00"])
def test_a_studio_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="FORELABEL_STUDIO_URL must be") as caught:
        ImageFetcher(FetchPolicy(studio_url=url))
    assert "secret" not in str(caught.value)


def test_the_whole_disk_is_no_root() -> None:
    with pytest.raises(ValueError, match="FORELABEL_LOCAL_FILES_ROOT"):
        ImageFetcher(FetchPolicy(local_files_root=Path("/usr/..")))


ANY_VALUE = st.builds(
    "{}{}".format,
    st.sampled_from(
        ["", "http://", "https://h.example/", "/data/upload/", "/data/local-files/?d=", "s3://", "data:", "//"]
    ),
    st.text(max_size=40),
)


@pytest.fixture(scope="module")
def fetcher_of_anything() -> Iterator[ImageFetcher]:
    root = Path(__file__).parent
    fetcher = ImageFetcher(FetchPolicy(studio_url="http://studio.example", studio_token=LEGACY, local_files_root=root))
    yield fetcher
    fetcher.close()


@given(ANY_VALUE, st.none() | st.integers())
@example("data:\n0", None)
def test_any_value_is_bytes_or_an_image_error(
    fetcher_of_anything: ImageFetcher, value: str, task_id: int | None
) -> None:
    with mock.patch("socket.getaddrinfo", side_effect=socket.gaierror(-2, "unknown")):
        try:
            assert fetcher_of_anything.fetch(value, task_id=task_id)
        except ImageError as error:
            assert LEGACY not in str(error)
            assert "\n" not in str(error)
