"""catalogue_cross_entropy against the formula written out in float64: every backend, instruction set and size."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from python_tests.ops.cases import IMPLEMENTATIONS, assert_same, peak_bytes
from solid_ext import build_info
from solid_ext._native import kernels
from solid_ext.ops.catalogue_cross_entropy import KEPT_ROWS, catalogue_cross_entropy

SIZES = [  # B, D, V: single elements, edges of vectors, tiles, panels of 96 items and blocks of 48 to 192 rows
    (1, 1, 1),
    (2, 3, 5),
    (31, 31, 95),
    (47, 32, 96),
    (48, 33, 97),
    (49, 64, 191),
    (193, 16, 193),
    (385, 20, 250),
]
Case = tuple[Tensor, Tensor, Tensor, Tensor]


def make(rows: int, dim: int, items: int, dtype: torch.dtype = torch.float32) -> Case:
    """state, table, target and bias; logits of the size that trained ones have, and two items left out."""
    generator = torch.Generator().manual_seed(rows + 7 * dim + items)
    state = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    table = torch.randn(items, dim, generator=generator, dtype=torch.float64) * 3 * dim**-0.5
    bias = torch.randn(items, generator=generator, dtype=torch.float64)
    if items > 2:
        bias[[0, items // 2]] = -torch.inf
    target = torch.randint(0, items, (rows,), generator=generator)
    target[bias[target] == -torch.inf] = items - 1
    return state.to(dtype), table.to(dtype), target, bias.to(dtype)


def truth(case: Case, above: Tensor) -> list[Tensor]:
    """The losses [B], and the gradients of `(above * losses).sum()`, by the formulas of the contract in float64."""
    state, table, target, bias = (t.double() if t.is_floating_point() else t for t in case)
    logits = (state[:, None, :] * table).sum(2) + bias
    largest = logits.amax(1, keepdim=True)
    terms = (logits - largest).exp()
    total = terms.sum(1, keepdim=True)
    row = torch.arange(len(target))
    loss = (total.log() + largest).squeeze(1) - logits[row, target]
    g = terms / total
    g[row, target] -= 1
    g *= above[:, None].double()
    return [loss, g @ table, g.T @ state]


def weights_of(rows: int) -> Tensor:
    """What the rows' gradients are taken with: uneven, the same for every dtype."""
    return torch.linspace(-3, 3, rows, dtype=torch.float64).sin()


def of(backend: str, reduction: str = "none") -> Callable[..., Tensor]:
    return lambda *case: catalogue_cross_entropy(*case, reduction=reduction, backend=backend)


