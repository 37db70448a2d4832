"""A GRU read to the last valid position of each sequence."""

from __future__ import annotations

from torch import Tensor, nn

from solid_ext.ops._arguments import Backend, expect_backend, size
from solid_ext.ops.gru import gru_last_state


class LastState(nn.Module):
    """The state of a GRU at the last valid position; a position where the mask is False leaves it as it is.

    Shapes: x [B, L, d], mask [B, L] bool -> [B, d]; zeros for a sequence that is all padding.

    Args:
        dim: d, of inputs and state alike.
        backend: "native" (the kernel of `gru_last_state`) or "reference" (one step of the cell a position).

    Raises:
        ValueError: d < 1, or another backend; in a call, hooks on `cell`, which holds the parameters and is never
            called: hook or shard the layer itself.
        TypeError: a d that is no whole number.
    """

    def __init__(self, dim: int, backend: Backend = "native") -> None:
        super().__init__()
        dim = size("LastState", "dim", dim)
        expect_backend("LastState", backend)
        self.cell = nn.GRUCell(dim, dim)  # holds the parameters
        self.backend: Backend = backend

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        cell = self.cell
        if cell._forward_hooks or cell._forward_pre_hooks or cell._backward_hooks or cell._backward_pre_hooks:
            raise ValueError("LastState: expected hooks on the layer itself, got some on its cell, which is not called")
        return gru_last_state(x, mask, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, backend=self.backend)
