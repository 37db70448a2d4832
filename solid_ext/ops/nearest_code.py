"""The nearest codebook entry of every row: checks, allocation, gradients."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from solid_ext._native import kernels
from solid_ext.ops import reference
from solid_ext.ops._library import define_operator

Gradient = Literal["straight_through", "none", "rotation"]
Metric = Literal["l2", "cosine"]
Backend = Literal["native", "reference"]

KERNEL_DTYPES = (torch.float32, torch.float64)
HALF_DTYPES = (torch.bfloat16, torch.float16)


class NearestCode(NamedTuple):
    """`index` [..] int64, `quantized` [.., D] as x, `distance` [..] float32 (float64 for float64)."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, as the contract names it
    quantized: Tensor
    distance: Tensor


class NearestCodeStatistics(NamedTuple):
    """`NearestCode` and what the codes were given: `counts` [K] int64, `sums` [K, D] as distance."""

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
        x: [.., D] float32, bfloat16, float16 (float64 with a float64 codebook), any strides.
        codebook: [K, D], K >= 1.
        mask: [..] bool or None; where it is False, nothing is looked up.
        gradient: what reaches x from `quantized`: "straight_through" the gradient as it is, "none" nothing,
            "rotation" the gradient turned and scaled as x is turned and scaled into its code.
        metric: "cosine" divides the rows of both by their norm first (rows of zeros stay), then "l2".
        backend: "native" or "reference".

    Returns:
        index [..] int64: the lowest one on a tie; 0 where masked. A code whose cost is not below +infinity
        (NaN, overflow) is never chosen, index 0 when no code is left.
        quantized [.., D] in x's dtype: `codebook[index]`, zero where masked.
        distance [..] float32 (float64 for float64): `sum (x - quantized)^2`, measured directly, not by way of
        the expansion, which cancels; 0 where masked.

    Errors: ValueError or TypeError naming the argument, before work starts.

    Gradient: x from `quantized` as chosen above and from `distance` `2 (x - c)`; codebook by segment sums of
    the gradient of `quantized` and of `-2 (x - c)`, added in the order of the rows, whatever the number of
    threads. Masked rows give and get none. Autocast is ignored: what is given is searched in float32
    (float64). vmap folds the batch of x; one codebook each is refused.

    Source: design, kernels, section 1; rotation: Fifty et al. 2024, "Restructuring Vector Quantization with
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
    """`nearest_code` and, in the same call, how many rows chose each code, and their sum.

    Arguments, errors and gradients as in `nearest_code`; `counts` [K] int64 and `sums` [K, D] (of the
    normalised rows for "cosine") leave out masked rows and rows whose distance is not finite, are added in
    the order of the rows and have no gradient.

    Source: design, kernels, section 1.
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
    """`nearest_code_statistics` for the layer: sums only on request ([0, D] otherwise), weighted gradients.

    Args:
        distance_gradient: factors of the gradient of `distance` to x and to the codebook, so that one
            distance serves two losses with stopped gradients, `beta (x - sg(c))^2 + (sg(x) - c)^2`.
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
    dtype = x.dtype
    if metric == "cosine":
        x, codebook = _unit_rows(x), _unit_rows(codebook)
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    valid = mask if mask is None or mask.dim() == 1 else mask.reshape(-1)
    if torch.is_grad_enabled() and (x.requires_grad or codebook.requires_grad):
        found = _NearestCode.apply(rows, codebook, valid, gradient, backend, statistics, distance_gradient)
    else:
        found = _search(rows, codebook, valid, backend, statistics)
    index, quantized, distance = found[:3]
    if x.dim() != 2:
        shape = x.shape[:-1]
        index, quantized, distance = index.view(shape), quantized.view(x.shape), distance.view(shape)
    if quantized.dtype != dtype:
        quantized = quantized.to(dtype)
    return (index, quantized, distance, *found[3:])


def _unit_rows(rows: Tensor) -> Tensor:
    wide = rows if rows.dtype == torch.float64 else rows.float()
    return torch.nn.functional.normalize(wide, dim=-1)


