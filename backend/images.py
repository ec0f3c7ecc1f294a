"""A task's value to image bytes, guarded: whoever writes tasks may not reach all that this service can.

    data:…                                decoded
    http(s)://…                           fetched; public addresses, Label Studio and the allowed hosts only
    /data/upload/…  /storage-data/…       from Label Studio, with the token
    /data/local-files/?d=…                from `local_files_root` if it is there, else from Label Studio
    s3://…  gs://…  azure-blob://…        from the address that Label Studio signs for the task

Everything else is refused. A host name is resolved once and the connection goes to the address that was checked, so a
second answer of the DNS changes nothing. Every redirect is checked again. The token goes to Label Studio's scheme, host
and port only, for its media paths only, and never again once a redirect has left there. Proxies from the environment,
cookies and netrc are not used.
"""

from __future__ import annotations

import base64
import json
import os
import posixpath
import re
import stat
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlsplit

import httpcore
import httpx

from backend.guarded_http import (
    WORKERS,
    GuardedHttp,
    ImageError,
    brief,
    plain_host,
    remaining,
    time_limit,
    too_large,
)
from backend.settings import Settings

MAX_REDIRECTS = 5
"""Object stores and content networks use one or two."""

BEARER_LIFETIME_S = 240.0
"""Label Studio's access tokens live for 300 s."""

DEADLINE_GRACE_S = 0.2
"""Time for a fetch that has just run out of its own to say so."""

