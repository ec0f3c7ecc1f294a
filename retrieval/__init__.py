"""Images and texts to embeddings, caption retrieval, X-MoRe, and the store that embeddings are kept in."""
