"""low_rank_mlp against float64 truth: every backend, instruction set, shape, branch and gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from python_tests.ops.cases import LEVELS, assert_same, instruction_set
from solid_ext._native import kernels
from solid_ext.ops import low_rank
from solid_ext.ops.low_rank import low_rank_mlp

SIZES = [  # D_0 .. D_P, r, k: single elements, ranks that fill vectors and that do not, words of the mask, three layers
    ((1, 1), 1, 1),
    ((3, 5, 2), 4, 4),
    ((64, 64, 64), 16, 33),
    ((17, 9, 33, 20), 7, 5),
    ((31, 16), 32, 7),
    ((10, 12), 33, 3),
    ((6, 40, 5), 16, 18),
]
BATCHES = [1, 2, 6, 7, 16, 31, 33, 70]  # one by one up to 6, then blocks of 32
INFINITE = float("inf")
operators = torch.ops.solid_ext


class Case(NamedTuple):
    """The tensors of one call, None where a branch or the gate is off, and its number of layers."""

    tensors: list[Tensor | None]  # x, z_item, z_semantic, gate; then seven lists of `layers` each
    layers: int

    def to(self, dtype: torch.dtype) -> Case:
        return Case([t if t is None else t.detach().to(dtype) for t in self.tensors], self.layers)

    def with_leaves(self, leaves: list[Tensor]) -> Case:
        left = iter(leaves)
        return Case([t if t is None else next(left) for t in self.tensors], self.layers)

    def leaves(self) -> list[Tensor]:
        return [t for t in self.tensors if t is not None]

    def lists(self) -> list[list[Any]]:
        rest = self.tensors[4:]
        return [rest[at : at + self.layers] for at in range(0, len(rest), self.layers)]


def make(
    sizes: tuple[int, ...],
    rank: int,
    code_dim: int,
    batch: int,
    targets: int | None = None,
    branches: str = "both",
    gated: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    seeds = itertools.count(1)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(next(seeds))
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    pairs = list(itertools.pairwise(sizes))
    other = code_dim + 2  # the conditions of the branches need not be equally wide
    tensors: list[Tensor | None] = [
        normal(batch, sizes[0]) if targets is None else normal(batch, targets, sizes[0]),
        normal(batch, code_dim) if branches != "semantic" else None,
        normal(batch, other) if branches != "item" else None,
        normal() if gated else None,
        *(normal(rank, d, scale=d**-0.5) for d, _ in pairs),
        *(normal(o, rank, scale=rank**-0.5) for _, o in pairs),
        *(normal(o) for _, o in pairs),
    ]
    for name, k in (("item", code_dim), ("semantic", other)):
        if branches in (name, "both"):
            tensors += [normal(rank + 1, k, rank, scale=(k * rank) ** -0.5) for _ in pairs]
            tensors += [normal(rank + 1, rank, scale=0.1) for _ in pairs]
        else:
            tensors += [None] * (2 * len(pairs))
    return Case(tensors, len(pairs)).to(dtype)


Function = Callable[[Case], Tensor]


def of(backend: str, delta: float = 0.1) -> Function:
    def run(case: Case) -> Tensor:
        lists = [[t for t in each if t is not None] for each in case.lists()]
        x, z_item, z_semantic, gate = case.tensors[:4]
        return low_rank_mlp(x, z_item, z_semantic, *lists, delta=delta, gate=gate, backend=backend)

    return run


def truth(delta: float) -> Function:
    """One row of a core after the other, as the definition says."""

    def run(case: Case) -> Tensor:
        x, z_item, z_semantic, gate = case.tensors[:4]
        enters, leaves, biases, item_maps, item_offsets, semantic_maps, semantic_offsets = case.lists()
        h = x if x.dim() == 3 else x.unsqueeze(1)
        for layer in range(case.layers):
            rows = []
            for i in range(len(enters[layer]) + 1):
                row = torch.zeros((), dtype=x.dtype)
                if z_item is not None:
                    row = row + (z_item @ item_maps[layer][i] + item_offsets[layer][i]).clamp(-delta, delta)
                if z_semantic is not None:
                    row = row + z_semantic @ semantic_maps[layer][i] + semantic_offsets[layer][i]
                rows.append(row)
            h = (h.tanh() if layer else h) @ enters[layer].T
            h = sum((h[..., i : i + 1] * row.unsqueeze(1) for i, row in enumerate(rows[:-1])), rows[-1].unsqueeze(1))
            h = h @ leaves[layer].T + biases[layer]
        y = h if x.dim() == 3 else h.squeeze(1)
        return y if gate is None else x + gate * y

    return run


def with_gradients(function: Function, case: Case) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in case.leaves()]
    y = function(case.with_leaves(leaves))
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(77), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each tensor within `tolerance` of its largest expected element."""
    assert len(found) == len(expected)
    for at, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        limit = tolerance * max(float(other.abs().max()) if other.numel() else 0.0, 1e-3)
        assert float((one.double() - other.double()).abs().max() if one.numel() else 0.0) <= limit, at


