"""gru_last_state on a GPU: allocation, and the numbers that the kernels are called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solid_ext.ops import _cuda
from solid_ext.ops._cuda import ELEMENTS, address


def forward(x: Tensor, mask: Tensor, parameters: Sequence[Tensor], keep: bool) -> tuple[Tensor, Tensor]:
    """The operator gru_last_state_forward: the last state, and the state before each position if they are kept."""
    call = _KernelCall(x, mask, parameters)
    batch, length, _ = x.shape
    h = x.new_empty(batch, call.units)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    states = x.new_empty((length, batch, call.units) if keep else (0,), dtype=dtype)
    _cuda.call("gru_forward_cuda", x, *call.numbers, address(states if keep else None), address(h))
    return h, states


def backward(
    dh: Tensor, x: Tensor, mask: Tensor, parameters: Sequence[Tensor], states: Tensor, wanted: Sequence[bool]
) -> list[Tensor]:
    """The operator gru_last_state_backward: the wanted gradients of x and the parameters.

    All sums run in a fixed order: the result is bitwise the same, whatever `torch.use_deterministic_algorithms` says.
    """
    call = _KernelCall(x, mask, parameters)
    dh = dh.contiguous()
    batch, _, inputs = x.shape
    size = _cuda.query("gru_cuda_workspace", ELEMENTS[x.dtype], batch, inputs, call.units)
    workspace = x.new_empty(size, dtype=torch.uint8)
    gradients = [x.new_empty(t.shape) if want else None for t, want in zip((x, *parameters), wanted, strict=True)]
    _cuda.call(
        "gru_backward_cuda",
        x,
        *call.numbers,
        address(states),
        address(dh),
        address(workspace),
        *(address(gradient) for gradient in gradients),
    )
    return [gradient for gradient in gradients if gradient is not None]


class _KernelCall:
    """Inputs in a layout that the kernel reads, and the numbers of a call in the order of csrc/gru/gru_cuda.h."""

    def __init__(self, x: Tensor, mask: Tensor, parameters: Sequence[Tensor]) -> None:
        x = x if x.stride(2) == 1 else x.contiguous()
        self.tensors = [x, mask.contiguous(), *(p.contiguous() for p in parameters)]
        self.units = parameters[1].shape[1]
        self.numbers: list[Any] = [
            ELEMENTS[x.dtype],
            *x.shape,
            self.units,
            address(x),
            x.stride(0),
            x.stride(1),
            *(address(t) for t in self.tensors[1:]),
        ]
