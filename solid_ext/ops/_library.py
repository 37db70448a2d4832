"""The `solid_ext` namespace of torch operators: one place where they are defined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch.autograd import forward_ad

library = torch.library.Library("solid_ext", "FRAGMENT")


def define_operator(
    schema: str,
    *,
    check: Callable[..., None],
    cpu: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    fake: Callable[..., Any],
    vmap: Callable[..., Any] | Sequence[int] = (),
) -> Any:
    """Registers an operator `solid_ext::<name>` and returns its overload, ready to be called.

    Args:
        schema: "name(Tensor x, ...) -> ...".
        check: refuses, by a sentence, arguments that `cpu` or `cuda` would read or write out of bounds. The operator is
            in reach of everyone as `torch.ops.solid_ext.<name>`, so that it cannot rely on the checks of the function
            that usually calls it.
        cpu: what it does on the CPU.
        cuda: what it does on a GPU; None where it has no kernel there.
        fake: what returns tensors of its outputs' shapes and dtypes, without their values.
        vmap: its batching rule `(info, in_dims, *arguments) -> (outputs, out_dims)`, or the places of the arguments
            whose rows take in the batch, for `folded`; none for `in_turn`.
    """
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def checked(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            given = (each for value in arguments for each in (value if isinstance(value, (list, tuple)) else [value]))
            expect_no_tangent(name, *(each for each in given if isinstance(each, torch.Tensor)))
            check(*arguments)
            return run(*arguments)

        return call

    library.impl(name, checked(cpu), "CPU")
    if cuda is not None:
        library.impl(name, checked(cuda), "CUDA")
    torch.library.register_fake(f"solid_ext::{name}", fake, lib=library)
    operator = getattr(torch.ops.solid_ext, name).default
    if not callable(vmap):
        vmap = folded(operator, vmap) if vmap else in_turn(operator)
    torch.library.register_vmap(f"solid_ext::{name}", vmap, lib=library)
    return operator


_PLAIN = {torch.Tensor, torch.nn.Parameter}
_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", None)
_modes_active = getattr(torch._C, "_len_torch_dispatch_stack", None)


def unobserved(*tensors: torch.Tensor | None) -> bool:
    """True when a kernel may be called without the dispatcher, which costs 4 microseconds a call.

    Nothing may be observing the call: no tracing or compiling, no transform such as vmap, no dispatch mode, no
    profiler, no tensor subclass, no other device. Nor may a tensor be other than its memory says, as a lazy negation or
    a tensor of zeros without memory is. A torch that cannot be asked these questions gets the dispatcher.

    Args:
        tensors: all tensors whose address the kernel is given; None is passed over.
    """
    return not _observed() and all(tensor is None or _as_it_lies(tensor) for tensor in tensors)


def _observed() -> bool:
    if _transforms_active is None or _modes_active is None or torch.compiler.is_compiling():
        return True
    if _transforms_active() or _modes_active() or torch.jit.is_tracing():
        return True
    return bool(torch.autograd.profiler._is_profiler_enabled)


def _as_it_lies(tensor: torch.Tensor) -> bool:
    return type(tensor) in _PLAIN and tensor.is_cpu and not tensor.is_neg() and not tensor._is_zerotensor()


def plain_shapes(tensors: Iterable[torch.Tensor | None]) -> list[Any] | None:
    """The shapes of a call's tensors, where with the first one's dtype they are all that its checks would read.

    Args:
        tensors: of a call; None for one that is absent. What is no tensor makes the answer None.

    Returns:
        A shape for each tensor and None for an absent one. None in place of the list where the call is observed, as
        `unobserved` says, or where a tensor is not dense, not on the CPU or not of the first one's dtype.
    """
    if _observed():
        return None
    shapes: list[Any] = []
    dtype = None
    strided = torch.strided
    for tensor in tensors:  # written out: a call for each tensor takes as long as what it asks
        if tensor is None:
            shapes.append(None)
            continue
        if type(tensor) not in _PLAIN or not tensor.is_cpu or tensor.is_neg() or tensor._is_zerotensor():
            return None
        if tensor.layout is not strided or tensor.is_nested:
            return None
        if tensor.dtype is not dtype:
            if dtype is not None:
                return None
            dtype = tensor.dtype
        shapes.append(tensor.shape)
    return shapes


def exporting() -> bool:
    """True while torch.export traces, when the number of sequences is unknown and no branch may depend on it."""
    ask = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has the latter alone
    return bool(ask())


def fold(batched: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """[batch, N, ..] as [batch * N, ..]; a tensor without a batch dimension is repeated."""
    batched = batched.expand(size, *batched.shape) if dim is None else batched.movedim(dim, 0)
    return batched.flatten(0, 1)


def in_turn(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The batching rule of any operator: a call for each element of the batch, and what they give stacked."""

    def element(value: Any, dim: Any, place: int) -> Any:
        if isinstance(value, (list, tuple)):
            return [element(each, at, place) for each, at in zip(value, dim, strict=True)]
        return value if dim is None else value.select(dim, place)

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        found = [
            operator(*(element(value, dim, place) for value, dim in zip(arguments, in_dims, strict=True)))
            for place in range(info.batch_size)
        ]
        if isinstance(found[0], torch.Tensor):
            return torch.stack(found), 0
        stacked = [torch.stack(parts) for parts in zip(*found, strict=True)]
        return type(found[0])(stacked), type(found[0])([0] * len(stacked))

    return rule


