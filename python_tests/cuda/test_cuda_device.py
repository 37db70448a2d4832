"""nearest_code on a GPU: the cases of the CPU tests and of the host policy, and what only a device can show."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from python_tests.cuda.test_cuda_nearest_code import METHODS, SIZES, near_the_bound
from python_tests.ops.test_nearest_code import WORLDS, assert_nearest, distances, normal, world
from solid_ext import build_info
from solid_ext.nn import Codebook
from solid_ext.ops import nearest_code_cuda, segment_sum_cuda
from solid_ext.ops.nearest_code import GRADIENTS, nearest_code, nearest_code_statistics

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available() or build_info()["cuda"] is None,
        reason="needs a CUDA device, torch with CUDA, and a module built with it",
    ),
]


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_as_on_the_cpu(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for part, wanted in zip(found, expected, strict=True):
        part = part.cpu()
        if part.dtype == torch.int64:
            assert torch.equal(part, wanted)
        else:
            torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rows", "codes", "dim"), [*SIZES, (10240, 590, 32), (5000, 8192, 64), (3000, 1024, 256)])
def test_all_sizes(method: str, rows: int, codes: int, dim: int) -> None:
    x, codebook = normal(rows, dim), normal(codes, dim, seed=1)
    found = nearest_code_cuda.run(x.cuda(), codebook.cuda(), None, "sums", method=method)
    assert_as_on_the_cpu(found, nearest_code_statistics(x, codebook))
    lattice = x[:500].round(), codebook.round()
    index = nearest_code_cuda.run(lattice[0].cuda(), lattice[1].cuda(), None, "none", method=method)[0].cpu()
    truth = distances(*lattice)
    first = torch.where(truth == truth.min(1, keepdim=True).values, torch.arange(codes), codes).min(1).values
    assert torch.equal(index, first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "codes", "dim"), SIZES)
def test_dtypes(dtype: torch.dtype, rows: int, codes: int, dim: int) -> None:
    x, codebook = normal(rows, dim, dtype=dtype), normal(codes, dim, seed=1, dtype=dtype)
    found = nearest_code_statistics(x.cuda(), codebook.cuda())
    assert_as_on_the_cpu(found, nearest_code_statistics(x, codebook))
    if dtype == torch.float64:
        assert_nearest(x, codebook, found.index.cpu())


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rows", "codes", "dim"), [(5000, 2500, 64), (3000, 590, 32), (300, 140, 230)])
def test_hard_worlds(name: str, method: str, rows: int, codes: int, dim: int) -> None:
    x, codebook = world(name, rows, codes, dim)
    found = nearest_code_cuda.run(x.cuda(), codebook.cuda(), None, "counts", method=method)
    expected = nearest_code_statistics(x, codebook)
    assert torch.equal(found[0].cpu(), expected.index)
    assert torch.equal(found[3].cpu(), expected.counts)


@pytest.mark.parametrize("term", ["row", "code", "sum"])
def test_no_term_of_the_margin_can_be_left_out(term: str) -> None:
    x, codebook = near_the_bound(term)
    found = nearest_code_cuda.run(x.cuda(), codebook.cuda(), None, "none", method="screened")
    assert torch.equal(found[0].cpu(), nearest_code(x, codebook).index)


@pytest.mark.parametrize("method", METHODS)
def test_masks_strides_and_repeats(method: str, deterministic: None) -> None:
    x, codebook = normal(5000, 70).cuda()[:, 3:51], normal(48, 700, seed=1).cuda().T
    assert not x.is_contiguous()
    mask = (normal(5000, seed=2) > 0).cuda()
    mask[1000:2000] = False
    x[~mask] = torch.nan
    found = nearest_code_cuda.run(x, codebook, mask, "sums", method=method)
    assert_as_on_the_cpu(found, nearest_code_statistics(x.cpu(), codebook.cpu(), mask.cpu()))
    assert torch.equal(found[4].cpu(), nearest_code_statistics(x.cpu(), codebook.cpu(), mask.cpu()).sums)
    for _ in range(5):
        for part, wanted in zip(nearest_code_cuda.run(x, codebook, mask, "sums", method=method), found, strict=True):
            assert torch.equal(part.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_gradients_are_those_of_the_cpu(gradient: str, metric: str) -> None:
    results = []
    for device in ("cpu", "cuda"):
        x = normal(50, 9, 6).to(device).requires_grad_()
        codebook = normal(11, 6, seed=1).to(device).requires_grad_()
        mask = (normal(50, 9, seed=2) > 0).to(device)
        found = nearest_code(x, codebook, mask, gradient=gradient, metric=metric)
        grads = torch.autograd.grad(found.quantized.sin().sum() + found.distance.mean(), (x, codebook))
        results.append([part.cpu() for part in grads])
    for part, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-5)


def test_gradcheck_and_opcheck(deterministic: None) -> None:
    x = normal(8, 3, dtype=torch.float64).cuda().requires_grad_()
    codebook = normal(4, 3, seed=1, dtype=torch.float64).cuda().requires_grad_()
    mask = torch.arange(8, device="cuda") != 2
    assert torch.autograd.gradcheck(
        lambda x, codebook: nearest_code(x, codebook, mask, gradient="none")[1:], (x, codebook)
    )
    operators = torch.ops.solid_ext
    for valid in (None, mask):
        torch.library.opcheck(operators.nearest_code.default, (x.detach(), codebook.detach(), valid))
        for sums in (False, True):
            arguments = x.detach(), codebook.detach(), valid, sums
            torch.library.opcheck(operators.nearest_code_statistics.default, arguments)
        index = torch.arange(8, device="cuda") % 4
        torch.library.opcheck(operators.segment_sum.default, (x.detach(), index, valid, 4))


def test_compiles_as_one_graph() -> None:
    def loss(x: Tensor, codebook: Tensor) -> Tensor:
        found = nearest_code(x.tanh(), codebook, gradient="rotation")
        return found.quantized.sin().sum() + found.distance.mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    codebook = normal(6, 4, seed=1).cuda().requires_grad_()
    for rows in (10, 17):
        x = normal(rows, 3, 4).cuda().requires_grad_()
        torch.testing.assert_close(compiled(x, codebook), loss(x, codebook))


@pytest.mark.parametrize("method", METHODS)
def test_a_graph_replays_it_without_a_synchronisation(method: str) -> None:
    x, codebook = normal(4000, 32).cuda(), normal(600, 32, seed=1).cuda()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        try:
            torch.cuda.set_sync_debug_mode("error")
            nearest_code_cuda.run(x, codebook, None, "sums", method=method)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = nearest_code_cuda.run(x, codebook, None, "sums", method=method)
    x.copy_(normal(4000, 32, seed=5))
    for _ in range(2):
        graph.replay()
    assert_as_on_the_cpu(found, nearest_code_statistics(x.cpu(), codebook.cpu()))


def test_it_runs_on_the_current_stream() -> None:
    codebook = normal(600, 32, seed=1).cuda()
    x = torch.zeros(200000, 32, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(normal(200000, 32).cuda())
        found = nearest_code(x, codebook)
    stream.synchronize()
    assert torch.equal(found.index[:1000].cpu(), nearest_code(x[:1000].cpu(), codebook.cpu()).index)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_it_runs_on_the_device_of_its_tensors() -> None:
    x, codebook = normal(300, 8).to("cuda:1"), normal(20, 8, seed=1).to("cuda:1")
    assert torch.equal(nearest_code(x, codebook).index.cpu(), nearest_code(x.cpu(), codebook.cpu()).index)
    assert torch.cuda.current_device() == 0


def test_the_layer_learns_as_on_the_cpu(deterministic: None) -> None:
    layers = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        layer = Codebook(60, 16, update="ema", revive_after=2).to(device)
        for step in range(5):
            layer(normal(300, 16, seed=step).to(device))
        layers.append(layer.cpu())
    for name, part in layers[0].state_dict().items():
        torch.testing.assert_close(layers[1].state_dict()[name], part, rtol=1e-4, atol=1e-5)


def test_memory_is_that_of_the_results() -> None:
    x, codebook = normal(100000, 16).cuda(), normal(4096, 16, seed=1).cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = nearest_code(x, codebook)
    results = sum(part.nbytes for part in found)
    assert torch.cuda.max_memory_allocated() - before < results + 4 * codebook.nbytes + 2**16


def test_refused_sizes_leave_the_device_usable() -> None:
    x, codebook = normal(10, 300).cuda(), normal(20, 300, seed=1).cuda()
    with pytest.raises(ValueError, match=r"nearest_code \(N=10, K=20, D=300\)"):
        nearest_code_cuda.run(x, codebook, None, "none", method="screened")
    with pytest.raises(ValueError, match="expected codebook on cuda:0, got cpu"):
        nearest_code(x, codebook.cpu())
    assert torch.equal(nearest_code(x, codebook).index.cpu(), nearest_code(x.cpu(), codebook.cpu()).index)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ordered", [False, True])
def test_for_the_sanitizer_nearest_code(method: str, ordered: bool) -> None:
    """What compute-sanitizer runs, slowly, and what runs first: every kernel once, at sizes with tails."""
    torch.use_deterministic_algorithms(ordered)
    try:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            if method == "screened" and dtype == torch.float64:
                continue
            x, codebook = normal(131, 37, dtype=dtype).cuda(), normal(133, 37, seed=1, dtype=dtype).cuda()
            mask = (normal(131, seed=2) > -1).cuda()
            found = nearest_code_cuda.run(x, codebook, mask, "sums", method=method)
            sums = segment_sum_cuda.segment_sum(x, found[0], mask, 133)
            expected = nearest_code_statistics(x.cpu(), codebook.cpu(), mask.cpu())
            assert_as_on_the_cpu(found, expected)
            assert_as_on_the_cpu((sums,), (expected.sums.to(sums.dtype),))
    finally:
        torch.use_deterministic_algorithms(False)
