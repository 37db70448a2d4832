"""SASRec: causal self-attention over the item sequence, whose last block computes one state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from solid_ext.config import ModelConfig
from solid_ext.nn.dropout import Dropout
from solid_ext.nn.lookup import Lookup
from solid_ext.nn.padding import ages, last_valid
from solid_ext.nn.transformer import TransformerBlock


class SASRec(nn.Module):
    """Self-attentive sequential recommendation: the transformer's state at the last valid position.

    Positions are counted from the end. The last block computes the only state that is used, all others compute every
    position.

    Shapes: embedded [B, L, d], mask [B, L] bool -> [B, d]; zeros for a sequence that is all padding.

    Source: Kang and McAuley 2018, "Self-Attentive Sequential Recommendation".
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.position = Lookup(config.length, dim, backend=config.backend)
        nn.init.normal_(self.position.weight, std=dim**-0.5)
        self.dropout = Dropout(config.dropout, config.backend)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, config.heads, config.dropout, config.backend) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        states = self.dropout(embedded + self.position(ages(mask)))
        length = mask.shape[1]
        # The first position is always open, so that a sequence of padding alone attends to something finite.
        open_keys = mask | (torch.arange(length, device=mask.device) == 0)
        causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        for block in self.blocks[:-1]:
            states = block(states, states, causal & open_keys.unsqueeze(1))
        last = last_valid(states, mask).unsqueeze(1)
        state = self.norm(self.blocks[-1](last, states, open_keys.unsqueeze(1))).squeeze(1)
        return state * mask.any(1, keepdim=True)
