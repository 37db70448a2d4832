"""Dropout whose draws are a function of element number and key: checks, allocation, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solid_ext._native import kernels
from solid_ext.ops import reference
from solid_ext.ops._arguments import DTYPES, Backend, expect_backend, expect_device, expect_tensor, real, size
from solid_ext.ops._library import applied, define_operator, expect_no_tangent


def dropout(x: Tensor, key: Tensor, probability: float, *, first: int = 0, backend: Backend = "native") -> Tensor:
    """`y[i] = x[i] [draw(first + i, key) >= p 2^32] / (1 - p)`: each element is dropped with probability p.

    The draws are 32 bits hashed from the element's number and the key, so that they are the same for any number of
    threads, on every instruction set and in both back ends, and no mask is kept for the backward. As in torch a
    dropped element that is not finite gives NaN.

    Args:
        x: float32, float64, bfloat16 or float16, of any shape and strides.
        key: [] int64; another one for each call, such as `torch.empty((), dtype=torch.int64).random_()`.
        probability: p in [0, 1).
        first: the number of x's first element, 0 or more, where x is a part of a larger array.
        backend: "native" (the kernel) or "reference" (plain torch).

    Returns:
        A tensor as x, dense.

    Raises:
        ValueError: a probability, shape, device or option that does not fit.
        TypeError: a dtype that does not fit.

    Gradient: to x, of any order: `dropout` of the gradient with the same key.

    Source: docs/kernels/dropout.md#contract.
    """
    _check(x, key, probability, first)
    if backend == "reference":
        return reference.dropout(x, key, probability, first)
    expect_backend("dropout", backend)
    expect_no_tangent("dropout", x)
    return applied(_Dropout, x, key, float(probability), first)


def _check(x: Tensor, key: Tensor, probability: float, first: int = 0) -> None:
    for name, tensor in (("x", x), ("key", key)):
        expect_tensor("dropout", name, tensor)
    if x.dtype not in DTYPES:
        raise TypeError(f"dropout: expected x of a floating dtype, got {x.dtype}")
    if key.dtype != torch.int64:
        raise TypeError(f"dropout: expected key of torch.int64, got {key.dtype}")
    if key.dim() != 0:
        raise ValueError(f"dropout: expected key [], got {list(key.shape)}")
    expect_device("dropout", "key", key, x)
    if not 0 <= real("dropout", "probability", probability) < 1:
        raise ValueError(f"dropout: expected 0 <= probability < 1, got {probability}")
    size("dropout", "first", first, least=0)


class _Dropout(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, key: Tensor, probability: float, first: int) -> Tensor:
        return _operator(x, key, probability, first)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, int], output: Tensor) -> None:
        _, key, ctx.probability, ctx.first = inputs
        ctx.save_for_backward(key)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        (key,) = ctx.saved_tensors
        return applied(_Dropout, dy, key, ctx.probability, ctx.first), None, None, None


def _dropout_cpu(x: Tensor, key: Tensor, probability: float, first: int = 0) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = x.to(wide).contiguous()
    y = torch.empty_like(given)
    kernels.dropout(
        wide == torch.float64,
        given.numel(),
        given.data_ptr(),
        key.data_ptr(),
        reference.dropped_of_2_32(probability),
        1 / (1 - probability),
        y.data_ptr(),
        torch.get_num_threads(),
        first,
    )
    return y.to(x.dtype)


def _dropout_fake(x: Tensor, key: Tensor, probability: float, first: int = 0) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_operator = define_operator(
    "dropout(Tensor x, Tensor key, float probability, int first=0) -> Tensor",
    check=_check,
    cpu=_dropout_cpu,
    cuda=reference.dropout,
    fake=_dropout_fake,
)
