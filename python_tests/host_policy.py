"""Runs CUDA kernel bodies on the CPU: builds `cuda_host/` and calls its entries with tensors."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "cuda_host"
FLAGS = ["-std=c++17", "-g", "-march=native", "-ffp-contract=off"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
ORDERS = (0, 1, 2, 3)  # threads and blocks: lowest first, highest first, two random orders

Argument = int | torch.Tensor | None


class KernelError(RuntimeError):
    """What the host policy found wrong with a kernel."""


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="solid_host_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _built(sanitized: bool) -> Path:
    """A shared library, or a program with AddressSanitizer; from g++, or from what CXX names."""
    target = _folder() / ("host_program" if sanitized else "host.so")
    kind = ["-O1", "-fsanitize=address"] if sanitized else ["-O2", "-shared", "-fPIC"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{FOLDER.parent}"]

    def run(*arguments: str) -> None:
        command = [os.environ.get("CXX", "g++"), *FLAGS, *WARNINGS, *kind, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the host policy does not compile:\n{done.stderr[-4000:]}")

    objects = {str(path): f"{target}.{path.stem}.o" for path in sorted(FOLDER.glob("*.cpp"))}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source: run(*includes, "-c", source, "-o", objects[source]), objects))
    run(*objects.values(), "-o", str(target))
    return target


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_built(False)))
    library.solid_host_call.restype = ctypes.c_char_p
    library.solid_host_call.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]
    return library


def call(name: str, *arguments: Argument, order: int = 0) -> None:
    """Calls an entry: tensors are passed by address (None: null) and written in place.

    Raises: KernelError with what is wrong: a race, a barrier not reached, shared memory out of bounds or unwritten.
    """
    values = [_address(argument) for argument in arguments]
    array = (ctypes.c_int64 * len(values))(*values)
    message = _library().solid_host_call(name.encode(), order, array, len(values))
    if message:
        raise KernelError(message.decode())


def call_sanitized(name: str, *arguments: Argument, order: int = 0) -> None:
    """`call` in a process under AddressSanitizer, each tensor in a heap block exactly as long as it is.

    Raises: KernelError as `call`, or with AddressSanitizer's report.
    """
    request = [f"{name} {order} {len(arguments)}\n".encode()]
    tensors = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            _address(argument)
            tensors.append(argument)
            raw = ctypes.string_at(argument.data_ptr(), _span(argument)) if argument.numel() else b""
            request += [f"array {len(raw)}\n".encode(), raw]
        else:
            request.append(f"value {argument or 0}\n".encode())
    done = subprocess.run(
        [str(_built(True))],
        input=b"".join(request),
        capture_output=True,
        check=False,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0"},
    )
    if done.returncode != 0:
        raise KernelError(done.stderr.decode()[-4000:])
    message, _, raw = done.stdout.partition(b"\n")
    if message:
        raise KernelError(message.decode())
    for tensor in tensors:
        size = _span(tensor)
        ctypes.memmove(tensor.data_ptr(), raw[:size], size)
        raw = raw[size:]


def _address(argument: Argument) -> int:
    if isinstance(argument, torch.Tensor):
        assert argument.is_cpu
        return argument.data_ptr()
    return argument or 0


def _span(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to its last."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
