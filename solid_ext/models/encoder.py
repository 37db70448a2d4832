"""The sequence encoders E_c and E_v: from embedded symbols to the condition that generates weights."""

from __future__ import annotations

from torch import Tensor, nn

from solid_ext.nn.dropout import Dropout
from solid_ext.nn.last_state import LastState
from solid_ext.ops._arguments import Backend


def plain_layers(dim: int, count: int) -> nn.Sequential:
    """So many linear layers d -> d, with tanh between them and none after the last."""
    steps: list[nn.Module] = []
    for layer in range(count):
        steps += ([nn.Tanh()] if layer else []) + [nn.Linear(dim, dim)]
    return nn.Sequential(*steps)


class ConditionEncoder(nn.Module):
    """The condition z of a sequence: a GRU's state at the last valid position, then an MLP with tanh between layers.

    Shapes: embedded H [B, L, d], mask [B, L] bool -> z [B, d].

    Args:
        dim: d.
        layers: of the MLP.
        backend: "native" or "reference", of GRU and dropout.
        dropout: of H and of z. Without it, generated weights fit each training sequence by itself.

    Source: docs/method.md#module-2-semantic-parameter-generation.
    """

    def __init__(self, dim: int, layers: int, backend: Backend = "native", dropout: float = 0.0) -> None:
        super().__init__()
        self.gru = LastState(dim, backend)
        self.mlp = plain_layers(dim, layers)
        self.dropout = Dropout(dropout, backend)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return self.dropout(self.mlp(self.gru(self.dropout(embedded), mask)))
