"""Dynamic layers, whose generated weights are never written to memory: checks, allocation, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from solid_ext._native import kernels
from solid_ext.ops import dynamic_linear_cuda, reference
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

Activation = Literal["none", "tanh"]

# The kernel's number for each dtype of x. bfloat16 is read and written as it is, float16 is converted to float32.
KERNEL_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 0}

LANES = 16  # sequences that the kernel computes at once in float32 with the widest vectors


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
        x: [B, D] or [B, T, D] float32, float64, bfloat16 or float16; all tensors share its dtype and device.
        z_item: z_v [B, k], the condition of the item branch, one a sequence; None switches the branch off.
        z_semantic: z_c [B, k], the condition of the semantic branch; None switches it off. One branch must be on.
        item_map: A_v [D + 1, k, O]; row i < D generates W[i, :], row D the bias. Not read when its branch is off.
        item_offset: a_v [D + 1, O], likewise.
        semantic_map: A_c [D + 1, k, O], likewise.
        semantic_offset: a_c [D + 1, O], likewise.
        delta: the bound of the item branch, >= 0; infinity for none.
        activation: "none" or "tanh".
        backend: "native" (the kernel) or "reference" (plain torch).

    Returns:
        [B, O] or [B, T, O], in x's dtype.

    Raises:
        ValueError: a shape or an option that does not fit.
        TypeError: a dtype that does not fit.
        NotImplementedError: a derivative of second order or in forward mode of the native backend, where the reference
            has both.

    Gradient: to x, both z and all four parameters, of first order only; through the clip where |w| <= delta (closed
    interval). Under autocast x and z are taken in the dtype of the maps. `torch.vmap` folds its batch into B where the
    parameters are shared and nothing is kept for a backward, and calls the kernel for each element elsewhere.

    Not finite: in the forward pass NaN and infinity go where the formula takes them, in both back ends alike. The clip
    takes infinity to the bound and leaves a NaN, and nothing crosses to another sequence. A clipped or NaN weight
    passes no gradient, whatever x is; with an infinite delta nothing is clipped, and a NaN passes its gradient on. The
    back ends agree on which gradients are finite. They need not agree on whether one that is not is NaN or infinite,
    nor, as with any rounding, on where sums of large numbers overflow.

    Source: docs/kernels/dynamic_mlp.md#contract; the layer is Module 3 of the paper.
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
        x: [B, D_0] or [B, T, D_0].
        z_item: [B, k] or None, shared by all layers.
        z_semantic: [B, k] or None, shared by all layers.
        item_maps: for each layer l = 0 .. P - 1 its map [D_l + 1, k, D_{l+1}], as in `dynamic_linear`.
        item_offsets: for each layer its offset [D_l + 1, D_{l+1}].
        semantic_maps: the maps of the semantic branch, of the same shapes.
        semantic_offsets: its offsets.
        delta: the bound of the item branch, >= 0; infinity for none.
        backend: "native" (the kernel) or "reference" (plain torch).

    Returns:
        [B, D_P] or [B, T, D_P], in x's dtype.

    Raises: as `dynamic_linear`.

    Gradient: as in `dynamic_linear`; autocast and values that are not finite are treated as there.

    Source: docs/kernels/dynamic_mlp.md#contract.
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
    expect_tensor(name, "x", x)
    if autocasts(x):
        x, z_item, z_semantic = in_dtype_of((*item_maps, *semantic_maps), x, z_item, z_semantic)
    if z_item is None:
        item_maps = item_offsets = ()
    if z_semantic is None:
        semantic_maps = semantic_offsets = ()
    delta = real(name, "delta", delta)
    lists = (item_maps, item_offsets, semantic_maps, semantic_offsets)
    shapes = key = None
    if all(type(values) in (list, tuple) for values in lists):
        shapes = plain_shapes((x, z_item, z_semantic, *item_maps, *item_offsets, *semantic_maps, *semantic_offsets))
        key = None if shapes is None else (x.dtype, *map(len, lists), *shapes)
    if not (ACCEPTED.knows(key) and delta >= 0):
        _check(name, x, z_item, z_semantic, *lists, delta)
        ACCEPTED.add(key)
    if backend == "native":
        parameters = (*item_maps, *item_offsets, *semantic_maps, *semantic_offsets)
        return _native(name, x, z_item, z_semantic, parameters, delta, tanh_last, plain=shapes is not None)
    expect_backend(name, backend)
    with without_autocast(x):
        y = reference.dynamic_mlp(x, z_item, z_semantic, *lists, delta=delta)
        return y.tanh() if tanh_last else y


ACCEPTED = Accepted()


def in_dtype_of(maps: Sequence[Tensor], *tensors: Tensor | None) -> list[Any]:
    """The tensors in the dtype of the maps: of what a call is given under autocast."""
    dtype = getattr(maps[0], "dtype", None) if maps else None
    if not isinstance(dtype, torch.dtype):
        return list(tensors)
    return [t.to(dtype) if isinstance(t, Tensor) else t for t in tensors]


def _check(
    name: str,
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    item_maps: Sequence[Tensor],
    item_offsets: Sequence[Tensor],
    semantic_maps: Sequence[Tensor],
    semantic_offsets: Sequence[Tensor],
    delta: float,
) -> None:
    """Refuse shapes, dtypes and devices that do not fit together."""
    if not delta >= 0:
        raise ValueError(f"{name}: expected delta >= 0, got {delta}")
    if x.dim() not in (2, 3):
        raise ValueError(f"{name}: expected x [B, D] or [B, T, D], got {list(x.shape)}")
    if x.dtype not in KERNEL_TYPES:
        raise TypeError(f"{name}: expected x of a floating dtype, got {x.dtype}")
    if z_semantic is not None:
        _check_branch(name, "semantic", x, z_semantic, semantic_maps, semantic_offsets)
    if z_item is not None:
        _check_branch(name, "item", x, z_item, item_maps, item_offsets)
        if z_semantic is not None:
            item, semantic = [m.shape[2] for m in item_maps], [m.shape[2] for m in semantic_maps]
            if item != semantic:
                raise ValueError(f"{name}: expected item maps with outputs {semantic}, got {item}")
    elif z_semantic is None:
        raise ValueError(f"{name}: expected z_item or z_semantic, got None for both")


def _check_branch(
    name: str, branch: str, x: Tensor, z: Tensor, maps: Sequence[Tensor], offsets: Sequence[Tensor]
) -> None:
    dtype, inputs = x.dtype, x.shape[-1]
    expect_tensor(name, f"z_{branch}", z)
    if z.dim() != 2 or z.shape[0] != x.shape[0] or z.shape[1] == 0:
        raise ValueError(f"{name}: expected z_{branch} [B={x.shape[0]}, k >= 1], got {list(z.shape)}")
    expect_tensors(name, f"{branch} map", maps)
    expect_tensors(name, f"{branch} offset", offsets)
    if not maps or len(maps) != len(offsets):
        raise ValueError(
            f"{name}: expected a map and an offset per layer of the {branch} branch, got {len(maps)} and {len(offsets)}"
        )
    code_dim = z.shape[1]
    for generator_map, offset in zip(maps, offsets, strict=True):
        shape = generator_map.shape
        if len(shape) != 3 or shape[0] != inputs + 1 or shape[1] != code_dim or shape[2] == 0:
            raise ValueError(
                f"{name}: expected {branch} map [D + 1={inputs + 1}, k={code_dim}, O >= 1], got {list(shape)}"
            )
        if offset.shape != (inputs + 1, shape[2]):
            raise ValueError(
                f"{name}: expected {branch} offset [D + 1={inputs + 1}, O={shape[2]}], got {list(offset.shape)}"
            )
        inputs = shape[2]
    on_cpu = x.is_cpu
    for tensor in (z, *maps, *offsets):
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: expected {branch} tensors of x's dtype {dtype}, got {tensor.dtype}")
        if not (on_cpu and tensor.is_cpu) and tensor.device != x.device:
            raise ValueError(f"{name}: expected {branch} tensors on x's device {x.device}, got {tensor.device}")


def _check_forward(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    parameters: Sequence[Tensor],
    delta: float,
    tanh_last: bool = False,
    keep: bool = False,
) -> None:
    """Refuse parameters that are not the maps and then the offsets of the item branch, and then of the semantic one."""
    tables = 2 * ((z_item is not None) + (z_semantic is not None))
    if tables == 0:
        raise ValueError("dynamic_mlp: expected z_item or z_semantic, got None for both")
    if not parameters or len(parameters) % tables:
        raise ValueError(f"dynamic_mlp: expected {tables} parameters a layer, got {len(parameters)}")
    layers = len(parameters) // tables
    parts = [list(parameters[at : at + layers]) for at in range(0, len(parameters), layers)]
    none: list[Tensor] = []
    item = (parts[0], parts[1]) if z_item is not None else (none, none)
    semantic = (parts[-2], parts[-1]) if z_semantic is not None else (none, none)
    _check("dynamic_mlp", x, z_item, z_semantic, *item, *semantic, delta)


def _check_backward(
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
) -> None:
    _check_forward(x, z_item, z_semantic, parameters, delta)
    sizes = _sizes(x, z_item, z_semantic, parameters)
    shape = (*x.shape[:-1], sizes[-1])
    expect_like("dynamic_mlp", "dy", dy, shape, x)
    if y is not None:
        expect_like("dynamic_mlp", "y", y, shape, x)
    elif tanh_last:
        raise ValueError("dynamic_mlp: expected y with tanh_last, got None")
    kept = _empty_hidden(x[..., :0], sizes, True)
    expect_like("dynamic_mlp", "hidden", hidden, kept.shape, kept)
    if not hidden.is_contiguous():
        raise ValueError("dynamic_mlp: expected hidden contiguous, got other strides")
    if len(wanted) != 3 + len(parameters):
        raise ValueError(f"dynamic_mlp: expected wanted for {3 + len(parameters)} tensors, got {len(wanted)}")


def _native(
    name: str,
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    parameters: tuple[Tensor, ...],
    delta: float,
    tanh_last: bool,
    *,
    plain: bool,
) -> Tensor:
    """Run the kernel, under autograd only where a gradient is wanted.

    Args:
        plain: whether nothing observes the call and all tensors are as `plain_shapes` says.
    """
    expect_no_tangent(name, x, z_item, z_semantic, *parameters)
    if x.is_cuda and _layers(z_item, z_semantic, parameters) > dynamic_linear_cuda.MOST_LAYERS:
        call = name, x, z_item, z_semantic, parameters, delta, tanh_last
        return _in_runs(*call, dynamic_linear_cuda.MOST_LAYERS)
    if torch.is_grad_enabled():
        transformed = under_transforms()
        for tensor in (x, z_item, z_semantic, *parameters):
            if tensor is not None and (transformed or tensor.requires_grad):
                parts = _parts(x)
                y, _ = applied(
                    _DynamicMlp,
                    plain,
                    *without_aliases(_divided(x, parts), _repeated(z_item, parts), _repeated(z_semantic, parts)),
                    delta,
                    tanh_last,
                    *without_aliases(*parameters),
                )
                return y if parts == 1 else y.unflatten(0, (x.shape[0], parts)).flatten(1, 2)
    if plain:
        # Without a backward pass, outputs that fill vectors are computed one sequence at a time at full speed.
        if x.dim() == 3 and any(t.shape[-1] % LANES for t in parameters):
            parts = _parts(x)
            conditions = _repeated(z_item, parts), _repeated(z_semantic, parts)
            y, _ = _forward_cpu(_divided(x, parts), *conditions, parameters, delta, tanh_last, False)
            return y.unflatten(0, (x.shape[0], parts)).flatten(1, 2)
        return _forward_cpu(x, z_item, z_semantic, parameters, delta, tanh_last, False)[0]
    return forward_operator(x, z_item, z_semantic, parameters, delta, tanh_last, False)[0]


def _layers(z_item: Tensor | None, z_semantic: Tensor | None, parameters: Sequence[Tensor]) -> int:
    return len(parameters) // (2 if z_item is None or z_semantic is None else 4)


def _in_runs(
    name: str,
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    parameters: tuple[Tensor, ...],
    delta: float,
    tanh_last: bool,
    most: int,
) -> Tensor:
    """More layers than one launch takes, in runs of at most `most`, each of which ends with the tanh between layers.

    Between runs activations are rounded to x's dtype; within a run those of narrow types stay in float32.
    """
    layers = _layers(z_item, z_semantic, parameters)
    tables = [parameters[at : at + layers] for at in range(0, len(parameters), layers)]
    for first in range(0, layers, most):
        run = tuple(parameter for table in tables for parameter in table[first : first + most])
        last = tanh_last or first + most < layers
        x = _native(name, x, z_item, z_semantic, run, delta, last, plain=False)
    return x


def _parts(x: Tensor) -> int:
    """Into how many sequences of fewer targets each sequence is divided.

    The kernel computes `LANES` sequences at once; a batch of fewer leaves lanes empty unless it is divided. For
    B = 1 and T = 1000, forward and backward take 5.1 ms undivided and 1.6 ms in 10 parts.
    """
    if x.dim() == 2 or torch.compiler.is_compiling() or x.shape[0] > LANES // 2 or x.shape[1] < LANES:
        return 1
    most = LANES // max(x.shape[0], 1)
    return next(parts for parts in range(most, 0, -1) if x.shape[1] % parts == 0)


def _divided(x: Tensor, parts: int) -> Tensor:
    return x if parts == 1 else x.reshape(x.shape[0] * parts, x.shape[1] // parts, x.shape[2])


def _repeated(z: Tensor | None, parts: int) -> Tensor | None:
    return z if z is None or parts == 1 else z.unsqueeze(1).expand(-1, parts, -1).flatten(0, 1)


def without_aliases(*tensors: Tensor | None) -> Sequence[Any]:
    """The tensors, each repetition of one replaced by a view under torch.compile, which takes no tensor twice."""
    if not torch.compiler.is_compiling():
        return tensors
    return [
        t.view_as(t) if t is not None and any(t is other for other in tensors[:at]) else t
        for at, t in enumerate(tensors)
    ]


class _DynamicMlp(torch.autograd.Function):
    """All layers in one call forward and one backward; hidden activations are kept, generated weights are not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        plain: bool,
        x: Tensor,
        z_item: Tensor | None,
        z_semantic: Tensor | None,
        delta: float,
        tanh_last: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        run = _forward_cpu if plain else forward_operator
        return run(x, z_item, z_semantic, parameters, delta, tanh_last, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, x, z_item, z_semantic, ctx.delta, ctx.tanh_last, *parameters = inputs
        y, hidden = output
        ctx.mark_non_differentiable(hidden)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, z_item, z_semantic, y if ctx.tanh_last else None, hidden, *parameters)

    @staticmethod
    @first_order("dynamic_mlp")
    def backward(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, z_item, z_semantic, y, hidden, *parameters = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[1:4], *ctx.needs_input_grad[6:]]
        plain = unobserved(dy, x, z_item, z_semantic, y, *parameters)
        run = _backward_cpu if plain else backward_operator
        found = run(dy, x, z_item, z_semantic, parameters, y, hidden, ctx.delta, ctx.tanh_last, wanted)
        gradients = iter(found)
        dx, dz_item, dz_semantic, *rest = [next(gradients) if want else None for want in wanted]
        return None, dx, dz_item, dz_semantic, None, None, *rest


