"""catalogue_cross_entropy on a GPU: allocation, and the numbers that the kernels are called with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from solid_ext.ops import _cuda
from solid_ext.ops._cuda import ELEMENTS, address


def run(
    state: Tensor, table: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator catalogue_cross_entropy: the rows' losses, and the wanted gradients where there is a weight.

    All sums run in a fixed order: the result is bitwise the same, whatever `torch.use_deterministic_algorithms` says.
    """
    state, table, target = state.contiguous(), table.contiguous(), target.contiguous()
    bias = None if bias is None else bias.contiguous()
    weight = None if weight is None else weight.contiguous()
    (rows, dim), items = state.shape, table.shape[0]
    loss = state.new_empty(rows, dtype=torch.float64 if state.dtype == torch.float64 else torch.float32)
    back = [want and weight is not None for want in wanted]
    dstate, dtable = (
        like.new_empty(like.shape if want else (0,)) for like, want in zip((state, table), back, strict=True)
    )
    if rows == 0:  # a weight without elements has no address, as one that is not given
        return loss, dstate, dtable.zero_()
    size = _cuda.query("catalogue_cross_entropy_cuda_workspace", ELEMENTS[state.dtype], rows, dim, items)
    workspace = state.new_empty(size, dtype=torch.uint8)
    _cuda.call(
        "catalogue_cross_entropy_cuda",
        state,
        ELEMENTS[state.dtype],
        rows,
        dim,
        items,
        address(state),
        address(table),
        address(target),
        address(bias),
        address(weight),
        address(loss),
        address(dstate if back[0] else None),
        address(dtable if back[1] else None),
        address(workspace),
    )
    return loss, dstate, dtable