def with_gradients(function: Callable[..., Tensor], case: Case) -> list[Tensor]:
    """The losses, or their mean, and the gradients of state and table."""
    state, table = (t.detach().clone().requires_grad_() for t in case[:2])
    loss = function(state, table, *case[2:])
    above = weights_of(len(loss)).to(loss.dtype) if loss.dim() else None
    return [loss.detach(), *torch.autograd.grad(loss, [state, table], above)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Within `tolerance` of the largest value of each expected tensor."""
    for at, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        if other.numel():
            error = (one.double() - other.double()).abs().max()
            assert error <= tolerance * (1e-3 + other.double().abs().max()), f"tensor {at}: {error}"


def test_every_instruction_set_is_in_the_list() -> None:
    assert {"reference", *(f"native-{isa}" for isa in build_info()["isa_usable"])} == set(IMPLEMENTATIONS)


# ---- Against truth -------------------------------------------------------------------------------------------------


@cache
def problem(size: tuple[int, int, int]) -> tuple[Case, list[Tensor], list[Tensor]]:
    """A case in float32, and what is true of its rows' losses and of their mean."""
    case = make(*size)
    rows = size[0]
    loss, *gradients = truth(case, torch.full((rows,), 1 / rows, dtype=torch.float64))
    return case, truth(case, weights_of(rows)), [loss.mean(), *gradients]


@pytest.mark.parametrize("size", SIZES)
def test_losses_and_gradients(backend: str, size: tuple[int, int, int]) -> None:
    case, rows, mean = problem(size)
    wide = tuple(t.double() if t.is_floating_point() else t for t in case)
    for reduction, expected in (("none", rows), ("mean", mean)):
        assert_close(with_gradients(of(backend, reduction), wide), expected, 1e-13)
        assert_close(with_gradients(of(backend, reduction), case), expected, 1e-5)


def test_it_is_the_cross_entropy_of_torch(backend: str) -> None:
    state, table, target, _ = make(70, 24, 300, torch.float64)
    for reduction in ("none", "mean"):
        expected = F.cross_entropy(state @ table.T, target, reduction=reduction)
        found = catalogue_cross_entropy(state, table, target, reduction=reduction, backend=backend)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_logits_of_small_whole_numbers_give_known_losses(backend: str) -> None:
    """Equal logits: every item has probability 1 / V, exactly where V is a power of two."""
    state, table = torch.zeros(50, 8), torch.arange(256 * 8).view(256, 8).float()
    loss, dstate, dtable = with_gradients(of(backend), (state, table, torch.full((50,), 3), torch.zeros(256)))
    torch.testing.assert_close(loss, torch.full((50,), 256.0).log(), rtol=2e-7, atol=0)
    gap = table.double().mean(0) - table[3].double()
    torch.testing.assert_close(dstate.double(), weights_of(50)[:, None] * gap, rtol=1e-6, atol=1e-6)
    assert bool((dtable == 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(backend: str, dtype: torch.dtype) -> None:
    case = make(60, 24, 130, dtype)
    found = with_gradients(of(backend), case)
    assert {t.dtype for t in found} == {dtype}
    # The native backend rounds only what it writes; the reference rounds the logits and the probabilities.
    tolerance = torch.finfo(dtype).eps * (1 if backend == "native" else 40)
    assert_close(found, truth(case, weights_of(60)), tolerance)


def test_exponentials_to_a_few_units_in_the_last_place(backend: str) -> None:
    """Two items: the gradient of the second one's logit is exp(x) / (1 + exp(x)), over the whole range."""
    x = torch.cat([-torch.logspace(-20, 1.94, 4000), -torch.linspace(0, 87, 8000)])
    state = torch.stack([torch.zeros_like(x), x], 1)
    table, target = torch.eye(2), torch.zeros(len(x), dtype=torch.int64)
    leaf = state.requires_grad_()
    catalogue_cross_entropy(leaf, table, target, reduction="none", backend=backend).sum().backward()
    assert leaf.grad is not None
    expected = leaf.detach()[:, 1].double().sigmoid()
    error = (leaf.grad[:, 1].double() - expected).abs() / expected
    units = 4 if backend == "native" else 8  # torch takes the exponential of a logarithm
    assert float(error.max()) <= units * torch.finfo(torch.float32).eps


# ---- Special values, layouts and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [30.0, 1e4, 1e18])
def test_large_logits_neither_overflow_nor_lose_the_loss(backend: str, scale: float) -> None:
    state, table, target, _ = make(60, 8, 200)
    case = (state * scale, table, target, torch.zeros(200))
    found, expected = with_gradients(of(backend), case), truth(case, weights_of(60))
    assert all(bool(t.isfinite().all()) for t in found)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-6 * scale)
    # A row whose two best logits lie within their rounding may take either: these are compared without it.
    logits = (case[0].double() @ table.double().T).topk(2).values
    clear = logits[:, 0] - logits[:, 1] > 1e-4 * scale
    assert int(clear.sum()) > 50
    assert_close([found[1][clear]], [expected[1][clear]], 1e-3)


def test_items_left_out_take_no_part(backend: str) -> None:
    state, table, target, _ = make(60, 8, 300)
    kept = torch.ones(300, dtype=torch.bool)
    kept[96:192] = False  # a whole panel
    kept[::7] = False
    target = kept.nonzero().squeeze(1)[target % int(kept.sum())]
    bias = torch.where(kept, 0.0, -torch.inf)
    loss, dstate, dtable = with_gradients(of(backend), (state, table, target, bias))
    number = kept.cumsum(0) - 1
    fewer = with_gradients(of(backend), (state, table[kept], number[target], torch.zeros(int(kept.sum()))))
    assert_close([loss, dstate, dtable[kept]], fewer, 1e-6)
    assert bool((dtable[~kept] == 0).all())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_what_is_not_finite_goes_where_torch_takes_it(backend: str, at: int, value: float) -> None:
    case = [t.clone() for t in make(60, 5, 200)]
    case[3].zero_()
    case[at].view(-1)[13] = value
    found = with_gradients(of(backend), tuple(case))
    expected = with_gradients(of("reference"), tuple(case))
    torch.testing.assert_close(found[0], expected[0], equal_nan=True, rtol=1e-5, atol=1e-5)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())


def test_a_catalogue_without_an_item_that_takes_part_has_no_loss(backend: str) -> None:
    state, table, target, _ = make(5, 3, 100)
    loss = catalogue_cross_entropy(state, table, target, torch.full((100,), -torch.inf), backend=backend)
    assert bool(loss.isnan())


def test_no_rows(backend: str) -> None:
    state, table = torch.zeros(0, 4, requires_grad=True), torch.ones(7, 4, requires_grad=True)
    target = torch.zeros(0, dtype=torch.int64)
    loss = catalogue_cross_entropy(state, table, target, reduction="none", backend=backend)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert state.grad is not None
    assert table.grad is not None
    assert state.grad.shape == (0, 4)
    assert bool((table.grad == 0).all())
    if backend == "native":
        assert bool(catalogue_cross_entropy(state, table, target).isnan())  # the mean of nothing, as in torch


def test_layouts_of_any_stride() -> None:
    case = make(60, 20, 130)
    spread = [
        torch.stack([t, t], -1)[..., 0].T.contiguous().T if t.dim() > 1 else torch.stack([t, t], 1)[:, 0] for t in case
    ]
    for reduction in ("none", "mean"):
        assert_same(
            with_gradients(of("native", reduction), tuple(spread)), with_gradients(of("native", reduction), case)
        )
    state, table, target, bias = case
    whole = torch.cat([torch.full((1, 20), torch.nan), table])  # a row of padding before the first item
    assert_same([of("native")(state, whole[1:], target, bias)], [of("native")(*case)])


def test_gradient_of_a_sum(backend: str) -> None:
    """The upstream gradient of a sum has stride 0."""
    case = make(60, 5, 100, torch.float64)
    state, table = (t.clone().requires_grad_() for t in case[:2])
    found = torch.autograd.grad(of(backend)(state, table, *case[2:]).sum(), [state, table])
    assert_close(list(found), truth(case, torch.ones(60))[1:], 1e-13)


def test_a_mean_is_scaled_by_what_comes_from_above(backend: str) -> None:
    case = make(60, 5, 100, torch.float64)
    state, table = (t.clone().requires_grad_() for t in case[:2])
    loss = of(backend, "mean")(state, table, *case[2:])
    found = torch.autograd.grad(-2.5 * loss + state.sum(), [state, table], retain_graph=True)
    expected = truth(case, torch.full((60,), -2.5 / 60, dtype=torch.float64))[1:]
    assert_close(list(found), [expected[0] + 1, expected[1]], 1e-13)
    once, again = (torch.autograd.grad(loss, [state, table], retain_graph=True) for _ in range(2))
    assert_same(list(once), list(again))


def test_a_second_backward_adds_to_the_first() -> None:
    state, table, target, bias = make(60, 5, 100)
    table.requires_grad_()
    loss = catalogue_cross_entropy(state, table, target, bias)
    loss.backward(retain_graph=True)
    assert table.grad is not None
    first = table.grad.clone()
    loss.backward()
    torch.testing.assert_close(table.grad, 2 * first)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_only_wanted_gradients_are_computed(reduction: str) -> None:
    case = make(60, 17, 200)
    everything = with_gradients(of("native", reduction), case)[1:]
    for chosen in (0, 1):
        leaves = [t.clone().requires_grad_(at == chosen) for at, t in enumerate(case[:2])]
        loss = of("native", reduction)(*leaves, *case[2:])
        loss.backward(weights_of(60).float() if loss.dim() else None)
        assert leaves[1 - chosen].grad is None
        assert leaves[chosen].grad is not None
        assert torch.equal(leaves[chosen].grad, everything[chosen])


def test_results_with_and_without_gradients_are_the_same(backend: str) -> None:
    case = make(200, 17, 300)
    for reduction in ("none", "mean"):
        with torch.no_grad():
            loss = of(backend, reduction)(*case)
        assert_close([loss], with_gradients(of(backend, reduction), case)[:1], 1e-6)


# ---- Repeatability and memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_any_number_of_threads_gives_the_same_bits(backend: str, reduction: str, dtype: torch.dtype) -> None:
    if backend == "reference":
        pytest.skip("the kernel's promise, not torch's")
    case = make(400, 33, 1200, dtype)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 8, 1):
            torch.set_num_threads(threads)
            found.append(with_gradients(of(backend, reduction), case))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize("size", [(60, 20, 100), (385, 33, 250), (1, 1, 1)])