def folded(operator: Callable[..., Any], rows: Sequence[int]) -> Callable[..., Any]:
    """The batching rule of an operator whose rows do not know of each other: the batch is folded into them.

    It is `in_turn` where another argument has the batch, such as parameters, and where the last argument, `keep`, is
    True: what is kept for a backward lies by layers or positions, and not by elements.

    Args:
        rows: places of the arguments that have a row for each row of the outputs.
    """
    one_by_one = in_turn(operator)

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        shared = [dim for place, dim in enumerate(in_dims) if place not in rows]
        each = [d for dim in shared for d in (dim if isinstance(dim, (list, tuple)) else (dim,))]
        if any(dim is not None for dim in each) or arguments[-1] is True:
            return one_by_one(info, in_dims, *arguments)
        size = info.batch_size
        given = [
            fold(value, dim, size) if place in rows and value is not None else value
            for place, (value, dim) in enumerate(zip(arguments, in_dims, strict=True))
        ]
        found = operator(*given)
        return tuple(part.unflatten(0, (size, -1)) for part in found), (0,) * len(found)

    return rule


def under_transforms() -> bool:
    """True inside a transform of `torch.func`, whose tensors do not say whether a gradient is wanted of them."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def applied(function: Any, *arguments: Any) -> Any:
    """`function.apply(*arguments)` of an autograd function.

    For one with `setup_context`, which transforms need, torch reads the signature of its `forward` in every call, to
    bind keyword arguments: as long as all else of a small call. Where nothing transforms it is not asked to.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    given = torch._functorch.utils.unwrap_dead_wrappers(arguments)
    return super(torch.autograd.Function, function).apply(*given)


def autocasts(tensor: torch.Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    if tensor.is_cpu:
        return torch.is_autocast_enabled("cpu")
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Inside, autocast is off for the tensor's device; nothing to do on a device that has none, such as "meta"."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def expect_no_tangent(call: str, *tensors: torch.Tensor | None) -> None:
    """Refuse tensors of a forward-mode derivative, which the kernels have not, and would silently give as zero.

    Raises:
        NotImplementedError: a call inside `torch.func.jvp`, `jacfwd` or `hessian`, or a dual tensor of
            `torch.autograd.forward_ad`.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if not torch._C._are_functorch_transforms_active() and not any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        return
    raise NotImplementedError(
        f"{call}: expected no forward-mode derivative of the native backend, got one (backend='reference' has it)"
    )


def first_order(call: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Of the `backward` of an autograd function that is computed by kernels: its gradients refuse a derivative.

    `torch.autograd.function.once_differentiable` looks at the incoming gradients alone, so that it leaves out, without
    a word, what the second derivative has through the saved tensors, as where the output is simply summed.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def computed(ctx: Any, *gradients: Any) -> Any:
            if all(gradient is None for gradient in gradients):
                return (None,) * len(ctx.needs_input_grad)
            if torch.compiler.is_compiling():  # whose backward has no derivative anyway, and says so
                return backward(ctx, *gradients)
            with torch.no_grad():
                found = backward(ctx, *gradients)
            if not torch.is_grad_enabled():
                return found
            sources = [t for t in (*gradients, *ctx.saved_tensors) if t is not None and t.requires_grad]
            at = [place for place, gradient in enumerate(found) if gradient is not None]
            if not sources or not at:
                return found
            refusing = iter(_Refusing.apply(call, len(at), *(found[place] for place in at), *sources))
            return tuple(next(refusing) if gradient is not None else None for gradient in found)

        return computed

    return decorate


class _Refusing(torch.autograd.Function):
    """The first `count` tensors as they are, whose gradient is refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: str, count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.call = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise NotImplementedError(
            f"{ctx.call}: expected derivatives of first order of the native backend, got one of second order "
            "(backend='reference' has it)"
        )
