"""dynamic_mlp on a GPU: allocation, and the numbers that the kernels are called with."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solid_ext.ops import _cuda
from solid_ext.ops._cuda import ELEMENTS, address

MOST_LAYERS = 16  # kMostLayers of csrc/dynamic_linear/dynamic_linear_cuda.h


def forward(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    parameters: Sequence[Tensor],
    delta: float,
    tanh_last: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The operator dynamic_mlp_forward: y, and the hidden activations if they are kept."""
    call = _KernelCall(x, z_item, z_semantic, parameters, delta, tanh_last)
    y = call.x.new_empty(*x.shape[:-1], call.layer_sizes[-1])
    hidden = call.new_hidden()
    _cuda.call("dynamic_forward_cuda", x, *call.sizes, *call.inputs, address(y), address(hidden))
    return y, hidden if keep or x.dim() == 3 else hidden.new_empty(0)


def backward(
    dy: Tensor,
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    parameters: Sequence[Tensor],
    y: Tensor | None,
    hidden: Tensor,
    delta: float,
    tanh_last: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """The operator dynamic_mlp_backward: the wanted gradients of x, z_item, z_semantic and the parameters.

    All sums run in a fixed order: the result is bitwise the same, whatever `torch.use_deterministic_algorithms` says.
    """
    call = _KernelCall(x, z_item, z_semantic, parameters, delta, tanh_last)
    dy = dy.contiguous()
    y = None if y is None else y.contiguous()
    workspace = x.new_empty(_cuda.query("dynamic_cuda_workspace", *call.sizes), dtype=torch.uint8)
    tensors = [x, z_item, z_semantic, *parameters]
    gradients = [
        t.new_empty(t.shape) if t is not None and want else None for t, want in zip(tensors, wanted, strict=True)
    ]
    _cuda.call(
        "dynamic_backward_cuda",
        x,
        *call.sizes,
        *call.inputs,
        address(y),
        address(hidden),
        address(dy),
        address(workspace),
        *(address(gradient) for gradient in gradients),
    )
    return [gradient for gradient in gradients if gradient is not None]


class _KernelCall:
    """Dense inputs and the numbers of a call, in the order of csrc/dynamic_linear/dynamic_linear_cuda.h reads them."""

    def __init__(
        self,
        x: Tensor,
        z_item: Tensor | None,
        z_semantic: Tensor | None,
        parameters: Sequence[Tensor],
        delta: float,
        tanh_last: bool,
    ) -> None:
        layers = len(parameters) // (2 if z_item is None or z_semantic is None else 4)
        if layers > MOST_LAYERS:
            raise ValueError(f"dynamic_mlp: expected at most {MOST_LAYERS} layers on a CUDA device, got {layers}")
        self.layer_sizes = [x.shape[-1], *(generator_map.shape[2] for generator_map in parameters[:layers])]
        self.rows = (x.shape[0], x.shape[1] if x.dim() == 3 else 1)
        self.sizes = (
            ELEMENTS[x.dtype],
            int(_may_round_to_tf32()),
            *self.rows,
            layers,
            *self.layer_sizes,
            struct.unpack("<q", struct.pack("<d", delta))[0],
            int(tanh_last),
            0 if z_item is None else z_item.shape[1],
            0 if z_semantic is None else z_semantic.shape[1],
        )
        self.dense = [t if t is None else t.contiguous() for t in (x, z_item, z_semantic, *parameters)]
        self.x: Tensor = x
        self.inputs: list[Any] = [address(t) for t in self.dense]

    def new_hidden(self) -> Tensor:
        """Room for h_1 .. h_{P-1}: where one block does all layers of a sequence, only the backward reads it."""
        rows = self.rows[0] * self.rows[1]
        dtype = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        return self.x.new_empty(rows * sum(self.layer_sizes[1:-1]), dtype=dtype)


def _may_round_to_tf32() -> bool:
    """Whether torch's own float32 matrix products on a GPU may, by whichever of its two settings."""
    settings: Any = torch.backends.cuda.matmul
    precision = getattr(settings, "fp32_precision", None)  # since torch 2.9; the older name may then raise
    return bool(settings.allow_tf32) if precision is None else precision == "tf32"