def test_nothing_is_read_before_it_is_written(backend: str, size: tuple[int, int, int]) -> None:
    """Deterministic mode fills new tensors, workspaces included, with NaN."""
    case = make(*size)
    for reduction in ("none", "mean"):
        expected = with_gradients(of(backend, reduction), case)
        torch.use_deterministic_algorithms(True)
        try:
            found = with_gradients(of(backend, reduction), case)
        finally:
            torch.use_deterministic_algorithms(False)
        assert_same(found, expected)


def test_a_step_holds_a_block_of_rows_and_never_all_logits() -> None:
    rows, dim, items = 2048, 16, 4000
    state, table, target, _ = make(rows, dim, items)
    leaves = [state.requires_grad_(), table.requires_grad_()]

    def step(backend: str, reduction: str) -> int:
        def work() -> None:
            loss = catalogue_cross_entropy(*leaves, target, reduction=reduction, backend=backend)
            torch.autograd.grad(loss.sum(), leaves)

        return peak_bytes(work)

    logits = 4 * rows * items
    for reduction in ("mean", "none"):
        assert step("native", reduction) < 192 / rows * logits * 1.5
        assert step("reference", reduction) > 1.9 * logits  # the measure sees what the reference writes


def test_the_memory_for_kept_exponentials_is_bounded() -> None:
    """192 rows of a small catalogue, 256 MiB of a large one, 48 rows of a huge one; beside it three numbers in 96."""
    for items, rows in [(5_000, 192), (400_000, 144), (1_000_000, KEPT_ROWS), (10_000_000, KEPT_ROWS)]:
        kept = 4 * rows * items
        needed = kernels.catalogue_cross_entropy_workspace(False, 4096, 32, items, 1, True)
        assert 0.9 * kept < needed < 1.1 * kept + 2**21
        assert kernels.catalogue_cross_entropy_workspace(False, 4096, 32, items, 1, False) < 0.2 * needed + 2**21