def _sizes(x: Tensor, z_item: Tensor | None, z_semantic: Tensor | None, parameters: Sequence[Tensor]) -> list[int]:
    """D_0 .. D_P; parameters are maps then offsets, of the item branch and then of the semantic branch."""
    layers = len(parameters) // (2 if z_item is None or z_semantic is None else 4)
    return [x.shape[-1], *(generator_map.shape[2] for generator_map in parameters[:layers])]


def _empty_hidden(x: Tensor, sizes: Sequence[int], keep: bool) -> Tensor:
    """Room for h_1 .. h_{P-1} in float32 or wider: kept for the backward, and for x [B, T, D] needed forward too."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if not keep and x.dim() == 2:
        return x.new_empty(0, dtype=dtype)
    rows = x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[1]
    return x.new_empty(rows * sum(sizes[1:-1]), dtype=dtype)


@lru_cache(maxsize=64)
def _workspace_bytes(*arguments: Any) -> int:
    return kernels.dynamic_workspace(*arguments)


class _KernelCall:
    """Dense inputs of a dtype that the kernel reads, and the arguments that it is called with."""

    def __init__(
        self,
        x: Tensor,
        z_item: Tensor | None,
        z_semantic: Tensor | None,
        parameters: Sequence[Tensor],
        delta: float,
        tanh_last: bool,
    ) -> None:
        dtype = x.dtype
        inputs: list[Tensor | None] = [x, z_item, z_semantic, *parameters]
        if dtype == torch.float16 or dtype == torch.bfloat16:
            kept = 0 if dtype == torch.float16 else 3
            inputs = [t if t is None or at < kept else t.float() for at, t in enumerate(inputs)]
        self.inputs = [t if t is None or t.is_contiguous() else t.contiguous() for t in inputs]
        self.dtype = torch.float32 if dtype == torch.float16 else dtype  # of what the kernel reads and writes
        self.sizes = _sizes(x, z_item, z_semantic, parameters)
        layers = len(self.sizes) - 1
        addresses = [0 if t is None else t.data_ptr() for t in self.inputs]
        self.item_layers = 0 if z_item is None else layers
        self.semantic_layers = 0 if z_semantic is None else layers
        item_dim = 0 if z_item is None else z_item.shape[1]
        semantic_dim = 0 if z_semantic is None else z_semantic.shape[1]
        targets = x.shape[1] if x.dim() == 3 else 1
        threads = torch.get_num_threads()
        self.arguments = (
            KERNEL_TYPES[dtype],
            x.shape[0],
            targets,
            self.sizes,
            delta,
            tanh_last,
            threads,
            addresses[0],
            item_dim,
            addresses[1],
            semantic_dim,
            addresses[2],
            *self.divided(addresses[3:]),
        )
        self.shape = (
            KERNEL_TYPES[dtype],
            x.shape[0],
            targets,
            tuple(self.sizes),
            item_dim,
            semantic_dim,
            threads,
        )

    def divided(self, of_parameters: list[Any]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """Item maps, item offsets, semantic maps, semantic offsets."""
        a = self.item_layers
        b = 2 * a + self.semantic_layers
        return of_parameters[:a], of_parameters[a : 2 * a], of_parameters[2 * a : b], of_parameters[b:]

    def workspace(self, backward: bool) -> Tensor | None:
        """Memory for the kernel to work in; None where it is small enough to lie on the compiled side's stack."""
        size = _workspace_bytes(*self.shape, backward)
        return None if size <= kernels.STACK_WORKSPACE else torch.empty(size, dtype=torch.uint8, device="cpu")


