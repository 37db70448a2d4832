"""A training that neither reads nor changes what all of a process shares: generators, dtype, grad mode."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch

from solid_ext import distributed

_lock = threading.RLock()


def _unlock() -> None:
    """A forked process has not the thread that may have held the lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


@contextmanager
def isolated() -> Iterator[None]:
    """The body draws from torch's generators as if nobody else did, and leaves them as they were.

    Dropout draws its keys from the generator of the process, so that trainings of several threads follow one another:
    the second waits here. Inside, gradients are recorded, new tensors are float32 on the CPU, and nothing is autocast,
    whatever the caller has set. A body inside another of the same thread runs at once.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    dtype, cpu = torch.get_default_dtype(), torch.device("cpu")
    with (
        _lock,
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        # A device as a context is Python around every call of torch, which makes a small model's step longer.
        nullcontext() if torch.get_default_device() == cpu else cpu,
    ):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a model on the device draws from: the CPU's, and the device's own."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed + distributed.rank())  # of other rows


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the generators that a model on the device draws from."""
    states = {"cpu": torch.default_generator.get_state()}
    if device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Set the generators to what `generator_states` gave, the device's where it is of such a device."""
    torch.default_generator.set_state(states["cpu"])
    if device.type == "cuda" and "device" in states:
        torch.cuda.set_rng_state(states["device"], device)
