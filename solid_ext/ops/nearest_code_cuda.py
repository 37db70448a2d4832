"""nearest_code on a GPU: allocation, and which kernel adds the sums."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from solid_ext.ops import _cuda
from solid_ext.ops._cuda import ELEMENTS, address
from solid_ext.ops.segment_sum_cuda import sum_in_order

Method = Literal["chosen", "exact", "screened"]
METHODS = {"chosen": 0, "exact": 1, "screened": 2}  # Method of csrc/nearest_code/nearest_code_cuda.h


def search(x: Tensor, codebook: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """The operator nearest_code: index, quantized, distance."""
    return run(x, codebook, mask, "none")


def statistics(x: Tensor, codebook: Tensor, mask: Tensor | None, sums: bool) -> tuple[Tensor, ...]:
    """The operator nearest_code_statistics: index, quantized, distance, counts, sums."""
    return run(x, codebook, mask, "sums" if sums else "counts")


def run(
    x: Tensor, codebook: Tensor, mask: Tensor | None, wanted: str, *, method: Method = "chosen"
) -> tuple[Tensor, ...]:
    """The search with statistics "none", "counts" or "sums".

    Sums are added in the same pass, atomically; under `torch.use_deterministic_algorithms` in a second one, in
    the order of the rows.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    codebook = codebook.to(dtype).contiguous()
    mask = None if mask is None else mask.contiguous()
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, (codes, dim) = x.shape[0], codebook.shape
    index = x.new_empty(rows, dtype=torch.int64)
    quantized = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    distance = x.new_empty(rows, dtype=dtype)
    counts = sums = None
    later = wanted == "sums" and torch.are_deterministic_algorithms_enabled()
    if wanted != "none":
        counts = x.new_zeros(codes, dtype=torch.int64)
    if wanted == "sums" and not later:
        sums = x.new_zeros(codes, dim, dtype=dtype)
    element = ELEMENTS[x.dtype]
    needed = _cuda.query("nearest_code_cuda_workspace", METHODS[method], element, rows, codes, dim)
    workspace = x.new_empty(needed, dtype=torch.uint8) if needed else None
    _cuda.call(
        "nearest_code_cuda",
        x,
        METHODS[method],
        element,
        address(x),
        x.stride(0),
        rows,
        dim,
        address(codebook),
        codes,
        address(mask),
        address(workspace),
        address(index),
        address(quantized),
        address(distance),
        address(counts),
        address(sums),
    )
    if counts is None:
        return index, quantized, distance
    if later:
        counted = torch.isfinite(distance) if mask is None else torch.isfinite(distance) & mask
        sums = sum_in_order(x, index, counted, codes)
    elif sums is None:
        sums = x.new_empty(0, dim, dtype=dtype)
    return index, quantized, distance, counts, sums