_CLOUD_SCHEMES = ("s3", "gs", "azure-blob")
_MEDIA_PATHS = ("/data/", "/storage-data/", "/tasks/")


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched, and how much of it. Settings says why each default is what it is."""

    studio_url: str = ""
    studio_token: str = field(default="", repr=False)
    local_files_root: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_bytes: int = 64_000_000
    timeout_s: float = 10.0

    @classmethod
    def of(cls, settings: Settings) -> FetchPolicy:
        return cls(
            studio_url=settings.studio_url,
            studio_token=settings.studio_token.get_secret_value(),
            local_files_root=settings.local_files_root,
            allowed_hosts=settings.allowed_hosts,
            max_bytes=settings.max_image_bytes,
            timeout_s=settings.fetch_timeout_s,
        )


@dataclass(frozen=True)
class _Studio:
    """Label Studio as one fetch sees it."""

    base: httpx.URL | None
    token: str = field(repr=False)

    def owns(self, url: httpx.URL) -> bool:
        return self.base is not None and _origin(url) == _origin(self.base)

    def serves_media(self, url: httpx.URL) -> bool:
        """Whether the token belongs on a request for this URL."""
        return self.owns(url) and ".." not in url.path.split("/") and self.own_path(url.path).startswith(_MEDIA_PATHS)

    def own_path(self, path: str) -> str:
        """Without the prefix of a Label Studio that does not live at the root of its host."""
        prefix = self.base.path.rstrip("/") if self.base else ""
        return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path

    def at(self, path: str) -> httpx.URL:
        if self.base is None:
            raise ImageError(f"{brief(path)} is on Label Studio, whose address is not known: set FORELABEL_STUDIO_URL")
        return httpx.URL(f"{str(self.base).rstrip('/')}{path}")


class ImageFetcher:
    """Fetches images under one policy. Safe to call from several threads.

    Raises:
        ValueError: the policy itself cannot be followed.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._configured = _base_url(policy.studio_url)
        if policy.studio_url and self._configured is None:
            raise ValueError(f"FORELABEL_STUDIO_URL must be http(s)://host[:port], not {brief(policy.studio_url)!r}")
        root = policy.local_files_root
        if root and root.resolve() == Path(root.resolve().anchor):
            raise ValueError("FORELABEL_LOCAL_FILES_ROOT must be a folder, not the whole disk")
        self._http = GuardedHttp(policy.allowed_hosts, policy.max_bytes)
        self._tokens = _StudioTokens(self._http)

    def fetch(
        self,
        value: str,
        *,
        studio_url: str = "",
        studio_token: str | None = None,
        task_id: int | None = None,
        deadline: float | None = None,
    ) -> bytes:
        """The bytes of the image that `value` names: at least one, at most `max_bytes`, within `timeout_s`.

        Args:
            value: what the task's data holds.
            studio_url: Label Studio's address as /setup told it; used only where the policy has none.
            studio_token: the token that /setup brought. The policy's own token goes before it, but only to the
                policy's own address: whoever can reach /setup must not be able to ask for it.
            task_id: needed for s3:, gs: and azure-blob: values.
            deadline: time.monotonic() at which the answer is needed, if that is sooner.

        Raises:
            ImageError: always this, whatever went wrong.
        """
        limit = time.monotonic() + self._policy.timeout_s
        resetter = time_limit.set(limit if deadline is None else min(limit, deadline))
        try:
            remaining()
            return self._fetch(value.strip(), self._studio(studio_url, studio_token), task_id)
        except httpcore.TimeoutException:
            raise ImageError(
                f"{brief(value)} did not arrive in time; FORELABEL_FETCH_TIMEOUT_S may allow more"
            ) from None
        except (httpx.InvalidURL, ValueError) as error:
            raise ImageError(f"{brief(value)} is no valid address ({type(error).__name__})") from None
        finally:
            time_limit.reset(resetter)

    def fetch_many(
        self,
        values: Sequence[str],
        *,
        task_ids: Sequence[int | None] | None = None,
        studio_url: str = "",
        studio_token: str | None = None,
        deadline: float | None = None,
    ) -> list[bytes | ImageError]:
        """As `fetch` for each value, several at once. An error, also one of being too late, stands for its image."""

        def one(value: str, task_id: int | None) -> bytes | ImageError:
            try:
                return self.fetch(
                    value, studio_url=studio_url, studio_token=studio_token, task_id=task_id, deadline=deadline
                )
            except ImageError as error:
                return error

        if not values:
            return []
        workers = ThreadPoolExecutor(min(WORKERS, len(values)), thread_name_prefix="forelabel-fetch")
        try:
            ids = task_ids if task_ids is not None else [None] * len(values)
            futures = [workers.submit(one, value, task_id) for value, task_id in zip(values, ids, strict=True)]
            wait(futures, None if deadline is None else max(0.0, deadline - time.monotonic()) + DEADLINE_GRACE_S)
            return [
                future.result() if future.done() else ImageError(f"{brief(value)} was not fetched in time; ask again")
                for value, future in zip(values, futures, strict=True)
            ]
        finally:
            workers.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        self._http.close()

    def _studio(self, url: str, token: str | None) -> _Studio:
        if self._configured is not None:
            chosen = _Studio(self._configured, (self._policy.studio_token or token or "").strip())
        else:
            chosen = _Studio(_base_url(url), (token or "").strip())
        if not re.fullmatch(r"[\x21-\x7e]*", chosen.token):
            raise ImageError("Label Studio's token holds a space or a character that no token has; copy it again")
        return chosen

    def _fetch(self, value: str, studio: _Studio, task_id: int | None) -> bytes:
        scheme = (re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", value) or [":"])[0][:-1].lower()
        if scheme == "data":
            return _decode_data_uri(value, self._policy.max_bytes)
        if scheme in _CLOUD_SCHEMES:
            if task_id is None:
                raise ImageError(f"{brief(value)} needs a task id, since Label Studio signs such files for a task")
            encoded = quote(base64.urlsafe_b64encode(value.encode()).decode())
            return self._download(studio.at(f"/tasks/{task_id}/presign/?fileuri={encoded}"), studio)
        url = httpx.URL(value) if scheme in ("http", "https") else None
        path = value if url is None else url.raw_path.decode("ascii") if studio.owns(url) else ""
        path = studio.own_path(path)
        if url is None and (scheme or not path.startswith(_MEDIA_PATHS)):
            raise ImageError(
                f"{brief(value)} is no address that is fetched. Use http(s)://, data:, s3://, gs://, azure-blob://, "
                "or a file that Label Studio serves (/data/upload/…, /data/local-files/?d=…)"
            )
        if path.startswith(("/data/local-files/", "/data/local-files?")):
            local = _read_local(path, self._policy.local_files_root, self._policy.max_bytes)
            if local is not None:
                return local
        return self._download(url or studio.at(path), studio)

    def _download(self, url: httpx.URL, studio: _Studio) -> bytes:
        with_token = studio.serves_media(url)
        if with_token and not studio.token:
            raise ImageError(f"{brief(str(url))} needs a token: set FORELABEL_STUDIO_URL and FORELABEL_STUDIO_TOKEN")
        for _ in range(MAX_REDIRECTS + 1):
            with_token = with_token and studio.serves_media(url)
            headers = {"Authorization": self._tokens.authorization(studio)} if with_token else {}
            answer = self._http.request("GET", url, studio.owns(url), headers)
            if answer.status == 200:
                return _sized(answer.body, self._policy.max_bytes, str(url))
            if not answer.location:
                advice = self._tokens.advice(answer.status) if with_token else ""
                raise ImageError(f"{brief(str(url))} answered HTTP {answer.status}{advice}")
            url = url.join(answer.location)
        raise ImageError(f"{brief(str(url))} is the end of more than {MAX_REDIRECTS} redirects")


class _StudioTokens:
    """What to say in the Authorization header. Label Studio's personal access tokens are exchanged first."""

    def __init__(self, http: GuardedHttp) -> None:
        self._http = http
        self._bearers: dict[tuple[str, str], tuple[str, float]] = {}
        self._lock = threading.Lock()

    def authorization(self, studio: _Studio) -> str:
        if studio.token.count(".") != 2:  # a legacy token: forty hexadecimal digits, not a JWT
            return f"Token {studio.token}"
        key = (str(studio.base), studio.token)
        if not self._lock.acquire(timeout=remaining()):
            raise httpcore.PoolTimeout
        try:
            now = time.monotonic()
            self._bearers = {known: bearer for known, bearer in self._bearers.items() if now < bearer[1]}
            if key not in self._bearers:
                self._bearers[key] = (self._exchanged(studio), now + BEARER_LIFETIME_S)
            return f"Bearer {self._bearers[key][0]}"
        finally:
            self._lock.release()

    def advice(self, status: int) -> str:
        """What may be wrong when Label Studio refuses; a token that it does not know is not kept."""
        if status == 401:
            self._bearers = {}
            return (
                ": Label Studio does not take this token (legacy tokens must be enabled in its organisation's settings)"
            )
        if status in (403, 404):
            return ": Label Studio has no such file, or the token's user may not see it"
        return ""

    def _exchanged(self, studio: _Studio) -> str:
        content = json.dumps({"refresh": studio.token}).encode()
        headers = {"Content-Type": "application/json"}
        answer = self._http.request("POST", studio.at("/api/token/refresh/"), True, headers, content)
        try:
            access = json.loads(answer.body)["access"]
        except (ValueError, KeyError, TypeError):
            access = None
        if not isinstance(access, str) or not re.fullmatch(r"[\x21-\x7e]+", access):
            raise ImageError(
                f"Label Studio did not exchange the personal access token (HTTP {answer.status}); it may have expired: "
                "make a new one under Account & Settings"
            )
        return access


def _read_local(path: str, root: Path | None, max_bytes: int) -> bytes | None:
    """The file on this machine's disk; None where no root is set or it has no such file."""
    name = parse_qs(urlsplit(path).query, keep_blank_values=True).get("d", [""])[
        -1
    ]  # decoded once, as Label Studio does
    if not name or ".." in re.split(r"[/\\]", name) or "\0" in name:
        raise ImageError(f"{brief(path)} names no file below the folder that is served")
    if root is None:
        return None
    root = root.resolve()
    file = Path(os.path.realpath(root / posixpath.normpath(name).lstrip("/")))
    if not file.is_relative_to(root):
        raise ImageError(f"{brief(path)} leads out of FORELABEL_LOCAL_FILES_ROOT; copy the file there, do not link it")
    try:
        # Neither follow a link that was made since, nor wait for somebody to write into a pipe.
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ImageError(f"{brief(path)} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ImageError(f"{brief(path)} is no file")
    with os.fdopen(handle, "rb") as opened:
        return _sized(opened.read(max_bytes + 1), max_bytes, path)


def _base_url(text: str) -> httpx.URL | None:
    """Label Studio's address, or None if it is none."""
    try:
        url = httpx.URL(text.strip())
    except (httpx.InvalidURL, ValueError):
        return None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        return None
    return url


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, plain_host(url.host), url.port or {"http": 80, "https": 443}.get(url.scheme)


def _decode_data_uri(value: str, max_bytes: int) -> bytes:
    header, comma, payload = value.partition(",")
    if not comma:
        raise ImageError(f"{brief(value)} is a data URI without a comma, so without data")
    if len(payload) > 6 * max_bytes:  # base64 of which every character is percent-encoded, and some white space
        raise ImageError(too_large(brief(value), max_bytes))
    data = unquote_to_bytes(payload)
    if header.rstrip().lower().endswith(";base64"):
        try:
            data = base64.b64decode(data.translate(None, b" \t\r\n"), validate=True)
        except ValueError as error:
            raise ImageError(f"{brief(value)} is a data URI with broken base64 ({error})") from None
    return _sized(data, max_bytes, value)


def _sized(data: bytes, max_bytes: int, source: str) -> bytes:
    if not data:
        raise ImageError(f"{brief(source)} is empty (0 bytes)")
    if len(data) > max_bytes:
        raise ImageError(too_large(brief(source), max_bytes))
    return data
