"""Sums of rows by code, in the order of the rows: checks, allocation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solid_ext._native import kernels
from solid_ext.ops import segment_sum_cuda
from solid_ext.ops._arguments import expect_device, expect_like, expect_mask, expect_tensor
from solid_ext.ops._library import define_operator, expect_no_tangent, fold


def segment_sum(values: Tensor, index: Tensor, mask: Tensor | None, num_codes: int) -> Tensor:
    """Sums of the rows of values [N, D] by index [N] int64, where mask [N] bool is set: [num_codes, D] as values.

    Rows are added in their order, in float32 or wider, so that the result is bitwise the same for any number of
    threads.

    Raises:
        ValueError: a shape or device that does not fit; on the CPU an index outside 0 .. num_codes - 1, masked or not
            (on a GPU such a row is added to no sum).
        TypeError: a dtype that does not fit.

    Gradient: none.
    """
    for name, given in (("values", values), ("index", index), *(() if mask is None else (("mask", mask),))):
        expect_tensor("segment_sum", name, given)
    expect_no_tangent("segment_sum", values)
    return sum_segments(values, index, mask, num_codes)


def sum_segments(values: Tensor, index: Tensor, mask: Tensor | None, num_codes: int) -> Tensor:
    """`segment_sum` without its checks of what is no tensor, which a compiled backward could not trace."""
    if values.dtype in (torch.bfloat16, torch.float16):
        return _operator(values.float(), index, mask, num_codes).to(values.dtype)
    return _operator(values, index, mask, num_codes)


def _check(values: Tensor, index: Tensor, mask: Tensor | None, num_codes: int) -> None:
    if values.dim() != 2:
        raise ValueError(f"segment_sum: expected values [N, D], got {list(values.shape)}")
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"segment_sum: expected values of float32 or float64, got {values.dtype}")
    expect_like("segment_sum", "index", index, values.shape[:1], index)
    if index.dtype != torch.int64:
        raise TypeError(f"segment_sum: expected index of torch.int64, got {index.dtype}")
    expect_device("segment_sum", "index", index, values)
    if mask is not None:
        expect_mask("segment_sum", mask, values.shape[:1], values)
    if num_codes < 1:
        raise ValueError(f"segment_sum: expected num_codes >= 1, got {num_codes}")


def _sum_cpu(values: Tensor, index: Tensor, mask: Tensor | None, num_codes: int) -> Tensor:
    values, index = values.contiguous(), index.contiguous()
    if mask is not None:
        mask = mask.contiguous()
    rows, dim = values.shape
    sums = values.new_empty(num_codes, dim)
    kernels.segment_sum(
        values.dtype == torch.float64,
        values.data_ptr(),
        dim,
        rows,
        dim,
        index.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        num_codes,
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    return sums


def _sum_fake(values: Tensor, index: Tensor, mask: Tensor | None, num_codes: int) -> Tensor:
    return values.new_empty(num_codes, values.shape[1])


def _sum_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    values: Tensor,
    index: Tensor,
    mask: Tensor | None,
    num_codes: int,
) -> tuple[Tensor, int]:
    size = info.batch_size
    rows = values.shape[-2] if in_dims[0] is None else values.movedim(in_dims[0], 0).shape[1]
    offset = torch.arange(size, device=index.device).repeat_interleave(rows) * num_codes
    sums = _operator(
        fold(values, in_dims[0], size),
        fold(index, in_dims[1], size) + offset,
        None if mask is None else fold(mask, in_dims[2], size),
        size * num_codes,
    )
    return sums.unflatten(0, (size, num_codes)), 0


_operator = define_operator(
    "segment_sum(Tensor values, Tensor index, Tensor? mask, SymInt num_codes) -> Tensor",
    check=_check,
    cpu=_sum_cpu,
    cuda=segment_sum_cuda.segment_sum,
    fake=_sum_fake,
    vmap=_sum_vmap,
)
