"""The host policy: it runs kernels right, and catches each planted mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from python_tests import host_policy
from python_tests.host_policy import ORDERS, KernelError


def planted(
    kernel: str, mistake: int, length: int, *, order: int = 0, call: Callable[..., None] = host_policy.call
) -> Tensor:
    words = 256 if kernel == "copies" else 64
    source = torch.arange(length, dtype=torch.int32) + 7
    result = torch.full((length,), -1, dtype=torch.int32)
    call(f"planted_{kernel}", mistake, length, source, result, words, order=order)
    return result


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("call", [host_policy.call, host_policy.call_sanitized])
def test_right_kernels_run(order: int, call: Callable[..., None]) -> None:
    expected = torch.arange(1024, dtype=torch.int32) + 7
    assert torch.equal(planted("exchange", 0, 1024, order=order, call=call), expected.view(-1, 64).flip(1).flatten())
    assert torch.equal(planted("lanes", 0, 1024, order=order, call=call), expected.view(-1, 32).flip(1).flatten())
    assert torch.equal(planted("copies", 0, 1024, order=order, call=call), expected.view(-1, 256).flip(1).flatten())


@pytest.mark.parametrize("call", [host_policy.call, host_policy.call_sanitized])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "mistake", "message"),
    [
        ("exchange", 1, "in a race: thread .* wrote it, no barrier between|that nothing wrote"),
        ("exchange", 2, "out of bounds: elements 64 .. 64 of a shared array of 64"),
        ("exchange", 3, "thread 58 reads byte 20 of shared memory that nothing wrote"),
        ("exchange", 4, "threads wait for each other: thread 0 and on at sync; thread 32 and on at the end"),
        ("exchange", 5, "in a race"),
        ("exchange", 6, "writes byte .* in a race: thread .* wrote it"),
        ("lanes", 1, "in a race|that nothing wrote"),
        ("lanes", 2, "in a race: thread .* wrote it, no barrier between"),
        ("lanes", 3, "in a race|that nothing wrote"),
        ("lanes", 4, "lanes of one warp wait at different operations"),
        ("copies", 1, "while an asynchronous copy to it is under way"),
        ("copies", 2, "while an asynchronous copy to it is under way"),
        ("copies", 3, "in a race|that nothing wrote|while an asynchronous copy"),
        ("copies", 4, "copy_async from an address that is not aligned"),
    ],
)
def test_each_planted_mistake_is_caught(
    kernel: str, mistake: int, message: str, order: int, call: Callable[..., None]
) -> None:
    with pytest.raises(KernelError, match=message):
        planted(kernel, mistake, 1024, order=order, call=call)


def test_reads_past_a_global_array_are_caught() -> None:
    with pytest.raises(KernelError, match="heap-buffer-overflow"):
        planted("exchange", 7, 1000, call=host_policy.call_sanitized)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_matrix_fragments(kind: int) -> None:
    depth = 8 if kind == 2 else 16
    a = torch.randint(-8, 9, (16, depth)).float()
    b = torch.randint(-8, 9, (depth, 8)).float()
    d = torch.full((16, 8), torch.nan)
    host_policy.call("planted_product", kind, a, b, d)
    added = torch.zeros(16, 8)  # the fragment c that the kernel passes: 1 in the last of its four places
    added[8:, 1::2] = 1
    assert torch.equal(d, a @ b + added)


def test_loading_matrices_gives_the_fragments_of_a_product() -> None:
    words = torch.arange(128, dtype=torch.int32)
    got = torch.full((4, 32), -1, dtype=torch.int32)
    host_policy.call("planted_matrices", words, got)
    for matrix in range(4):
        for lane in range(32):
            assert got[matrix, lane] == (matrix * 8 + lane // 4) * 4 + lane % 4
