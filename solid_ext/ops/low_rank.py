"""The stack of low-rank layers around generated cores, in one call each way: checks, allocation, autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solid_ext._native import kernels
from solid_ext.ops import reference
from solid_ext.ops._arguments import Accepted, Backend, expect_backend, expect_like, expect_tensor, expect_tensors, real
from solid_ext.ops._library import (
    applied,
    autocasts,
    define_operator,
    expect_no_tangent,
    first_order,
    plain_shapes,
    under_transforms,
    unobserved,
    without_autocast,
)
from solid_ext.ops.dynamic_linear import KERNEL_TYPES, dynamic_linear, in_dtype_of, without_aliases

# Of csrc/low_rank/low_rank_cpu_call.h: how many sequences are computed one by one, and else at once.
FEWEST, LANES = 6, 32

Tensors = tuple[Tensor | None, ...]


def low_rank_mlp(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    enters: Sequence[Tensor],
    leaves: Sequence[Tensor],
    biases: Sequence[Tensor],
    item_maps: Sequence[Tensor],
    item_offsets: Sequence[Tensor],
    semantic_maps: Sequence[Tensor],
    semantic_offsets: Sequence[Tensor],
    *,
    delta: float,
    gate: Tensor | None = None,
    backend: Backend = "native",
) -> Tensor:
    """P layers of low rank around cores that are generated per sequence, tanh between them and none after the last.

    `h_0 = x`, `h_{l+1} = act(((h_l U) S + s) V + b)` with `[S; s] = (z_c A_c + a_c) + clip(z_v A_v + a_v, -delta,
    delta)`, each layer with its own; the result is `h_P`, or `x + gate h_P` with a gate.

    Args:
        x: [B, D_0] or [B, T, D_0] float32, float64, bfloat16 or float16; all tensors share its dtype and device.
        z_item: z_v [B, k], the condition of the item branch, one a sequence; None switches the branch off.
        z_semantic: z_c [B, k], the condition of the semantic branch; None switches it off. One branch must be on.
        enters: for each layer l = 0 .. P - 1 the factor that enters, U^T [r, D_l].
        leaves: for each layer the factor that leaves, V^T [D_{l+1}, r].
        biases: for each layer b [D_{l+1}].
        item_maps: for each layer A_v [r + 1, k, r]; row i < r generates S[i, :], row r generates s. Not read when its
            branch is off.
        item_offsets: for each layer a_v [r + 1, r], likewise.
        semantic_maps: for each layer A_c [r + 1, k, r], likewise.
        semantic_offsets: for each layer a_c [r + 1, r], likewise.
        delta: the bound of the item branch, >= 0; infinity for none.
        gate: one number [], which adds the result to x; then D_P = D_0.
        backend: "native" (the kernel) or "reference" (plain torch).

    Returns:
        [B, D_P] or [B, T, D_P], in x's dtype.

    Raises:
        ValueError: a shape or an option that does not fit.
        TypeError: a dtype that does not fit.
        NotImplementedError: a derivative of second order or in forward mode of the native backend, where the reference
            has both.

    Gradient: to every tensor, of first order only; through the clip as in `dynamic_linear`. Under autocast x and z are
    taken in the dtype of the maps, and `torch.vmap` and values that are not finite are treated as there.

    Source: docs/kernels/low_rank.md#contract.
    """
    if z_item is None:
        item_maps = item_offsets = ()
    if z_semantic is None:
        semantic_maps = semantic_offsets = ()
    expect_tensor("low_rank_mlp", "x", x)
    if autocasts(x):
        x, z_item, z_semantic = in_dtype_of((*item_maps, *semantic_maps), x, z_item, z_semantic)
    delta = real("low_rank_mlp", "delta", delta)
    lists = (enters, leaves, biases, item_maps, item_offsets, semantic_maps, semantic_offsets)
    for each, values in zip(LISTS, lists, strict=True):
        if type(values) is not list and type(values) is not tuple:
            expect_tensors("low_rank_mlp", each, values)
    tensors: Tensors = (x, z_item, z_semantic, gate, *(tensor for each in lists for tensor in each))
    shapes = plain_shapes(tensors)
    key = None if shapes is None else (x.dtype, *map(len, lists), *shapes)
    if not ACCEPTED.knows(key):
        _check(x, z_item, z_semantic, gate, lists)
        ACCEPTED.add(key)
    if not delta >= 0:
        raise ValueError(f"low_rank_mlp: expected delta >= 0, got {delta}")
    if backend == "native":
        if not x.is_cpu and not x.is_meta:
            return _composed(x, z_item, z_semantic, gate, lists, delta)
        return _native(tensors, len(enters), delta, plain=shapes is not None)
    expect_backend("low_rank_mlp", backend)
    with without_autocast(x):
        return reference.low_rank_mlp(x, z_item, z_semantic, *lists, delta=delta, gate=gate)


ACCEPTED = Accepted()
LISTS = ("enter", "leave", "bias", "item map", "item offset", "semantic map", "semantic offset")


def _check(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    gate: Tensor | None,
    lists: Sequence[Sequence[Tensor]],
) -> None:
    """Refuse shapes, dtypes and devices that do not fit together."""
    name = "low_rank_mlp"
    if x.dim() not in (2, 3):
        raise ValueError(f"{name}: expected x [B, D] or [B, T, D], got {list(x.shape)}")
    if x.dtype not in KERNEL_TYPES:
        raise TypeError(f"{name}: expected x of a floating dtype, got {x.dtype}")
    if z_item is None and z_semantic is None:
        raise ValueError(f"{name}: expected z_item or z_semantic, got None for both")
    enters, leaves, biases, *tables = lists
    for each, values in zip(LISTS, lists, strict=True):
        expect_tensors(name, each, values)
    if len(enters) == 0:
        raise ValueError(f"{name}: expected at least one layer, got none")
    present = [True] * 3 + [z_item is not None] * 2 + [z_semantic is not None] * 2
    for each, values, wanted in zip(LISTS, lists, present, strict=True):
        if wanted and len(values) != len(enters):
            raise ValueError(f"{name}: expected one {each} for each of {len(enters)} layers, got {len(values)}")
    inputs = x.shape[-1]
    rank = enters[0].shape[0] if enters[0].dim() == 2 else 0
    if rank == 0:
        raise ValueError(f"{name}: expected enter [r >= 1, D={inputs}], got {list(enters[0].shape)}")
    for enter, leave, bias in zip(enters, leaves, biases, strict=True):
        expect_like(name, "enter", enter, (rank, inputs), x, f"[r={rank}, D={inputs}]")
        inputs = leave.shape[0] if leave.dim() == 2 else 0
        if inputs == 0:
            raise ValueError(f"{name}: expected leave [O >= 1, r={rank}], got {list(leave.shape)}")
        expect_like(name, "leave", leave, (inputs, rank), x, f"[O={inputs}, r={rank}]")
        expect_like(name, "bias", bias, (inputs,), x, f"[O={inputs}]")
    for branch, z, (maps, offsets) in (("item", z_item, tables[:2]), ("semantic", z_semantic, tables[2:])):
        if z is None:
            continue
        expect_tensor(name, f"z_{branch}", z)
        if z.dim() != 2 or z.shape[0] != x.shape[0] or z.shape[1] == 0:
            raise ValueError(f"{name}: expected z_{branch} [B={x.shape[0]}, k >= 1], got {list(z.shape)}")
        expect_like(name, f"z_{branch}", z, z.shape, x)
        shape, text = (rank + 1, z.shape[1], rank), f"[r + 1={rank + 1}, k={z.shape[1]}, r={rank}]"
        for generator_map, offset in zip(maps, offsets, strict=True):
            expect_like(name, f"{branch} map", generator_map, shape, x, text)
            expect_like(name, f"{branch} offset", offset, shape[::2], x, f"[r + 1={rank + 1}, r={rank}]")
    if gate is not None:
        expect_like(name, "gate", gate, (), x, "[] (one number)")
        if inputs != x.shape[-1]:
            raise ValueError(f"{name}: expected D_P = D_0 = {x.shape[-1]} with a gate, got {inputs}")


def _composed(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    gate: Tensor | None,
    lists: Sequence[Sequence[Tensor]],
    delta: float,
) -> Tensor:
    """On a GPU: `dynamic_linear`'s kernels for the cores, torch's own products around them."""
    enters, leaves, biases, *tables = lists
    h = x
    with without_autocast(x):
        for layer, (enter, leave, bias) in enumerate(zip(enters, leaves, biases, strict=True)):
            core = [values[layer] if values else None for values in tables]
            h = torch.nn.functional.linear(torch.tanh(h) if layer else h, enter)
            h = torch.nn.functional.linear(dynamic_linear(h, z_item, z_semantic, *core, delta=delta), leave, bias)
        return h if gate is None else x + gate * h


def _divided(tensors: Sequence[Any], layers: int) -> tuple[Tensors, list[Sequence[Any]]]:
    """x, z_item, z_semantic and gate; then the seven lists, those of a branch that is off empty."""
    first, rest = tuple(tensors[:4]), tensors[4:]
    lists = [rest[at : at + layers] for at in range(0, len(rest), layers)] if layers else []
    none: list[Sequence[Any]] = [(), ()]
    factors, tables = lists[:3], lists[3:]
    if first[1] is None:
        tables = none + tables
    if first[2] is None:
        tables = tables[:2] + none
    return first, factors + tables


def _native(tensors: Tensors, layers: int, delta: float, *, plain: bool) -> Tensor:
    """Run the kernel, under autograd only where a gradient is wanted."""
    expect_no_tangent("low_rank_mlp", *tensors)
    if torch.is_grad_enabled():
        transformed = under_transforms()
        for tensor in tensors:
            if tensor is not None and (transformed or tensor.requires_grad):
                return applied(_LowRankMlp, plain, layers, delta, *without_aliases(*tensors))[0]
    if plain:
        return _forward_cpu(tensors, layers, delta, False)[0]
    return forward_operator(*_of_operator(tensors), layers, delta, False)[0]


def _of_operator(tensors: Sequence[Any]) -> tuple[Any, ...]:
    """The tensors as the operators take them: x, z_item, z_semantic, gate and the list of the others."""
    return (*tensors[:4], list(tensors[4:]))


class _LowRankMlp(torch.autograd.Function):
    """All layers in one call forward and one backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(plain: bool, layers: int, delta: float, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        if plain:
            return _forward_cpu(tensors, layers, delta, True)
        return forward_operator(*_of_operator(tensors), layers, delta, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, ctx.layers, ctx.delta, *tensors = inputs
        _, kept = output
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kept, *tensors)

    @staticmethod
    @first_order("low_rank_mlp")
    def backward(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
        kept, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        if unobserved(dy, kept, *tensors):
            return (None, None, None, *_backward_cpu(dy, tensors, kept, ctx.layers, ctx.delta, wanted))
        found = iter(backward_operator(dy, *_of_operator(tensors), kept, ctx.layers, ctx.delta, wanted))
        return (None, None, None, *(next(found) if want else None for want in wanted))


class _Sizes(NamedTuple):
    """What a kernel is told of a call's shapes."""

    batch: int
    targets: int
    rank: int
    layers: tuple[int, ...]  # D_0 .. D_P
    item: int  # k of each branch, 0 where it is off
    semantic: int


def _sizes(tensors: Sequence[Any], layers: int) -> _Sizes:
    x, z_item, z_semantic = tensors[:3]
    return _Sizes(
        x.shape[0],
        x.shape[1] if x.dim() == 3 else 1,
        tensors[4].shape[0],
        (x.shape[-1], *(leave.shape[0] for leave in tensors[4 + layers : 4 + 2 * layers])),
        0 if z_item is None else z_item.shape[1],
        0 if z_semantic is None else z_semantic.shape[1],
    )


def _kept_elements(sizes: _Sizes, delta: float, wide: bool) -> int:
    """How many numbers the forward keeps for the backward; csrc/low_rank/low_rank.h says which."""
    rank, layers, rows = sizes.rank, len(sizes.layers) - 1, sizes.batch * sizes.targets
    bits = 64 if wide else 32
    lanes = 1 if sizes.batch <= FEWEST and rank % (8 if wide else 16) == 0 else LANES
    words = (rank + bits - 1) // bits if sizes.item and math.isfinite(delta) else 0
    cores = (sizes.batch + lanes - 1) // lanes * lanes * (rank + 1) * (rank + words)
    return rows * sum(sizes.layers[1:-1]) + layers * (rows * rank + cores)


class _Plan(NamedTuple):
    """What the kernel is called with for these sizes, and the memory it needs."""

    shape: Any
    kept: int
    forward: int  # bytes of the workspace, 0 where it is small enough to lie on the compiled side's stack
    backward: int


_plans: dict[Any, _Plan] = {}


def _plan(tensors: Sequence[Any], layers: int, delta: float, wide: bool) -> _Plan:
    threads = torch.get_num_threads()
    sizes = _sizes(tensors, layers)
    key = (sizes, delta, threads, wide)
    plan = _plans.get(key)
    if plan is None:
        shape = kernels.LowRankShape(wide, *sizes[:3], list(sizes.layers), *sizes[4:], delta, threads)
        memory = [size if size > kernels.STACK_WORKSPACE else 0 for size in kernels.low_rank_memory(shape)[1:]]
        plan = _Plan(shape, _kept_elements(sizes, delta, wide), *memory)
        if len(_plans) >= 256:
            _plans.clear()
        _plans[key] = plan
    return plan


def _dense(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors as the kernel reads them: contiguous, float32 in place of a narrower type."""
    narrow = next(t for t in tensors if t is not None).dtype in (torch.float16, torch.bfloat16)
    if narrow:
        tensors = [t if t is None else t.float() for t in tensors]
    return [t if t is None or t.is_contiguous() else t.contiguous() for t in tensors]


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


def _workspace(size: int) -> Tensor | None:
    return torch.empty(size, dtype=torch.uint8, device="cpu") if size else None


def _forward_cpu(tensors: Sequence[Any], layers: int, delta: float, keep: bool) -> tuple[Tensor, Tensor]:
    """y, and what is kept for the backward, [0] where nothing is."""
    x = tensors[0]
    dense = _dense(tensors)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.empty((*x.shape[:-1], tensors[3 + 2 * layers].shape[0]), dtype=dtype, device="cpu")
    if y.numel() == 0:
        return y.to(x.dtype), _empty_kept(tensors, layers, delta, keep)
    plan = _plan(tensors, layers, delta, dtype == torch.float64)
    kept = torch.empty(plan.kept if keep else 0, dtype=dtype, device="cpu")
    workspace = _workspace(plan.forward)
    kernels.low_rank_forward(plan.shape, _addresses(dense), y.data_ptr(), kept.data_ptr(), *_addresses([workspace]))
    return y if y.dtype == x.dtype else y.to(x.dtype), kept


def _backward_cpu(
    dy: Tensor, tensors: Sequence[Any], kept: Tensor, layers: int, delta: float, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """A gradient for each tensor, None where none is wanted."""
    x = tensors[0]
    if dy.numel() == 0:
        return [
            torch.zeros_like(t) if t is not None and want else None for t, want in zip(tensors, wanted, strict=True)
        ]
    dense = _dense(tensors)
    plan = _plan(tensors, layers, delta, kept.dtype == torch.float64)
    dy = dy.to(kept.dtype).contiguous()
    found = [  # `empty_like` takes a third of the time of `empty` with a shape
        torch.empty_like(t) if t is not None and want else None for t, want in zip(dense, wanted, strict=True)
    ]
    workspace = _workspace(plan.backward)
    kernels.low_rank_backward(
        plan.shape,
        _addresses(dense),
        kept.data_ptr(),
        dy.data_ptr(),
        _addresses(found),
        *_addresses([workspace]),
    )
    if kept.dtype == x.dtype:
        return found
    return [t if t is None else t.to(x.dtype) for t in found]


def _check_forward(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    gate: Tensor | None,
    parameters: Sequence[Tensor],
    layers: int,
    delta: float,
    keep: bool = False,
) -> None:
    """Refuse parameters that are not the enters, leaves and biases, and then the tables of the branches that are on."""
    tables = 3 + 2 * ((z_item is not None) + (z_semantic is not None))
    if layers < 1 or len(parameters) != tables * layers:
        raise ValueError(
            f"low_rank_mlp: expected {tables} parameters for each of {layers} layers, got {len(parameters)}"
        )
    if not delta >= 0:
        raise ValueError(f"low_rank_mlp: expected delta >= 0, got {delta}")
    (x, z_item, z_semantic, gate), lists = _divided((x, z_item, z_semantic, gate, *parameters), layers)  # type: ignore[assignment]
    _check(x, z_item, z_semantic, gate, [list(each) for each in lists])


def _check_backward(
    dy: Tensor,
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    gate: Tensor | None,
    parameters: Sequence[Tensor],
    kept: Tensor,
    layers: int,
    delta: float,
    wanted: Sequence[bool],
) -> None:
    _check_forward(x, z_item, z_semantic, gate, parameters, layers, delta)
    tensors = (x, z_item, z_semantic, gate, *parameters)
    expect_like("low_rank_mlp", "dy", dy, (*x.shape[:-1], parameters[2 * layers - 1].shape[0]), x)
    whole = _empty_kept(tensors, layers, delta, True)
    expect_like("low_rank_mlp", "kept", kept, whole.shape, whole)
    if not kept.is_contiguous():
        raise ValueError("low_rank_mlp: expected kept contiguous, got other strides")
    if len(wanted) != len(tensors):
        raise ValueError(f"low_rank_mlp: expected wanted for {len(tensors)} tensors, got {len(wanted)}")


def _empty_kept(tensors: Sequence[Any], layers: int, delta: float, keep: bool) -> Tensor:
    x = tensors[0]
    wide = x.dtype == torch.float64
    elements = _kept_elements(_sizes(tensors, layers), delta, wide) if keep else 0
    return x.new_empty(elements, dtype=torch.float64 if wide else torch.float32)


def _forward_fake(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    gate: Tensor | None,
    parameters: Sequence[Tensor],
    layers: int,
    delta: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    tensors = (x, z_item, z_semantic, gate, *parameters)
    y = x.new_empty((*x.shape[:-1], parameters[2 * layers - 1].shape[0]))
    return y, _empty_kept(tensors, layers, delta, keep)


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    gate: Tensor | None,
    parameters: Sequence[Tensor],
    kept: Tensor,
    layers: int,
    delta: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    tensors = (x, z_item, z_semantic, gate, *parameters)
    return [t.new_empty(t.shape) for t, want in zip(tensors, wanted, strict=True) if want and t is not None]


def _operator_forward(x: Any, z_item: Any, z_semantic: Any, gate: Any, parameters: Any, *rest: Any) -> Any:
    return _forward_cpu((x, z_item, z_semantic, gate, *parameters), *rest)


def _operator_backward(
    dy: Any, x: Any, z_item: Any, z_semantic: Any, gate: Any, parameters: Any, *rest: Any
) -> list[Tensor]:
    found = _backward_cpu(dy, (x, z_item, z_semantic, gate, *parameters), *rest)
    return [gradient for gradient in found if gradient is not None]


forward_operator = define_operator(
    "low_rank_mlp_forward(Tensor x, Tensor? z_item, Tensor? z_semantic, Tensor? gate, Tensor[] parameters, int layers, "
    "float delta, bool keep) -> (Tensor y, Tensor kept)",
    check=_check_forward,
    cpu=_operator_forward,
    fake=_forward_fake,
    vmap=(0, 1, 2),
)
backward_operator = define_operator(
    "low_rank_mlp_backward(Tensor dy, Tensor x, Tensor? z_item, Tensor? z_semantic, Tensor? gate, Tensor[] parameters, "
    "Tensor kept, int layers, float delta, bool[] wanted) -> Tensor[]",
    check=_check_backward,
    cpu=_operator_backward,
    fake=_backward_fake,
)
