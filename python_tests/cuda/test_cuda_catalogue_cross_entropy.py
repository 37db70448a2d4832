"""catalogue_cross_entropy's CUDA kernels on the host policy, through the Python that would start them on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from python_tests import host_policy
from python_tests.host_policy import ORDERS, KernelError
from python_tests.ops.test_catalogue_cross_entropy import Case, assert_close, assert_same, make, truth, weights_of
from solid_ext.ops import _cuda, catalogue_cross_entropy_cuda

Host = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """CUDA calls go to the host policy; call it to choose the order of threads and AddressSanitizer."""
    chosen = {"order": 0, "call": host_policy.call}

    def choose(**options: object) -> None:
        chosen.update(options)

    def call(kernel: str, near: Tensor, *arguments: int | Tensor | None) -> None:
        chosen["call"](kernel, *arguments, order=chosen["order"])

    def query(question: str, *arguments: int) -> int:
        answer = torch.zeros(1, dtype=torch.int64)
        host_policy.call(question, *arguments, answer)
        return int(answer)

    monkeypatch.setattr(_cuda, "call", call)
    monkeypatch.setattr(_cuda, "query", query)
    monkeypatch.setattr(catalogue_cross_entropy_cuda, "address", lambda tensor: tensor)
    return choose


def run(case: Case, wanted: tuple[bool, bool] = (True, True)) -> list[Tensor]:
    """The losses and the gradients, as the operator on a GPU gives them."""
    weight = weights_of(len(case[0])).to(torch.float64 if case[0].dtype == torch.float64 else torch.float32)
    return list(catalogue_cross_entropy_cuda.run(*case, weight, wanted))


def wide(case: Case) -> Case:
    state, table, target, bias = case
    return state.double(), table.double(), target, bias.double()


# Single elements, edges of tiles (64 rows, items and components; 16 components at a time), several splits of items.
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (2, 3, 5), (63, 16, 65), (65, 17, 130), (5, 65, 70), (64, 64, 64), (70, 8, 400)]
)
def test_all_sizes(host: Host, size: tuple[int, int, int]) -> None:
    case = make(*size)
    expected = truth(case, weights_of(size[0]))
    assert_close(run(case), expected, 1e-5)
    if size[0] != 64:
        assert_close(run(wide(case)), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(host: Host, dtype: torch.dtype) -> None:
    case = make(33, 9, 70, dtype)
    found = run(case)
    assert [t.dtype for t in found] == [torch.float32, dtype, dtype]
    assert_close(found, truth(case, weights_of(33)), torch.finfo(dtype).eps)


def test_every_order_of_threads_gives_the_same_bits(host: Host) -> None:
    case = make(70, 8, 300)
    results = []
    for order in ORDERS:
        host(order=order)
        results.append(run(case))
    for other in results[1:]:
        assert_same(other, results[0])


def test_only_wanted_gradients_are_computed_and_losses_need_no_weight(host: Host) -> None:
    case = make(33, 5, 70)
    everything = run(case)
    for wanted in ((True, False), (False, True)):
        found = run(case, wanted)
        for at, want in enumerate((True, *wanted)):
            assert_same([found[at]], [everything[at]]) if want else None
            assert want or found[at].numel() == 0
    loss, dstate, dtable = catalogue_cross_entropy_cuda.run(*case, None, (True, True))
    assert_same([loss], everything[:1])
    assert dstate.numel() == dtable.numel() == 0


def test_no_rows_and_no_bias(host: Host) -> None:
    state, table, target, _ = make(33, 5, 70)
    found = list(catalogue_cross_entropy_cuda.run(state, table, target, None, weights_of(33).float(), (True, True)))
    assert_close(found, truth((state, table, target, torch.zeros(70)), weights_of(33)), 1e-5)
    nothing = target[:0]
    loss, dstate, dtable = catalogue_cross_entropy_cuda.run(state[:0], table, nothing, None, state[:0, 0], (True, True))
    assert loss.shape == (0,)
    assert dstate.shape == (0, 5)
    assert bool((dtable == 0).all())


def test_a_target_that_is_no_item_has_no_loss_and_nothing_is_read_for_it(host: Host) -> None:
    state, table, target, bias = make(10, 5, 70)
    right = run((state, table, target, bias))
    for wrong in (-1, 70, -100, 2**40):
        changed = target.clone()
        changed[3] = wrong
        loss, dstate, _ = run((state, table, changed, bias))
        assert loss.isnan().nonzero().flatten().tolist() == [3]
        assert dstate.isnan().any(1).nonzero().flatten().tolist() == [3]
        kept = torch.arange(10) != 3
        assert_same([loss[kept], dstate[kept]], [right[0][kept], right[1][kept]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_what_is_not_finite_goes_where_the_formula_takes_it(host: Host, at: int, value: float) -> None:
    case = [t.clone() for t in make(20, 5, 100)]
    case[3].zero_()
    case[at].view(-1)[13] = value
    found, expected = run(tuple(case)), truth(tuple(case), weights_of(20))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())


def test_no_access_leaves_its_array(host: Host) -> None:
    case = make(66, 17, 70)
    expected = run(case)
    host(call=host_policy.call_sanitized)
    assert_same(run(case), expected)
    with pytest.raises(KernelError, match="heap-buffer-overflow"):
        run((*case[:3], case[3][:60]))
