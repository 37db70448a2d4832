"""nearest_code against float64 truth: every backend, instruction set, size, tie and gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from python_tests.ops import cases
from python_tests.ops.cases import IMPLEMENTATIONS, peak_bytes
from solid_ext import build_info
from solid_ext._native import kernels
from solid_ext.ops.nearest_code import nearest_code, nearest_code_statistics
from solid_ext.ops.reference import rotate_gradient, unit_rows

normal = partial(cases.normal, dtype=torch.float32)
SIZES = [  # N, K, D: single elements, tile edges, panels with tails
    (1, 1, 1),
    (2, 3, 1),
    (5, 16, 7),
    (6, 17, 8),
    (7, 31, 16),
    (95, 32, 31),
    (96, 33, 32),
    (97, 64, 33),
    (193, 65, 3),
    (100, 590, 32),
    (64, 127, 64),
    (33, 128, 100),
]


def distances(x: Tensor, codebook: Tensor) -> Tensor:
    """All squared distances [N, K] in float64, difference by difference."""
    return (x.double().unsqueeze(1) - codebook.double()).square().sum(2)


def assert_nearest(x: Tensor, codebook: Tensor, index: Tensor) -> None:
    """`d(returned) <= d(nearest) (1 + rounding)`: of the distances themselves, however long rows and codes are."""
    rounding = (2 * x.shape[1] + 8) * torch.finfo(x.dtype).eps
    for rows, chosen in zip(x.split(256), index.split(256), strict=True):
        truth = distances(rows, codebook)
        found = truth.gather(1, chosen.unsqueeze(1)).squeeze(1)
        assert bool((found <= truth.min(1).values * (1 + rounding)).all())


def test_every_instruction_set_is_tested() -> None:
    info = build_info()
    assert info["isa_usable"][0] == "baseline"
    assert set(IMPLEMENTATIONS) == {"reference", *(f"native-{isa}" for isa in info["isa_usable"])}
    assert set(info["isa_usable"]) <= set(info["isa_built"])


@pytest.mark.parametrize(("rows", "codes", "dim"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_sizes(backend: str, rows: int, codes: int, dim: int, dtype: torch.dtype) -> None:
    x, codebook = normal(rows, dim, dtype=dtype), normal(codes, dim, seed=1, dtype=dtype)
    index, quantized, distance, counts, sums = nearest_code_statistics(x, codebook, backend=backend)
    assert_nearest(x, codebook, index)
    assert torch.equal(quantized, codebook[index])
    torch.testing.assert_close(distance, distances(x, codebook).gather(1, index[:, None])[:, 0].to(dtype))
    assert torch.equal(counts, index.bincount(minlength=codes))
    expected = torch.zeros(codes, dim, dtype=torch.float64).index_add(0, index, x.double())
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)
    assert distance.dtype == sums.dtype == dtype


@pytest.mark.parametrize(("rows", "codes", "dim"), SIZES)
def test_integer_lattice_is_exact_and_ties_go_to_the_lowest_index(
    backend: str, rows: int, codes: int, dim: int
) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(-2, 3, (rows, dim), generator=generator).float()
    codebook = torch.randint(-2, 3, (codes, dim), generator=generator).float()
    index, _, distance = nearest_code(x, codebook, backend=backend)
    truth = distances(x, codebook)
    assert torch.equal(distance.double(), truth.min(1).values)
    first = torch.where(truth == truth.min(1, keepdim=True).values, torch.arange(codes), codes).min(1).values
    assert torch.equal(index, first)


FUSED = [isa for isa in build_info()["isa_usable"] if isa != "baseline"]  # with fused multiply-add
WORLDS = [
    *("normal", "clustered", "offset", "far", "groups", "shells", "duplicates", "lattice"),
    *("large", "huge", "small", "mixed", "bad"),
]


def world(name: str, rows: int, codes: int, dim: int) -> tuple[Tensor, Tensor]:
    """Rows and codes that are easy or hard to tell apart at half precision."""
    x, codebook = normal(rows, dim), normal(codes, dim, seed=1)
    if name == "clustered":
        x = codebook[torch.arange(rows) % codes] + 0.1 * x
    elif name in ("offset", "far"):
        shift = 3 if name == "offset" else 300
        x, codebook = x + shift, codebook + shift
    elif name == "groups":  # far from each other and from their mean
        x = x + 1000 * torch.where(torch.arange(rows) % 3 == 0, 1, -1).unsqueeze(1)
        codebook = codebook + 1000 * torch.where(torch.arange(codes) % 2 == 0, 1, -1).unsqueeze(1)
    elif name == "shells":  # rows between a few codes that differ by less than the costs can tell
        codebook[::3] = codebook[0] + 2e-5 * codebook[::3]
        x[::2] = codebook[0] + 1e-5 * x[::2]
    elif name == "duplicates":
        codebook = codebook[torch.arange(codes) % 5]
    elif name == "lattice":
        x, codebook = x.round(), codebook.round()
    elif name in ("large", "small"):
        scale = 1e17 if name == "large" else 1e-20
        x, codebook = x * scale, codebook * scale
    elif name == "huge":  # costs that overflow, rows too long to be screened
        x, codebook = x * 1e20, codebook * 4e18
    elif name == "mixed":
        x = x * torch.logspace(-20, 19, rows).unsqueeze(1)
        codebook = codebook * torch.logspace(-20, 19, codes).unsqueeze(1)
    elif name == "bad":
        x[::7, 3] = torch.nan
        x[3::7, 1] = torch.inf
        codebook[::5] = torch.nan
        codebook[1::5, 2] = -torch.inf
        codebook[2::9] *= 1e19
    return x, codebook


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(
    ("rows", "codes", "dim"),
    [
        (95, 128, 16),
        (96, 128, 16),
        (105, 129, 17),
        (250, 590, 32),
        (197, 1000, 33),
        (200, 2500, 64),
        (193, 5000, 20),
        (100, 140, 1500),
        (96, 140, 3000),
    ],
)
def test_screening_changes_no_result(name: str, rows: int, codes: int, dim: int) -> None:
    x, codebook = world(name, rows, codes, dim)
    before = build_info()["isa"]
    results = []
    for isa in FUSED:
        kernels.set_isa(isa)
        results.append(nearest_code_statistics(x, codebook))
    kernels.set_isa(before)
    for other in results[1:]:
        assert torch.equal(other.index, results[0].index)
        assert torch.equal(other.counts, results[0].counts)
    if name not in ("huge", "small", "mixed", "bad"):
        assert_nearest(x, codebook, results[0].index)


def test_duplicate_codes_tie_wherever_they_lie(backend: str) -> None:
    x, few = normal(200, 13), normal(7, 13, seed=1)
    codebook = few.repeat(40, 1)
    index = nearest_code(x, codebook, backend=backend).index
    assert torch.equal(index, nearest_code(x, few, backend=backend).index)


@pytest.mark.parametrize("name", ["far", "groups", "shells"])
@pytest.mark.parametrize("shift", [0, 1000, -1e6])
@pytest.mark.parametrize(("rows", "codes"), [(300, 77), (500, 590)])
def test_a_nearest_code_is_one_wherever_rows_and_codes_lie(
    backend: str, name: str, shift: float, rows: int, codes: int
) -> None:
    x, codebook = (part + shift for part in world(name, rows, codes, 32))
    index, _, distance = nearest_code(x, codebook, backend=backend)
    assert_nearest(x, codebook, index)
    truth = torch.stack([distances(row[None], codebook)[0, k] for row, k in zip(x, index, strict=True)])
    torch.testing.assert_close(distance, truth.float(), rtol=1e-5, atol=0)
    unit = nearest_code(x, codebook, metric="cosine", backend=backend)
    directions, entries = (unit_rows(part)[0] for part in (x, codebook))  # as they are rounded
    torch.testing.assert_close(directions.double(), torch.nn.functional.normalize(x.double(), dim=1), rtol=0, atol=2e-7)
    assert_nearest(directions, entries, unit.index)


def test_float64_is_searched_without_cancellation_too(backend: str) -> None:
    x, codebook = (part.double() * 1e3 + 1e9 for part in world("normal", 300, 77, 32))
    index = nearest_code(x, codebook, backend=backend).index
    near, codes = x - 1e9, codebook - 1e9  # exact: both lie within a factor of two of 1e9
    assert_nearest(near, codes, index)


def test_near_ties_are_decided_by_the_differences(backend: str) -> None:
    """Codes one unit in the last place apart, of which the costs see nothing."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randint(-8, 8, (1, 24), generator=generator).float() * 64
    codebook = base + torch.randint(-2, 3, (200, 24), generator=generator) * 2**-12
    x = base + torch.randint(-2, 3, (150, 24), generator=generator) * 2**-12
    index = nearest_code(x, codebook, backend=backend).index
    truth = distances(x, codebook)
    first = torch.where(truth == truth.min(1, keepdim=True).values, torch.arange(200), 200).min(1).values
    assert torch.equal(index, first)


