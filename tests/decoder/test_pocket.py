"""The bundled decoder and the bundled encoder are a pair."""

from __future__ import annotations

from decoder.beam import beam_search
from decoder.checkpoint import POCKET, describe, load_decoder
from decoder.nouns import load_nouns
from retrieval.encoder import load_encoder


def test_it_is_small_and_for_the_bundled_encoder() -> None:
    about, encoder = describe(POCKET), load_encoder("pocket", "cpu")
    assert (about["encoder"], about["fingerprint"]) == ("pocket", encoder.fingerprint), "run recipes.pocket_decoder"
    assert sum(file.stat().st_size for file in POCKET.rglob("*")) <= 8_000_000
    encoder.close()


def test_it_says_every_noun_of_the_dictionary() -> None:
    decoder = load_decoder(POCKET)
    assert {noun.singular for noun in load_nouns()} <= set(decoder.vocabulary.nouns)
    assert len(decoder.vocabulary.dictionary) == len(decoder.vocabulary.nouns)


def test_it_reads_texts_that_it_was_trained_on() -> None:
    """Most common nouns come back from their own text embedding, among all 25,000."""
    encoder, decoder = load_encoder("pocket", "cpu"), load_decoder(POCKET)
    nouns = [noun.singular for noun in load_nouns("FT9")[:200]]
    named = beam_search(decoder, encoder.embed_texts(nouns) - decoder.text_mean.numpy()).tokens
    first = [[decoder.vocabulary.spelling(tokens) for tokens in image[:5]] for image in named]
    assert sum(noun in names for noun, names in zip(nouns, first, strict=True)) >= 150
    encoder.close()
