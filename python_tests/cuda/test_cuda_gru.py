"""gru_last_state's CUDA kernels on the host policy, through the Python that would start them on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from python_tests import host_policy
from python_tests.host_policy import ORDERS, KernelError
from python_tests.ops.test_gru import Case, assert_close, make, of, to, truth, weights_of, with_gradients
from solid_ext.ops import _cuda, gru_cuda
from solid_ext.ops.gru import gru_last_state

SHARED = 99 * 1024  # bytes of a block on sm_86, 89 and 120
Host = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """CUDA calls go to the host policy; call it to choose the order of threads, the device and AddressSanitizer."""
    chosen = {"order": 0, "shared": SHARED, "call": host_policy.call}

    def choose(**options: object) -> None:
        chosen.update(options)

    def call(kernel: str, near: Tensor, *arguments: int | Tensor | None) -> None:
        chosen["call"](kernel, chosen["shared"], *arguments, order=chosen["order"])

    def query(question: str, *arguments: int) -> int:
        answer = torch.zeros(1, dtype=torch.int64)
        host_policy.call(question, *arguments, answer)
        return int(answer)

    monkeypatch.setattr(_cuda, "call", call)
    monkeypatch.setattr(_cuda, "query", query)
    monkeypatch.setattr(gru_cuda, "address", lambda tensor: tensor)
    return choose


def run(case: Case, wanted: tuple[bool, ...] = (True,) * 5) -> list[Tensor]:
    """The result and the gradients, as the operators on a GPU give them."""
    x, mask, *parameters = case
    h, states = gru_cuda.forward(x, mask, parameters, True)
    again, none = gru_cuda.forward(x, mask, parameters, False)
    assert torch.equal(again.nan_to_num(), h.nan_to_num())
    assert none.numel() == 0
    return [h, *gru_cuda.backward(weights_of(h), x, mask, parameters, states, wanted)]


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 4, 3, 5), (31, 3, 31, 33), (33, 2, 33, 31), (70, 2, 16, 64)])
def test_all_sizes(host: Host, size: tuple[int, int, int, int]) -> None:
    for mask in ("full", "scattered"):
        case = make(*size, mask)
        expected = with_gradients(truth, to(case, torch.float64))
        assert_close(run(case), expected, 3e-6)
        if size[0] < 33:
            assert_close(run(to(case, torch.float64)), expected, 1e-12)


@pytest.mark.parametrize("shared", [SHARED, 20000, 8000])
def test_weights_that_do_not_fit_and_fewer_sequences_a_warp(host: Host, shared: int) -> None:
    host(shared=shared)
    case = make(33, 2, 20, 21, "scattered")
    assert_close(run(case), with_gradients(truth, to(case, torch.float64)), 3e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(host: Host, dtype: torch.dtype) -> None:
    case = make(35, 3, 9, 10, "scattered", dtype)
    found, expected = run(case), with_gradients(truth, to(case, torch.float64))
    assert {t.dtype for t in found} == {dtype}
    assert_close(found, expected, 3 * torch.finfo(dtype).eps)


def test_every_order_of_threads_gives_the_same_bits(host: Host) -> None:
    """Of blocks too, each of which sums several tiles of the batch."""
    case = make(300, 2, 3, 4, "scattered")
    expected = run(case)
    for order in ORDERS[1:]:
        host(order=order)
        for one, other in zip(run(case), expected, strict=True):
            assert torch.equal(one, other)


def absolute_terms(case: Case, index: int) -> Tensor:
    """Sums over sequences of the absolute gradients of parameter `index`, in float64."""
    x, mask, *parameters = to(case, torch.float64)

    def loss(parameter: Tensor, x: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        given = [parameter if at == index else p for at, p in enumerate(parameters)]
        return (gru_last_state(x[None], mask[None], *given, backend="reference")[0] * weights).sum()

    weights = weights_of(x.new_empty(len(x), parameters[1].shape[1]))
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0))(parameters[index], x, mask, weights)
    return each.abs().sum(0)


def test_more_tiles_than_partial_sums(host: Host) -> None:
    """A float32 sum of n terms is off by at most n 2^-24 times the sum of their absolute values.

    Here n is what the longest chain adds: 32 sequences of a tile, two tiles of a block, 256 blocks, and 30 more for
    what rounds within a term. The upstream gradients change sign halfway, so that sums pass through values a hundred
    times as large as the results: a bound relative to the results would be none. This one is 0.16 of an average
    sequence's share, so that one left out or counted twice is seen; float64, on the same path, has no such allowance.
    """
    case = make(8300, 1, 2, 3)
    expected = with_gradients(of("reference"), to(case, torch.float64))
    assert_close(run(to(case, torch.float64)), expected, 1e-12)
    found = run(case)
    assert_close(found[:2], expected[:2], 3e-6)
    for at, (one, other) in enumerate(zip(found[2:], expected[2:], strict=True)):
        assert bool(((one - other).abs() <= (32 + 2 + 256 + 30) * 2**-24 * absolute_terms(case, at)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_lies_outside_its_array(host: Host, dtype: torch.dtype) -> None:
    host(call=host_policy.call_sanitized, order=2)
    case = make(35, 2, 5, 33, "scattered", dtype)
    found = run(case)
    host(call=host_policy.call, order=0)
    for one, other in zip(run(case), found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_read(host: Host, batch: int, length: int) -> None:
    for tensor in run(make(batch, length, 4, 5)):
        assert bool((tensor == 0).all())


def test_masked_positions_are_not_read(host: Host) -> None:
    x, mask, *parameters = make(9, 4, 5, 6, "scattered")
    expected = run((x, mask, *parameters))
    found = run((x.masked_fill(~mask[..., None], torch.nan), mask, *parameters))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_layouts_of_any_stride(host: Host) -> None:
    x, mask, *parameters = make(9, 4, 5, 6, "scattered")
    expected = run((x, mask, *parameters))
    wide = torch.full((4, 9, 7), torch.nan)
    wide[..., :5] = x.transpose(0, 1)
    for view in (wide.transpose(0, 1)[..., :5], x.mT.contiguous().mT):
        assert not view.is_contiguous()
        for one, other in zip(run((view, mask.T.contiguous().T, *parameters)), expected, strict=True):
            assert torch.equal(one, other)


def test_only_wanted_gradients_are_computed(host: Host) -> None:
    case = make(9, 3, 4, 5)
    everything = run(case)[1:]
    for chosen in [{0}, {1}, {2}, {3}, {4}, {0, 3}]:
        found = run(case, tuple(at in chosen for at in range(5)))[1:]
        for one, at in zip(found, sorted(chosen), strict=True):
            assert torch.equal(one, everything[at])


def test_more_memory_than_a_device_has_is_refused(host: Host) -> None:
    host(shared=1024)
    with pytest.raises(KernelError, match="status 2"):
        run(make(3, 2, 30, 40))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_goes_the_same_way_as_in_plain_torch(host: Host, value: float) -> None:
    case = make(5, 3, 4, 6, "scattered")

    def plain(*case: Tensor) -> Tensor:
        return gru_last_state(*case, backend="reference")

    for at in (0, 2, 3, 4, 5):
        tensors = [tensor.clone() for tensor in case]
        tensors[at].view(-1)[13 % tensors[at].numel()] = value
        h, *gradients = run(tuple(tensors))
        wanted, *others = with_gradients(plain, tuple(tensors))
        torch.testing.assert_close(h, wanted, equal_nan=True, rtol=1e-5, atol=1e-5)
        for one, other in zip(gradients, others, strict=True):
            assert torch.equal(one.isfinite(), other.isfinite()), at