@pytest.mark.parametrize(("sizes", "rank", "code_dim"), SIZES)
@pytest.mark.parametrize("targets", [None, 3])
def test_forward_and_gradients(
    backend: str, sizes: tuple[int, ...], rank: int, code_dim: int, targets: int | None
) -> None:
    kinds = itertools.cycle(
        [("both", 0.1, True), ("item", 0.1, False), ("semantic", 0.1, False), ("both", INFINITE, False)]
    )
    for batch, (branches, delta, gated) in zip(BATCHES, kinds, strict=False):
        gated = gated and sizes[0] == sizes[-1]
        case = make(sizes, rank, code_dim, batch, targets, branches, gated, torch.float64)
        expected = with_gradients(truth(delta), case)
        assert_close(with_gradients(of(backend, delta), case), expected, 1e-11)
        with torch.no_grad():
            assert_close([of(backend, delta)(case)], expected[:1], 1e-11)
        # In float32 a weight may lie on the other side of its bound: the truth is taken where none is near it.
        single = with_gradients(of(backend, INFINITE), case.to(torch.float32))
        assert_close(single, with_gradients(truth(INFINITE), case.to(torch.float32).to(torch.float64)), 1e-4)


def test_a_gate_adds_the_layers_to_the_state(backend: str) -> None:
    for batch, targets in ((3, None), (40, None), (9, 2)):
        case = make((8, 5, 8), 4, 3, batch, targets, gated=True, dtype=torch.float64)
        assert_close(with_gradients(of(backend), case), with_gradients(truth(0.1), case), 1e-11)
        closed = Case([*case.tensors[:3], torch.zeros((), dtype=torch.float64), *case.tensors[4:]], 2)
        assert torch.equal(of(backend)(closed), closed.tensors[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(backend: str, dtype: torch.dtype) -> None:
    for batch in (3, 35):
        case = make((9, 6, 9), 16, 5, batch, gated=True, dtype=dtype)
        found = with_gradients(of(backend, INFINITE), case)
        assert {t.dtype for t in found} == {dtype}
        expected = with_gradients(truth(INFINITE), case.to(torch.float64))
        assert_close(found, expected, 30 * torch.finfo(dtype).eps if backend == "reference" else 3e-2)


@pytest.mark.parametrize("rank", [16, 5])
@pytest.mark.parametrize("batch", [4, 37])
def test_integers_are_exact_and_the_clip_is_closed(backend: str, batch: int, rank: int) -> None:
    """Every sum is a whole number of sixteenths that float32 holds, and some weights equal the bound."""
    generator = torch.Generator().manual_seed(3)
    case = make((6, 4), rank, 3, batch, gated=False)

    def whole(like: Tensor | None) -> Tensor | None:
        return None if like is None else torch.randint(-2, 3, like.shape, generator=generator).float()

    case = Case([whole(t) for t in case.tensors], case.layers)
    weight = torch.einsum("bk,iko->bio", case.tensors[1], case.lists()[3][0]) + case.lists()[4][0]
    assert bool((weight.abs() == 2).any())
    assert bool((weight.abs() > 2).any())
    leaves = [t.requires_grad_() for t in case.leaves()]
    y = of(backend, 2.0)(case.with_leaves(leaves))
    upstream = torch.randint(-2, 3, y.shape, generator=generator).float()
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    exact = truth(2.0)(case.with_leaves(doubles))
    assert_same([y.double()], [exact])
    found = torch.autograd.grad(y, leaves, upstream)
    expected = torch.autograd.grad(exact, doubles, upstream.double())
    assert_same([t.double() for t in found], list(expected))


@pytest.mark.parametrize("batch", [3, 34])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_goes_the_same_way_as_in_plain_torch(backend: str, value: float, batch: int) -> None:
    case = make((5, 6, 5), 16, 4, batch, gated=True)
    for at in range(len(case.tensors)):
        tensors = [t if t is None else t.clone() for t in case.tensors]
        tensors[at].view(-1)[17 % tensors[at].numel()] = value
        planted = Case(tensors, case.layers)
        y, *gradients = with_gradients(of(backend), planted)
        wanted, *others = with_gradients(of("reference"), planted)
        torch.testing.assert_close(y, wanted, equal_nan=True, rtol=1e-4, atol=1e-5)
        for one, other in zip(gradients, others, strict=True):
            assert torch.equal(one.isfinite(), other.isfinite()), at


@pytest.mark.parametrize("batch", [3, 34])
def test_a_weight_that_is_clipped_passes_nothing(backend: str, batch: int) -> None:
    case = make((5, 6), 16, 4, batch, branches="item")
    case.lists()[4][0].fill_(7.0)
    for tensor in case.lists()[3]:
        tensor.mul_(1e-3)
    tensors = [t if t is None else t.clone() for t in case.tensors]
    tensors[4 + 4].fill_(7.0)
    _, _, dz, *rest = with_gradients(of(backend, 0.5), Case(tensors, 1))
    assert not bool(dz.any())
    assert not any(bool(t.any()) for t in rest[3:])


@pytest.mark.parametrize("batch", [3, 34])
@pytest.mark.parametrize("targets", [None, 3])
def test_layouts_of_any_stride(batch: int, targets: int | None) -> None:
    case = make((6, 7, 6), 16, 4, batch, targets, gated=True)
    expected = with_gradients(of("native"), case)

    def strided(t: Tensor | None) -> Tensor | None:
        if t is None or t.dim() == 0:
            return t
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), torch.nan)
        wide[..., 1::2] = t
        return wide[..., 1::2]

    assert_same(with_gradients(of("native"), Case([strided(t) for t in case.tensors], case.layers)), expected)
    leaves = [t.detach().requires_grad_() for t in case.leaves()]
    summed = torch.autograd.grad(of("native")(case.with_leaves(leaves)).sum(), leaves)  # dy has strides 0
    ones = torch.autograd.grad(of("native")(case.with_leaves(leaves)), leaves, torch.ones_like(case.tensors[0]))
    assert_same(list(summed), list(ones))


