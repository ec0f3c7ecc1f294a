"""Everything that knows Label Studio's formats and its API. Knows no torch."""