# ---- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck(backend: str, reduction: str) -> None:
    state, table, target, bias = make(5, 3, 7, torch.float64)
    assert torch.autograd.gradcheck(
        lambda s, t: of(backend, reduction)(s, t, target, bias), (state.requires_grad_(), table.requires_grad_())
    )


def test_opcheck() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        state, table, target, bias = make(6, 3, 9, dtype)
        weight = torch.ones(6)
        for given in [(None, None, [False, False]), (bias, weight, [True, True]), (None, weight, [False, True])]:
            torch.library.opcheck(torch.ops.solid_ext.catalogue_cross_entropy.default, (state, table, target, *given))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compile_without_breaks_for_any_batch(reduction: str) -> None:
    def step(*case: Tensor) -> Tensor:
        return of("native", reduction)(*case).square()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (6, 9, 30):
        case = make(rows, 4, 50)
        assert_close(with_gradients(compiled, case), with_gradients(step, case), 1e-6)


def test_autocast_takes_state_and_bias_in_the_dtype_of_the_table() -> None:
    state, table, target, bias = make(20, 4, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = catalogue_cross_entropy(state.bfloat16(), table, target, bias.double())
    assert_same([found], [catalogue_cross_entropy(state.bfloat16().float(), table, target, bias)])


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_second_derivatives_are_refused_and_never_left_out(reduction: str) -> None:
    state, table, target, _ = make(6, 4, 50)
    state.requires_grad_()
    loss = of("native", reduction)(state, table, target).sum()
    (first,) = torch.autograd.grad(loss, state, create_graph=True)
    with pytest.raises(NotImplementedError, match="expected derivatives of first order of the native backend"):
        first.sum().backward()


# torch loads its own rules of forward mode by a function that it has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_forward_mode_gets_a_sentence() -> None:
    state, table, target, _ = make(6, 4, 50)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative of the native"):
        catalogue_cross_entropy(forward_ad.make_dual(state, state), table, target)


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (TypeError, "expected state a tensor, got list", {0: [1.0]}),
        (ValueError, r"expected state \[B, D >= 1\], got \[6\]", {0: torch.zeros(6)}),
        (ValueError, r"expected state \[B, D >= 1\], got \[6, 0\]", {0: torch.zeros(6, 0)}),
        (TypeError, "expected state of a floating dtype, got torch.int64", {0: torch.ones(6, 4, dtype=torch.int64)}),
        (ValueError, r"expected table \[V >= 1, D=4\], got \[9, 5\]", {1: torch.zeros(9, 5)}),
        (ValueError, r"expected table \[V >= 1, D=4\], got \[0, 4\]", {1: torch.zeros(0, 4)}),
        (TypeError, "expected table of torch.float32, got torch.float64", {1: torch.zeros(9, 4).double()}),
        (ValueError, "expected table on cpu, got meta", {1: torch.zeros(9, 4, device="meta")}),
        (ValueError, "expected table a dense tensor", {1: torch.zeros(9, 4).to_sparse()}),
        (ValueError, r"expected target \[B=6\], got \[5\]", {2: torch.zeros(5, dtype=torch.int64)}),
        (TypeError, "expected target of torch.int64, got torch.int32", {2: torch.zeros(6, dtype=torch.int32)}),
        (TypeError, "expected target a tensor, got NoneType", {2: None}),
        (ValueError, "expected target in 0 .. 8, got 9", {2: torch.tensor([0, 1, 2, 9, 4, 5])}),
        (ValueError, "expected target in 0 .. 8, got -100", {2: torch.tensor([0, 1, 2, 3, 4, -100])}),
        (ValueError, r"expected bias \[V=9\], got \[8\]", {3: torch.zeros(8)}),
        (TypeError, "expected bias a tensor, got float", {3: 1.0}),
        (ValueError, "expected a constant bias, got one that requires", {3: torch.zeros(9, requires_grad=True)}),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_does_not_fit_gets_a_sentence(
    backend: str, error: type[Exception], message: str, changed: dict[int, Any]
) -> None:
    case: list[Any] = list(make(6, 4, 9))
    for at, value in changed.items():
        case[at] = value
    with pytest.raises(error, match="^catalogue_cross_entropy: " + message):
        catalogue_cross_entropy(*case, backend=backend)  # type: ignore[arg-type]


def test_an_unknown_option_gets_a_sentence() -> None:
    case = make(6, 4, 9)
    with pytest.raises(ValueError, match="expected backend 'native' or 'reference', got 'cuda'"):
        catalogue_cross_entropy(*case, backend="cuda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected reduction 'mean' or 'none', got 'sum'"):
        catalogue_cross_entropy(*case, reduction="sum")  # type: ignore[arg-type]
