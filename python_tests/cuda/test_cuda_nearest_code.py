"""nearest_code's CUDA kernels on the host policy, through the Python that would start them on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from python_tests import host_policy
from python_tests.host_policy import ORDERS, KernelError
from python_tests.ops.test_nearest_code import FUSED, WORLDS, assert_nearest, distances, normal, world
from solid_ext import build_info
from solid_ext._native import kernels
from solid_ext.ops import _cuda, nearest_code_cuda, reference, segment_sum_cuda
from solid_ext.ops.nearest_code import nearest_code_statistics

METHODS = ["exact", "screened"]
SIZES = [  # N, K, D around every tile: 64 rows and codes, chunks of 32; 128 rows, 64 codes, steps of 16, chunks of 64
    (1, 1, 1),
    (2, 3, 1),
    (63, 64, 31),
    (64, 65, 32),
    (65, 63, 33),
    (127, 129, 15),
    (128, 128, 16),
    (129, 127, 17),
    (40, 590, 32),
    (257, 40, 63),
    (30, 130, 65),
    (33, 70, 100),
    (20, 70, 256),
]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, bool], None]]:
    """CUDA calls go to the host policy; call it to choose the order of threads, and AddressSanitizer."""
    chosen = {"order": 0, "call": host_policy.call}

    def choose(order: int, sanitized: bool = False) -> None:
        chosen.update(order=order, call=host_policy.call_sanitized if sanitized else host_policy.call)

    def call(kernel: str, near: Tensor, *arguments: int | Tensor | None) -> None:
        chosen["call"](kernel, *arguments, order=chosen["order"])

    def query(question: str, *arguments: int) -> int:
        answer = torch.zeros(1, dtype=torch.int64)
        host_policy.call(question, *arguments, answer)
        return int(answer)

    monkeypatch.setattr(_cuda, "call", call)
    monkeypatch.setattr(_cuda, "query", query)
    monkeypatch.setattr(nearest_code_cuda, "address", lambda tensor: tensor)
    monkeypatch.setattr(segment_sum_cuda, "address", lambda tensor: tensor)
    yield choose
    torch.use_deterministic_algorithms(False)


def on_the_cpu(x: Tensor, codebook: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    """The same by the CPU's kernel, at a level with fused multiply-add: the index must agree bit by bit."""
    before = build_info()["isa"]
    kernels.set_isa(FUSED[0])
    found = nearest_code_statistics(x, codebook, mask)
    kernels.set_isa(before)
    return found


def assert_as_on_the_cpu(found: tuple[Tensor, ...], x: Tensor, codebook: Tensor, mask: Tensor | None = None) -> None:
    expected = on_the_cpu(x, codebook, mask)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1].isnan(), expected[1].isnan())
    assert torch.equal(found[1].nan_to_num(), expected[1].nan_to_num())
    assert torch.equal(found[3], expected[3])
    torch.testing.assert_close(found[2], expected[2], rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(found[4], expected[4], rtol=1e-4, atol=1e-4)
    assert [part.dtype for part in found] == [part.dtype for part in expected]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rows", "codes", "dim"), SIZES)
def test_all_sizes(host: Callable[..., None], method: str, rows: int, codes: int, dim: int) -> None:
    x, codebook = normal(rows, dim), normal(codes, dim, seed=1)
    found = nearest_code_cuda.run(x, codebook, None, "sums", method=method)
    assert_nearest(x, codebook, found[0])
    assert_as_on_the_cpu(found, x, codebook)
    lattice = x.round(), codebook.round()
    index, _, distance = nearest_code_cuda.run(*lattice, None, "none", method=method)
    truth = distances(*lattice)
    assert torch.equal(distance.double(), truth.min(1).values)
    first = torch.where(truth == truth.min(1, keepdim=True).values, torch.arange(codes), codes).min(1).values
    assert torch.equal(index, first)


@pytest.mark.parametrize(("rows", "codes", "dim"), SIZES[:10])
def test_double(host: Callable[..., None], rows: int, codes: int, dim: int) -> None:
    x, codebook = normal(rows, dim, dtype=torch.float64), normal(codes, dim, seed=1, dtype=torch.float64)
    found = nearest_code_cuda.run(x, codebook, None, "sums")
    assert_nearest(x, codebook, found[0])
    assert_as_on_the_cpu(found, x, codebook)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sanitized", [False, True])
def test_every_order_of_threads_and_exact_arrays(
    host: Callable[..., None], method: str, order: int, sanitized: bool
) -> None:
    host(order, sanitized)
    x, codebook = normal(131, 37), normal(133, 37, seed=1)
    mask = normal(131, seed=2) > -1
    x[5] = torch.nan
    codebook[::7] = codebook[3]
    found = nearest_code_cuda.run(x, codebook, mask, "sums", method=method)
    assert_as_on_the_cpu(found, x, codebook, mask)
    index = found[0]
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        sums = segment_sum_cuda.segment_sum(x.nan_to_num(), index, mask, 133)
        expected = reference.segment_sum(x.nan_to_num(), index, mask, 133)[1]
        torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rows", "codes", "dim"), [(150, 300, 33), (70, 140, 230)])
def test_hard_worlds(host: Callable[..., None], name: str, method: str, rows: int, codes: int, dim: int) -> None:
    x, codebook = world(name, rows, codes, dim)
    found = nearest_code_cuda.run(x, codebook, None, "sums", method=method)
    expected = on_the_cpu(x, codebook)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[3], expected[3])


