"""One frozen settings object. Values come from the environment, prefix FORELABEL_; flags of the same name win."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Every knob of the service. `forelabel doctor` prints the effective values, secrets masked."""

    model_config = SettingsConfigDict(
        env_prefix="FORELABEL_", env_ignore_empty=True, frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    model: str = "pocket"
    """The bundled encoder, so that a laptop without internet works; a hub name or a folder for real projects."""

    device: str = "auto"
    """CUDA when torch sees it, else the CPU."""

    store: str = ""
    """Where embeddings are kept: redis://host:6379/0, sqlite:///path/file.db, or empty for SQLite in data_dir."""

    memory: str = ""
    """Where confirmed labels are kept: as for the store; empty for the store's Redis, else SQLite in data_dir."""

    store_max_bytes: Annotated[int, Field(ge=1_000_000)] = 4_000_000_000
    """About 2.5 million 512-dimensional embeddings with their keys; the least recently used go first."""

    captions: str = "default"
    """"default" is the bundled sentences, "none" turns retrieval off, else folders of `forelabel index build`."""

    decoder: str = "auto"
    """What names images without a label set: "auto" is the bundled decoder for the pocket encoder, and none for others;
    "none", or a folder of `forelabel decoder train` or `import`."""

    names: Annotated[int, Field(ge=1, le=10)] = 5
    """The most names suggested for an open question."""

    name_threshold: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Names below this score are not suggested, but for the best one: a wrong chip costs the annotator a click."""

    data_dir: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("forelabel")))
    """The embedding store and the default caption index live here."""

    studio_url: str = ""
    """Label Studio's own address as this service reaches it. The only private address that images may come from."""

    studio_token: SecretStr = SecretStr("")
    """For uploaded files; sent to studio_url only. When empty, the one that Label Studio sends with /setup is used."""

    basic_auth: SecretStr = SecretStr("")
    """"user:password" that /predict, /setup and /webhook then ask for; empty means open, as Label Studio expects."""

    local_files_root: Path | None = None
    """The folder Label Studio serves as local files; None reads nothing from this machine's disk."""

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated hosts that images may be fetched from although their address is private or loopback."""

    max_image_bytes: Annotated[int, Field(ge=1)] = 64_000_000
    """A 50-megapixel JPEG of high quality is about 30 MB."""

    max_image_pixels: Annotated[int, Field(ge=1)] = 200_000_000
    """Covers 200-megapixel phone cameras; a 30,000 x 30,000 bomb is refused from its header alone."""

    fetch_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """For one image, redirects included."""

    predict_deadline_s: Annotated[float, Field(gt=0)] = 80.0
    """Label Studio gives up on /predict after 100 s; what is done is answered, the rest is found cached later."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per forward pass: on two cores larger batches gain nothing and cost memory."""

    host: str = "127.0.0.1"
    """Only this machine, until somebody decides otherwise."""

    port: Annotated[int, Field(ge=0, le=65535)] = 9090
    """The port that Label Studio's documentation uses for ML backends."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Each worker holds its own copy of the model; torch already uses every core."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("basic_auth")
    @classmethod
    def _has_colon(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and ":" not in value.get_secret_value():
            raise ValueError('FORELABEL_BASIC_AUTH must read "user:password"')
        return value

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite:///{self.data_dir / 'embeddings.db'}"

    @property
    def memory_url(self) -> str:
        in_redis = self.store.startswith(("redis://", "rediss://", "unix://"))
        return self.memory or (self.store if in_redis else f"sqlite:///{self.data_dir / 'confirmations.db'}")