def test_masked_rows_are_zero_and_do_not_count(backend: str) -> None:
    x, codebook = normal(20, 11, 9), normal(50, 9, seed=1)
    mask = normal(20, 11, seed=2) > 0
    mask[3:9] = False
    x[~mask] = torch.nan
    found = nearest_code_statistics(x, codebook, mask, backend=backend)
    alone = nearest_code_statistics(x[mask], codebook, backend=backend)
    assert torch.equal(found.index[mask], alone.index)
    assert torch.equal(found.quantized[mask], alone.quantized)
    assert torch.equal(found.distance[mask], alone.distance)
    assert torch.equal(found.counts, alone.counts)
    assert torch.equal(found.sums, alone.sums)
    for part in (found.index, found.quantized, found.distance):
        assert int(part[~mask].count_nonzero()) == 0


def test_not_a_number(backend: str) -> None:
    x, codebook = normal(100, 8), normal(70, 8, seed=1)
    codebook[[0, 20, 69]] = torch.nan
    codebook[21] = torch.inf
    codebook[22] = 1e30
    x[5, 3] = torch.nan
    index, quantized, distance, counts, sums = nearest_code_statistics(x, codebook, backend=backend)
    usable = [k for k in range(70) if k not in (0, 20, 21, 22, 69)]
    good = [n for n in range(100) if n != 5]
    expected = nearest_code(x[good], codebook[usable], backend=backend).index
    assert torch.equal(index[good], torch.tensor(usable)[expected])
    assert index[5] == 0
    assert bool(distance[5].isnan())
    assert bool(quantized[5].isnan().all())
    assert int(counts.sum()) == 99
    assert bool(sums.isfinite().all())
    assert int(nearest_code(x, torch.full((3, 8), torch.nan), backend=backend).index.sum()) == 0


