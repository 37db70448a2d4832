"""The nearest codebook entry of every row, and sums of rows by entry: checks, allocation, gradients."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from solid_ext._native import kernels
from solid_ext.ops import nearest_code_cuda, reference
from solid_ext.ops._arguments import Backend, expect_device, expect_mask, expect_tensor
from solid_ext.ops._library import (
    applied,
    define_operator,
    expect_no_tangent,
    first_order,
    under_transforms,
    unobserved,
)
from solid_ext.ops.segment_sum import sum_segments

Gradient = Literal["straight_through", "none", "rotation"]
Metric = Literal["l2", "cosine"]

GRADIENTS: tuple[str, ...] = get_args(Gradient)
METRICS: tuple[str, ...] = get_args(Metric)
BACKENDS: tuple[str, ...] = get_args(Backend)
NARROW_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ROWS_WIDENED = 8192  # of a narrow x at a time; packing the entries again for each part costs less than a percent


class NearestCode(NamedTuple):
    """`index` [..] int64, `quantized` [.., D] in x's dtype, `distance` [..] float32 (float64 for float64)."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, as the contract names it
    quantized: Tensor
    distance: Tensor


class NearestCodeStatistics(NamedTuple):
    """`NearestCode`, and of each entry `counts` [K] int64, how many rows chose it, and `sums` [K, D], in distance's
    dtype, the sum of those rows."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, as the contract names it
    quantized: Tensor
    distance: Tensor
    counts: Tensor
    sums: Tensor


def nearest_code(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None = None,
    *,
    gradient: Gradient = "straight_through",
    metric: Metric = "l2",
    backend: Backend = "native",
) -> NearestCode:
    """The nearest codebook entry of every row: `index = argmin_k ||x - codebook_k||^2`.

    Args:
        x: [.., D] float32, bfloat16 or float16 (float64 with a float64 codebook), of any strides.
        codebook: [K, D], K >= 1 entries.
        mask: [..] bool or None; where it is False, nothing is looked up.
        gradient: what reaches x from `quantized`: "straight_through" the gradient as it is, "none" nothing,
            "rotation" the gradient turned and scaled as x is turned and scaled into its entry.
        metric: "l2", or "cosine", which divides the rows of both by their norm first (rows of zeros stay), however
            long or short they are.
        backend: "native" (the kernel) or "reference" (plain torch).

    Returns:
        index: [..] int64, the entry whose sum of squared differences from x is least, the lowest one on a tie. It is
            found from differences, so that nothing cancels wherever rows and entries lie. 0 where masked. An entry
            whose distance is not below +infinity (NaN, overflow) is never chosen; the index is 0 when none is left.
            Squares are what is compared: differences below 1e-22 or above 1e19 leave float32, so that entries as near
            as the former tie at 0, and those as far as the latter are never chosen.
        quantized: [.., D] in x's dtype, `codebook[index]`, zero where masked.
        distance: [..] float32 (float64 for float64), `sum (x - quantized)^2`, from differences too; 0 where masked.

    Raises:
        ValueError: a shape, a device or an option that does not fit; said before work starts.
        TypeError: a dtype that does not fit.
        NotImplementedError: a derivative of second order or in forward mode of the native backend, where the reference
            has both.

    Gradient: to x from `quantized` as chosen above, and `2 (x - c)` from `distance`, c being the chosen entry; to the
    codebook segment sums of the gradient of `quantized` and of `-2 (x - c)`, added in the order of the rows, whatever
    the number of threads; of first order only in the native backend. Masked rows give and get none. Autocast is
    ignored: the search is in float32 (float64).

    Source: docs/kernels/nearest_code.md#contract; rotation: Fifty et al. 2024, "Restructuring Vector Quantization with
    the Rotation Trick", section 4.2.
    """
    return NearestCode(*_lookup(x, codebook, mask, gradient, metric, backend, "none", (1.0, 1.0)))


def nearest_code_statistics(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None = None,
    *,
    gradient: Gradient = "straight_through",
    metric: Metric = "l2",
    backend: Backend = "native",
) -> NearestCodeStatistics:
    """`nearest_code` and, in the same call, how many rows chose each entry, and the sum of those rows.

    Arguments, errors and gradients are those of `nearest_code`. `counts` [K] int64 and `sums` [K, D] (of the
    normalised rows for "cosine") leave out masked rows and rows whose distance is not finite. They are added in the
    order of the rows and have no gradient.

    Source: docs/kernels/nearest_code.md#contract.
    """
    return NearestCodeStatistics(*_lookup(x, codebook, mask, gradient, metric, backend, "sums", (1.0, 1.0)))


def codebook_lookup(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    *,
    gradient: Gradient,
    metric: Metric,
    backend: Backend,
    sums: bool,
    distance_gradient: tuple[float, float],
) -> NearestCodeStatistics:
    """`nearest_code_statistics` as the layer calls it: with sums on request, and weighted gradients of the distance.

    Args:
        x: [.., D], and the arguments up to backend, as in `nearest_code`.
        sums: whether the sums of rows are wanted; they are [0, D] otherwise.
        distance_gradient: factors of the gradient of `distance` to x and to the codebook, so that one distance serves
            two losses with stopped gradients, `beta (x - sg(c))^2 + (sg(x) - c)^2`: (1, 1), or two whose sum is 1.
            With (0, 0) it has no gradient, and less is kept for the backward.
    """
    wanted = "sums" if sums else "counts"
    return NearestCodeStatistics(*_lookup(x, codebook, mask, gradient, metric, backend, wanted, distance_gradient))


def _lookup(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    gradient: str,
    metric: str,
    backend: str,
    statistics: str,
    distance_gradient: tuple[float, float],
) -> tuple[Tensor, ...]:
    _check(x, codebook, mask, gradient, metric, backend)
    if backend == "native":
        expect_no_tangent("nearest_code", x, codebook)
    dtype = x.dtype
    if metric == "cosine":
        x, codebook = unit_rows(x), unit_rows(codebook)
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    valid = mask if mask is None or mask.dim() == 1 else mask.reshape(-1)
    transformed = under_transforms()
    if backend == "reference":
        found = _search_reference(rows, codebook, valid, gradient, statistics, distance_gradient)
    # What a transform such as vmap wraps does not say whether a gradient is wanted of it.
    elif torch.is_grad_enabled() and (x.requires_grad or codebook.requires_grad or transformed):
        found = applied(_NearestCode, rows, codebook, valid, gradient, statistics, distance_gradient)
    else:
        found = _search(rows, codebook, valid, statistics)
    if rows is x and found[1].dtype == dtype:
        return found
    index, quantized, distance = found[:3]
    if rows is not x:
        shape = x.shape[:-1]
        index, quantized, distance = index.view(shape), quantized.view(x.shape), distance.view(shape)
    if quantized.dtype != dtype:
        quantized = quantized.to(dtype)
    return (index, quantized, distance, *found[3:])


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [.., D] divided by their norms in float32 or wider, as the metric "cosine" compares them."""
    return reference.unit_rows(rows if rows.dtype == torch.float64 else rows.float())[0]


