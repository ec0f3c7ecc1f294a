"""HTTP requests that may only go where they are allowed to: address, size and time are limited.

A host name is resolved once and the connection goes to the address that was checked, so a second answer of the DNS
changes nothing. Redirects are left to the caller, who checks again. Proxies from the environment, cookies and netrc are
not used.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from ssl import SSLContext
from typing import Any

import httpcore
import httpx

WORKERS = 8
"""Files fetched at once for one request: enough to hide a slow host, few enough not to be one that floods it."""

IDLE_CONNECTION_S = 2.0
"""Kept between the images of one batch; shorter than any common server keeps it."""

Address = IPv4Address | IPv6Address

_NAT64 = IPv6Network("64:ff9b::/96")
time_limit: ContextVar[float] = ContextVar("limit")
"""time.monotonic() at which the fetch that runs in this thread is over."""


class ImageError(Exception):
    """The image cannot be had. The message says what arrived and what to do, and never holds a token."""


@dataclass(frozen=True)
class Answer:
    status: int
    location: str
    body: bytes


class GuardedHttp:
    """One request to one place: address, size and time are limited, redirects are left to the caller."""

    def __init__(self, allowed_hosts: Iterable[str], max_bytes: int) -> None:
        self._allowed = {plain_host(host) for host in allowed_hosts}
        self._max_bytes = max_bytes
        self._resolver = ThreadPoolExecutor(WORKERS, thread_name_prefix="forelabel-dns")
        ssl_context = httpx.create_ssl_context()
        # One pool per degree of trust: a connection that one may have is never handed to another that may not.
        self._public = self._pool(is_public, ssl_context)
        self._trusted = self._pool(lambda address: not address.is_link_local, ssl_context)
        self._anywhere = self._pool(lambda address: True, ssl_context)

    def request(
        self, method: str, url: httpx.URL, trusted: bool, headers: dict[str, str], content: bytes | None = None
    ) -> Answer:
        """The body is read only if the status is 200.

        Args:
            trusted: the address may be private, as Label Studio's own may be.

        Raises:
            ImageError: the URL may not be fetched, or the fetch failed.
            httpcore.TimeoutException: the time is up.
        """
        shown = brief(str(url))
        if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
            raise ImageError(f"{shown} is no http(s) address")
        if url.userinfo:
            raise ImageError(f"{shown} carries a user name or a password; remove them from the task")
        own = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": "forelabel"}
        try:
            with self._pool_for(url, trusted).stream(
                method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=list((own | headers).items()),
                content=content,
                extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), remaining())},
            ) as response:
                return self._received(response, shown)
        except (httpcore.NetworkError, OSError) as error:
            raise ImageError(f"{shown} cannot be reached: {error}") from None
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            # Without its text, which may repeat a header.
            raise ImageError(f"{shown} does not answer as a web server does ({type(error).__name__})") from None

    def close(self) -> None:
        for pool in (self._public, self._trusted, self._anywhere):
            pool.close()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    def _pool(self, permitted: Callable[[Address], bool], ssl_context: SSLContext) -> httpcore.ConnectionPool:
        return httpcore.ConnectionPool(
            ssl_context=ssl_context,
            max_connections=None,  # the callers' threads are the bound
            max_keepalive_connections=2 * WORKERS,
            keepalive_expiry=IDLE_CONNECTION_S,
            network_backend=_CheckedNetwork(permitted, self._resolver),
        )

    def _pool_for(self, url: httpx.URL, trusted: bool) -> httpcore.ConnectionPool:
        if plain_host(url.host) in self._allowed:
            return self._anywhere
        return self._trusted if trusted else self._public

    def _received(self, response: httpcore.Response, shown: str) -> Answer:
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status != 200:
            return Answer(response.status, headers.get(b"location", "") if 300 <= response.status < 400 else "", b"")
        encoding = headers.get(b"content-encoding", "").lower()
        if encoding not in ("", "identity"):
            raise ImageError(f"{shown} is sent compressed ({encoding[:20]}), although that was not asked for")
        declared = headers.get(b"content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise ImageError(too_large(shown, self._max_bytes))
        body = bytearray()
        chunks: Iterable[bytes] = response.iter_stream()
        for chunk in chunks:
            body += chunk
            if len(body) > self._max_bytes:
                raise ImageError(too_large(shown, self._max_bytes))
        return Answer(200, "", bytes(body))


class _CheckedNetwork(httpcore.NetworkBackend):
    """Resolves a name once, checks every address, and connects to one of those very addresses."""

    def __init__(self, permitted: Callable[[Address], bool], resolver: ThreadPoolExecutor) -> None:
        self._permitted, self._resolver = permitted, resolver
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._addresses(host, port)
        for address in addresses:
            if not self._permitted(innermost(address)):
                raise ImageError(
                    f"{host} is at {address}, which is no public address; images may come from there only if "
                    "FORELABEL_STUDIO_URL or FORELABEL_ALLOWED_HOSTS names it"
                )
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for number, address in enumerate(addresses):
            share = remaining() / (len(addresses) - number)
            try:
                return _LimitedStream(self._sockets.connect_tcp(str(address), port, share, None, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def _addresses(self, host: str, port: int) -> list[Address]:
        # In a thread, because resolving cannot be given a time limit.
        future = self._resolver.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = future.result(remaining())
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} was not resolved in time") from None
        except socket.gaierror:
            raise httpcore.ConnectError(f"no such host as {host}") from None
        return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))


class _LimitedStream(httpcore.NetworkStream):
    """A connection on which a fetch ends at its limit, however slowly the other side sends."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, remaining())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, remaining())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _LimitedStream(self._stream.start_tls(ssl_context, server_hostname, remaining()))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def remaining() -> float:
    """Seconds left for the fetch of this thread; always more than none."""
    left = time_limit.get() - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time limit is reached")
    return left


def innermost(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def is_public(address: Address) -> bool:
    """Not loopback, private, link-local, shared (CGNAT), multicast, reserved or unspecified."""
    special = address.is_multicast or address.is_reserved or getattr(address, "is_site_local", False)
    return address.is_global and not special


def plain_host(host: str) -> str:
    return host.strip().strip("[]").rstrip(".").lower()


def too_large(shown: str, max_bytes: int) -> str:
    return f"{shown} is larger than {max_bytes:,} bytes; FORELABEL_MAX_IMAGE_BYTES allows more"


def brief(value: str) -> str:
    """A value as a message may show it: short, on one line, without password and signature."""
    value = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "?", value.strip())
    if value[:5].lower() == "data:":
        return f"{value.partition(',')[0][:60]},…"
    text = re.sub(r"//[^/?#]*@", "//", value)
    if not text.startswith("/data/"):
        text = re.split(r"[?#]", text, maxsplit=1)[0]
    return text if len(text) <= 200 else f"{text[:200]}…"