def test_empty_batch(backend: str) -> None:
    x = torch.zeros(0, 4, 6, requires_grad=True)
    codebook = normal(5, 6).requires_grad_()
    found = nearest_code_statistics(x, codebook, torch.zeros(0, 4, dtype=torch.bool), backend=backend)
    assert found.index.shape == found.distance.shape == (0, 4)
    assert found.quantized.shape == (0, 4, 6)
    assert int(found.counts.sum()) == 0
    (found.quantized.sum() + found.distance.sum()).backward()
    assert codebook.grad is not None
    assert int(codebook.grad.count_nonzero()) == 0


def test_any_strides(backend: str) -> None:
    x, codebook = normal(40, 24).mul(4).round(), normal(30, 24, seed=1).mul(4).round()
    mask = normal(40, seed=2) > 0
    expected = nearest_code(x, codebook, mask, backend=backend)
    wide = torch.full((40, 50), torch.nan)
    wide[:, 3:27] = x
    layouts = [
        (x.T.contiguous().T, codebook, mask),
        (wide[:, 3:27], codebook.T.contiguous().T, mask),
        (x, codebook.repeat_interleave(2, 0)[::2], mask.repeat_interleave(2)[::2]),
    ]
    for layout in layouts:
        for part, wanted in zip(nearest_code(*layout, backend=backend), expected, strict=True):
            assert torch.equal(part, wanted)
    one = normal(24).expand(10, 24)
    assert len(set(nearest_code(one, codebook, backend=backend).index.tolist())) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_searched_in_float32(backend: str, dtype: torch.dtype) -> None:
    x, codebook = normal(4, 50, 20, dtype=dtype), normal(60, 20, seed=1, dtype=dtype)
    found = nearest_code(x, codebook, backend=backend)
    wide = nearest_code(x.float(), codebook.float(), backend=backend)
    assert torch.equal(found.index, wide.index)
    assert torch.equal(found.distance, wide.distance)
    assert found.quantized.dtype == dtype
    assert torch.equal(found.quantized, codebook[found.index])
    mixed = nearest_code(x, codebook.float(), backend=backend)
    assert torch.equal(mixed.index, found.index)
    assert mixed.quantized.dtype == dtype


