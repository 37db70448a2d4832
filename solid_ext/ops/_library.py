"""The `solid_ext` namespace of torch operators: one place where they are defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

library = torch.library.Library("solid_ext", "FRAGMENT")


def define_operator(
    schema: str, *, cpu: Callable[..., Any], fake: Callable[..., Any], vmap: Callable[..., Any] | None = None
) -> Any:
    """Registers an operator `solid_ext::<name>` and returns its overload, ready to be called.

    Args:
        schema: "name(Tensor x, ...) -> ...".
        cpu: what it does on the CPU. fake: its output shapes and dtypes.
        vmap: its batching rule `(info, in_dims, *arguments) -> (outputs, out_dims)`, or None.
    """
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, cpu, "CPU")
    torch.library.register_fake(f"solid_ext::{name}", fake, lib=library)
    if vmap is not None:
        torch.library.register_vmap(f"solid_ext::{name}", vmap, lib=library)
    return getattr(torch.ops.solid_ext, name).default


def plain(*tensors: torch.Tensor | None) -> bool:
    """Whether nothing watches the call, so that it may go to the kernel past torch's dispatcher (8 us a call)."""
    return (
        not torch.compiler.is_compiling()
        and all(
            tensor is None or (type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_cpu)
            for tensor in tensors
        )
        and torch._C._len_torch_dispatch_stack() == 0
    )
