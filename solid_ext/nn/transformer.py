"""A transformer block that computes only the states that are asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.nn.dropout import Dropout
from solid_ext.ops._arguments import Backend


class TransformerBlock(nn.Module):
    """Pre-normalised self-attention and a feed-forward layer of width 4 d, each added to what it reads.

    Only the states of `queries` are computed: the last block of a SASRec is asked for one position a sequence.

    Shapes: queries [B, Q, d], states [B, L, d], allowed [B, 1 or Q, L] bool (True where a query may look)
    -> [B, Q, d].

    Args:
        dim: d.
        heads: the number of attention heads, a divisor of d.
        dropout: of what attention and the feed-forward layer add.
        backend: "native" or "reference", of the dropout.
    """

    def __init__(self, dim: int, heads: int, dropout: float, backend: Backend = "native") -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_feed = nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = Dropout(dropout, backend)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, queries: Tensor, states: Tensor, allowed: Tensor) -> Tensor:
        normed = self.norm_attention(states)
        query = self.query(self.norm_attention(queries))
        attend = self._attend_one if queries.shape[1] == 1 else self._attend
        queries = queries + self.dropout(self.out(attend(query, normed, allowed)))
        return queries + self.dropout(self.feed(self.norm_feed(queries)))

    def _attend(self, query: Tensor, normed: Tensor, allowed: Tensor) -> Tensor:
        key, value = (self._split(part) for part in self.key_value(normed).chunk(2, dim=2))
        attended = F.scaled_dot_product_attention(self._split(query), key, value, attn_mask=allowed.unsqueeze(1))
        return attended.transpose(1, 2).flatten(2)

    def _attend_one(self, query: Tensor, normed: Tensor, allowed: Tensor) -> Tensor:
        """The same for one query a sequence, without computing keys and values of all positions.

        Their projections are applied to the query and to the weighted mean of the states instead. The keys' bias would
        add the same number to every score, so that the softmax does not depend on it.
        """
        width = query.shape[2] // self.heads
        key, value = self.key_value.weight.unflatten(0, (2, self.heads, width))  # [heads, width, d]
        query = query.view(-1, self.heads, width).transpose(0, 1) * width**-0.5
        scores = torch.bmm((query @ key).transpose(0, 1), normed.transpose(1, 2))  # [B, heads, L]
        share = scores.masked_fill(~allowed, -torch.inf).softmax(2)
        mean = torch.bmm(share, normed).transpose(0, 1)  # [heads, B, d]
        attended = (mean @ value.transpose(1, 2)).transpose(0, 1).flatten(1)
        return (attended + self.key_value.bias[self.heads * width :]).unsqueeze(1)
