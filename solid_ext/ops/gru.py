"""The last state of a GRU over masked sequences, whose gates are computed again backward: checks, memory, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from solid_ext._native import kernels
from solid_ext.ops import gru_cuda, reference
from solid_ext.ops._arguments import DTYPES, Backend, expect_backend, expect_like, expect_mask, expect_tensor
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


def gru_last_state(
    x: Tensor,
    mask: Tensor,
    weight_input: Tensor,
    weight_hidden: Tensor,
    bias_input: Tensor,
    bias_hidden: Tensor,
    *,
    backend: Backend = "native",
) -> Tensor:
    """The state of a GRU after the last position whose mask is True.

    From `h = 0`, at each position with mask True, `h <- n + z (h - n)` with `r, z = sigmoid(W_i x + b_i + W_h h + b_h)`
    and `n = tanh(W_in x + b_in + r (W_hn h + b_hn))`; h stays where the mask is False.

    Args:
        x: [B, L, D] float32, float64, bfloat16 or float16, of any strides; all tensors but the mask share its dtype.
        mask: [B, L] bool. A position where it is False costs nothing and is not read, wherever in the sequence it is.
        weight_input: W_i [3H, D], the rows of the gates r, z, n in this order, as in `torch.nn.GRUCell`.
        weight_hidden: W_h [3H, H], in the same order.
        bias_input: b_i [3H].
        bias_hidden: b_h [3H].
        backend: "native" (the kernel) or "reference" (plain torch).

    Returns:
        [B, H], in x's dtype; zeros for a sequence without a True.

    Raises:
        ValueError: a shape or an option that does not fit.
        TypeError: a dtype that does not fit.
        NotImplementedError: a derivative of second order or in forward mode of the native backend, where the reference
            has both.

    Gradient: to x and the parameters, of first order only; zero for x where the mask is False. Under autocast x is
    taken in the dtype of the parameters. `torch.vmap` folds its batch into B where the parameters are shared and
    nothing is kept for a backward, and calls the kernel for each element elsewhere.

    Not finite: in the forward pass NaN and infinity go where the formula takes them, in both back ends alike. A NaN
    stays in the state of its sequence, infinity saturates the gates, and a position where the mask is False reaches
    neither the state nor a gradient. The back ends agree on which gradients are finite. They need not agree on whether
    one that is not is NaN or infinite, nor, as with any rounding, on where sums of large numbers overflow.

    Source: docs/kernels/gru_last_state.md#contract; the cell is that of Cho et al. 2014 as torch has it.
    """
    name = "gru_last_state"
    expect_tensor(name, "x", x)
    parameters = (weight_input, weight_hidden, bias_input, bias_hidden)
    if autocasts(x) and isinstance(weight_input, Tensor):
        x = x.to(weight_input.dtype)
    _check(name, x, mask, *parameters)
    if backend == "native":
        return _native(name, x, mask, *parameters)
    expect_backend(name, backend)
    with without_autocast(x):
        return reference.gru_last_state(x, mask, *parameters)


def _check(
    name: str,
    x: Tensor,
    mask: Tensor,
    weight_input: Tensor,
    weight_hidden: Tensor,
    bias_input: Tensor,
    bias_hidden: Tensor,
) -> None:
    """Refuse shapes, dtypes and devices that do not fit together."""
    expect_tensor(name, "x", x)
    if x.dim() != 3 or x.shape[2] == 0:
        raise ValueError(f"{name}: expected x [B, L, D >= 1], got {list(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: expected x of a floating dtype, got {x.dtype}")
    expect_mask(name, mask, x.shape[:2], x, f"[B={x.shape[0]}, L={x.shape[1]}]")
    expect_tensor(name, "weight_hidden", weight_hidden)
    if weight_hidden.dim() != 2 or weight_hidden.shape[1] == 0:
        raise ValueError(f"{name}: expected weight_hidden [3H, H >= 1], got {list(weight_hidden.shape)}")
    units, inputs = weight_hidden.shape[1], x.shape[2]
    rows = 3 * units
    expect_like(name, "weight_input", weight_input, (rows, inputs), x, f"[3H={rows}, D={inputs}]")
    expect_like(name, "weight_hidden", weight_hidden, (rows, units), x, f"[3H={rows}, H={units}]")
    expect_like(name, "bias_input", bias_input, (rows,), x, f"[3H={rows}]")
    expect_like(name, "bias_hidden", bias_hidden, (rows,), x, f"[3H={rows}]")


def _check_forward(x: Tensor, mask: Tensor, parameters: Sequence[Tensor], keep: bool = False) -> None:
    if len(parameters) != 4:
        raise ValueError(f"gru_last_state: expected 4 parameters, got {len(parameters)}")
    _check("gru_last_state", x, mask, *parameters)


def _check_backward(
    dh: Tensor, x: Tensor, mask: Tensor, parameters: Sequence[Tensor], states: Tensor, wanted: Sequence[bool]
) -> None:
    _check_forward(x, mask, parameters)
    units = parameters[1].shape[1]
    expect_like("gru_last_state", "dh", dh, (x.shape[0], units), x)
    kept = x.new_empty(0, dtype=_kernel_dtype(x))
    expect_like("gru_last_state", "states", states, (x.shape[1], x.shape[0], units), kept)
    if not states.is_contiguous():
        raise ValueError("gru_last_state: expected states contiguous, got other strides")
    if len(wanted) != 5:
        raise ValueError(f"gru_last_state: expected wanted for x and 4 parameters, got {len(wanted)}")


def _native(name: str, x: Tensor, mask: Tensor, *parameters: Tensor) -> Tensor:
    """Run the kernel, under autograd only where a gradient is wanted."""
    expect_no_tangent(name, x, *parameters)
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters) or under_transforms()):
        return applied(_GruLastState, x, mask, *parameters)[0]
    return _forward(x, mask, parameters, False)[0]


def _forward(x: Tensor, mask: Tensor, parameters: Sequence[Tensor], keep: bool) -> tuple[Tensor, Tensor]:
    run = _forward_cpu if unobserved(x, mask, *parameters) else forward_operator
    return run(x, mask, parameters, keep)


class _GruLastState(torch.autograd.Function):
    """All positions in one call forward and one backward; states are kept, gates are not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return _forward(x, mask, parameters, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, mask, *parameters = inputs
        _, states = output
        ctx.mark_non_differentiable(states)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, mask, states, *parameters)

    @staticmethod
    @first_order("gru_last_state")
    def backward(ctx: Any, dh: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, mask, states, *parameters = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
        run = _backward_cpu if unobserved(dh, x, mask, *parameters) else backward_operator
        found = iter(run(dh, x, mask, parameters, states, wanted))
        dx, *rest = [next(found) if want else None for want in wanted]
        return dx, None, *rest


def _kernel_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _empty_states(x: Tensor, units: int, keep: bool) -> Tensor:
    """Room for the state before each position, [L, B, H]; [0] unless they are kept for the backward."""
    shape = (x.shape[1], x.shape[0], units) if keep else (0,)
    return x.new_empty(shape, dtype=_kernel_dtype(x))


@lru_cache(maxsize=64)
def _workspace_bytes(*arguments: Any) -> int:
    return kernels.gru_workspace(*arguments)


class _KernelCall:
    """Inputs of a dtype and layout that the kernel reads, and the arguments that it is called with."""

    def __init__(self, x: Tensor, mask: Tensor, parameters: Sequence[Tensor], backward: bool) -> None:
        self.dtype = _kernel_dtype(x)
        x = x.to(self.dtype)
        self.x = x if x.stride(2) == 1 else x.contiguous()
        self.mask = mask.contiguous()
        self.parameters = [p.to(self.dtype).contiguous() for p in parameters]
        batch, length, inputs = x.shape
        self.units = parameters[1].shape[1]
        threads = torch.get_num_threads()
        sizes = (self.dtype == torch.float64, batch, length, inputs, self.units, threads)
        self.workspace = torch.empty(_workspace_bytes(*sizes, backward), dtype=torch.uint8, device="cpu")
        self.arguments = (
            *sizes,
            self.x.data_ptr(),
            self.x.stride(0),
            self.x.stride(1),
            self.mask.data_ptr(),
            *(p.data_ptr() for p in self.parameters),
        )


def _forward_cpu(x: Tensor, mask: Tensor, parameters: Sequence[Tensor], keep: bool) -> tuple[Tensor, Tensor]:
    call = _KernelCall(x, mask, parameters, False)
    h = x.new_empty((x.shape[0], call.units), dtype=call.dtype)
    states = _empty_states(x, call.units, keep)
    kernels.gru_forward(*call.arguments, states.data_ptr() if keep else 0, call.workspace.data_ptr(), h.data_ptr())
    return h if h.dtype == x.dtype else h.to(x.dtype), states


def _forward_fake(x: Tensor, mask: Tensor, parameters: Sequence[Tensor], keep: bool) -> tuple[Tensor, Tensor]:
    units = parameters[1].shape[1]
    return x.new_empty((x.shape[0], units)), _empty_states(x, units, keep)


def _backward_cpu(
    dh: Tensor, x: Tensor, mask: Tensor, parameters: Sequence[Tensor], states: Tensor, wanted: Sequence[bool]
) -> list[Tensor]:
    call = _KernelCall(x, mask, parameters, True)
    dh = dh.to(call.dtype).contiguous()
    gradients = [
        torch.empty(t.shape, dtype=call.dtype, device="cpu") if want else None
        for t, want in zip((x, *parameters), wanted, strict=True)
    ]
    kernels.gru_backward(
        *call.arguments,
        states.data_ptr(),
        call.workspace.data_ptr(),
        dh.data_ptr(),
        *(0 if g is None else g.data_ptr() for g in gradients),
    )
    return [g if g.dtype == x.dtype else g.to(x.dtype) for g in gradients if g is not None]


def _backward_fake(
    dh: Tensor, x: Tensor, mask: Tensor, parameters: Sequence[Tensor], states: Tensor, wanted: Sequence[bool]
) -> list[Tensor]:
    return [x.new_empty(t.shape) for t, want in zip((x, *parameters), wanted, strict=True) if want]


forward_operator = define_operator(
    "gru_last_state_forward(Tensor x, Tensor mask, Tensor[] parameters, bool keep) -> (Tensor h, Tensor states)",
    check=_check_forward,
    cpu=_forward_cpu,
    cuda=gru_cuda.forward,
    fake=_forward_fake,
    vmap=(0, 1),
)
backward_operator = define_operator(
    "gru_last_state_backward(Tensor dh, Tensor x, Tensor mask, Tensor[] parameters, Tensor states, bool[] wanted) "
    "-> Tensor[]",
    check=_check_backward,
    cpu=_backward_cpu,
    cuda=gru_cuda.backward,
    fake=_backward_fake,
)
