"""What the tests of all operations share: every implementation of one, and numbers drawn once for all dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def weights_of(y: Tensor) -> Tensor:
    """What the gradients are taken with: uneven, the same for every dtype."""
    return torch.linspace(-3, 3, y.numel(), dtype=torch.float64).sin().reshape(y.shape).to(y.dtype)


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Within `tolerance` of the largest value of each expected tensor."""
    for at, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        if other.numel():
            error = (one.double() - other.double()).abs().max()
            assert error <= tolerance * (1 + other.double().abs().max()), f"tensor {at}: {error}"


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for at, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other), f"tensor {at}"


def peak_bytes(function: Callable[[], object]) -> int:
    """The largest amount of tensor memory that a call holds at once, beyond what was there."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    assert profile.profiler is not None
    held = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