def test_half_precision_input_is_widened_in_parts() -> None:
    x, codebook = normal(20000, 16, dtype=torch.bfloat16), normal(50, 16, seed=1)
    mask = torch.arange(20000) % 5 > 0
    found = nearest_code_statistics(x, codebook, mask)
    wide = nearest_code_statistics(x.float(), codebook, mask)
    assert torch.equal(found.index, wide.index)
    assert torch.equal(found.distance, wide.distance)
    assert torch.equal(found.counts, wide.counts)
    assert torch.equal(found.quantized, wide.quantized.bfloat16())
    torch.testing.assert_close(found.sums, wide.sums, rtol=1e-5, atol=1e-4)


def test_cosine_compares_unit_vectors(backend: str) -> None:
    x, codebook = normal(90, 10), normal(45, 10, seed=1)
    x[7] = 0
    found = nearest_code(x, codebook, metric="cosine", backend=backend)
    cosine = torch.nn.functional.cosine_similarity(x.double().unsqueeze(1), codebook.double(), dim=2)
    chosen = cosine.gather(1, found.index.unsqueeze(1)).squeeze(1)
    assert bool((chosen >= cosine.max(1).values - 1e-6).all())
    nonzero = torch.arange(90) != 7
    torch.testing.assert_close(found.distance[nonzero], (2 - 2 * chosen[nonzero]).float())
    torch.testing.assert_close(found.quantized.norm(dim=1), torch.ones(90))


def test_the_number_of_threads_changes_nothing(backend: str) -> None:
    x, codebook = normal(1000, 24).requires_grad_(), normal(300, 24, seed=1).requires_grad_()
    mask = normal(1000, seed=2) > -1
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        found = nearest_code_statistics(x, codebook, mask, backend=backend)
        grads = torch.autograd.grad(found.quantized.sin().sum() + found.distance.sum(), (x, codebook))
        results.append((*found, *grads))
    torch.set_num_threads(before)
    for other in results[1:]:
        for part, wanted in zip(other, results[0], strict=True):
            assert torch.equal(part, wanted)


@pytest.mark.parametrize("codes", [18, 2000])
def test_every_output_element_is_written(backend: str, codes: int) -> None:
    if backend == "reference":
        return
    x, codebook = normal(97, 5), normal(codes, 5, seed=1)
    mask = torch.arange(97) % 3 > 0
    index = torch.full((97,), -1)
    counts = torch.full((codes,), -1)
    quantized, distance, sums = (torch.full(s, torch.nan) for s in ((97, 5), (97,), (codes, 5)))
    size = kernels.nearest_code_workspace(codes, 5, 4)
    assert (size == 0) == (codes == 18)
    workspace = torch.full((size,), torch.nan)
    kernels.nearest_code(
        False, x.data_ptr(), 5, 97, 5, codebook.data_ptr(), codes, mask.data_ptr(), workspace.data_ptr(),
        index.data_ptr(), quantized.data_ptr(), distance.data_ptr(), counts.data_ptr(), sums.data_ptr(), 2,
    )  # fmt: skip
    expected = nearest_code_statistics(x, codebook, mask)
    for part, wanted in zip((index, quantized, distance, counts, sums), expected, strict=True):
        assert torch.equal(part, wanted)


