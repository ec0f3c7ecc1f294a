"""CaptionIndex: the external texts that X-MoRe retrieves from, over faiss. Knows nothing about labels.

On disk an index is a folder:
    index.json      format version, number of captions, dimension, the encoder's name and fingerprint, the source
    vectors.faiss   the embeddings, as faiss writes them (inner product = cosine, as rows have unit norm)
    texts.bin       all captions, UTF-8, one after the other
    offsets.npy     uint64 [n + 1]: caption i is texts.bin[offsets[i]:offsets[i + 1]]
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.errors import CaptionIndexError

FORMAT = 1

SIMILARITIES_AT_ONCE = 1 << 24
"""Cosines in memory during a search: 64 MB."""


class CaptionIndex:
    """Captions and their unit embeddings. Build with `from_embeddings`, or `open` what `save` wrote."""

    def __init__(
        self, index: Any, texts: NDArray[np.uint8], offsets: NDArray[np.uint64], about: dict[str, Any]
    ) -> None:
        self._index, self._texts, self._offsets = index, texts, offsets
        # The vectors where faiss keeps them. A matrix product and torch's topk search them, exactly too, in a sixth of
        # the time that faiss's flat index takes on a CPU (docs/lab-notes.md).
        held = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d) if index.ntotal else np.zeros(0, np.float32)
        self._vectors = torch.from_numpy(held).view(-1, index.d)
        self.about = about
        """What index.json holds; `fingerprint` is the encoder's, "" when unknown."""

    @classmethod
    def from_embeddings(
        cls, embeddings: NDArray[np.floating[Any]], texts: Sequence[str], about: dict[str, Any] | None = None
    ) -> CaptionIndex:
        """Index unit embeddings [n, d] of n texts.

        Raises:
            CaptionIndexError: the numbers of rows and texts differ, or the embeddings are not a finite [n, d] array.
        """
        vectors = np.ascontiguousarray(embeddings, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise CaptionIndexError(
                f"got embeddings of shape {vectors.shape} for {len(texts)} captions; need [n, d] and n"
            )
        if not np.isfinite(vectors).all():
            raise CaptionIndexError("the caption embeddings hold NaN or infinity; embed the captions again")
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.uint64)
        np.cumsum([len(part) for part in encoded], out=offsets[1:])
        return cls(index, np.frombuffer(b"".join(encoded), np.uint8), offsets, {"fingerprint": "", **(about or {})})

    @classmethod
    def open(cls, path: str | Path, fingerprint: str | None = None) -> CaptionIndex:
        """Open a folder that `forelabel index build` made.

        Args:
            path: the folder.
            fingerprint: the fingerprint of the encoder that will query it; None skips the check.

        Raises:
            CaptionIndexError: no index there, an unknown format, or built with another encoder.
        """
        folder = Path(path).expanduser()
        try:
            about = json.loads((folder / "index.json").read_text())
            if about["format"] != FORMAT:
                raise CaptionIndexError(
                    f"{folder} has index format {about['format']}, this version reads {FORMAT}; rebuild it"
                )
            if fingerprint and about["fingerprint"] != fingerprint:
                raise CaptionIndexError(
                    f"{folder} was built with encoder {about.get('encoder')!r} ({about['fingerprint']}), but "
                    f"{fingerprint} is in use: their embeddings do not compare. Rebuild it with `forelabel index build`"
                )
            index = faiss.read_index(str(folder / "vectors.faiss"))
            offsets = np.load(folder / "offsets.npy")
            size = (folder / "texts.bin").stat().st_size
            texts = np.memmap(folder / "texts.bin", np.uint8, "r") if size else np.zeros(0, np.uint8)
        except CaptionIndexError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CaptionIndexError(
                f"{folder} is no caption index that can be opened ({error}); make one with `forelabel index build`"
            ) from error
        if index.ntotal != len(offsets) - 1 or int(offsets[-1]) != size:
            raise CaptionIndexError(f"{folder} is damaged (its files disagree on the number of captions); rebuild it")
        return cls(index, texts, offsets, about)

    def save(self, path: str | Path) -> None:
        """Write the folder, whole or not at all: it is filled beside its place and then moved there."""
        folder = Path(path).expanduser()
        scratch = folder.with_name(folder.name + ".partial")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        faiss.write_index(self._index, str(scratch / "vectors.faiss"))
        np.save(scratch / "offsets.npy", self._offsets)
        (scratch / "texts.bin").write_bytes(self._texts.tobytes())
        about = {**self.about, "format": FORMAT, "captions": len(self), "dim": self.dim}
        (scratch / "index.json").write_text(json.dumps(about, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def search(self, queries: NDArray[np.floating[Any]], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The nearest captions of unit queries [b, d].

        Returns:
            similarities (cosines, descending) float32 [b, k'] and ids int64 [b, k'], k' = min(k, number of captions).
        """
        vectors = np.ascontiguousarray(queries, dtype=np.float32)
        k = min(k, len(self))
        if k <= 0 or not len(vectors):
            return np.zeros((len(vectors), max(k, 0)), np.float32), np.zeros((len(vectors), max(k, 0)), np.int64)
        if vectors.shape[1] != self.dim:
            raise CaptionIndexError(f"queries have dimension {vectors.shape[1]}, the caption index {self.dim}")
        asked = torch.from_numpy(vectors)
        rows = max(1, SIMILARITIES_AT_ONCE // len(vectors))
        parts = [
            (part.values, part.indices + start)
            for start in range(0, len(self), rows)
            for part in [torch.topk(asked @ self._vectors[start : start + rows].T, min(k, rows, len(self) - start))]
        ]
        values, ids = torch.cat([v for v, _ in parts], 1), torch.cat([i for _, i in parts], 1)
        best = torch.topk(values, k)
        return best.values.numpy(), ids.gather(1, best.indices).numpy()

    def texts(self, ids: Iterable[int]) -> list[str]:
        """The captions with these ids."""
        spans = [(int(self._offsets[i]), int(self._offsets[i + 1])) for i in np.asarray(list(ids), np.int64)]
        return [self._texts[start:end].tobytes().decode() for start, end in spans]

    def embeddings(self, ids: NDArray[np.int64] | Sequence[int]) -> NDArray[np.float32]:
        """Ids of any shape [...] -> unit embeddings float32 [..., d]."""
        wanted = np.ascontiguousarray(ids, dtype=np.int64)
        if not wanted.size:
            return np.zeros((*wanted.shape, self.dim), np.float32)
        flat: NDArray[np.float32] = self._index.reconstruct_batch(wanted.ravel())
        return flat.reshape(*wanted.shape, self.dim)


def merge(indexes: Sequence[CaptionIndex]) -> CaptionIndex:
    """Several opened indexes as one (they must share a dimension); one index comes back as it is."""
    if len(indexes) == 1:
        return indexes[0]
    vectors = np.concatenate([index.embeddings(np.arange(len(index))) for index in indexes])
    texts = [text for index in indexes for text in index.texts(range(len(index)))]
    return CaptionIndex.from_embeddings(vectors, texts, {"fingerprint": indexes[0].about["fingerprint"]})
