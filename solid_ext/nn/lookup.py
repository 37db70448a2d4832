"""An embedding whose gradient is summed in the order of its rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.ops._arguments import expect_backend, expect_ids
from solid_ext.ops._library import first_order
from solid_ext.ops.gru import Backend
from solid_ext.ops.segment_sum import sum_segments


class Lookup(nn.Embedding):
    """`nn.Embedding` whose gradient is summed row by row in their order, bitwise equal for any number of threads.

    Shapes: index [...] int64 -> [..., d]; the row `padding_idx` gets no gradient.

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
            return _Lookup.apply(index, table, self.padding_idx)
        return F.embedding(index, table, self.padding_idx)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows, ctx.padding = len(weight), padding
        return weight.index_select(0, index.flatten()).view(*index.shape, weight.shape[1])

    @staticmethod
    @first_order("Lookup")
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (index,) = ctx.saved_tensors
        index = index.flatten()
        mask = None if ctx.padding is None else index != ctx.padding
        return None, sum_segments(gradient.reshape(len(index), gradient.shape[-1]), index, mask, ctx.rows), None
