"""What `forelabel doctor` does: tries every part that the settings name, and says what it found."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx

from backend.engine import load_captions
from backend.memory import open_memory
from backend.naming import Namer, decoder_folder
from backend.settings import Settings
from retrieval.devices import choose_device
from retrieval.encoder import DualEncoder, load_encoder
from retrieval.store import open_store

PACKAGES = (
    "forelabel",
    "torch",
    "transformers",
    "faiss-cpu",
    "redis",
    "label-studio-ml",
    "label-studio-sdk",
    "pillow",
    "numpy",
)


@dataclass(frozen=True)
class Finding:
    part: str
    ok: bool
    detail: str


def effective_settings(settings: Settings) -> dict[str, Any]:
    """Settings as they are in force; secrets as stars."""
    shown: dict[str, Any] = settings.model_dump(mode="json")
    return shown | {
        "store": _without_password(settings.store_url),
        "memory": _without_password(settings.memory_url),
    }


def packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def examine(settings: Settings) -> Iterator[Finding]:
    """Try each part; a part that fails does not keep the others from being tried."""
    yield _attempt("device", lambda: choose_device(settings.device).reason)
    encoders: list[DualEncoder] = []

    def encoder() -> str:
        loaded = load_encoder(settings.model, settings.device, settings.max_image_pixels)
        encoders.append(loaded)
        return f"{settings.model}: {loaded.family}, {loaded.dim} dimensions, fingerprint {loaded.fingerprint}"

    yield _attempt("encoder", encoder)
    if encoders:
        yield _attempt("captions", lambda: _captions(settings, encoders[0]))
        if folder := decoder_folder(settings.decoder, settings.model):
            yield _attempt("decoder", lambda: _decoder(folder, encoders[0]))
        encoders[0].close()
    yield _attempt("store", lambda: _store(settings))
    yield _attempt("confirmed labels", lambda: _memory(settings))
    if settings.studio_url:
        yield _attempt("Label Studio", lambda: _studio(settings))


def _decoder(folder: Path, encoder: DualEncoder) -> str:
    decoder = Namer(folder, encoder).decoder()
    return f"{folder}: {len(decoder.vocabulary.nouns):,} nouns"


def _attempt(part: str, work: Callable[[], str]) -> Finding:
    try:
        return Finding(part, True, work())
    except Exception as error:  # a doctor reports whatever it meets
        return Finding(part, False, f"{type(error).__name__}: {error}")


def _captions(settings: Settings, encoder: DualEncoder) -> str:
    captions = load_captions(settings, encoder)
    return "none: plain zero-shot" if captions is None else f"{len(captions):,} captions ({settings.captions})"


def _store(settings: Settings) -> str:
    store = open_store(settings.store_url, settings.store_max_bytes)
    try:
        stats = store.stats()
        return f"{stats.kind}: {stats.entries:,} embeddings, {stats.bytes / 1e6:.1f} of {stats.max_bytes / 1e6:.0f} MB"
    finally:
        store.close()


def _memory(settings: Settings) -> str:
    memory = open_memory(settings.memory_url)
    try:
        return memory.durability
    finally:
        memory.close()


def _studio(settings: Settings) -> str:
    token = settings.studio_token.get_secret_value()
    answer = httpx.get(f"{settings.studio_url.rstrip('/')}/api/version", timeout=5, trust_env=False).raise_for_status()
    release = answer.json().get("release", "of unknown version")
    return f"Label Studio {release} at {settings.studio_url}; " + ("a token is set" if token else "no token is set")


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}***@{rest.rpartition('@')[2]}" if "@" in rest else url
