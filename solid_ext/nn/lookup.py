"""An embedding whose gradient is summed in the order of its rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.ops._arguments import Backend, expect_backend, expect_ids
from solid_ext.ops._library import applied, first_order
from solid_ext.ops.segment_sum import sum_segments


class Lookup(nn.Embedding):
    """`nn.Embedding` whose gradient is summed row by row in their order, bitwise equal for any number of threads.

    Shapes: index [...] int64 -> [..., d]; the row `padding_idx` gets no gradient. With the attribute `sparse` set the
    gradient is sparse and not summed, as that of `nn.Embedding` then is.

    Args:
        num: the number of rows.
        dim: d.
        padding_idx: the row of padding; None for none.
        backend: "native" (a segment sum) or "reference" (`nn.Embedding`'s own gradient).

    Raises:
        ValueError: another backend; in a call, an index that the table has no row for.
        TypeError: in a call, an index of another dtype.
    """

    def __init__(self, num: int, dim: int, *, padding_idx: int | None = None, backend: Backend = "native") -> None:
        super().__init__(num, dim, padding_idx=padding_idx)
        expect_backend("Lookup", backend)
        self.backend: Backend = backend

    def forward(self, index: Tensor) -> Tensor:
        expect_ids("Lookup", index, self.num_embeddings, "index")
        return self.rows_of(self.weight, index)

    def rows_of(self, table: Tensor, index: Tensor) -> Tensor:
        """The rows of a table [num, d] made of the weights, looked up as they are."""
        if self.backend == "native":
            return applied(_Lookup, index, table, self.padding_idx, self.sparse and table is self.weight)
        return F.embedding(index, table, self.padding_idx, sparse=self.sparse and table is self.weight)


class _Lookup(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(index: Tensor, weight: Tensor, padding: int | None, sparse: bool) -> Tensor:
        return weight.index_select(0, index.flatten()).view(*index.shape, weight.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        index, weight, ctx.padding, ctx.sparse = inputs
        ctx.rows = weight.shape[0]
        ctx.save_for_backward(index)

    @staticmethod
    @first_order("Lookup")
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        (index,) = ctx.saved_tensors
        index = index.flatten()
        mask = None if ctx.padding is None else index != ctx.padding
        gradient = gradient.reshape(index.shape[0], gradient.shape[-1])
        if ctx.sparse:
            return None, sparse_rows(gradient, index, mask, ctx.rows), None, None
        return None, sum_segments(gradient, index, mask, ctx.rows), None, None


def sparse_rows(values: Tensor, index: Tensor, mask: Tensor | None, rows: int) -> Tensor:
    """Rows of a gradient [N, d] by index [N] where mask [N] is set, as `sum_segments` but sparse and not yet summed."""
    if mask is not None:
        values, index = values[mask], index[mask]
    size = (rows, values.shape[1])
    return torch.sparse_coo_tensor(index.unsqueeze(0), values, size, is_coalesced=False, check_invariants=False)
