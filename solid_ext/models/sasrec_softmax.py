"""SASRec as it is used today, with two transformer layers, a softmax over the catalogue and tied item embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from solid_ext.models.checks import check_candidates, check_sequences
from solid_ext.models.state import Catalogue, UserState
from solid_ext.nn.padding import last_valid, valid_mask
from solid_ext.ops.gru import Backend


class SASRecSoftmax(nn.Module):
    """Causal self-attention over the item sequence, whose logits are products with the item embeddings themselves.

    `H = blocks(dropout(norm(E[s] + position)))`, u is H at the last valid position, and `logit(v) = <u, E[v]>`. The
    blocks are post-normalised, with a feed-forward layer of width 4 d; positions are counted from the start. There is
    no target tower and no dynamic layer: this is the peer that a user would take instead of them, and it is trained
    with the loss `full_softmax`.

    Shapes: sequences [B, L] int64, right-padded with 0 -> `UserState` with vector [B, d]. Padding lies behind every
    valid position, where causal attention cannot see it.

    Args:
        num_items: V.
        length: L, which every sequence has.
        dim: d.
        layers: the number of blocks.
        heads: of each block's attention, a divisor of d.
        dropout: of the embedded sequence and in the blocks.
        backend: "native" or "reference", of the loss.

    Source: Kang and McAuley, Self-Attentive Sequential Recommendation, 2018; loss and sizes as RecBole 1.2.1.
    """

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
        self.item_embedding = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.position = nn.Embedding(length, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout, "gelu", batch_first=True) for _ in range(layers)
        )
        for block in self.blocks:
            block.dropout = nn.Identity()  # torch's own drops inside the feed-forward layer too, SASRec does not
        self.register_buffer("future", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)
        self.apply(_small_normal)

    @property
    def device(self) -> torch.device:
        return self.item_embedding.weight.device

    def forward(self, sequences: Tensor) -> UserState:
        """The user states of item sequences [B, L] int64, right-padded with 0."""
        check_sequences(sequences, self.num_items, self.length)
        states = self.dropout(self.norm(self.item_embedding(sequences) + self.position.weight))
        for block in self.blocks:
            states = block(states, src_mask=self.future)
        vector = last_valid(states, valid_mask(sequences))
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


def _small_normal(module: nn.Module) -> None:
    """Weights from N(0, 0.02^2) and biases of 0, as BERT starts them; the row of padding stays 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