def _check(x: Tensor, codebook: Tensor, mask: Tensor | None, gradient: str, metric: str, backend: str) -> None:
    _check_tensors(x, codebook, mask)
    if gradient not in GRADIENTS:
        raise ValueError(f"nearest_code: expected gradient in {GRADIENTS}, got {gradient!r}")
    if metric not in METRICS:
        raise ValueError(f"nearest_code: expected metric in {METRICS}, got {metric!r}")
    if backend not in BACKENDS:
        raise ValueError(f"nearest_code: expected backend in {BACKENDS}, got {backend!r}")
    if backend == "native" and not x.is_cpu and x.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"nearest_code: expected x on the CPU or a CUDA device for backend 'native', got {x.device}")


def _check_tensors(x: Tensor, codebook: Tensor, mask: Tensor | None) -> None:
    expect_tensor("nearest_code", "x", x)
    expect_tensor("nearest_code", "codebook", codebook)
    shape, codes = x.shape, codebook.shape
    if len(shape) < 1:
        raise ValueError("nearest_code: expected x [.., D], got a tensor without dimensions")
    if len(codes) != 2 or codes[1] != shape[-1]:
        raise ValueError(f"nearest_code: expected codebook [K, D={shape[-1]}], got {list(codes)}")
    if codes[0] < 1 or codes[1] < 1:
        raise ValueError(f"nearest_code: expected codebook [K >= 1, D >= 1], got {list(codes)}")
    if not (x.dtype in NARROW_DTYPES and codebook.dtype in NARROW_DTYPES) and not (
        x.dtype == codebook.dtype == torch.float64
    ):
        raise TypeError(
            "nearest_code: expected x and codebook of float32, bfloat16 or float16, or both of float64, "
            f"got {x.dtype} and {codebook.dtype}"
        )
    if mask is not None:
        expect_mask("nearest_code", mask, shape[:-1], x)
    expect_device("nearest_code", "codebook", codebook, x)


def _check_search(x: Tensor, codebook: Tensor, mask: Tensor | None, sums: bool = False) -> None:
    if x.dim() != 2:
        raise ValueError(f"nearest_code: expected x [N, D], got {list(x.shape)}")
    _check_tensors(x, codebook, mask)