def near_the_bound(term: str) -> tuple[Tensor, Tensor]:
    """Two codes that rounding to bfloat16 puts in the wrong order: each term of the screen's margin is needed."""
    signs, other = torch.ones(64), torch.full((64,), 1.5)
    other[::2] = -1.5  # orthogonal to signs
    lost = 0.9 * 2**-8  # what rounding takes from 1.5 + lost, and from -1.5 + lost
    if term == "row":  # <x, signs> > 0, but rounded < 0
        x = (other + lost * signs).unsqueeze(0)
        x[0, 1] -= 2**-3
        codebook = torch.stack([-signs, signs])
    elif term == "code":  # the second code is nearer by what it loses
        x = signs.unsqueeze(0)
        nearer = other.clone()
        nearer[0] += 2**-4
        codebook = torch.stack([nearer, other + lost * signs])
    else:  # exact in bfloat16, but closer to each other than float32 sums are to the truth
        base = normal(64).bfloat16().float()
        base[10:14] = 2**-14
        codebook = base.repeat(5, 1)
        codebook[range(1, 5), range(10, 14)] += 2**-21
        x = (base + normal(200, 64, seed=1)).bfloat16().float()
    far = 4 * normal(60, 64, seed=2).sign()  # longer ones would widen the margin of their group
    return x, torch.cat([codebook, far])


@pytest.mark.parametrize("term", ["row", "code", "sum"])
def test_no_term_of_the_margin_can_be_left_out(host: Callable[..., None], term: str) -> None:
    x, codebook = near_the_bound(term)
    found = nearest_code_cuda.run(x, codebook, None, "sums", method="screened")
    assert_as_on_the_cpu(found, x, codebook)
    rounded = x.bfloat16().float(), codebook.bfloat16().float()
    if term != "sum":
        assert not torch.equal(on_the_cpu(*rounded)[0], found[0])  # the rounded ones are in the other order


