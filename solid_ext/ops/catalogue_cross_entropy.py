"""Softmax cross-entropy over a catalogue whose logits are never all there: checks, memory, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from solid_ext._native import kernels
from solid_ext.ops import catalogue_cross_entropy_cuda, reference
from solid_ext.ops._arguments import (
    DTYPES,
    Backend,
    expect_backend,
    expect_device,
    expect_ids,
    expect_like,
    expect_tensor,
)
from solid_ext.ops._library import (
    applied,
    autocasts,
    define_operator,
    expect_no_tangent,
    first_order,
    under_transforms,
    unobserved,
    without_autocast,
)

Reduction = Literal["mean", "none"]
NAME = "catalogue_cross_entropy"
KEPT_ROWS = 48  # whose exponentials the CPU kernel keeps for the gradients, however many items there are


def catalogue_cross_entropy(
    state: Tensor,
    table: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    reduction: Reduction = "mean",
    backend: Backend = "native",
) -> Tensor:
    """Cross-entropy of a softmax over all items, `F.cross_entropy(state @ table.T + bias, target)`.

    `loss_b = log sum_v exp(l_bv) - l_b,target_b` with `l_bv = <state_b, table_v> + bias_v`. The kernel holds the logits
    of a block of rows at a time; the mean's gradients are computed with it, as their scale is known then, and those of
    the rows' losses in the backward, which takes a third more products.

    Args:
        state: [B, D] float32, float64, bfloat16 or float16, of any strides; table and bias share its dtype.
        table: [V, D], a row an item.
        target: [B] int64, each row's item, 0 .. V - 1.
        bias: [V], a constant that is added to every row's logits; -infinity leaves an item out. None for zeros.
        reduction: "mean" over the rows, or "none".
        backend: "native" (the kernel) or "reference" (plain torch).

    Returns:
        A scalar, or [B] with reduction "none", in state's dtype.

    Raises:
        ValueError: a shape or an option that does not fit; a bias that wants a gradient; on the CPU a target that is no
            item (on a GPU the loss of such a row is NaN).
        TypeError: a dtype that does not fit.
        NotImplementedError: a derivative of second order or in forward mode of the native backend, where the reference
            has both.

    Gradient: to state and table, of first order only. Under autocast state and bias are taken in the table's dtype.
    `torch.vmap` calls the kernel for each element of its batch.

    Not finite: a row with NaN or +infinity among its logits has a loss of NaN, as in torch, and so has a row without a
    logit above -infinity.

    Source: docs/kernels/catalogue_cross_entropy.md#contract.
    """
    for name, given in (("state", state), ("table", table), ("target", target)):
        expect_tensor(NAME, name, given)
    if autocasts(state):
        state = state.to(table.dtype)
        bias = bias.to(table.dtype) if isinstance(bias, Tensor) else bias
    _check(state, table, target, bias)
    if bias is not None and bias.requires_grad:
        raise ValueError(f"{NAME}: expected a constant bias, got one that requires a gradient")
    if reduction not in ("mean", "none"):
        raise ValueError(f"{NAME}: expected reduction 'mean' or 'none', got {reduction!r}")
    if backend == "native":
        return _native(state, table, target, bias, reduction)
    expect_backend(NAME, backend)
    expect_ids(NAME, target, table.shape[0], "target")
    with without_autocast(state):
        return reference.catalogue_cross_entropy(state, table, target, bias, reduction)


def _check(
    state: Tensor,
    table: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    weight: Tensor | None = None,
    wanted: Sequence[bool] = (False, False),
) -> None:
    """Refuse shapes, dtypes and devices that do not fit together."""
    if state.dim() != 2 or state.shape[1] == 0:
        raise ValueError(f"{NAME}: expected state [B, D >= 1], got {list(state.shape)}")
    if state.dtype not in DTYPES:
        raise TypeError(f"{NAME}: expected state of a floating dtype, got {state.dtype}")
    if table.dim() != 2 or table.shape[0] == 0 or table.shape[1] != state.shape[1]:
        raise ValueError(f"{NAME}: expected table [V >= 1, D={state.shape[1]}], got {list(table.shape)}")
    expect_like(NAME, "table", table, table.shape, state)
    if tuple(target.shape) != (state.shape[0],):
        raise ValueError(f"{NAME}: expected target [B={state.shape[0]}], got {list(target.shape)}")
    if target.dtype != torch.int64:
        raise TypeError(f"{NAME}: expected target of torch.int64, got {target.dtype}")
    expect_device(NAME, "target", target, state)
    if bias is not None:
        expect_like(NAME, "bias", bias, table.shape[:1], state, f"[V={table.shape[0]}]")
    if weight is not None:
        expect_like(NAME, "weight", weight, state.shape[:1], state.new_empty(0, dtype=_kernel_dtype(state)))
    if len(wanted) != 2:
        raise ValueError(f"{NAME}: expected wanted for state and table, got {len(wanted)}")


def _native(state: Tensor, table: Tensor, target: Tensor, bias: Tensor | None, reduction: Reduction) -> Tensor:
    """Run the kernel, under autograd only where a gradient is wanted."""
    expect_no_tangent(NAME, state, table)
    if torch.is_grad_enabled():
        wanted = (True, True) if under_transforms() else (state.requires_grad, table.requires_grad)
        if any(wanted) and reduction == "mean":
            return applied(_MeanLoss, state, table, target, bias, wanted)[0]
        if any(wanted):
            return applied(_RowLosses, state, table, target, bias)
    loss = _run(state, table, target, bias, None, (False, False))[0]
    return (loss.mean() if reduction == "mean" else loss).to(state.dtype)


def _run(
    state: Tensor, table: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    run = _cpu if unobserved(state, table, target, bias, weight) else _operator
    return run(state, table, target, bias, weight, wanted)


class _MeanLoss(torch.autograd.Function):
    """The mean over rows: its gradients are computed with it, up to the factor that comes from above."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        state: Tensor, table: Tensor, target: Tensor, bias: Tensor | None, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = state.shape[0]
        weight = state.new_full((rows,), 1 / max(rows, 1), dtype=_kernel_dtype(state))
        loss, state_gradient, table_gradient = _run(state, table, target, bias, weight, wanted)
        return loss.mean().to(state.dtype), state_gradient, table_gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, *gradients = output
        ctx.mark_non_differentiable(*gradients)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:2], *gradients)

    @staticmethod
    @first_order(NAME)
    def backward(ctx: Any, above: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        _, _, *gradients = ctx.saved_tensors
        # A loss that is minimised as it is has factor 1: V D products less.
        as_they_are = unobserved(above) and above.item() == 1
        return *(
            (gradient if as_they_are else gradient * above) if want else None
            for gradient, want in zip(gradients, ctx.needs_input_grad[:2], strict=True)
        ), None, None, None  # fmt: skip


class _RowLosses(torch.autograd.Function):
    """The losses of the rows, each with a factor of its own from above: their gradients wait for it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(state: Tensor, table: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        return _run(state, table, target, bias, None, (False, False))[0].to(state.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @first_order(NAME)
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        state, table, target, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        gradients = _run(state, table, target, bias, above.to(_kernel_dtype(state)), wanted)[1:]
        return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), None, None


def _kernel_dtype(state: Tensor) -> torch.dtype:
    return torch.float64 if state.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=64)
def _workspace_bytes(*arguments: Any) -> int:
    return kernels.catalogue_cross_entropy_workspace(*arguments)


def _cpu(
    state: Tensor, table: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, given = _kernel_dtype(state), state.dtype
    state, table, target = state.to(dtype).contiguous(), table.to(dtype).contiguous(), target.contiguous()
    bias = None if bias is None else bias.to(dtype).contiguous()
    weight = None if weight is None else weight.contiguous()
    (rows, dim), items, threads = state.shape, table.shape[0], torch.get_num_threads()
    sizes = (dtype == torch.float64, rows, dim, items, threads)
    workspace = torch.empty(_workspace_bytes(*sizes, weight is not None), dtype=torch.uint8, device="cpu")
    loss = state.new_empty(rows)
    dstate, dtable = _gradients(state, table, weight, wanted, dtype)
    kernels.catalogue_cross_entropy(
        *sizes,
        state.data_ptr(),
        table.data_ptr(),
        target.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        loss.data_ptr(),
        dstate.data_ptr() if dstate.numel() else 0,
        dtable.data_ptr() if dtable.numel() else 0,
        workspace.data_ptr(),
    )
    return loss, dstate.to(given), dtable.to(given)


def _gradients(
    state: Tensor, table: Tensor, weight: Tensor | None, wanted: Sequence[bool], dtype: torch.dtype
) -> list[Tensor]:
    """Room for the gradients of state and table; [0] for one that is not wanted, both of them without a weight."""
    return [
        like.new_empty(like.shape if want and weight is not None else (0,), dtype=dtype)
        for like, want in zip((state, table), wanted, strict=True)
    ]


def _fake(
    state: Tensor, table: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    dstate, dtable = _gradients(state, table, weight, wanted, state.dtype)
    return state.new_empty(state.shape[0], dtype=_kernel_dtype(state)), dstate, dtable


_operator = define_operator(
    "catalogue_cross_entropy(Tensor state, Tensor table, Tensor target, Tensor? bias, Tensor? weight, bool[] wanted) "
    "-> (Tensor loss, Tensor dstate, Tensor dtable)",
    check=_check,
    cpu=_cpu,
    cuda=catalogue_cross_entropy_cuda.run,
    fake=_fake,
)