def _search(x: Tensor, codebook: Tensor, mask: Tensor | None, statistics: str) -> tuple[Tensor, ...]:
    if unobserved(x, codebook, mask):
        return _run_kernel(x, codebook, mask, statistics)
    if statistics == "none":
        return _search_operator(x, codebook, mask)
    return _statistics_operator(x, codebook, mask, statistics == "sums")


def _search_reference(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    gradient: str,
    statistics: str,
    distance_gradient: tuple[float, float],
) -> tuple[Tensor, ...]:
    """In plain torch, so that derivatives of every order and mode are those of the formula."""
    if x.dtype != torch.float64:
        codebook = codebook.float()
    rows = x.to(codebook.dtype)
    index = reference.nearest_index(rows.detach(), codebook.detach(), mask)
    code = codebook.index_select(0, index)
    difference, fixed = rows - code, rows.detach() - code
    pulled = rows - code.detach()
    if mask is not None:  # nothing is read where it is False: zero times NaN would be a gradient all the same
        valid = mask.unsqueeze(1)
        code, difference, fixed, pulled = (torch.where(valid, part, 0) for part in (code, difference, fixed, pulled))
    if distance_gradient in ((1, 1), (0, 0)):
        distance = (difference if any(distance_gradient) else difference.detach()).square().sum(1)
    else:  # factors whose sum is 1
        parts = zip(distance_gradient, (pulled, fixed), strict=True)
        distance = torch.stack([factor * part.square().sum(1) for factor, part in parts if factor]).sum(0)
    quantized = code
    if gradient != "none":
        carried = torch.where(torch.isfinite(rows), rows, 0)
        carried = carried - carried.detach()  # zero, with the gradient of x
        if gradient == "rotation":
            carried = reference.rotate(carried, rows.detach(), code.detach())
        quantized = code + (carried if mask is None else torch.where(valid, carried, 0))
    found = index, quantized.to(x.dtype), distance
    if statistics == "none":
        return found
    counted = torch.isfinite(distance) if mask is None else torch.isfinite(distance) & mask
    values = (rows if statistics == "sums" else rows[:, :0]).detach()
    counts, sums = reference.segment_sum(values, index, counted, codebook.shape[0])
    return (*found, counts, sums if statistics == "sums" else codebook.new_empty(0, codebook.shape[1]))


class _NearestCode(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        codebook: Tensor,
        mask: Tensor | None,
        gradient: str,
        statistics: str,
        distance_gradient: tuple[float, float],
    ) -> tuple[Tensor, ...]:
        return _search(x, codebook, mask, statistics)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, codebook, mask, ctx.gradient, _, ctx.distance_gradient = inputs
        index, quantized = output[:2]
        pulled = any(ctx.distance_gradient)
        ctx.mark_non_differentiable(index, *output[3 if pulled else 2 :])
        ctx.codes, ctx.codebook_dtype = codebook.shape[0], codebook.dtype
        ctx.save_for_backward(x, index, quantized if pulled or ctx.gradient == "rotation" else None, mask)
        ctx.set_materialize_grads(False)

    @staticmethod
    @first_order("nearest_code")
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, index, quantized, mask = ctx.saved_tensors
        wide = _working_dtype(x)
        of_quantized, of_distance = gradients[1], gradients[2]
        if of_quantized is not None:
            of_quantized = of_quantized.to(wide)
        to_x, to_code = (2 * factor for factor in ctx.distance_gradient)
        pull = None
        if of_distance is not None and any(ctx.distance_gradient):
            pull = (x.to(wide) - quantized.to(wide)) * of_distance.unsqueeze(1)
        gradient_x = gradient_codebook = None
        if ctx.needs_input_grad[0]:
            through = None
            if of_quantized is not None and ctx.gradient == "rotation":
                through = reference.rotate_gradient(of_quantized, x.to(wide), quantized.to(wide))
            elif of_quantized is not None and ctx.gradient == "straight_through":
                through = of_quantized
            gradient_x = _masked(_add_scaled(through, pull, to_x), mask, x.dtype)
        if ctx.needs_input_grad[1]:
            values = _add_scaled(of_quantized, pull, -to_code)
            if values is not None:
                sums = sum_segments(values, index, mask, ctx.codes)
                gradient_codebook = sums.to(ctx.codebook_dtype)
        return gradient_x, gradient_codebook, None, None, None, None


def _add_scaled(first: Tensor | None, second: Tensor | None, factor: float) -> Tensor | None:
    """`first + factor * second`, where None stands for zeros."""
    if second is None or factor == 0:
        return first
    return second * factor if first is None else torch.add(first, second, alpha=factor)


