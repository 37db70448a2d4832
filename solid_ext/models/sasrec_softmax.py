"""SASRec as it is used today, with two transformer layers, a softmax over the catalogue and tied item embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from solid_ext.models.checks import check_candidates, check_sequences
from solid_ext.models.state import Catalogue, UserState
from solid_ext.nn.dropout import Dropout
from solid_ext.nn.lookup import Lookup
from solid_ext.nn.padding import last_valid, unpack, valid_mask, valid_positions
from solid_ext.ops._arguments import Backend


class SASRecSoftmax(nn.Module):
    """Causal self-attention over the item sequence, whose logits are products with the item embeddings themselves.

    `H = blocks(dropout(norm(E[s] + position)))`, u is H at the last valid position, and `logit(v) = <u, E[v]>`. The
    blocks are post-normalised, with a feed-forward layer of width 4 d; positions are counted from the start. There is
    no target tower and no dynamic layer: this is the peer that a user would take instead of them, and it is trained
    with the loss `full_softmax`.

    Shapes: sequences [B, L] int64, right-padded with 0 -> `UserState` with vector [B, d]. Padding lies behind every
    valid position, where causal attention cannot see it. On the CPU nothing is computed for it, and of the last block
    nothing but the state that is used.

    Args:
        num_items: V.
        length: L, which every sequence has.
        dim: d.
        layers: the number of blocks.
        heads: of each block's attention, a divisor of d.
        dropout: of the embedded sequence, and in the blocks of attention and of what is added.
        backend: "native" or "reference", of lookups, dropout and loss.

    Source: Kang and McAuley, Self-Attentive Sequential Recommendation, 2018; loss and sizes as RecBole 1.2.1.
    """

    past: Tensor

    def __init__(
        self,
        num_items: int,
        length: int,
        dim: int = 64,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.5,
        backend: Backend = "native",
    ) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.num_items, self.length = num_items, length
        self.item_embedding = Lookup(num_items + 1, dim, padding_idx=0, backend=backend)
        self.position = Lookup(length, dim, backend=backend)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout, backend)
        self.blocks = nn.ModuleList(_Block(dim, heads, dropout, backend) for _ in range(layers))
        self.register_buffer("past", torch.ones(length, length, dtype=torch.bool).tril(), persistent=False)
        self.apply(_small_normal)

    @property
    def device(self) -> torch.device:
        return self.item_embedding.weight.device

    def forward(self, sequences: Tensor) -> UserState:
        """The user states of item sequences [B, L] int64, right-padded with 0."""
        check_sequences(sequences, self.num_items, self.length)
        mask = valid_mask(sequences)
        at = valid_positions(mask)
        length = sequences.shape[1]
        items, place = sequences.flatten().index_select(0, at), at % length
        rows = self.dropout(self.norm(self.item_embedding(items) + self.position(place)))
        for block in self.blocks[:-1]:
            states = unpack(rows, at, mask)
            rows = block(rows, states, states, self.past[:length, :length], at)
        states = unpack(rows, at, mask)
        last = last_valid(states, mask)
        open_keys = (mask | (torch.arange(length, device=mask.device) == 0))[:, None, None]
        every = torch.arange(last.shape[0], device=mask.device)
        vector = self.blocks[-1](last, last.unsqueeze(1), states, open_keys, every) * mask.any(1, keepdim=True)
        return UserState(vector, vector.new_zeros(()), None)

    def encode(self, sequences: Tensor) -> Tensor:
        """The user state u [B, d] of sequences [B, L] int64."""
        return self(sequences).vector

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        """The logits [B, T] of candidates, int64 ids [B, T] of each sequence or [T] shared by all."""
        check_candidates(candidates, self.num_items, state.shape[0])
        targets = self.item_embedding(candidates)
        if candidates.dim() == 1:
            return state @ targets.T
        return torch.bmm(targets, state.unsqueeze(2)).squeeze(2)

    def over_catalogue(self, state: Tensor, items: Tensor) -> Catalogue:
        """What a softmax over all items is computed from, with the positives `items` [B] int64."""
        return Catalogue(state, self.item_embedding.weight[1:], items - 1, backend=self.backend)


class _Block(nn.Module):
    """A post-normalised transformer block over rows of positions, as `nn.TransformerEncoderLayer`; SASRec's has no
    dropout inside its feed-forward layer."""

    def __init__(self, dim: int, heads: int, dropout: float, backend: Backend) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_feed = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout, backend)

    def forward(self, rows: Tensor, queries: Tensor, states: Tensor, allowed: Tensor, at: Tensor) -> Tensor:
        """The block's states of rows [N, d], which are the rows `at` [N] of queries [B, Q, d], all of them flat.

        A query sees those of states [B, L, d] that are allowed, of [B, heads, Q, L].
        """
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(queries), *self.key_value(states).chunk(2, dim=2))
        )
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
        share = self.dropout(scores.masked_fill(~allowed, -torch.inf).softmax(3))
        attended = (share @ value).transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, at)
        rows = self.norm_attention(rows + self.dropout(self.out(attended)))
        return self.norm_feed(rows + self.dropout(self.feed(rows)))


def _small_normal(module: nn.Module) -> None:
    """Weights from N(0, 0.02^2) and biases of 0, as BERT starts them; the row of padding stays 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