@pytest.mark.parametrize("gradient", ["none", "straight_through", "rotation"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_formula(backend: str, gradient: str, masked: bool) -> None:
    x = normal(5, 9, 6, dtype=torch.float64).requires_grad_()
    codebook = normal(11, 6, seed=1, dtype=torch.float64).requires_grad_()
    mask = normal(5, 9, seed=2) > 0 if masked else None
    found = nearest_code(x, codebook, mask, gradient=gradient, backend=backend)
    keep = torch.ones(5, 9, 1) if mask is None else mask.unsqueeze(-1)
    code = codebook[found.index]
    if gradient == "none":
        quantized = code
    elif gradient == "straight_through":
        quantized = code + x - x.detach()
    else:
        quantized = code + torch.einsum("bnij,bnj->bni", rotation(x.detach(), code.detach()), x - x.detach())
    distance = (x - code).square().sum(2, keepdim=True)
    weight, other = normal(5, 9, 6, seed=3, dtype=torch.float64), normal(5, 9, seed=4, dtype=torch.float64)
    expected = ((quantized * weight + distance * other.unsqueeze(-1) / 6) * keep).sum()
    actual = (found.quantized * weight).sum() + (found.distance * other).sum()
    torch.testing.assert_close(actual, expected)
    for part, wanted in zip(
        torch.autograd.grad(actual, (x, codebook)), torch.autograd.grad(expected, (x, codebook)), strict=True
    ):
        torch.testing.assert_close(part, wanted)


def rotation(x: Tensor, code: Tensor) -> Tensor:
    """`||c|| / ||x||` times the rotation in the plane of x and c that turns x's direction into c's."""
    e = x / x.norm(dim=-1, keepdim=True)
    f = code / code.norm(dim=-1, keepdim=True)
    cosine = (e * f).sum(-1)[..., None, None]
    wedge = f.unsqueeze(-1) * e.unsqueeze(-2) - e.unsqueeze(-1) * f.unsqueeze(-2)
    turn = torch.eye(x.shape[-1], dtype=x.dtype) + wedge + wedge @ wedge / (1 + cosine)
    return turn * (code.norm(dim=-1) / x.norm(dim=-1))[..., None, None]


def test_rotation_of_degenerate_rows_is_finite(backend: str) -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.5]], requires_grad=True)
    codebook = torch.tensor([[-1.0, 0.0]])
    nearest_code(x, codebook, gradient="rotation", backend=backend).quantized.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[0], torch.ones(2))
    assert torch.equal(x.grad[1], torch.tensor([-1.0, 1.0]))
    assert bool(x.grad.isfinite().all())


