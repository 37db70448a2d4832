"""BERT4Rec: a bidirectional transformer, which is asked for the item that comes after the sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from solid_ext.config import ModelConfig
from solid_ext.nn.dropout import Dropout
from solid_ext.nn.lookup import Lookup
from solid_ext.nn.padding import ages
from solid_ext.nn.transformer import TransformerBlock


class BERT4Rec(nn.Module):
    """The transformer's state of a mask token that stands where the next item will be.

    Every position sees every other, in both directions. Training asks for the last item alone, as serving does, so that
    all backbones share rows, negatives and losses; the paper's cloze task is not used.

    Shapes: embedded [B, L, d], mask [B, L] bool -> [B, d]; zeros for a sequence that is all padding.

    Source: Sun et al. 2019, "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations".
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.position = Lookup(config.length + 1, dim, backend=config.backend)
        nn.init.normal_(self.position.weight, std=dim**-0.5)
        self.token = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.dropout = Dropout(config.dropout, config.backend)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, config.heads, config.dropout, config.backend) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        batch, _, dim = embedded.shape
        token = (self.token + self.position.weight[0]).expand(batch, 1, dim)
        states = self.dropout(torch.cat([embedded + self.position(ages(mask) + 1), token], dim=1))
        allowed = torch.cat([mask, mask.new_ones(batch, 1)], dim=1).unsqueeze(1)
        for block in self.blocks[:-1]:
            states = block(states, states, allowed.expand(-1, states.shape[1], -1))
        state = self.norm(self.blocks[-1](states[:, -1:], states, allowed)).squeeze(1)
        return state * mask.any(1, keepdim=True)
