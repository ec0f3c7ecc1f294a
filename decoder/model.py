"""ObjectDecoder: an image-text embedding to the tokens of a noun (Allgeuer, Ahrens, Wermter: arXiv 2407.11211).

The embedding becomes P prefix vectors by one linear layer. A pre-norm transformer without any bias reads the prefix,
which attends to itself fully, and then the noun's tokens, causally; the token embedding is tied to the output layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from decoder.vocabulary import END, Vocabulary

QUIET = 0.1
"""Of the paper's scale, for what would drown the embedding when a decoder starts from its nouns."""

GELU_SECOND_MOMENT = 0.4252
"""E[gelu(z)^2] of a standard normal z: A in appendix A of the paper."""


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder. The defaults are the paper's."""

    embedding_dim: int
    """F, length of the embedding that is decoded."""
    vocabulary: int
    """V, tokens in use; 0 is the end token."""
    token_length: int
    """C, tokens of the longest noun with its end token. At most C - 1 are ever generated."""
    prefix: int = 4
    """P."""
    hidden: int = 512
    """H."""
    layers: int = 6
    """L."""
    heads: int = 8
    feedforward: int = 128
    """K; smaller than H, as in the paper."""
    dropout: float = 0.1


@dataclass
class KeysValues:
    """What a layer has computed of b sequences: the prefix of each, and t tokens of each of its k candidates."""

    prefix_keys: Tensor
    """[b, heads, P, H / heads]; values alike."""
    prefix_values: Tensor
    keys: Tensor
    """[n, heads, t, H / heads], n candidates of all sequences together."""
    values: Tensor