@pytest.mark.parametrize(("batch", "targets"), [(0, None), (0, 3), (4, 0)])
def test_empty_batch_and_no_targets(backend: str, batch: int, targets: int | None) -> None:
    y, *gradients = with_gradients(of(backend), make((4, 5, 4), 3, 2, batch, targets, gated=True))
    assert y.numel() == 0
    assert not any(bool(t.any()) for t in gradients)


@pytest.mark.parametrize("batch", [3, 34])
def test_only_wanted_gradients_are_computed(batch: int) -> None:
    case = make((6, 7, 6), 16, 4, batch, gated=True)
    everything = with_gradients(of("native"), case)[1:]
    for chosen in range(len(everything)):
        leaves = [t.detach().requires_grad_(at == chosen) for at, t in enumerate(case.leaves())]
        y = of("native")(case.with_leaves(leaves))
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(77), dtype=torch.float64).float()
        (found,) = torch.autograd.grad(y, [leaves[chosen]], upstream)
        assert torch.equal(found, everything[chosen]), chosen


@pytest.mark.parametrize("targets", [None, 3])
def test_any_number_of_threads_gives_the_same_bits(targets: int | None) -> None:
    before = torch.get_num_threads()
    for batch in (5, 1100):
        case = make((12, 9, 12), 16, 7, batch, targets, gated=True)
        found = []
        try:
            for threads in (1, 2, 3, 8, 1):
                torch.set_num_threads(threads)
                found.append(with_gradients(of("native"), case))
        finally:
            torch.set_num_threads(before)
        for other in found[1:]:
            assert_same(other, found[0])


@pytest.mark.parametrize(("rank", "batch", "targets"), [(16, 3, None), (16, 40, None), (7, 21, 3)])
def test_nothing_is_read_before_it_is_written(backend: str, rank: int, batch: int, targets: int | None) -> None:
    """Deterministic mode fills new tensors, workspaces included, with NaN."""
    case = make((9, 8, 9), rank, 6, batch, targets, gated=True)
    expected = with_gradients(of(backend), case)
    torch.use_deterministic_algorithms(True)
    try:
        found = with_gradients(of(backend), case)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(found, expected)


