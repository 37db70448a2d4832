"""What the tests of all operations share: every implementation of one, and numbers drawn once for all dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from solid_ext import build_info
from solid_ext._native import kernels

LEVELS: list[str] = build_info()["isa_usable"]
IMPLEMENTATIONS = ["reference", *(f"native-{isa}" for isa in LEVELS)]


@contextmanager
def instruction_set(level: str) -> Iterator[None]:
    """The kernels at this level inside."""
    before = build_info()["isa"]
    kernels.set_isa(level)
    try:
        yield
    finally:
        kernels.set_isa(before)


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers times `scale`, the same for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