def _masked(gradient: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The gradient in x's dtype, zero where masked."""
    if gradient is None:
        return None
    if mask is not None:
        gradient = torch.where(mask.unsqueeze(1), gradient, 0)
    return gradient.to(dtype)


def _outputs(x: Tensor, codebook: Tensor, statistics: str) -> tuple[Tensor, ...]:
    """Uninitialised outputs, in the dtypes of the operator."""
    rows, device, dtype = x.shape[0], x.device, _working_dtype(x)
    found = (
        torch.empty(rows, dtype=torch.int64, device=device),
        torch.empty(x.shape, dtype=x.dtype, device=device),
        torch.empty(rows, dtype=dtype, device=device),
    )
    if statistics == "none":
        return found
    codes, dim = codebook.shape
    summed = codes if statistics == "sums" else 0
    return (
        *found,
        torch.empty(codes, dtype=torch.int64, device=device),
        torch.empty(summed, dim, dtype=dtype, device=device),
    )


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _search_cpu(x: Tensor, codebook: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return _run_kernel(x, codebook, mask, "none")


def _statistics_cpu(x: Tensor, codebook: Tensor, mask: Tensor | None, sums: bool) -> tuple[Tensor, ...]:
    return _run_kernel(x, codebook, mask, "sums" if sums else "counts")


def _run_kernel(x: Tensor, codebook: Tensor, mask: Tensor | None, statistics: str) -> tuple[Tensor, ...]:
    wide = _working_dtype(x)
    if codebook.dtype != wide:
        codebook = codebook.to(wide)
    if not codebook.is_contiguous():
        codebook = codebook.contiguous()
    if mask is not None and not mask.is_contiguous():
        mask = mask.contiguous()
    if x.dtype != wide:
        return _run_in_parts(x, codebook, mask, statistics)
    if x.stride(1) != 1:
        x = x.contiguous()
    (rows, dim), codes = x.shape, codebook.shape[0]
    index = x.new_empty(rows, dtype=torch.int64)
    quantized, distance = x.new_empty(rows, dim), x.new_empty(rows)
    size = kernels.nearest_code_workspace(codes, dim, x.element_size())
    workspace = x.new_empty(size) if size else None  # 0: the compiled side has room on its stack
    counts = sums = None
    if statistics != "none":
        counts = x.new_empty(codes, dtype=torch.int64)
        sums = x.new_empty(codes if statistics == "sums" else 0, dim)
    kernels.nearest_code(
        x.dtype is torch.float64,
        x.data_ptr(),
        x.stride(0),
        rows,
        dim,
        codebook.data_ptr(),
        codes,
        0 if mask is None else mask.data_ptr(),
        0 if workspace is None else workspace.data_ptr(),
        index.data_ptr(),
        quantized.data_ptr(),
        distance.data_ptr(),
        0 if counts is None else counts.data_ptr(),
        0 if sums is None else sums.data_ptr(),
        torch.get_num_threads(),
    )
    if counts is None or sums is None:
        return index, quantized, distance
    return index, quantized, distance, counts, sums


def _run_in_parts(x: Tensor, codebook: Tensor, mask: Tensor | None, statistics: str) -> tuple[Tensor, ...]:
    """The kernel on narrow rows, widened part by part: never a float32 copy of all of x."""
    found = _outputs(x, codebook, statistics)
    for total in found[3:]:
        total.zero_()
    for start in range(0, x.shape[0], ROWS_WIDENED):
        part = slice(start, start + ROWS_WIDENED)
        results = _run_kernel(x[part].to(codebook.dtype), codebook, None if mask is None else mask[part], statistics)
        for whole, result in zip(found[:3], results[:3], strict=True):
            whole[part].copy_(result)
        for total, result in zip(found[3:], results[3:], strict=True):
            total.add_(result)
    return found


def _search_fake(x: Tensor, codebook: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return _outputs(x, codebook, "none")


def _statistics_fake(x: Tensor, codebook: Tensor, mask: Tensor | None, sums: bool) -> tuple[Tensor, ...]:
    return _outputs(x, codebook, "sums" if sums else "counts")


_search_operator = define_operator(
    "nearest_code(Tensor x, Tensor codebook, Tensor? mask) -> (Tensor index, Tensor quantized, Tensor distance)",
    check=_check_search,
    cpu=_search_cpu,
    cuda=nearest_code_cuda.search,
    fake=_search_fake,
    vmap=(0, 2),
)
_statistics_operator = define_operator(
    "nearest_code_statistics(Tensor x, Tensor codebook, Tensor? mask, bool sums)"
    " -> (Tensor index, Tensor quantized, Tensor distance, Tensor counts, Tensor sums)",
    check=_check_search,
    cpu=_statistics_cpu,
    cuda=nearest_code_cuda.statistics,
    fake=_statistics_fake,
)