@pytest.mark.parametrize("batch", [1, 6, 7, 33])
@pytest.mark.parametrize("rank", [1, 8, 16, 33, 64])
@pytest.mark.parametrize("targets", [None, 3])
def test_what_is_kept_fits_the_memory_that_python_gives(batch: int, rank: int, targets: int | None) -> None:
    for dtype, branches, delta in itertools.product(
        (torch.float32, torch.float64), ("both", "semantic"), (0.1, INFINITE)
    ):
        case = make((5, 4, 3), rank, 2, batch, targets, branches, dtype=dtype)
        tensors = [t for at, t in enumerate(case.tensors) if at < 4 or t is not None]
        wide = dtype == torch.float64
        plan = low_rank._plan(tensors, case.layers, delta, wide)
        for level in LEVELS:
            with instruction_set(level):
                assert kernels.low_rank_memory(plan.shape)[0] == plan.kept


@pytest.mark.parametrize("targets", [None, 3])
@pytest.mark.parametrize("batch", [3, 8])
def test_gradcheck(backend: str, targets: int | None, batch: int) -> None:
    case = make((4, 3, 4), 8 if batch == 3 else 3, 2, batch, targets, gated=True, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in case.leaves()]
    assert torch.autograd.gradcheck(lambda *t: of(backend)(case.with_leaves(list(t))), leaves, fast_mode=True)


@pytest.mark.parametrize("branches", ["both", "item", "semantic"])
@pytest.mark.parametrize(("batch", "targets"), [(6, None), (9, 3)])
def test_opcheck(batch: int, targets: int | None, branches: str) -> None:
    case = make((4, 5, 4), 16, 3, batch, targets, branches, gated=branches == "both")
    first, parameters = case.tensors[:4], [t for t in case.tensors[4:] if t is not None]
    for keep in (True, False):
        torch.library.opcheck(operators.low_rank_mlp_forward.default, (*first, parameters, 2, 0.1, keep))
    y, kept = operators.low_rank_mlp_forward.default(*first, parameters, 2, 0.1, True)
    wanted = [t is not None for t in first] + [True] * len(parameters)
    torch.library.opcheck(
        operators.low_rank_mlp_backward.default, (torch.ones_like(y), *first, parameters, kept, 2, 0.1, wanted)
    )


def test_compile_without_breaks_for_any_batch() -> None:
    case = make((4, 5, 4), 3, 3, 9, gated=True)

    def step(*leaves: Tensor) -> Tensor:
        return of("native")(case.with_leaves(list(leaves))).square()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (9, 12, 40):
        leaves = [t.requires_grad_() for t in make((4, 5, 4), 3, 3, batch, gated=True).leaves()]
        found, expected = compiled(*leaves), step(*leaves)
        torch.testing.assert_close(found, expected)
        upstream = torch.ones_like(found)
        one = torch.autograd.grad(found, leaves, upstream)
        assert_close(list(one), list(torch.autograd.grad(expected, leaves, upstream)), 1e-6)


def test_second_derivative_is_refused() -> None:
    case = make((4, 3), 3, 2, 6)
    leaves = [t.requires_grad_() for t in case.leaves()]
    (gradient,) = torch.autograd.grad(
        of("native")(case.with_leaves(leaves)).square().sum(), leaves[:1], create_graph=True
    )
    with pytest.raises(NotImplementedError, match="low_rank_mlp: expected derivatives of first order"):
        gradient.sum().backward()