class Layer(nn.Module):
    """Pre-norm self-attention and feed-forward, no biases."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1 = nn.LayerNorm(config.hidden, bias=False)
        self.attention_in = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.attention_out = nn.Linear(config.hidden, config.hidden, bias=False)
        self.norm2 = nn.LayerNorm(config.hidden, bias=False)
        self.feedforward_in = nn.Linear(config.hidden, config.feedforward, bias=False)
        self.feedforward_out = nn.Linear(config.feedforward, config.hidden, bias=False)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[b, s, H] -> queries, keys, values, each [b, heads, s, H / heads]."""
        b, s, hidden = x.shape
        projected = self.attention_in(self.norm1(x)).view(b, s, 3, self.heads, hidden // self.heads)
        q, k, v = projected.permute(2, 0, 3, 1, 4)
        return q, k, v

    def add(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream [b, s, H] after attention [b, heads, s, H / heads] and the feed-forward part."""
        merged = attended.transpose(1, 2).reshape(x.shape)
        x = x + F.dropout(self.attention_out(merged), self.dropout, self.training)
        wide = F.dropout(F.gelu(self.feedforward_in(self.norm2(x))), self.dropout, self.training)
        return x + F.dropout(self.feedforward_out(wide), self.dropout, self.training)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The whole sequence at once: x [b, s, H], mask [s, s] True where attention is allowed."""
        q, k, v = self.heads_of(x)
        dropout = self.dropout if self.training else 0.0
        return self.add(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout))


class ObjectDecoder(nn.Module):
    """Embeddings [b, F] to logits over the tokens of a noun.

    Example:
        >>> decoder = load_decoder("my-decoder")
        >>> beam_search(decoder, encoder.embed_images(photos)).nouns[0][:3]
        ['tabby cat', 'cat', 'kitten']
    """

    def __init__(self, config: DecoderConfig, vocabulary: Vocabulary) -> None:
        """Weights as in appendix A of the paper.

        Args:
            config: the sizes.
            vocabulary: the tokens and the dictionary of nouns.
        """
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.embed_prefix = nn.Linear(config.embedding_dim, config.prefix * config.hidden, bias=False)
        self.tokens = nn.Parameter(torch.empty(config.vocabulary, config.hidden))
        self.positions = nn.Parameter(torch.empty(config.prefix + config.token_length - 1, config.hidden))
        self.blocks = [Layer(config) for _ in range(config.layers)]
        self.layers = nn.ModuleList(self.blocks)
        self.norm = nn.LayerNorm(config.hidden, bias=False)
        self.register_buffer("text_mean", None)
        self.register_buffer("span", None)
        self._initialise()

    text_mean: Tensor | None
    """[F], mean of the text embeddings it was trained on; None: it reads embeddings as they are (published ones do)."""
    span: Tensor | None
    """[s, F], an orthonormal basis of what tells the nouns' texts apart; there is one where there is a text_mean."""

    def read_texts(self, embeddings: Tensor) -> Tensor:
        """Unit text embeddings [b, F] as `forward` takes them: as they are, or centred, in the span, of unit norm."""
        if self.text_mean is None or self.span is None:
            return embeddings
        return F.normalize((embeddings - self.text_mean) @ self.span.T @ self.span, dim=-1)

    def read_images(self, embeddings: Tensor) -> Tensor:
        """Unit image embeddings [b, F] as `forward` takes them.

        Images and texts of one encoder lie around different means (the modality gap). The images' own mean need not be
        known: most of it lies outside of the span of the centred texts, onto which images are projected
        (docs/lab-notes.md).
        """
        return embeddings if self.span is None else F.normalize(embeddings @ self.span.T @ self.span, dim=-1)

    def _initialise(self) -> None:
        c = self.config
        for weight in (self.embed_prefix.weight, self.tokens, self.positions):
            nn.init.normal_(weight, std=math.sqrt(1 / 2))
        spread = (2 * c.prefix - 1) / c.prefix**2
        for layer in self.blocks:
            nn.init.normal_(layer.attention_in.weight, std=math.sqrt(1 / c.hidden))
            nn.init.normal_(layer.attention_out.weight, std=math.sqrt(1 / (2 * c.layers * c.hidden * spread)))
            nn.init.normal_(layer.feedforward_in.weight, std=math.sqrt(1 / c.hidden))
            std = math.sqrt(1 / (2 * c.layers * c.feedforward * GELU_SECOND_MOMENT))
            nn.init.normal_(layer.feedforward_out.weight, std=std)
        nn.init.constant_(self.norm.weight, 1 / math.sqrt(c.hidden))

    @torch.no_grad()
    def start_from(self, nouns: Tensor, text_mean: Tensor | None = None) -> None:
        """Begin near a nearest-noun search in place of at random: the training is many times shorter.

        The last prefix vector, from which the first token is read, becomes the embedding's H principal directions; a
        token that begins nouns becomes their mean; the layers between begin small. The scales are the paper's.

        Args:
            nouns: [n, F], the mean text embedding of each noun of the dictionary; zeros where there is none.
            text_mean: [F], what `read_texts` is to subtract; None for a decoder that reads embeddings as they are.
        """
        c = self.config
        known = nouns.any(1)
        texts = nouns[known] if text_mean is None else F.normalize(nouns[known] - text_mean, dim=-1)
        basis = torch.linalg.svd(texts, full_matrices=False).Vh[: c.hidden]
        if text_mean is not None:
            self.text_mean, self.span = text_mean, basis
        spread = math.sqrt(c.hidden / 2)  # the norm of H elements of the paper's variance
        last = self.embed_prefix.weight.view(c.prefix, c.hidden, c.embedding_dim)[-1]
        last.zero_()
        last[: len(basis)] = basis * spread
        self.positions[c.prefix - 1] *= QUIET
        for layer in self.blocks:
            layer.attention_out.weight *= QUIET
            layer.feedforward_out.weight *= QUIET
        first = torch.from_numpy(self.vocabulary.dictionary[:, 0])[known.cpu()].to(nouns.device)
        sums = torch.zeros_like(self.tokens)
        sums[:, : len(basis)].index_add_(0, first, texts @ basis.T)
        begins = sums.any(1)
        self.tokens[begins] = F.normalize(sums[begins], dim=1) * spread

    def forward(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits.

        Args:
            embeddings: unit vectors [b, F].
            tokens: token ids [b, t], t <= C; the last one is only predicted, so it is not read.

        Returns:
            [b, t, V]: at i, the logits of token i given the embedding and the tokens before it.
        """
        return self.logits(self.states(embeddings, tokens))

    @torch.inference_mode()
    def noun_logprobs(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities [b] of one noun each.

        Args:
            embeddings: [b, F], as `read_texts` or `read_images` gives them.
            tokens: [b, C], the nouns as `Vocabulary.encode` gives them. The end token counts, too, but for nouns of the
                greatest length, as in the search.
        """
        tokens = tokens[:, : self.config.token_length - 1]
        logits: Tensor = self(embeddings, tokens)
        logprobs = logits.log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]
        ends = (tokens == END).long()
        return (logprobs * (ends.cumsum(1) - ends == 0)).sum(1)

    def states(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """As `forward`, but before the output layer: [b, t, H]."""
        p = self.config.prefix
        x = torch.cat([self.prefix(embeddings), self.tokens[tokens[:, :-1]]], 1)
        s = x.shape[1]
        mask = torch.ones(s, s, dtype=torch.bool, device=x.device).tril()
        mask[:p, :p] = True
        x = F.dropout(x + self.positions[:s], self.config.dropout, self.training)
        for layer in self.blocks:
            x = layer(x, mask)
        return x[:, p - 1 :]

    def prefix(self, embeddings: Tensor) -> Tensor:
        """[b, F] -> [b, P, H], without positions."""
        vectors: Tensor = self.embed_prefix(embeddings)
        return vectors.view(len(embeddings), self.config.prefix, self.config.hidden)

    def logits(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., V]."""
        return F.linear(self.norm(x), self.tokens)

    def read_prefix(self, embeddings: Tensor) -> tuple[Tensor, list[KeysValues]]:
        """Logits of the first token [b, V], and what later steps need; each sequence has one candidate, still empty."""
        x = self.prefix(embeddings) + self.positions[: self.config.prefix]
        cache = []
        for layer in self.blocks:
            q, k, v = layer.heads_of(x)
            cache.append(KeysValues(k, v, k[:, :, :0], v[:, :, :0]))
            x = layer.add(x, F.scaled_dot_product_attention(q, k, v))
        return self.logits(x[:, -1]), cache

    def read_token(self, tokens: Tensor, owners: Tensor, cache: list[KeysValues]) -> Tensor:
        """One more token of each candidate, whose earlier tokens are in the cache.

        Args:
            tokens: ids [n].
            owners: [n], which of the b sequences a candidate belongs to.
            cache: what earlier calls left, its candidates in the same order; extended in place.

        Returns:
            Logits [n, V] of the token after it.
        """
        position = self.config.prefix + cache[0].keys.shape[2]
        x = (self.tokens[tokens] + self.positions[position])[:, None]
        for layer, held in zip(self.blocks, cache, strict=True):
            q, k, v = layer.heads_of(x)
            held.keys, held.values = torch.cat([held.keys, k], 2), torch.cat([held.values, v], 2)
            keys = torch.cat([held.prefix_keys[owners], held.keys], 2)
            values = torch.cat([held.prefix_values[owners], held.values], 2)
            x = layer.add(x, F.scaled_dot_product_attention(q, keys, values))
        return self.logits(x[:, 0])
