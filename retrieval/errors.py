"""What can go wrong with images, models, captions and the store.

RetrievalError
├── UnreadableImage      the bytes are no image that can be decoded, or one that is too large
├── ModelError           a model folder or name that cannot be used
├── CaptionIndexError    a caption source or index that cannot be used
└── StoreUnavailable     the embedding store did not answer
"""

from __future__ import annotations


class RetrievalError(Exception):
    """Base of everything this package raises on purpose. The message says what arrived and what to do."""


class UnreadableImage(RetrievalError):  # noqa: N818 - reads as what it is in a log line
    """The bytes are no image that can be decoded, or one that is too large."""


class ModelError(RetrievalError):
    """A model folder or name that cannot be used."""


class CaptionIndexError(RetrievalError):
    """A caption source or index that cannot be used."""


class StoreUnavailable(RetrievalError):  # noqa: N818
    """The embedding store did not answer."""