def test_autocast_computes_in_the_dtype_of_the_maps(backend: str) -> None:
    case = make((4, 5, 3), 3, 2, 6)
    half = Case([t if t is None else t.bfloat16() for t in case.tensors[:4]] + case.tensors[4:], 2)
    rounded = Case([t if t is None else t.float() for t in half.tensors], 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = of(backend)(half)
    assert y.dtype == torch.float32
    assert torch.equal(y, of(backend)(rounded))


def test_a_call_is_checked_again_when_a_tensor_has_changed() -> None:
    """Calls whose checks have passed are remembered by shapes and dtypes, which the same tensor may change."""
    case = make((4, 5), 3, 2, 6)
    of("native")(case)
    assert of("native")(case).shape == (6, 5)
    bias = case.tensors[6]
    kept = bias.data
    bias.data = torch.zeros(4)
    with pytest.raises(ValueError, match=r"low_rank_mlp: expected bias \[O=5\], got \[4\]"):
        of("native")(case)
    bias.data = kept.double()
    with pytest.raises(TypeError, match=r"low_rank_mlp: expected bias of torch.float32, got torch.float64"):
        of("native")(case)
    bias.data = kept
    assert of("native")(case).shape == (6, 5)
    with pytest.raises(ValueError, match="low_rank_mlp: expected one bias for each of 1 layers, got 2"):
        low_rank_mlp(*case.tensors[:3], *[[t] for t in case.tensors[4:6]], [bias, bias], *case.lists()[3:], delta=0.1)


@pytest.mark.parametrize(
    ("at", "value", "error", "message"),
    [
        (0, torch.zeros(6), ValueError, r"expected x \[B, D\] or \[B, T, D\], got \[6\]"),
        (0, torch.zeros(6, 4, dtype=torch.int64), TypeError, "expected x of a floating dtype"),
        (0, [[0.0]], TypeError, "expected x a tensor, got list"),
        (0, torch.zeros(6, 4).to_sparse(), ValueError, "expected x a dense tensor, got torch.sparse_coo"),
        (1, torch.zeros(5, 3), ValueError, r"expected z_item \[B=6, k >= 1\], got \[5, 3\]"),
        (1, [0.0], TypeError, "expected z_item a tensor, got list"),
        (2, torch.zeros(6, 3, 1), ValueError, r"expected z_semantic \[B=6"),
        (2, torch.zeros(6, 4, device="meta"), ValueError, "expected z_semantic on cpu, got meta"),
        (3, torch.zeros(1), ValueError, r"expected gate \[\] \(one number\), got \[1\]"),
        (3, torch.zeros(()), ValueError, "expected D_P = D_0 = 4 with a gate, got 5"),
        (4, torch.zeros(3, 3), ValueError, r"expected enter \[r=3, D=4\], got \[3, 3\]"),
        (4, torch.zeros(0, 4), ValueError, r"expected enter \[r >= 1, D=4\], got \[0, 4\]"),
        (5, torch.zeros(5, 4), ValueError, r"expected leave \[O=5, r=3\], got \[5, 4\]"),
        (6, torch.zeros(4), ValueError, r"expected bias \[O=5\], got \[4\]"),
        (7, torch.zeros(3, 2, 3), ValueError, r"expected item map \[r \+ 1=4, k=2, r=3\], got \[3, 2, 3\]"),
        (8, torch.zeros(4, 3).double(), TypeError, "expected item offset of torch.float32, got torch.float64"),
        (9, torch.zeros(4, 5, 3), ValueError, r"expected semantic map \[r \+ 1=4, k=4, r=3\], got \[4, 5, 3\]"),
        (10, torch.zeros(4, 2), ValueError, r"expected semantic offset \[r \+ 1=4, r=3\], got \[4, 2\]"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected(at: int, value: Any, error: type[Exception], message: str) -> None:
    case = make((4, 5), 3, 2, 6)
    tensors = list(case.tensors)
    tensors[at] = value
    for backend in ("native", "reference"):
        with pytest.raises(error, match="low_rank_mlp: " + message):
            low_rank_mlp(*tensors[:3], *[[t] for t in tensors[4:]], delta=0.1, gate=tensors[3], backend=backend)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"delta": -1.0}, ValueError, "expected delta >= 0, got -1.0"),
        ({"delta": float("nan")}, ValueError, "expected delta >= 0, got nan"),
        ({"backend": "cuda"}, ValueError, "expected backend 'native' or 'reference', got 'cuda'"),
    ],
)
def test_options_out_of_range_are_refused(change: dict, error: type[Exception], message: str) -> None:
    case = make((4, 5), 3, 2, 6)
    with pytest.raises(error, match="low_rank_mlp: " + message):
        low_rank_mlp(*case.tensors[:3], *case.lists(), **({"delta": 0.1} | change))


def test_what_is_no_list_of_tensors_is_refused() -> None:
    case = make((4, 5), 3, 2, 6)
    with pytest.raises(TypeError, match="low_rank_mlp: expected enters a list of tensors, got Tensor"):
        low_rank_mlp(*case.tensors[:3], case.tensors[4], *case.lists()[1:], delta=0.1)
    with pytest.raises(ValueError, match="low_rank_mlp: expected at least one layer, got none"):
        low_rank_mlp(*case.tensors[:3], *[[]] * 7, delta=0.1)
    with pytest.raises(ValueError, match="low_rank_mlp: expected z_item or z_semantic, got None for both"):
        low_rank_mlp(case.tensors[0], None, None, *case.lists(), delta=0.1)
