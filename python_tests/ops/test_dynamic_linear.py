"""dynamic_linear and dynamic_mlp against float64 truth: every backend, instruction set, shape, branch and gradient."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.ops.cases import IMPLEMENTATIONS, assert_close, assert_same, normal, peak_bytes, weights_of
from solid_ext import build_info
from solid_ext._native import kernels
from solid_ext.ops.dynamic_linear import _in_runs, dynamic_linear, dynamic_mlp

SIZES = [  # D_0 .. D_P, k: single elements, tile edges, full vectors, three layers
    ((1, 1, 1), 1),
    ((3, 5, 2), 4),
    ((31, 33), 32),
    ((17, 33, 16), 7),
    ((32, 32, 32), 32),
    ((8, 40, 9, 3), 33),
    ((16, 64), 5),
]
BATCHES = [1, 2, 7, 16, 17, 33, 70]
INFINITE = float("inf")
operators = torch.ops.solid_ext


@dataclass
class Case:
    """The arguments of one call."""

    x: Tensor
    z_item: Tensor | None
    z_semantic: Tensor | None
    item_maps: list[Tensor]
    item_offsets: list[Tensor]
    semantic_maps: list[Tensor]
    semantic_offsets: list[Tensor]

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        for field in fields(self):
            value = getattr(self, field.name)
            found += value if isinstance(value, list) else [] if value is None else [value]
        return found

    def rebuilt(self, tensors: list[Tensor]) -> Case:
        """This case with other tensors, in the order of `tensors()`."""
        left = iter(tensors)
        values = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                values[field.name] = [next(left) for _ in value]
            else:
                values[field.name] = None if value is None else next(left)
        return replace(self, **values)

    def to(self, dtype: torch.dtype) -> Case:
        return self.rebuilt([t.detach().to(dtype) for t in self.tensors()])

    def arguments(self) -> tuple:
        return tuple(getattr(self, field.name) for field in fields(self))


def make(
    sizes: tuple[int, ...],
    codes: int,
    batch: int,
    targets: int | None = None,
    branches: str = "both",
    dtype: torch.dtype = torch.float32,
    codes_semantic: int | None = None,
) -> Case:
    """A case at ordinary scale; the codes of both branches may differ."""
    seeds = itertools.count()
    item, semantic = branches != "semantic", branches != "item"
    codes_semantic = codes_semantic or codes
    layers = list(itertools.pairwise(sizes))

    def maps(present: bool, k: int) -> list[Tensor]:
        return [normal(d + 1, k, o, seed=next(seeds), scale=(k * max(d, 1)) ** -0.5) for d, o in layers if present]

    def offsets(present: bool) -> list[Tensor]:
        return [normal(d + 1, o, seed=next(seeds), scale=0.1) for d, o in layers if present]

    case = Case(
        normal(batch, sizes[0], seed=91) if targets is None else normal(batch, targets, sizes[0], seed=91),
        normal(batch, codes, seed=92) if item else None,
        normal(batch, codes_semantic, seed=93) if semantic else None,
        maps(item, codes),
        offsets(item),
        maps(semantic, codes_semantic),
        offsets(semantic),
    )
    return case.to(dtype)


def truth(case: Case, delta: float, tanh_last: bool = False) -> Tensor:
    """One sequence and one input row after the other, as the definition says."""
    # Rows are taken apart once: the gradient of one that is taken by its number is as large as the whole map.
    maps = [[a.unbind() for a in branch] for branch in (case.item_maps, case.semantic_maps)]
    offsets = [[a.unbind() for a in branch] for branch in (case.item_offsets, case.semantic_offsets)]

    def generated(branch: int, layer: int, z: Tensor) -> Tensor:
        rows = zip(maps[branch][layer], offsets[branch][layer], strict=True)
        return torch.stack([z @ a + offset for a, offset in rows])

    outputs = []
    for b in range(case.x.shape[0]):
        h = case.x[b] if case.x.dim() == 3 else case.x[b : b + 1]
        layers = max(len(case.item_maps), len(case.semantic_maps))
        for layer in range(layers):
            w = torch.zeros(h.shape[1] + 1, 1, dtype=h.dtype)
            if case.z_item is not None:
                w = w + generated(0, layer, case.z_item[b]).clamp(-delta, delta)
            if case.z_semantic is not None:
                w = w + generated(1, layer, case.z_semantic[b])
            h = h @ w[:-1] + w[-1]
            if layer < layers - 1 or tanh_last:
                h = h.tanh()
        outputs.append(h if case.x.dim() == 3 else h[0])
    return torch.stack(outputs)


def with_gradients(function, case: Case) -> list[Tensor]:
    """The result and the gradient of every tensor."""
    leaves = case.rebuilt([t.detach().clone().requires_grad_() for t in case.tensors()])
    y = function(leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves.tensors(), weights_of(y))]


def native(delta: float, backend: str = "native"):
    return lambda case: dynamic_mlp(*case.arguments(), delta=delta, backend=backend)


def test_every_instruction_set_is_in_the_list() -> None:
    assert {"reference", *(f"native-{isa}" for isa in build_info()["isa_usable"])} == set(IMPLEMENTATIONS)


def test_every_instruction_set_asks_for_the_same_workspace() -> None:
    """Sizes are remembered across a change of the instruction set."""
    before = build_info()["isa"]
    found = {}
    try:
        for isa in build_info()["isa_usable"]:
            kernels.set_isa(isa)
            found[isa] = [
                kernels.dynamic_workspace(dtype, batch, targets, [5, 33, 7], 9, 4, threads, backward)
                for dtype, batch, targets, threads, backward in itertools.product(
                    (0, 1, 2), (0, 1, 70, 5000), (0, 1, 3, 100), (1, 3), (False, True)
                )
            ]
    finally:
        kernels.set_isa(before)
    assert all(sizes == found[before] for sizes in found.values())


@cache
def problem(
    sizes: tuple[int, ...], codes: int, batch: int, targets: int | None, branches: str, delta: float
) -> tuple[Case, list[Tensor]]:
    """A case in float32 and its true result and gradients; the semantic code is longer by one."""
    case = make(sizes, codes, batch, targets, branches, codes_semantic=codes + 1)
    return case, with_gradients(lambda c: truth(c, delta), case.to(torch.float64))


@pytest.mark.parametrize(("sizes", "codes"), SIZES)
@pytest.mark.parametrize("targets", [None, 1, 3])
def test_forward_and_gradients(backend: str, sizes: tuple[int, ...], codes: int, targets: int | None) -> None:
    settings = [("both", 0.1), ("item", 0.2), ("semantic", 0.1), ("both", INFINITE), ("item", INFINITE)]
    first = SIZES.index((sizes, codes))
    for at, batch in enumerate(BATCHES):
        branches, delta = settings[(first + at) % len(settings)]
        case, expected = problem(sizes, codes, batch, targets, branches, delta)
        assert_close(with_gradients(native(delta, backend), case), expected, 2e-5)
        if batch <= 17:
            found = with_gradients(native(delta, backend), case.to(torch.float64))
            assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("targets", [None, 3])
def test_half_precision_in_and_out(backend: str, dtype: torch.dtype, targets: int | None) -> None:
    case = make((9, 33, 5), 7, 35, targets, dtype=dtype)
    expected = with_gradients(lambda c: truth(c, 0.1), case.to(torch.float64))
    found = with_gradients(native(0.1, backend), case)
    assert {t.dtype for t in found} == {dtype}
    # The native backend rounds only what it reads and writes; the reference rounds every step.
    limit = torch.finfo(dtype).eps * (1.5 if backend == "native" else 20)
    assert_close(found[:1], expected[:1], limit)
    if backend == "native":
        assert_close(found, expected, 3 * limit)


@pytest.mark.parametrize("targets", [None, 70])
def test_many_targets_and_activation(backend: str, targets: int | None) -> None:
    case = make((5, 16), 3, 9, targets)
    expected = with_gradients(lambda c: truth(c, 0.1, tanh_last=True), case.to(torch.float64))

    def one(c: Case) -> Tensor:
        layer = (c.item_maps[0], c.item_offsets[0], c.semantic_maps[0], c.semantic_offsets[0])
        return dynamic_linear(c.x, c.z_item, c.z_semantic, *layer, delta=0.1, activation="tanh", backend=backend)

    assert_close(with_gradients(one, case), expected, 1e-5)


def test_layers_in_one_call_are_layers_one_by_one(backend: str) -> None:
    case = make((6, 7, 5), 4, 20, dtype=torch.float64)
    h = case.x
    for layer, activation in enumerate(["tanh", "none"]):
        h = dynamic_linear(
            h,
            case.z_item,
            case.z_semantic,
            case.item_maps[layer],
            case.item_offsets[layer],
            case.semantic_maps[layer],
            case.semantic_offsets[layer],
            delta=0.1,
            activation=activation,
            backend=backend,
        )
    assert_close([dynamic_mlp(*case.arguments(), delta=0.1, backend=backend)], [h], 1e-14)


def test_one_target_is_no_target(backend: str) -> None:
    flat = make((6, 18, 5), 4, 40)
    deep = replace(flat, x=flat.x.unsqueeze(1))
    y = native(0.1, backend)(flat)
    assert torch.equal(native(0.1, backend)(deep), y.unsqueeze(1))


@pytest.mark.parametrize(("batch", "targets"), [(1, 60), (3, 35), (2, 37)])
def test_few_sequences_with_many_targets(batch: int, targets: int) -> None:
    """They are computed as more sequences with fewer targets, where the number of targets can be divided."""
    case = make((6, 7, 5), 4, batch, targets)
    expected = with_gradients(lambda c: truth(c, 0.1), case.to(torch.float64))
    assert_close(with_gradients(native(0.1), case), expected, 2e-5)
    assert_close([native(0.1)(case)], expected[:1], 2e-5)


def test_integers_are_exact_and_the_clip_is_closed(backend: str) -> None:
    """Small integers have exact sums in float32, with many weights exactly on the bound."""
    generator = torch.Generator().manual_seed(5)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).float()

    case = Case(
        integers(37, 6),
        integers(37, 3),
        integers(37, 3),
        [integers(7, 3, 17)],
        [integers(7, 17)],
        [integers(7, 3, 17)],
        [integers(7, 17)],
    )

    def exact(c: Case) -> Tensor:
        return native(2.0, backend)(c)

    def by_hand(c: Case) -> Tensor:
        generated = torch.einsum("bk,iko->bio", c.z_item, c.item_maps[0]) + c.item_offsets[0]
        inside = (generated.abs() <= 2).double()
        clipped = generated * inside + 2 * generated.detach().sign() * (1 - inside)
        w = clipped + torch.einsum("bk,iko->bio", c.z_semantic, c.semantic_maps[0]) + c.semantic_offsets[0]
        return torch.einsum("bi,bio->bo", c.x, w[:, :-1]) + w[:, -1]

    def gradients(function, c: Case) -> list[Tensor]:
        leaves = c.rebuilt([t.clone().requires_grad_() for t in c.tensors()])
        y = function(leaves)
        upstream = (torch.arange(y.numel()) % 3 - 1).to(y.dtype).reshape(y.shape)
        return [y.detach(), *torch.autograd.grad(y, leaves.tensors(), upstream)]

    on_bound = torch.einsum("bk,iko->bio", case.z_item, case.item_maps[0]) + case.item_offsets[0]
    assert (on_bound.abs() == 2).any()
    assert (on_bound.abs() > 2).any()
    found, expected = gradients(exact, case), gradients(by_hand, case.to(torch.float64))
    assert_same([t.double() for t in found], expected)


def test_tanh_to_four_units_in_the_last_place(backend: str) -> None:
    """Identity weights: y = tanh(x) over the whole range, the special values too."""
    x = torch.cat([torch.logspace(-30, 2, 5000), torch.linspace(0.6, 0.65, 500), torch.tensor([0.0, 88.0, INFINITE])])
    x = torch.cat([x, -x, torch.tensor([float("nan")])]).reshape(-1, 1)
    offset = torch.tensor([[1.0], [0.0]])
    y = dynamic_linear(
        x, None, torch.zeros(len(x), 1), None, None, torch.zeros(2, 1, 1), offset, delta=1, activation="tanh",
        backend=backend,
    )  # fmt: skip
    expected = x.double().tanh()
    assert bool(y[-1].isnan())
    error = (y.double() - expected).abs()[:-1]
    assert bool((error <= 4 * torch.finfo(torch.float32).eps / 2 * expected.abs()[:-1]).all())


def test_nan_stays_where_torch_leaves_it(backend: str) -> None:
    case = make((5, 6, 4), 3, 12)
    nan = float("nan")
    for name, at in [("x", (3, 2)), ("z_item", (4, 1)), ("z_semantic", (5, 0))]:
        broken = replace(case, **{name: getattr(case, name).clone()})
        getattr(broken, name)[at] = nan
        y = native(0.1, backend)(broken)
        assert bool(y[at[0]].isnan().all())
        assert int(y.isnan().any(1).sum()) == 1
    item_map = case.item_maps[1].clone()
    item_map[2, 1, 3] = nan
    y = native(0.1, backend)(replace(case, item_maps=[case.item_maps[0], item_map]))
    assert bool(y[:, 3].isnan().all())
    assert not bool(y[:, :3].isnan().any())


def test_nan_weight_passes_no_gradient() -> None:
    case = make((3, 4), 2, 5)
    case.item_offsets[0][1, 2] = float("nan")
    found, expected = with_gradients(native(0.1), case), with_gradients(native(0.1, "reference"), case)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", [None, 3])
def test_layouts_of_any_stride(targets: int | None) -> None:
    case = make((6, 18, 5), 4, 21, targets)
    expected = with_gradients(native(0.1), case)

    def spread(t: Tensor) -> Tensor:
        """The same values, transposed in memory and with gaps."""
        wide = torch.full((*t.shape[::-1], 2), float("nan"))
        view = wide[..., 0].permute(*reversed(range(t.dim())))
        view.copy_(t)
        return view

    leaves = case.rebuilt([spread(t).requires_grad_() for t in case.tensors()])
    assert not any(t.is_contiguous() for t in leaves.tensors())
    y = native(0.1)(leaves)
    found = [y.detach(), *torch.autograd.grad(y, leaves.tensors(), spread(weights_of(y)))]
    assert_same(found, expected)


def test_gradient_of_a_sum(backend: str) -> None:
    """The upstream gradient of a sum has stride 0."""
    case = make((4, 5), 3, 9, dtype=torch.float64)
    leaves = case.rebuilt([t.requires_grad_() for t in case.tensors()])
    found = torch.autograd.grad(native(0.1, backend)(leaves).sum(), leaves.tensors())
    assert_close(list(found), list(torch.autograd.grad(truth(leaves, 0.1).sum(), leaves.tensors())), 1e-12)


@pytest.mark.parametrize("targets", [None, 0, 1, 4])
def test_empty_batch_and_no_targets(backend: str, targets: int | None) -> None:
    for batch in (0, 3) if targets == 0 else (0,):
        y, *gradients = with_gradients(native(0.1, backend), make((4, 5, 3), 2, batch, targets))
        assert y.shape == ((batch, 3) if targets is None else (batch, targets, 3))
        for gradient in gradients:
            assert bool((gradient == 0).all())


def test_layer_without_inputs_is_its_bias(backend: str) -> None:
    case = make((0, 4), 3, 5, branches="semantic")
    expected = case.z_semantic @ case.semantic_maps[0][0] + case.semantic_offsets[0][0]
    torch.testing.assert_close(native(0.1, backend)(case), expected)


def test_only_wanted_gradients_are_computed() -> None:
    case = make((4, 17, 5), 3, 40)
    everything = with_gradients(native(0.1), case)[1:]
    tensors = case.tensors()
    for chosen in [{0}, {1}, {2}, {3}, {5}, {8, 9}, {0, 6, 7}]:
        leaves = [t.clone().requires_grad_(at in chosen) for at, t in enumerate(tensors)]
        y = native(0.1)(case.rebuilt(leaves))
        y.backward(weights_of(y))
        for at, leaf in enumerate(leaves):
            assert (leaf.grad is None) == (at not in chosen)
            if leaf.grad is not None:
                torch.testing.assert_close(leaf.grad, everything[at])


@pytest.mark.parametrize("targets", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(targets: int | None, dtype: torch.dtype) -> None:
    case = make((17, 33, 9), 12, 300, targets, dtype=dtype)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 8, 1):
            torch.set_num_threads(threads)
            found.append(with_gradients(native(0.1), case))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize(("sizes", "batch", "targets"), [((32, 32, 32), 70, None), ((5, 9, 3), 21, 3)])
def test_nothing_is_read_before_it_is_written(
    backend: str, sizes: tuple[int, ...], batch: int, targets: int | None
) -> None:
    """Deterministic mode fills new tensors, workspaces included, with NaN."""
    case = make(sizes, 6, batch, targets)
    expected = with_gradients(native(0.1, backend), case)
    torch.use_deterministic_algorithms(True)
    try:
        found = with_gradients(native(0.1, backend), case)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(found, expected)


@pytest.mark.parametrize(("batch", "size"), [(1024, 32), (4096, 32), (1024, 64)])
def test_extra_memory_is_below_a_twentieth_of_the_weights(batch: int, size: int) -> None:
    """Everything but y and the gradients (hidden activations, chunk, tiles) against the weights of the layers."""
    case = make((size, size, size), size, batch)
    leaves = case.rebuilt([t.requires_grad_() for t in case.tensors()])
    upstream = torch.ones(batch, size)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        native(0.01)(case)
        forward = peak_bytes(lambda: native(0.01)(case.to(torch.float32)))
        step = peak_bytes(lambda: torch.autograd.grad(native(0.01)(leaves), leaves.tensors(), upstream))
        written = peak_bytes(lambda: torch.autograd.grad(native(0.01, "reference")(leaves), leaves.tensors(), upstream))
    finally:
        torch.set_num_threads(before)
    weights = 2 * 4 * batch * size * size
    results = 4 * batch * size + sum(4 * t.numel() for t in leaves.tensors())
    assert step - results < 0.05 * weights
    assert forward - 4 * batch * size < 0.05 * weights
    assert written > weights  # the measure sees what the reference writes


@pytest.mark.parametrize("targets", [None, 3])
def test_gradcheck(backend: str, targets: int | None) -> None:
    case = make((4, 5, 3), 3, 6, targets, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in case.tensors()]
    assert torch.autograd.gradcheck(lambda *t: native(0.1, backend)(case.rebuilt(list(t))), leaves)


@pytest.mark.parametrize("targets", [None, 3])
@pytest.mark.parametrize("branches", ["both", "item", "semantic"])
def test_opcheck(targets: int | None, branches: str) -> None:
    case = make((4, 5, 3), 3, 6, targets, branches)
    parameters = case.tensors()[3 if branches == "both" else 2 :]
    inputs = (case.x, case.z_item, case.z_semantic, parameters)
    for keep in (True, False):
        torch.library.opcheck(operators.dynamic_mlp_forward.default, (*inputs, 0.1, False, keep))
    y, hidden = operators.dynamic_mlp_forward.default(*inputs, 0.1, True, True)
    wanted = [True, case.z_item is not None, case.z_semantic is not None] + [True] * len(parameters)
    torch.library.opcheck(
        operators.dynamic_mlp_backward.default, (torch.ones_like(y), *inputs, y, hidden, 0.1, True, wanted)
    )


@pytest.mark.slow
def test_compile_without_breaks_for_any_batch() -> None:
    case = make((4, 5, 3), 3, 6)

    def step(x: Tensor, z_item: Tensor, z_semantic: Tensor, *rest: Tensor) -> Tensor:
        c = case.rebuilt([x, z_item, z_semantic, *rest])
        return native(0.1)(c).square()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (6, 9, 30):
        leaves = [t.requires_grad_() for t in make((4, 5, 3), 3, batch).tensors()]
        found, expected = compiled(*leaves), step(*leaves)
        torch.testing.assert_close(found, expected)
        upstream = torch.ones_like(found)
        assert_close(
            list(torch.autograd.grad(found, leaves, upstream)),
            list(torch.autograd.grad(expected, leaves, upstream)),
            1e-6,
        )


def test_compile_with_one_code_for_both_branches() -> None:
    case = make((4, 3), 3, 6)
    parameters = case.tensors()[3:]

    def both(x: Tensor, z: Tensor) -> Tensor:
        return native(0.1)(case.rebuilt([x, z, z, *parameters]))

    x, z = case.x.requires_grad_(), case.z_item
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, z), both(x, z))


def test_second_derivative_is_refused() -> None:
    case = make((4, 3), 3, 6)
    x = case.x.requires_grad_()
    (gradient,) = torch.autograd.grad(native(0.1)(case).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="dynamic_mlp: expected derivatives of first order"):
        gradient.sum().backward()


def test_autocast_computes_in_the_dtype_of_the_maps(backend: str) -> None:
    case = make((4, 5, 3), 3, 6)
    half = replace(case, x=case.x.bfloat16(), z_item=case.z_item.bfloat16(), z_semantic=case.z_semantic.bfloat16())
    rounded = replace(half, x=half.x.float(), z_item=half.z_item.float(), z_semantic=half.z_semantic.float())
    with torch.autocast("cpu", torch.bfloat16):
        y = native(0.1, "native")(half)
        assert native(0.1, backend)(half).shape == y.shape
    assert y.dtype == torch.float32
    assert torch.equal(y, native(0.1, "native")(rounded))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(6)}, ValueError, r"expected x \[B, D\] or \[B, T, D\], got \[6\]"),
        ({"x": torch.zeros(6, 4, dtype=torch.int64)}, TypeError, "expected x of a floating dtype"),
        ({"x": [[0.0]]}, TypeError, "expected x a tensor, got list"),
        ({"z_item": torch.zeros(5, 3)}, ValueError, r"expected z_item \[B=6, k >= 1\], got \[5, 3\]"),
        ({"z_item": [0.0]}, TypeError, "expected z_item a tensor, got list"),
        ({"z_semantic": torch.zeros(6, 3, 1)}, ValueError, r"expected z_semantic \[B=6"),
        ({"z_semantic": torch.zeros(6, 2)}, ValueError, r"expected semantic map \[D \+ 1=5, k=2, O >= 1\], got \[5, 3"),
        ({"z_item": None, "z_semantic": None}, ValueError, "expected z_item or z_semantic, got None"),
        ({"item_maps": [torch.zeros(4, 3, 5)]}, ValueError, r"expected item map \[D \+ 1=5, k=3, O >= 1\], got \[4"),
        ({"item_maps": []}, ValueError, "expected a map and an offset per layer of the item branch, got 0 and 1"),
        ({"item_offsets": [torch.zeros(5, 6)]}, ValueError, r"expected item offset \[D \+ 1=5, O=5\], got \[5, 6\]"),
        ({"item_offsets": [torch.zeros(5, 5).double()]}, TypeError, "expected item tensors of x's dtype"),
        (
            {"item_maps": [torch.zeros(5, 3, 7)], "item_offsets": [torch.zeros(5, 7)]},
            ValueError,
            r"expected item maps with outputs \[5\], got \[7\]",
        ),
        ({"item_offsets": [torch.zeros(5, 5, device="meta")]}, ValueError, "expected item tensors on x's device cpu"),
        ({"x": torch.zeros(6, 4).to_sparse()}, ValueError, "expected x a dense tensor, got torch.sparse_coo"),
        ({"z_item": torch.zeros(6, 3).to_sparse()}, ValueError, "expected z_item a dense tensor, got torch.sparse_coo"),
        ({"delta": -1.0}, ValueError, "expected delta >= 0, got -1.0"),
        ({"delta": float("nan")}, ValueError, "expected delta >= 0, got nan"),
        ({"backend": "cuda"}, ValueError, "expected backend 'native' or 'reference', got 'cuda'"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected(change: dict, error: type[Exception], message: str) -> None:
    case = make((4, 5), 3, 6)
    values = {field.name: getattr(case, field.name) for field in fields(case)} | {"delta": 0.1} | change
    with pytest.raises(error, match="dynamic_mlp: " + message):
        dynamic_mlp(**values)


def test_a_call_is_checked_again_when_a_tensor_has_changed() -> None:
    """Calls whose checks have passed are remembered by shapes and dtypes, which the same tensor may change."""
    case = make((4, 5), 3, 6)
    expected = native(0.1)(case)
    assert torch.equal(native(0.1)(case), expected)
    offset = case.item_offsets[0]
    kept = offset.data
    for value, error, message in (
        (torch.zeros(5, 6), ValueError, r"expected item offset \[D \+ 1=5, O=5\], got \[5, 6\]"),
        (kept.double(), TypeError, "expected item tensors of x's dtype"),
        (kept.to("meta"), ValueError, "expected item tensors on x's device cpu"),
    ):
        changed = replace(case, item_offsets=[value])
        with pytest.raises(error, match="dynamic_mlp: " + message):
            native(0.1)(changed)
        if not value.is_meta:
            offset.data = value
            with pytest.raises(error, match="dynamic_mlp: " + message):
                native(0.1)(case)
            offset.data = kept
    with pytest.raises(ValueError, match="dynamic_mlp: expected delta >= 0, got nan"):
        native(float("nan"))(case)
    assert torch.equal(native(0.1)(case), expected)


@pytest.mark.parametrize("size", [64, 70])
@pytest.mark.parametrize("batch", [33, 140, 300])
def test_blocks_that_share_a_row_of_the_maps(backend: str, batch: int, size: int) -> None:
    """Maps whose rows overflow the inner cache are packed for a group of blocks, which changes no result."""
    case = make((size, size, 9), 64, batch)
    expected = with_gradients(native(INFINITE, "reference"), case.to(torch.float64))
    assert_close(with_gradients(native(INFINITE, backend), case), expected, 3e-5)
    whole = native(0.1, backend)(case)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        assert torch.equal(native(0.1, backend)(case), whole) or backend == "reference"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("branches", ["both", "item", "semantic"])
@pytest.mark.parametrize("tanh_last", [False, True])
def test_runs_of_layers_are_the_whole(branches: str, tanh_last: bool) -> None:
    """What a CUDA device gets that has more layers than one launch takes."""
    case = make((4, 5, 3, 6, 2, 3), 3, 6, 2, branches, dtype=torch.float64)

    def native_parts(most: int):
        def run(c: Case) -> Tensor:
            parameters = [*c.tensors()[1 + (c.z_item is not None) + (c.z_semantic is not None) :]]
            return _in_runs("dynamic_mlp", c.x, c.z_item, c.z_semantic, tuple(parameters), 0.1, tanh_last, most)

        return run

    whole = with_gradients(native_parts(5), case)
    for most in (1, 2, 4):
        assert_close(with_gradients(native_parts(most), case), whole, 1e-13)


def test_a_cuda_device_takes_any_number_of_layers() -> None:
    """On tensors without memory: which operators would run on a device."""
    layers = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            if function is operators.dynamic_mlp_forward.default:
                layers.append((len(arguments[3]) // 2, arguments[5]))
            return function(*arguments, **(options or {}))

    with torch.no_grad(), FakeTensorMode(), Watch():
        x, z = torch.empty(3, 2, device="cuda"), torch.empty(3, 4, device="cuda")
        maps = [torch.empty(3, 4, 2, device="cuda") for _ in range(40)]
        offsets = [torch.empty(3, 2, device="cuda") for _ in range(40)]
        y = dynamic_mlp(x, None, z, (), (), maps, offsets, delta=0.1)
    assert layers == [(16, True), (16, True), (8, False)]  # layers, and whether tanh follows the last
    assert y.shape == (3, 2)
    assert y.device.type == "cuda"


def test_unknown_activation() -> None:
    case = make((4, 5), 3, 6, branches="semantic")
    with pytest.raises(ValueError, match="dynamic_linear: expected activation 'none' or 'tanh', got 'relu'"):
        dynamic_linear(
            case.x,
            None,
            case.z_semantic,
            None,
            None,
            case.semantic_maps[0],
            case.semantic_offsets[0],
            delta=1,
            activation="relu",
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("delta", [1e300, pytest.param(10**300, id="int"), Fraction(3, 10)])
def test_a_bound_of_any_size_and_type_of_number_is_taken_by_both_back_ends(dtype: torch.dtype, delta: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 5), (4, 2), (4, 2), (6, 2, 3), (6, 3), (6, 2, 3), (6, 3)]
    results = []
    for backend in ("native", "reference"):
        generator.manual_seed(0)
        given = [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
        y = dynamic_linear(*given, delta=delta, backend=backend)
        results.append([y.float(), *(part.float() for part in torch.autograd.grad(y.sum(), given))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.1)
    with pytest.raises(ValueError, match="expected delta within float64"):
        dynamic_linear(*given, delta=10**400)
