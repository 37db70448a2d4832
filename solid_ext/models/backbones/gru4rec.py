"""GRU4Rec: a recurrent network over the item sequence."""

from __future__ import annotations

from torch import Tensor, nn

from solid_ext.config import ModelConfig
from solid_ext.nn.dropout import Dropout
from solid_ext.nn.last_state import LastState


class GRU4Rec(nn.Module):
    """The state at the last valid position of a GRU over the item embeddings.

    Shapes: embedded [B, L, d], mask [B, L] bool -> [B, d]; zeros for a sequence that is all padding.

    Source: Hidasi et al. 2016, "Session-based Recommendations with Recurrent Neural Networks".
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout, config.backend)
        self.gru = LastState(config.dim, config.backend)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return self.gru(self.dropout(embedded), mask)