def test_gradcheck(backend: str) -> None:
    x = normal(8, 3, dtype=torch.float64).requires_grad_()
    codebook = normal(4, 3, seed=1, dtype=torch.float64).requires_grad_()
    mask = torch.arange(8) != 2

    def values(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        found = nearest_code(x, codebook, mask, gradient="none", backend=backend)
        return found.quantized, found.distance

    assert torch.autograd.gradcheck(values, (x, codebook))


def test_masked_positions_get_no_gradient_even_from_nan(backend: str) -> None:
    x, codebook = normal(6, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    mask = torch.arange(6) < 4
    found = nearest_code(x, codebook, mask, backend=backend)
    upstream = torch.where(mask.unsqueeze(1), torch.ones(6, 4), torch.nan)
    found.quantized.backward(upstream)
    assert x.grad is not None
    assert codebook.grad is not None
    assert int(x.grad[~mask].count_nonzero()) == 0
    assert float(codebook.grad.sum()) == 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    x, codebook = normal(10, 4, dtype=dtype), normal(6, 4, seed=1, dtype=dtype)
    mask = torch.arange(10) > 3
    operators = torch.ops.solid_ext
    for valid in (None, mask):
        torch.library.opcheck(operators.nearest_code.default, (x, codebook, valid))
        for sums in (False, True):
            torch.library.opcheck(operators.nearest_code_statistics.default, (x, codebook, valid, sums))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_compiles_as_one_graph_with_dynamic_shapes(backend: str) -> None:
    def loss(x: Tensor, codebook: Tensor, mask: Tensor) -> Tensor:
        found = nearest_code(x.tanh(), codebook, mask, gradient="rotation", backend=backend)
        return found.quantized.sin().sum() + found.distance.mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    codebook = normal(6, 4, seed=1).requires_grad_()
    for rows in (10, 17):
        x = normal(rows, 3, 4).requires_grad_()
        mask = normal(rows, 3, seed=2) > 0
        expected, actual = loss(x, codebook, mask), compiled(x, codebook, mask)
        torch.testing.assert_close(actual, expected)
        for part, wanted in zip(
            torch.autograd.grad(actual, (x, codebook)),
            torch.autograd.grad(expected, (x, codebook)),
            strict=True,
        ):
            torch.testing.assert_close(part, wanted)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_vmap_folds_the_batch(backend: str) -> None:
    x, codebook = normal(3, 10, 4), normal(6, 4, seed=1)
    mask = normal(3, 10, seed=2) > 0

    def lookup(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(nearest_code(x, codebook, mask, backend=backend))

    found = torch.vmap(lookup)(x, mask)
    for part, wanted in zip(found, nearest_code(x, codebook, mask, backend=backend), strict=True):
        assert torch.equal(part, wanted)

    def of_sample(codebook: Tensor, x: Tensor) -> Tensor:
        return nearest_code(x, codebook, backend=backend).distance.sum()

    per_sample = torch.vmap(torch.func.grad(of_sample), (None, 0))(codebook, x)
    for sample in range(3):
        torch.testing.assert_close(per_sample[sample], torch.func.grad(of_sample)(codebook, x[sample]))


def test_whoever_looks_on_sees_the_operator() -> None:
    x, codebook = normal(5, 4), normal(6, 4, seed=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        nearest_code(x, codebook)
    assert "solid_ext::nearest_code" in {event.name for event in profile.events()}
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        assert nearest_code(x, codebook).index.shape == (5,)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = nearest_code(mode.from_tensor(x), mode.from_tensor(codebook))
    assert fake.quantized.shape == (5, 4)


def test_autocast_is_ignored(backend: str) -> None:
    x, codebook = normal(50, 16), normal(40, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_code(x, codebook, backend=backend)
    for part, wanted in zip(found, nearest_code(x, codebook, backend=backend), strict=True):
        assert torch.equal(part, wanted)


X, CODES = torch.zeros(4, 3), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X.numpy(), CODES), {}, TypeError, r"expected x a tensor, got ndarray; torch.from_numpy"),
        ((X, CODES.numpy()), {}, TypeError, r"expected codebook a tensor, got ndarray"),
        ((X, CODES, X[:, 0].numpy() > 0), {}, TypeError, r"expected mask a tensor, got ndarray"),
        ((X, CODES, [True] * 4), {}, TypeError, r"expected mask a tensor, got list"),
        ((None, CODES), {}, TypeError, r"expected x a tensor, got NoneType"),
        ((X + 1j, CODES), {}, TypeError, r"got torch.complex64 and torch.float32"),
        ((X[0, 0], CODES), {}, ValueError, r"x \[.., D\]"),
        ((X, CODES[:, :2]), {}, ValueError, r"expected codebook \[K, D=3\], got \[5, 2\]"),
        ((X, CODES[0]), {}, ValueError, r"expected codebook \[K, D=3\], got \[3\]"),
        ((X, CODES[:0]), {}, ValueError, r"expected codebook \[K >= 1, D >= 1\], got \[0, 3\]"),
        ((X.double(), CODES), {}, TypeError, r"got torch.float64 and torch.float32"),
        ((X.long(), CODES.long()), {}, TypeError, r"got torch.int64 and torch.int64"),
        ((X, CODES, X[:, 0]), {}, TypeError, r"mask of torch.bool, got torch.float32"),
        ((X, CODES, X > 0), {}, ValueError, r"expected mask \[4\], got \[4, 3\]"),
        ((X.to_sparse(), CODES), {}, ValueError, r"expected x a dense tensor, got torch.sparse_coo"),
        ((X, CODES.to_sparse()), {}, ValueError, r"expected codebook a dense tensor, got torch.sparse_coo"),
        ((X, CODES, (X[:, 0] > 0).to_sparse()), {}, ValueError, r"expected mask a dense tensor, got torch.sparse_coo"),
        ((X, CODES.to("meta")), {}, ValueError, r"expected codebook on cpu, got meta"),
        ((X, CODES, (X[:, 0] > 0).to("meta")), {}, ValueError, r"expected mask on cpu, got meta"),
        ((X, CODES), {"gradient": "ste"}, ValueError, r"expected gradient in .*, got 'ste'"),
        ((X, CODES), {"metric": "dot"}, ValueError, r"expected metric in .*, got 'dot'"),
        ((X, CODES), {"backend": "fast"}, ValueError, r"expected backend in .*, got 'fast'"),
    ],
)
def test_bad_input_gets_a_sentence(
    arguments: tuple[Tensor, ...], options: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        nearest_code(*arguments, **options)


@pytest.mark.parametrize(("rows", "codes", "dim"), [(10240, 590, 32), (10240, 8192, 32), (65536, 1024, 64)])
def test_never_an_array_of_distances(backend: str, rows: int, codes: int, dim: int) -> None:
    if backend == "reference":
        return
    x, codebook = normal(rows, dim), normal(codes, dim, seed=1)
    outputs = 4 * rows * dim + 12 * rows
    nearest_code(x, codebook)
    held = peak_bytes(lambda: nearest_code(x, codebook))
    assert outputs <= held < outputs + 0.05 * 4 * rows * codes


def test_backward_without_an_array_of_distances() -> None:
    x, codebook = normal(20000, 8).requires_grad_(), normal(3000, 8, seed=1).requires_grad_()

    def step() -> None:
        found = nearest_code(x, codebook)
        torch.autograd.grad(found.quantized.sum() + found.distance.sum(), (x, codebook))

    step()
    assert peak_bytes(step) < 0.05 * 4 * 20000 * 3000


@pytest.mark.parametrize("exponent", [-40, -22, -12, 12, 19, 30])
def test_cosine_does_not_depend_on_the_length_of_rows_and_entries(backend: str, exponent: int) -> None:
    x, codebook = normal(200, 16), normal(40, 16, seed=1)
    for rows, codes in ((x * 10.0**exponent, codebook), (x, codebook * 10.0**exponent)):
        found = nearest_code(rows, codes, metric="cosine", backend=backend)
        cosine = torch.nn.functional.cosine_similarity(rows.double().unsqueeze(1), codes.double(), dim=2, eps=0)
        best = cosine.max(1).values
        chosen = cosine.gather(1, found.index.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(chosen, best, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.quantized.double().norm(dim=1), torch.ones(200).double(), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.distance.double(), 2 - 2 * best, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_rotation_does_not_depend_on_the_scale(backend: str, scale: float) -> None:
    plain, codebook, up = normal(20, 6), normal(5, 6, seed=1), normal(20, 6, seed=2)
    gradients = []
    for factor in (1.0, scale):
        x = (plain * factor).requires_grad_()
        found = nearest_code(x, codebook, gradient="rotation", metric="cosine", backend=backend)
        gradients.append(torch.autograd.grad(found.quantized, x, up)[0] * factor)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    turned = [rotate_gradient(up, plain * factor, codebook[:1].expand(20, 6) * factor) for factor in (1.0, scale)]
    torch.testing.assert_close(turned[1], turned[0], rtol=1e-4, atol=1e-6)
