"""The sequence encoders E_c and E_v: symbols to embeddings, embeddings to the code that generates weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from solid_ext.models.gru import LastState
from solid_ext.ops.gru import Backend


def valid_mask(sequences: Tensor) -> Tensor:
    """[B, L] bool: True where a position holds an item, False where it is padding (id 0)."""
    return sequences > 0


def recency(mask: Tensor) -> Tensor:
    """Age of each position: 0 for the most recent valid one, counting up to the oldest; 0 on padding.

    Args:
        mask: [B, L] bool, sequences right-padded.

    Returns:
        [B, L] int64. Positions are counted from the end, so that "the last item" has one embedding whatever the
        length of the history.
    """
    length = mask.sum(1, keepdim=True)
    return (length - 1 - torch.arange(mask.shape[1], device=mask.device)).clamp(min=0)


def last_valid(states: Tensor, mask: Tensor) -> Tensor:
    """State at the last valid position: [B, L, d], [B, L] -> [B, d]; zeros for a sequence that is all padding."""
    length = mask.sum(1)
    last = (length - 1).clamp(min=0)
    state = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
    return state * (length > 0).unsqueeze(1)


class SequenceCode(nn.Module):
    """`z`: a GRU over H, its state at the last valid position, then a P-layer MLP with tanh between.

    Shapes: H [B, L, d], mask [B, L] bool -> z [B, d].

    Args:
        dropout: of H and of z. A generator without it learns its training sequences by heart.

    Source: docs/method.md#module-2-semantic-parameter-generation.
    """

    def __init__(self, dim: int, layers: int, backend: Backend = "native", dropout: float = 0.0) -> None:
        super().__init__()
        self.gru = LastState(dim, backend)
        steps: list[nn.Module] = []
        for layer in range(layers):
            steps += ([nn.Tanh()] if layer else []) + [nn.Linear(dim, dim)]
        self.mlp = nn.Sequential(*steps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return self.dropout(self.mlp(self.gru(self.dropout(embedded), mask)))
