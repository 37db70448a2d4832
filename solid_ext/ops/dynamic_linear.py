"""Layers with weights generated per sequence and never written out: checks, allocation, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from solid_ext.ops import reference

Activation = Literal["none", "tanh"]
Backend = Literal["native", "reference"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def dynamic_linear(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    item_map: Tensor | None,
    item_offset: Tensor | None,
    semantic_map: Tensor | None,
    semantic_offset: Tensor | None,
    *,
    delta: float,
    activation: Activation = "none",
    backend: Backend = "native",
) -> Tensor:
    """A linear layer with weights generated per sequence: a trunk plus a bounded correction.

    `y = act(x W + b)` with `[W; b] = (z_c A_c + a_c) + clip(z_v A_v + a_v, -delta, delta)`.

    Args:
        x: [B, D] or [B, T, D] float32, float64, bfloat16 or float16; all tensors share dtype and device.
        z_item, z_semantic: [B, k], the code of each sequence; None switches that branch off (one must be on).
        item_map, semantic_map (A): [D + 1, k, O]; row i < D generates W[i, :], row D the bias.
        item_offset, semantic_offset (a): [D + 1, O]. Those of a branch that is off are not read.
        delta: bound of the item branch, >= 0; infinity for none.
        activation: "none" or "tanh".

    Returns:
        [B, O] or [B, T, O], dtype of x.

    Errors:
        ValueError or TypeError for a shape, dtype or option that does not fit.

    Gradient: to x, both z and all four parameters; through the clip where |w| <= delta (closed interval).

    Source: design, kernels, section 2; the layer is Module 3 of the paper.
    """
    if activation not in get_args(Activation):
        raise ValueError(f"dynamic_linear: expected activation 'none' or 'tanh', got {activation!r}")
    return _run(
        "dynamic_linear",
        x,
        z_item,
        z_semantic,
        _listed(item_map),
        _listed(item_offset),
        _listed(semantic_map),
        _listed(semantic_offset),
        delta,
        activation == "tanh",
        backend,
    )


def dynamic_mlp(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    item_maps: Sequence[Tensor],
    item_offsets: Sequence[Tensor],
    semantic_maps: Sequence[Tensor],
    semantic_offsets: Sequence[Tensor],
    *,
    delta: float,
    backend: Backend = "native",
) -> Tensor:
    """P layers of `dynamic_linear` in one call, tanh between them and none after the last.

    Args:
        x: [B, D_0] or [B, T, D_0]. z_item, z_semantic: [B, k] or None, shared by all layers.
        maps, offsets: one per layer l: [D_l + 1, k, D_{l+1}] and [D_l + 1, D_{l+1}], as in `dynamic_linear`.
        delta: bound of the item branch, >= 0; infinity for none.

    Returns:
        [B, D_P] or [B, T, D_P], dtype of x.

    Errors, gradient: as in `dynamic_linear`.

    Source: design, kernels, section 2.
    """
    return _run(
        "dynamic_mlp",
        x,
        z_item,
        z_semantic,
        item_maps,
        item_offsets,
        semantic_maps,
        semantic_offsets,
        delta,
        False,
        backend,
    )


def _listed(tensor: Tensor | None) -> list[Tensor]:
    return [] if tensor is None else [tensor]


def _run(
    name: str,
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    item_maps: Sequence[Tensor],
    item_offsets: Sequence[Tensor],
    semantic_maps: Sequence[Tensor],
    semantic_offsets: Sequence[Tensor],
    delta: float,
    tanh_last: bool,
    backend: str,
) -> Tensor:
    if backend not in get_args(Backend):
        raise ValueError(f"{name}: expected backend 'native' or 'reference', got {backend!r}")
    if not delta >= 0:
        raise ValueError(f"{name}: expected delta >= 0, got {delta}")
    if z_item is None and z_semantic is None:
        raise ValueError(f"{name}: expected z_item or z_semantic, got None for both")
    if x.dim() not in (2, 3):
        raise ValueError(f"{name}: expected x [B, D] or [B, T, D], got {list(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: expected x of a floating dtype, got {x.dtype}")
    outputs: list[int] = []
    if z_semantic is not None:
        outputs = _check_branch(name, "semantic", x, z_semantic, semantic_maps, semantic_offsets)
    if z_item is not None:
        item_outputs = _check_branch(name, "item", x, z_item, item_maps, item_offsets)
        if outputs and outputs != item_outputs:
            raise ValueError(
                f"{name}: expected item maps with the semantic maps' outputs {outputs}, got {item_outputs}"
            )
    y = reference.dynamic_mlp(
        x,
        z_item,
        z_semantic,
        item_maps if z_item is not None else [],
        item_offsets,
        semantic_maps if z_semantic is not None else [],
        semantic_offsets,
        delta=delta,
    )
    return y.tanh() if tanh_last else y


def _check_branch(
    name: str,
    branch: str,
    x: Tensor,
    z: Tensor,
    maps: Sequence[Tensor],
    offsets: Sequence[Tensor],
) -> list[int]:
    """Refuse what does not fit together; the output size of every layer."""
    batch, inputs = x.shape[0], x.shape[-1]
    if z.dim() != 2 or z.shape[0] != batch:
        raise ValueError(f"{name}: expected z_{branch} [B={batch}, k], got {list(z.shape)}")
    if not maps or len(maps) != len(offsets):
        raise ValueError(
            f"{name}: expected a map and an offset per layer of the {branch} branch, got {len(maps)} and {len(offsets)}"
        )
    codes = z.shape[1]
    outputs: list[int] = []
    _check_like(name, f"z_{branch}", z, x)
    for generator_map, offset in zip(maps, offsets, strict=True):
        shape = generator_map.shape
        if generator_map.dim() != 3 or shape[0] != inputs + 1 or shape[1] != codes:
            raise ValueError(f"{name}: expected {branch} map [D + 1={inputs + 1}, k={codes}, O], got {list(shape)}")
        if offset.dim() != 2 or offset.shape[0] != shape[0] or offset.shape[1] != shape[2]:
            raise ValueError(
                f"{name}: expected {branch} offset [D + 1={inputs + 1}, O={shape[2]}], got {list(offset.shape)}"
            )
        _check_like(name, f"{branch} map", generator_map, x)
        _check_like(name, f"{branch} offset", offset, x)
        inputs = shape[2]
        outputs.append(inputs)
    return outputs


def _check_like(name: str, what: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name}: expected {what} of x's dtype {x.dtype}, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected {what} on x's device {x.device}, got {tensor.device}")
