"""The parts of retrieval and the decoder put together by the settings: the service and the commands suggest with it."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.naming import Namer, decoder_folder
from backend.settings import Settings
from retrieval.caption_sources import build_index, read_captions
from retrieval.captions import CaptionIndex, merge
from retrieval.embedder import Embedder
from retrieval.encoder import DualEncoder, load_encoder
from retrieval.prompts import embed_labels
from retrieval.store import ResilientStore, open_store
from retrieval.towers import POCKET
from retrieval.xmore import XMoRe, XMoRePrediction

logger = logging.getLogger(__name__)

LABEL_SETS_KEPT = 32
"""Label sets whose embeddings stay in memory: 10,000 labels of 512 dimensions are 20 MB."""

DEFAULT_CAPTIONS = POCKET / "captions.txt"

Progress = Callable[[int], None]


class Engine:
    """Encoder, store, captions, one X-MoRe per label set, and what names images. Safe to call from several threads."""

    def __init__(self, settings: Settings, progress: Progress = lambda n: None) -> None:
        """Loads the model, so it takes seconds; the default caption index is built at first use and then kept.

        Raises:
            RetrievalError: the model, the store's address or a caption index cannot be used.
        """
        self.store = ResilientStore(lambda: open_store(settings.store_url, settings.store_max_bytes))
        self.encoder = load_encoder(settings.model, settings.device, settings.max_image_pixels)
        self.embedder = Embedder(self.encoder, self.store, settings.batch_size)
        self.captions = load_captions(settings, self.encoder, progress)
        self.namer = Namer(decoder_folder(settings.decoder, settings.model), self.encoder)
        self._lock = threading.Lock()
        self._xmore: OrderedDict[tuple[tuple[str, str | None], ...], XMoRe] = OrderedDict()

    def classify(
        self, embeddings: NDArray[np.float32], labels: Sequence[str], hints: Sequence[str | None] | None = None
    ) -> XMoRePrediction:
        """Unit image embeddings [b, d] -> X-MoRe over c labels."""
        return self._for_labels(labels, hints).predict(embeddings)

    def prepare(self, labels: Sequence[str], hints: Sequence[str | None] | None = None) -> None:
        """Embed a label set now, so that the first image need not wait for it."""
        self._for_labels(labels, hints)

    def label_embeddings(self, labels: Sequence[str], hints: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Unit text embeddings [c, d] of a label set."""
        return self._for_labels(labels, hints).label_embeddings

    def _for_labels(self, labels: Sequence[str], hints: Sequence[str | None] | None) -> XMoRe:
        key = tuple(zip(labels, hints or [None] * len(labels), strict=True))
        with self._lock:  # held while embedding: a second request for the same labels waits rather than doing it again
            if key in self._xmore:
                self._xmore.move_to_end(key)
            else:
                embedded = embed_labels(self.encoder, labels, hints)
                self._xmore[key] = XMoRe(embedded, self.captions, self.encoder.logit_scale)
                if len(self._xmore) > LABEL_SETS_KEPT:
                    self._xmore.popitem(last=False)
            return self._xmore[key]

    def close(self) -> None:
        self.encoder.close()
        self.store.close()


def load_captions(settings: Settings, encoder: DualEncoder, progress: Progress = lambda n: None) -> CaptionIndex | None:
    """The indexes that FORELABEL_CAPTIONS names: "none", "default", or folders separated by commas."""
    if settings.captions == "none":
        return None
    parts = [part.strip() for part in settings.captions.split(",") if part.strip()]
    opened = [
        default_captions(settings.data_dir, encoder, progress)
        if part == "default"
        else CaptionIndex.open(part, encoder.fingerprint)
        for part in parts
    ]
    return merge(opened) if opened else None


def default_captions(data_dir: Path, encoder: DualEncoder, progress: Progress = lambda n: None) -> CaptionIndex:
    """The bundled sentences, embedded with this encoder: built at first use, kept in the data directory."""
    folder = data_dir / "captions" / f"default-{encoder.fingerprint}"
    if (folder / "index.json").exists():
        return CaptionIndex.open(folder, encoder.fingerprint)
    logger.info("building the default caption index for %s, once", encoder.name)
    index = build_index(read_captions(DEFAULT_CAPTIONS), encoder, "default", progress)
    try:
        index.save(folder)
    except OSError as error:
        logger.warning(
            "the default caption index cannot be kept in %s (%s); it is built again next time", folder, error
        )
    return index
