"""What can go wrong in the decoder, in words that a user can act on."""

from __future__ import annotations


class DecoderError(Exception):
    """Base of all errors of this package."""


class CheckpointError(DecoderError):
    """A checkpoint cannot be read, is damaged, or does not fit what it is to be used with."""


class NounError(DecoderError):
    """A list of nouns cannot be used."""
