"""What the bindings of CUDA kernels answer where no device is reached: a sentence, each time, and nothing sticks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from python_tests.ops.test_catalogue_cross_entropy import make as make_cross_entropy
from python_tests.ops.test_dynamic_linear import make
from python_tests.ops.test_gru import make as make_gru
from solid_ext import build_info
from solid_ext._native import kernels
from solid_ext.ops import (
    _cuda,
    catalogue_cross_entropy_cuda,
    dynamic_linear_cuda,
    gru_cuda,
    nearest_code_cuda,
    segment_sum_cuda,
)

BUILT = build_info()["cuda"] is not None


def nearest_code(rows: int = 10, codes: int = 20) -> object:
    return nearest_code_cuda.run(torch.zeros(rows, 3), torch.zeros(codes, 3), None, "none")


def segment_sum() -> object:
    return segment_sum_cuda.segment_sum(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), None, 5)


def dynamic_mlp() -> object:
    case = make((4, 5, 3), 2, 6, 7)
    parameters = [*case.item_maps, *case.item_offsets, *case.semantic_maps, *case.semantic_offsets]
    return dynamic_linear_cuda.forward(case.x, case.z_item, case.z_semantic, parameters, 0.1, False, True)


def gru_last_state() -> object:
    x, mask, *parameters = make_gru(6, 3, 4, 5)
    return gru_cuda.forward(x, mask, parameters, True)


def catalogue_cross_entropy() -> object:
    state, table, target, bias = make_cross_entropy(6, 3, 9)
    return catalogue_cross_entropy_cuda.run(state, table, target, bias, torch.ones(6), (True, True))


CALLS = [
    (catalogue_cross_entropy, r"catalogue_cross_entropy \(B=6, D=3, V=9\)"),
    (nearest_code, r"nearest_code \(N=10, K=20, D=3\)"),
    (segment_sum, r"segment_sum \(N=4, K=5, D=3\)"),
    (dynamic_mlp, r"dynamic_mlp \(B=6, T=7, sizes \[4, 5, 3\], k=2 and 2\)"),
    (gru_last_state, r"gru_last_state \(B=6, L=3, D=4, H=5\)"),
]


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls go to the bindings as they are, with the first device and its default stream."""

    def call(kernel: str, near: Tensor, *arguments: int) -> object:
        return getattr(kernels, kernel)(0, 0, *arguments)

    monkeypatch.setattr(_cuda, "call", call)


@pytest.mark.skipif(
    not BUILT or torch.cuda.is_available(),
    reason="needs a module built with SOLID_EXT_CUDA=ON (make test-cuda), and no GPU",
)
@pytest.mark.parametrize(("operation", "name"), CALLS)
def test_without_a_device_each_call_says_so(bindings: None, operation: Callable[[], object], name: str) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"^{name}: CUDA says: .*(driver|device)"):
            operation()


@pytest.mark.skipif(not BUILT, reason="needs a module built with SOLID_EXT_CUDA=ON (make test-cuda)")
def test_what_no_kernel_can_do_is_named_before_the_device_is_asked(bindings: None) -> None:
    with pytest.raises(ValueError, match=r"^nearest_code \(N=10, K=0, D=3\): expected arguments that a kernel can use"):
        nearest_code(codes=0)
    most = 64 * 0x7FFFFFFF
    numbers = [1, 0, 0, 3, most + 1, 3, 0, 20, 0, 0, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match=rf"^nearest_code \(N={most + 1}, .* at most 2147483647 blocks"):
        kernels.nearest_code_cuda(0, 0, *numbers)
    with pytest.raises(IndexError, match="expected more numbers than 2"):
        kernels.dynamic_forward_cuda(0, 0, 0, 0)


@pytest.mark.parametrize(("operation", "name"), CALLS)
def test_without_the_kernels_each_call_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, operation: Callable[[], object], name: str
) -> None:
    monkeypatch.setattr(_cuda, "kernels", object())
    with pytest.raises(RuntimeError, match="expected a module built with CUDA kernels, got one without"):
        operation()


def test_the_build_says_what_it_has() -> None:
    found = build_info()["cuda"]
    assert (found is None) == (not hasattr(kernels, "nearest_code_cuda"))
    if found is not None:
        code = [name for name in found["architectures"] if name.isdigit()]
        assert all(int(name) >= 80 for name in code)
        assert f"compute_{code[-1]}" in found["architectures"]