def _forward_cpu(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    parameters: Sequence[Tensor],
    delta: float,
    tanh_last: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """y, and the hidden activations, [0] where neither the backward nor the kernel needs them."""
    call = _KernelCall(x, z_item, z_semantic, parameters, delta, tanh_last)
    y = torch.empty((*x.shape[:-1], call.sizes[-1]), dtype=call.dtype, device="cpu")
    hidden = _empty_hidden(x, call.sizes, keep)
    workspace = call.workspace(False)
    kernels.dynamic_forward(*call.arguments, y.data_ptr(), hidden.data_ptr(), _address(workspace))
    return y if y.dtype == x.dtype else y.to(x.dtype), hidden


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _forward_fake(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    parameters: Sequence[Tensor],
    delta: float,
    tanh_last: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    sizes = _sizes(x, z_item, z_semantic, parameters)
    return x.new_empty((*x.shape[:-1], sizes[-1])), _empty_hidden(x, sizes, keep)


def _backward_cpu(
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
    call = _KernelCall(x, z_item, z_semantic, parameters, delta, tanh_last)
    dy = dy.to(call.dtype).contiguous()
    y = None if y is None else y.to(call.dtype).contiguous()
    gradients = [
        None if t is None or not want else torch.empty_like(t) for t, want in zip(call.inputs, wanted, strict=True)
    ]
    addresses = [_address(t) for t in gradients]
    workspace = call.workspace(True)
    kernels.dynamic_backward(
        *call.arguments,
        _address(y),
        hidden.data_ptr(),
        dy.data_ptr(),
        *addresses[:3],
        *call.divided(addresses[3:]),
        _address(workspace),
    )
    return [g if g.dtype == x.dtype else g.to(x.dtype) for g in gradients if g is not None]


def _backward_fake(
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
    inputs = (x, z_item, z_semantic, *parameters)
    return [t.new_empty(t.shape) for t, want in zip(inputs, wanted, strict=True) if want and t is not None]


forward_operator = define_operator(
    "dynamic_mlp_forward(Tensor x, Tensor? z_item, Tensor? z_semantic, Tensor[] parameters, float delta, "
    "bool tanh_last, bool keep) -> (Tensor y, Tensor hidden)",
    check=_check_forward,
    cpu=_forward_cpu,
    cuda=dynamic_linear_cuda.forward,
    fake=_forward_fake,
    vmap=(0, 1, 2),
)
backward_operator = define_operator(
    "dynamic_mlp_backward(Tensor dy, Tensor x, Tensor? z_item, Tensor? z_semantic, Tensor[] parameters, Tensor? y, "
    "Tensor hidden, float delta, bool tanh_last, bool[] wanted) -> Tensor[]",
    check=_check_backward,
    cpu=_backward_cpu,
    cuda=dynamic_linear_cuda.backward,
    fake=_backward_fake,
)
