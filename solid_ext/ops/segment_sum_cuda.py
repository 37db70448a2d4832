"""segment_sum on a GPU: allocation, and in which order rows are added."""

from __future__ import annotations

import torch
from torch import Tensor

from solid_ext.ops import _cuda
from solid_ext.ops._cuda import ELEMENTS, address

MOST_COPIES = 64


def segment_sum(values: Tensor, index: Tensor, mask: Tensor | None, num_codes: int) -> Tensor:
    """The operator segment_sum, in the order of the rows under `torch.use_deterministic_algorithms`."""
    if torch.are_deterministic_algorithms_enabled():
        return sum_in_order(values, index, mask, num_codes)
    values, index = values.contiguous(), index.contiguous()
    mask = None if mask is None else mask.contiguous()
    copies = copies_of(len(values), num_codes)
    sums = values.new_zeros(copies, num_codes, values.shape[1], dtype=_wide(values))
    _call(values, num_codes, sums, index, mask, None, None)
    return sums[0] if copies == 1 else sums.sum(0)


def copies_of(rows: int, num_codes: int) -> int:
    """How many copies of the sums rows are added to in no fixed order, so that few wait for each other at an address.

    Never more memory than a sixteenth of the rows', and one copy wherever codes are many.
    """
    return max(1, min(MOST_COPIES, rows // (16 * num_codes)))


def sum_in_order(values: Tensor, index: Tensor, mask: Tensor | None, num_codes: int) -> Tensor:
    """Sums by code of rows sorted by code; masked rows go behind the last code."""
    keys, order = torch.sort(index if mask is None else torch.where(mask, index, num_codes), stable=True)
    starts = torch.searchsorted(keys, torch.arange(num_codes + 1, device=index.device))
    if values.stride(1) != 1:
        values = values.contiguous()
    sums = values.new_empty(1, num_codes, values.shape[1], dtype=_wide(values))
    _call(values, num_codes, sums, None, None, order, starts)
    return sums[0]


def _wide(values: Tensor) -> torch.dtype:
    """What the kernels add in."""
    return torch.promote_types(values.dtype, torch.float32)


def _call(
    values: Tensor,
    num_codes: int,
    sums: Tensor,
    index: Tensor | None,
    mask: Tensor | None,
    order: Tensor | None,
    starts: Tensor | None,
) -> None:
    rows, dim = values.shape
    _cuda.call(
        "segment_sum_cuda",
        values,
        ELEMENTS[values.dtype],
        address(values),
        values.stride(0),
        rows,
        dim,
        num_codes,
        address(sums),
        address(index),
        address(mask),
        address(order),
        address(starts),
        len(sums),
    )