def _check(x: Tensor, codebook: Tensor, mask: Tensor | None, gradient: str, metric: str, backend: str) -> None:
    if x.dim() < 1:
        raise ValueError("nearest_code: expected x [.., D], got a tensor without dimensions")
    if codebook.dim() != 2 or codebook.shape[1] != x.shape[-1]:
        raise ValueError(f"nearest_code: expected codebook [K, D={x.shape[-1]}], got {list(codebook.shape)}")
    if codebook.shape[0] < 1 or codebook.shape[1] < 1:
        raise ValueError(f"nearest_code: expected codebook [K >= 1, D >= 1], got {list(codebook.shape)}")
    if x.dtype != codebook.dtype or x.dtype not in KERNEL_DTYPES:
        narrow = (torch.float32, *HALF_DTYPES)
        if not (x.dtype in narrow and codebook.dtype in narrow):
            raise TypeError(
                "nearest_code: expected x and codebook of float32, bfloat16 or float16, or both of float64, "
                f"got {x.dtype} and {codebook.dtype}"
            )
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"nearest_code: expected mask of torch.bool, got {mask.dtype}")
        if mask.shape != x.shape[:-1]:
            raise ValueError(f"nearest_code: expected mask {list(x.shape[:-1])}, got {list(mask.shape)}")
        if mask.device != x.device:
            raise ValueError(f"nearest_code: expected mask on {x.device}, got {mask.device}")
    if codebook.device != x.device:
        raise ValueError(f"nearest_code: expected codebook on {x.device}, got {codebook.device}")
    if gradient not in get_args(Gradient):
        raise ValueError(f"nearest_code: expected gradient in {get_args(Gradient)}, got {gradient!r}")
    if metric not in get_args(Metric):
        raise ValueError(f"nearest_code: expected metric in {get_args(Metric)}, got {metric!r}")
    if backend not in get_args(Backend):
        raise ValueError(f"nearest_code: expected backend in {get_args(Backend)}, got {backend!r}")
    if backend == "native" and x.device.type != "cpu":
        raise ValueError(f"nearest_code: expected x on the CPU for backend 'native', got {x.device}")


def _search(x: Tensor, codebook: Tensor, mask: Tensor | None, backend: str, statistics: str) -> tuple[Tensor, ...]:
    if backend == "reference":
        return _search_reference(x, codebook, mask, statistics)
    if statistics == "none":
        return _search_operator(x, codebook, mask)
    return _statistics_operator(x, codebook, mask, statistics == "sums")


def _search_reference(x: Tensor, codebook: Tensor, mask: Tensor | None, statistics: str) -> tuple[Tensor, ...]:
    if x.dtype != torch.float64:
        codebook = codebook.float()
    rows = x.to(codebook.dtype)
    index = reference.nearest_index(rows, codebook, mask)
    quantized = codebook[index]
    distance = (rows - quantized).square().sum(1)
    if mask is not None:
        quantized = torch.where(mask.unsqueeze(1), quantized, 0)
        distance = torch.where(mask, distance, 0)
    found = index, quantized.to(x.dtype), distance
    if statistics == "none":
        return found
    counted = torch.isfinite(distance) if mask is None else torch.isfinite(distance) & mask
    values = rows if statistics == "sums" else rows[:, :0]
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
        backend: str,
        statistics: str,
        distance_gradient: tuple[float, float],
    ) -> tuple[Tensor, ...]:
        return _search(x, codebook, mask, backend, statistics)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, codebook, mask, ctx.gradient, ctx.backend, _, ctx.distance_gradient = inputs
        index, quantized = output[:2]
        ctx.mark_non_differentiable(index, *output[3:])
        ctx.codes, ctx.codebook_dtype = codebook.shape[0], codebook.dtype
        ctx.save_for_backward(x, index, quantized, mask)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, index, quantized, mask = ctx.saved_tensors
        of_quantized, of_distance = gradients[1], gradients[2]
        wide = _working_dtype(x)
        x, quantized, of_quantized = x.to(wide), quantized.to(wide), of_quantized.to(wide)
        toward = 2 * of_distance.unsqueeze(1) * (x - quantized)
        of_x, of_code = ctx.distance_gradient
        grad_x = grad_codebook = None
        if ctx.needs_input_grad[0]:
            grad_x = of_x * toward + _through(ctx.gradient, of_quantized, x, quantized)
            if mask is not None:
                grad_x = torch.where(mask.unsqueeze(1), grad_x, 0)
            grad_x = grad_x.to(ctx.saved_tensors[0].dtype)
        if ctx.needs_input_grad[1]:
            values = of_quantized - of_code * toward
            grad_codebook = _sum_by_code(values, index, mask, ctx.codes, ctx.backend).to(ctx.codebook_dtype)
        return grad_x, grad_codebook, None, None, None, None, None


def _sum_by_code(values: Tensor, index: Tensor, mask: Tensor | None, codes: int, backend: str) -> Tensor:
    if backend == "reference":
        return reference.segment_sum(values, index, mask, codes)[1]
    return _segment_sum_operator(values, index, mask, codes)


def _through(gradient: str, of_quantized: Tensor, x: Tensor, quantized: Tensor) -> Tensor:
    """The gradient that reaches x [N, D] from that of its code [N, D]."""
    if gradient == "none":
        return torch.zeros_like(of_quantized)
    if gradient == "straight_through":
        return of_quantized
    return reference.rotate_gradient(of_quantized, x, quantized)


