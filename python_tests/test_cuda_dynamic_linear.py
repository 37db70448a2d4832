"""dynamic_mlp's CUDA kernels on the host policy, through the Python that would start them on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import host_policy
import pytest
import torch
from host_policy import ORDERS
from test_ops_dynamic_linear import (
    INFINITE,
    SIZES,
    Case,
    assert_close,
    assert_same,
    make,
    truth,
    weights_of,
    with_gradients,
)
from torch import Tensor

from solid_ext.ops import _cuda, dynamic_linear_cuda

SHARED = 99 * 1024  # bytes of a block on sm_86, 89 and 120
Host = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """CUDA calls go to the host policy; call it to choose the order of threads, the device and AddressSanitizer."""
    chosen = {"order": 0, "multiprocessors": 1, "shared": SHARED, "call": host_policy.call}

    def choose(**options: object) -> None:
        chosen.update(options)

    def call(kernel: str, near: Tensor, *arguments: int | Tensor | None) -> None:
        device = (chosen["multiprocessors"], chosen["shared"])
        chosen["call"](kernel, *device, *arguments, order=chosen["order"])

    def query(question: str, *arguments: int) -> int:
        answer = torch.zeros(1, dtype=torch.int64)
        host_policy.call(question, *arguments, answer)
        return int(answer)

    monkeypatch.setattr(_cuda, "call", call)
    monkeypatch.setattr(_cuda, "query", query)
    monkeypatch.setattr(dynamic_linear_cuda, "address", lambda tensor: tensor)
    yield choose


def run(case: Case, delta: float, tanh_last: bool = False, wanted: Sequence[bool] | None = None) -> list[Tensor]:
    """The result and the gradients, as the operators on a GPU give them."""
    item, semantic = case.z_item is not None, case.z_semantic is not None
    parameters = [
        *(case.item_maps if item else []),
        *(case.item_offsets if item else []),
        *(case.semantic_maps if semantic else []),
        *(case.semantic_offsets if semantic else []),
    ]
    inputs = (case.x, case.z_item, case.z_semantic, parameters)
    y, hidden = dynamic_linear_cuda.forward(*inputs, delta, tanh_last, True)
    again, none = dynamic_linear_cuda.forward(*inputs, delta, tanh_last, False)
    assert torch.equal(again.nan_to_num(), y.nan_to_num())
    assert case.x.dim() == 3 or none.numel() == 0
    wanted = wanted or [True] * (3 + len(parameters))
    gradients = dynamic_linear_cuda.backward(
        weights_of(y), *inputs, y if tanh_last else None, hidden, delta, tanh_last, wanted
    )
    return [y, *gradients]


@pytest.mark.parametrize(("sizes", "codes"), SIZES)
def test_all_sizes(host: Host, sizes: tuple[int, ...], codes: int) -> None:
    settings = [("both", 0.1), ("item", 0.2), ("semantic", 0.1), ("both", INFINITE), ("item", INFINITE)]
    first = SIZES.index((sizes, codes))
    for at, batch in enumerate([1, 33, 70]):
        branches, delta = settings[(first + at) % len(settings)]
        case = make(sizes, codes, batch, None, branches, codes_semantic=codes + 1)
        expected = with_gradients(lambda c: truth(c, delta), case.to(torch.float64))
        assert_close(run(case, delta), expected, 2e-5)
