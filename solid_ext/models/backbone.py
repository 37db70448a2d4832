"""Backbones: the item sequence to the user state that the adaptive layers act on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.config import ModelConfig
from solid_ext.models.encoder import last_valid, recency
from solid_ext.models.gru import LastState
from solid_ext.models.symbols import Lookup


class GRU4Rec(nn.Module):
    """GRU over the item embeddings; its state at the last valid position.

    Shapes: embedded [B, L, d], mask [B, L] bool -> [B, d].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.gru = LastState(config.dim, config.backend)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return self.gru(self.dropout(embedded), mask)


class TransformerBlock(nn.Module):
    """Pre-normalised causal self-attention and a feed-forward layer of width 4 d, each with a residual.

    Only the states of `queries` are computed: the last block of a SASRec is asked for one position a sequence.

    Shapes: queries [B, Q, d], states [B, L, d], allowed [B, 1 or L, L] bool (True where a query
    may look) -> [B, Q, d].
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_feed = nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

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
        """The same for one query a sequence, without keys and values: their projections are applied to the query and
        to the weighted mean. The keys' bias adds the same to every score and drops out."""
        width = query.shape[2] // self.heads
        key, value = self.key_value.weight.unflatten(0, (2, self.heads, width))  # [heads, width, d]
        query = query.view(-1, self.heads, width).transpose(0, 1) * width**-0.5
        scores = torch.bmm((query @ key).transpose(0, 1), normed.transpose(1, 2))  # [B, heads, L]
        share = scores.masked_fill(~allowed, -torch.inf).softmax(2)
        mean = torch.bmm(share, normed).transpose(0, 1)  # [heads, B, d]
        attended = (mean @ value.transpose(1, 2)).transpose(0, 1).flatten(1)
        return (attended + self.key_value.bias[self.heads * width :]).unsqueeze(1)


class SASRec(nn.Module):
    """Self-attentive sequential recommendation: the transformer state at the last valid position.

    Positions are counted from the end. All blocks but the last compute every position; the last one computes the
    only state that is used.

    Shapes: embedded [B, L, d], mask [B, L] bool -> [B, d]; zeros for a sequence that is all padding.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.position = Lookup(config.length, dim, backend=config.backend)
        nn.init.normal_(self.position.weight, std=dim**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(dim, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        states = self.dropout(embedded + self.position(recency(mask)))
        length = mask.shape[1]
        # The first position is always open, so that a sequence of padding alone attends to something finite.
        open_keys = mask | (torch.arange(length, device=mask.device) == 0)
        causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        for block in self.blocks[:-1]:
            states = block(states, states, causal & open_keys.unsqueeze(1))
        last = last_valid(states, mask).unsqueeze(1)
        state = self.norm(self.blocks[-1](last, states, open_keys.unsqueeze(1))).squeeze(1)
        return state * mask.any(1, keepdim=True)
