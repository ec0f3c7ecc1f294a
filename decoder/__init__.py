"""NOVIC: names what an image embedding shows, by a small autoregressive decoder over a dictionary of nouns."""