def _outputs(x: Tensor, codebook: Tensor, statistics: str) -> tuple[Tensor, ...]:
    """Uninitialised outputs, quantized and sums in the dtype the kernel works in."""
    rows, dtype = x.shape[0], _working_dtype(x)
    found = (
        x.new_empty(rows, dtype=torch.int64),
        x.new_empty(x.shape, dtype=x.dtype),
        x.new_empty(rows, dtype=dtype),
    )
    if statistics == "none":
        return found
    codes, dim = codebook.shape
    summed = codes if statistics == "sums" else 0
    return (*found, x.new_empty(codes, dtype=torch.int64), x.new_empty(summed, dim, dtype=dtype))


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _search_cpu(x: Tensor, codebook: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return _run_kernel(x, codebook, mask, "none")


def _statistics_cpu(x: Tensor, codebook: Tensor, mask: Tensor | None, sums: bool) -> tuple[Tensor, ...]:
    return _run_kernel(x, codebook, mask, "sums" if sums else "counts")


def _run_kernel(x: Tensor, codebook: Tensor, mask: Tensor | None, statistics: str) -> tuple[Tensor, ...]:
    dtype = x.dtype
    wide = _working_dtype(x)
    rows = x if dtype == wide else x.to(wide)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    codebook = codebook.to(wide).contiguous()
    if mask is not None:
        mask = mask.contiguous()
    found = _outputs(rows, codebook, statistics)
    index, quantized, distance = found[:3]
    codes, dim = codebook.shape
    size = wide.itemsize
    workspace = torch.empty(kernels.nearest_code_workspace(codes, dim, size), dtype=torch.uint8)
    kernels.nearest_code(
        wide == torch.float64,
        rows.data_ptr(),
        rows.stride(0),
        rows.shape[0],
        dim,
        codebook.data_ptr(),
        codes,
        0 if mask is None else mask.data_ptr(),
        workspace.data_ptr(),
        index.data_ptr(),
        quantized.data_ptr(),
        distance.data_ptr(),
        0 if statistics == "none" else found[3].data_ptr(),
        found[4].data_ptr() if statistics == "sums" else 0,
        torch.get_num_threads(),
    )
    return found if dtype == wide else (index, quantized.to(dtype), *found[2:])


def _segment_sum_cpu(values: Tensor, index: Tensor, mask: Tensor | None, codes: int) -> Tensor:
    values, index = values.contiguous(), index.contiguous()
    if mask is not None:
        mask = mask.contiguous()
    rows, dim = values.shape
    sums = values.new_empty(codes, dim)
    kernels.segment_sum(
        values.dtype == torch.float64,
        values.data_ptr(),
        dim,
        rows,
        dim,
        index.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        codes,
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    return sums


def _segment_sum_fake(values: Tensor, index: Tensor, mask: Tensor | None, codes: int) -> Tensor:
    return values.new_empty(codes, values.shape[1])


def _fold(batched: Tensor, dim: int | None, size: int) -> Tensor:
    """[batch, N, ..] as [batch * N, ..]; a tensor without a batch dimension is repeated."""
    batched = batched.expand(size, *batched.shape) if dim is None else batched.movedim(dim, 0)
    return batched.flatten(0, 1)


def _search_vmap(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, codebook: Tensor, mask: Tensor | None
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    if in_dims[1] is not None:
        raise NotImplementedError("nearest_code: expected one codebook for all of vmap's batch, got one each")
    size = info.batch_size
    rows = _fold(x, in_dims[0], size)
    valid = None if mask is None else _fold(mask, in_dims[2], size)
    found = _search_operator(rows, codebook, valid)
    return tuple(part.unflatten(0, (size, -1)) for part in found), (0, 0, 0)


def _statistics_vmap(*_: Any) -> Any:
    raise NotImplementedError("nearest_code_statistics: expected a call without vmap (its sums mix the whole batch)")


def _segment_sum_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    values: Tensor,
    index: Tensor,
    mask: Tensor | None,
    codes: int,
) -> tuple[Tensor, int]:
    size = info.batch_size
    rows = values.shape[-2] if in_dims[0] is None else values.movedim(in_dims[0], 0).shape[1]
    offset = torch.arange(size, device=index.device).repeat_interleave(rows) * codes
    sums = _segment_sum_operator(
        _fold(values, in_dims[0], size),
        _fold(index, in_dims[1], size) + offset,
        None if mask is None else _fold(mask, in_dims[2], size),
        size * codes,
    )
    return sums.unflatten(0, (size, codes)), 0


def _search_fake(x: Tensor, codebook: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return _outputs(x, codebook, "none")


def _statistics_fake(x: Tensor, codebook: Tensor, mask: Tensor | None, sums: bool) -> tuple[Tensor, ...]:
    return _outputs(x, codebook, "sums" if sums else "counts")


_search_operator = define_operator(
    "nearest_code(Tensor x, Tensor codebook, Tensor? mask) -> (Tensor index, Tensor quantized, Tensor distance)",
    cpu=_search_cpu,
    fake=_search_fake,
    vmap=_search_vmap,
)
_statistics_operator = define_operator(
    "nearest_code_statistics(Tensor x, Tensor codebook, Tensor? mask, bool sums)"
    " -> (Tensor index, Tensor quantized, Tensor distance, Tensor counts, Tensor sums)",
    cpu=_statistics_cpu,
    fake=_statistics_fake,
    vmap=_statistics_vmap,
)
_segment_sum_operator = define_operator(
    "segment_sum(Tensor values, Tensor index, Tensor? mask, SymInt codes) -> Tensor",
    cpu=_segment_sum_cpu,
    fake=_segment_sum_fake,
    vmap=_segment_sum_vmap,
)
