"""DIN: each candidate attends to the history, so that the user state depends on the candidate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from solid_ext.config import ModelConfig
from solid_ext.nn.dropout import Dropout


class DIN(nn.Module):
    """Deep interest network: `state(v) = W [sum_l a(e_v, h_l) h_l; e_v] + b`, a state for each candidate.

    The activation unit `a(q, k) = w . prelu(W_q q + W_k k + W_p (q * k) + c) + c'` weighs each valid position. As in
    the paper there is no softmax over positions, so that the intensity of an interest is kept. Candidates never see
    each other.

    Shapes: embedded [B, L, d], mask [B, L] bool, candidates [B, T, d] -> [B, T, d].

    Source: Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction".
    """

    reads_candidates = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.dropout = Dropout(config.dropout, config.backend)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.product = nn.Linear(dim, dim, bias=False)
        self.activation = nn.PReLU()
        self.weight = nn.Linear(dim, 1)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, embedded: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        embedded = self.dropout(embedded)
        pairs = self.product(candidates.unsqueeze(2) * embedded.unsqueeze(1))  # [B, T, L, d]
        hidden = pairs + self.query(candidates).unsqueeze(2) + self.key(embedded).unsqueeze(1)
        share = self.weight(self.activation(hidden)).squeeze(3) * mask.unsqueeze(1)  # [B, T, L]
        interest = torch.bmm(share, embedded)
        return self.out(torch.cat([interest, self.dropout(candidates)], dim=2))
