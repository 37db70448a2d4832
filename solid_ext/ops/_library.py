"""The `solid_ext` namespace of torch operators: one place where they are defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

library = torch.library.Library("solid_ext", "FRAGMENT")


def define_operator(
    schema: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    fake: Callable[..., Any],
    vmap: Callable[..., Any] | None = None,
) -> Any:
    """Registers an operator `solid_ext::<name>` and returns its overload, ready to be called.

    Args:
        schema: "name(Tensor x, ...) -> ...".
        cpu: what it does on the CPU. cuda: on a GPU, or None. fake: its output shapes and dtypes.
        vmap: its batching rule `(info, in_dims, *arguments) -> (outputs, out_dims)`, or None.
    """
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, cpu, "CPU")
    if cuda is not None:
        library.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"solid_ext::{name}", fake, lib=library)
    if vmap is not None:
        torch.library.register_vmap(f"solid_ext::{name}", vmap, lib=library)
    return getattr(torch.ops.solid_ext, name).default


_PLAIN = {torch.Tensor, torch.nn.Parameter, type(None)}
_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", None)
_modes_active = getattr(torch._C, "_len_torch_dispatch_stack", None)


def unobserved(*tensors: torch.Tensor | None) -> bool:
    """True when a kernel may be called without the dispatcher, which costs 4 microseconds a call.

    Nothing may be looking on: no tracing or compiling, no transform such as vmap, no dispatch mode, no profiler, no
    tensor subclass, no other device. A torch that does not answer these questions gets the dispatcher.
    """
    if _transforms_active is None or _modes_active is None or torch.compiler.is_compiling():
        return False
    if _transforms_active() or _modes_active() or torch.jit.is_tracing():
        return False
    if torch.autograd.profiler._is_profiler_enabled:
        return False
    for tensor in tensors:  # noqa: SIM110 (a generator would cost as much as all the rest)
        if type(tensor) not in _PLAIN or (tensor is not None and not tensor.is_cpu):
            return False
    return True