def test_many_codes_come_close(host: Callable[..., None]) -> None:
    """Rows with more near codes than a list holds, beside rows with few, and lists that must be tidied."""
    x, codebook = normal(140, 24), normal(2000, 24, seed=1)
    falling = torch.linspace(3, 0, 2000).unsqueeze(1)
    for codes in (x[3] + falling * normal(1, 24, seed=2), x[3] + 1e-3 * codebook, codebook):
        found = nearest_code_cuda.run(x, codes, None, "sums", method="screened")
        assert_as_on_the_cpu(found, x, codes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_searched_in_float32(host: Callable[..., None], method: str, dtype: torch.dtype) -> None:
    x, codebook = normal(140, 20, dtype=dtype), normal(150, 20, seed=1, dtype=dtype)
    found = nearest_code_cuda.run(x, codebook, None, "sums", method=method)
    assert_as_on_the_cpu(found, x, codebook)
    mixed = nearest_code_cuda.run(x, codebook.float(), None, "none", method=method)
    assert torch.equal(mixed[0], found[0])


@pytest.mark.parametrize("method", METHODS)
def test_masked_rows_are_zero_whole_blocks_too(host: Callable[..., None], method: str) -> None:
    x, codebook = normal(300, 9), normal(50, 9, seed=1)
    mask = normal(300, seed=2) > 0
    mask[:140] = False
    x[~mask] = torch.nan
    found = nearest_code_cuda.run(x, codebook, mask, "sums", method=method)
    assert_as_on_the_cpu(found, x, codebook, mask)
    for part in found[:3]:
        assert int(part[~mask].count_nonzero()) == 0


@pytest.mark.parametrize("method", METHODS)
def test_strides(host: Callable[..., None], method: str) -> None:
    x, codebook = normal(140, 24), normal(70, 24, seed=1)
    wide = torch.full((140, 50), torch.nan)
    wide[:, 3:27] = x
    for sanitized in (False, True):
        host(0, sanitized)
        for rows in (wide[:, 3:27], x.T.contiguous().T):
            found = nearest_code_cuda.run(rows, codebook.T.contiguous().T, None, "counts", method=method)
            assert torch.equal(found[0], on_the_cpu(x, codebook)[0])
            assert found[4].shape == (0, 24)
    one = normal(24).expand(130, 24)
    assert len(set(nearest_code_cuda.run(one, codebook, None, "none", method=method)[0].tolist())) == 1


def test_empty_batch(host: Callable[..., None]) -> None:
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        found = nearest_code_cuda.run(torch.zeros(0, 6), normal(5, 6), None, "sums")
        assert found[0].shape == (0,)
        assert int(found[3].sum()) == 0
        assert torch.equal(found[4], torch.zeros(5, 6))


def test_deterministic_sums_are_added_in_the_order_of_the_rows(host: Callable[..., None]) -> None:
    x, codebook = normal(400, 40), normal(7, 40, seed=1)
    mask = normal(400, seed=2) > -1
    x[11] = torch.inf
    torch.use_deterministic_algorithms(True)
    found = nearest_code_cuda.run(x, codebook, mask, "sums")
    for part, wanted in zip(found[3:], on_the_cpu(x, codebook, mask)[3:], strict=True):
        assert torch.equal(part, wanted)
    index = found[0]
    sums = segment_sum_cuda.segment_sum(codebook[index], index, mask, 9)
    assert torch.equal(sums[:7], reference.segment_sum(codebook[index], index, mask, 9)[1][:7])
    assert int(sums[7:].count_nonzero()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_many_rows_of_few_codes_are_added_to_several_sums(host: Callable[..., None], dtype: torch.dtype) -> None:
    host(2, True)  # the length of every array is checked
    rows, codes, dim = 1500, 3, 5
    assert segment_sum_cuda.copies_of(rows, codes) == 31
    values = torch.randint(-4, 5, (rows, dim), generator=torch.Generator().manual_seed(0)).to(dtype)
    index = torch.arange(rows) * 7 % 5 - 1  # also of no code
    mask = normal(rows, seed=2) > -1
    sums = segment_sum_cuda.segment_sum(values, index, mask, codes)
    kept = mask & (index >= 0) & (index < codes)
    expected = reference.segment_sum(values.double()[kept], index[kept], None, codes)[1]
    assert sums.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(sums.double(), expected)  # integers, exactly


def test_copies_of_the_sums_take_less_than_the_rows() -> None:
    for rows in (0, 1, 100, 10_240, 10**7):
        for codes in (1, 10, 590, 10**6):
            copies = segment_sum_cuda.copies_of(rows, codes)
            assert 1 <= copies <= segment_sum_cuda.MOST_COPIES
            assert copies == 1 or copies * codes * 16 <= rows


def test_the_choice_of_the_kernel() -> None:
    def workspace(method: str, dtype: torch.dtype, rows: int, codes: int, dim: int) -> int:
        answer = torch.zeros(1, dtype=torch.int64)
        numbers = nearest_code_cuda.METHODS[method], _cuda.ELEMENTS[dtype], rows, codes, dim
        host_policy.call("nearest_code_cuda_workspace", *numbers, answer)
        return int(answer)

    assert workspace("chosen", torch.float32, 10240, 590, 32) == 640 * (64 + 4) + 10 * 16
    assert workspace("chosen", torch.float32, 10, 590, 32) == 0
    assert workspace("chosen", torch.float32, 10240, 590, 3) == 0
    assert workspace("chosen", torch.float64, 10240, 590, 32) == 0
    assert workspace("chosen", torch.bfloat16, 1000000, 1024, 256) > 0
    assert workspace("chosen", torch.float32, 1000000, 1024, 257) == 0  # more than a block's shared memory
    assert workspace("exact", torch.float32, 10240, 590, 32) == 0


@pytest.mark.parametrize(
    ("method", "element", "rows", "codes", "dim", "status"),
    [
        (0, 0, 64 * 0x7FFFFFFF + 1, 5, 3, 2),
        (0, 0, 4, 0, 3, 1),
        (0, 0, 4, 0x80000000, 3, 1),
        (0, 0, 4, 5, 0, 1),
        (0, 0, -1, 5, 3, 1),
        (2, 3, 4, 5, 3, 1),
        (2, 0, 4, 5, 300, 1),
        (2, 0, 4, 5, 3, 1),
    ],
)
def test_what_no_kernel_can_do_is_refused_before_a_launch(
    method: int, element: int, rows: int, codes: int, dim: int, status: int
) -> None:
    arguments = method, element, 0, dim, rows, dim, 0, codes, *[0] * 7
    with pytest.raises(KernelError, match=f"status {status}"):
        host_policy.call("nearest_code_cuda", *arguments)
