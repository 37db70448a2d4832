"""Calling a CUDA kernel, on the tensor's device and its current stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solid_ext._native import kernels

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}  # Element of csrc/cuda/numbers.h


def query(question: str, *arguments: int) -> Any:
    """Calls a binding that runs nothing on a device, such as one that says how large a workspace has to be.

    Raises:
        RuntimeError: the module was built without CUDA kernels.
    """
    return _binding(question)(*arguments)


def call(kernel: str, near: Tensor, *arguments: int | float) -> Any:
    """Calls the binding `kernel` with the device of `near`, its current stream and the arguments.

    Addresses and sizes have been checked and everything allocated before; nothing here synchronises.

    Raises:
        RuntimeError: the module was built without CUDA kernels, or what the CUDA runtime says of the launch.
    """
    function = _binding(kernel)
    with torch.cuda.device(near.device):
        return function(near.device.index, torch.cuda.current_stream(near.device).cuda_stream, *arguments)


def address(tensor: Tensor | None) -> int:
    """The address of the tensor's first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def _binding(name: str) -> Any:
    if not hasattr(kernels, name):
        raise RuntimeError(
            f"{name}: expected a module built with CUDA kernels, got one without (build_info()['cuda'] is None: "
            "install again with nvcc on the path, and SOLID_EXT_CUDA unset or ON)"
        )
    return getattr(kernels, name)
