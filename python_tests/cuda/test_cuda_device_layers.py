"""The layers and operations of a training step on a GPU, against the CPU in float64.

SOLID_EXT_TEST_DEVICE=cpu runs what it can of this file on the CPU, which says nothing of the kernels and shows that the
tests themselves are sound (`bench/gpu_session.sh --dry`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from python_tests.ops import test_gru as gru
from python_tests.ops.test_dynamic_linear import (
    INFINITE,
    SIZES,
    Case,
    assert_close,
    make,
    native,
    weights_of,
    with_gradients,
)
from solid_ext import build_info
from solid_ext.nn import DynamicMLP, LowRankMLP
from solid_ext.ops.catalogue_cross_entropy import catalogue_cross_entropy
from solid_ext.ops.gru import gru_last_state

DEVICE = torch.device(os.environ.get("SOLID_EXT_TEST_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        ON_GPU and (not torch.cuda.is_available() or build_info()["cuda"] is None),
        reason="needs a CUDA device, torch with CUDA, and a module built with it",
    ),
]
gpu_alone = pytest.mark.skipif(not ON_GPU, reason="dry run on the CPU: needs a CUDA device")
operators = torch.ops.solid_ext


def moved(case: Case) -> Case:
    return case.rebuilt([t.to(DEVICE) for t in case.tensors()])


def on_device(case: Case, delta: float) -> list[Tensor]:
    return [t.cpu() for t in with_gradients(native(delta), moved(case))]


def in_double(case: Case, delta: float) -> list[Tensor]:
    return with_gradients(native(delta, "reference"), case.to(torch.float64))


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("targets", [None, 1, 3])
@pytest.mark.parametrize(("branches", "delta"), [("both", 0.1), ("item", 0.2), ("semantic", 0.1), ("both", INFINITE)])
@pytest.mark.parametrize(("sizes", "codes"), SIZES)
def test_dynamic_mlp(sizes: tuple[int, ...], codes: int, branches: str, delta: float, targets: int | None) -> None:
    for batch in (1, 33, 300):
        case = make(sizes, codes, batch, targets, branches, codes_semantic=codes + 1)
        expected = in_double(case, delta)
        assert_close(on_device(case, delta), expected, 2e-5)
        if batch == 33:
            assert_close(on_device(case.to(torch.float64), delta), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dynamic_mlp_in_half_precision(dtype: torch.dtype) -> None:
    case = make((9, 33, 5), 7, 200, dtype=dtype)
    found = on_device(case, 0.1)
    assert {t.dtype for t in found} == {dtype}
    assert_close(found, in_double(case, 0.1), 10 * torch.finfo(dtype).eps)


@gpu_alone
def test_tf32_is_used_where_torch_may_and_nowhere_else(tf32: None) -> None:
    case = make((32, 32, 32), 32, 300)
    expected = in_double(case, INFINITE)
    found = on_device(case, INFINITE)
    assert_close(found, expected, 3e-3)
    with pytest.raises(AssertionError):
        assert_close(found, expected, 1e-5)


def test_large_batches_and_repeats() -> None:
    case = make((32, 32, 32), 32, 70_000)
    found = on_device(case, 0.01)
    assert_close(found, with_gradients(native(0.01), case), 1e-4)
    for one, other in zip(on_device(case, 0.01), found, strict=True):
        assert torch.equal(one, other)


def test_dynamic_mlp_is_differentiated_right_and_registered_right() -> None:
    case = moved(make((4, 5, 3), 3, 6, dtype=torch.float64))
    leaves = [t.requires_grad_() for t in case.tensors()]
    assert torch.autograd.gradcheck(lambda *tensors: native(0.2)(case.rebuilt(list(tensors))), leaves)
    for targets in (None, 3):
        case = moved(make((4, 5, 3), 3, 6, targets))
        parameters = case.tensors()[3:]
        inputs = (case.x, case.z_item, case.z_semantic, parameters)
        for keep in (True, False):
            torch.library.opcheck(operators.dynamic_mlp_forward.default, (*inputs, 0.1, False, keep))
        y, hidden = operators.dynamic_mlp_forward.default(*inputs, 0.1, True, True)
        arguments = torch.ones_like(y), *inputs, y, hidden, 0.1, True, [True] * (3 + len(parameters))
        torch.library.opcheck(operators.dynamic_mlp_backward.default, arguments)


def test_dynamic_mlp_compiles_as_one_graph() -> None:
    def step(x: Tensor, z_item: Tensor, z_semantic: Tensor, *rest: Tensor) -> Tensor:
        return native(0.1)(case.rebuilt([x, z_item, z_semantic, *rest])).square()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (6, 9, 30):
        case = moved(make((4, 5, 3), 3, batch))
        leaves = [t.requires_grad_() for t in case.tensors()]
        found, expected = (torch.autograd.grad(f(*leaves).sum(), leaves) for f in (compiled, step))
        assert_close(list(found), list(expected), 1e-6)


@gpu_alone
def test_graphs_replay_forward_and_backward() -> None:
    case = moved(make((32, 32, 32), 32, 1000))
    leaves = [t.requires_grad_() for t in case.tensors()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(native(0.01)(case).sum(), leaves)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = native(0.01)(case)
        gradients = torch.autograd.grad(y, leaves, weights_of(y.detach()))
    with torch.no_grad():
        case.x.copy_(torch.randn_like(case.x))
    graph.replay()
    expected = with_gradients(native(0.01), case)
    for one, other in zip([y, *gradients], expected, strict=True):
        assert torch.equal(one, other)


@gpu_alone
def test_memory_does_not_grow_with_inputs_times_outputs() -> None:
    peaks = {}
    for size in (32, 128):
        layer = DynamicMLP((size, size, size), 32, 0.01).to(DEVICE)
        inputs = [torch.randn(16384, n, device=DEVICE, requires_grad=True) for n in (size, 32, 32)]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(layer(*inputs).sum(), [*inputs, *layer.parameters()])
        peaks[size] = torch.cuda.max_memory_allocated() - before
    assert peaks[128] < 6 * peaks[32]  # four times the activations, not sixteen times


@pytest.mark.parametrize("mask", ["full", "right-padded", "scattered"])
@pytest.mark.parametrize("size", [*gru.SIZES, (40, 3, 200, 150), (8300, 1, 2, 3)])
def test_gru_last_state(size: tuple[int, int, int, int], mask: str) -> None:
    case = gru.make(*size, mask)
    reference = gru.of("reference")
    expected = with_device(reference, gru.to(case, torch.float64), torch.device("cpu"))
    # Sums of thousands of terms that cancel: see test_more_tiles_than_partial_sums.
    assert_close(with_device(gru.of(), case, DEVICE), expected, 1e-4 if size[0] > 8000 else 1e-5)
    assert_close(with_device(gru.of(), gru.to(case, torch.float64), DEVICE), expected, 1e-12)


def with_device(function, case: gru.Case, device: torch.device) -> list[Tensor]:
    return [t.cpu() for t in gru.with_gradients(function, tuple(t.to(device) for t in case))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gru_last_state_in_half_precision(dtype: torch.dtype) -> None:
    case = gru.make(35, 3, 9, 10, "scattered", dtype)
    expected = with_device(gru.of("reference"), gru.to(case, torch.float64), torch.device("cpu"))
    assert_close(with_device(gru.of(), case, DEVICE), expected, 10 * torch.finfo(dtype).eps)


def test_gru_last_state_is_differentiated_right_and_registered_right() -> None:
    x, mask, *parameters = (t.to(DEVICE) for t in gru.make(6, 3, 4, 5, "scattered", torch.float64))
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    assert torch.autograd.gradcheck(lambda x, *rest: gru_last_state(x, mask, *rest), leaves)
    x, *parameters = (t.detach() for t in leaves)
    for keep in (True, False):
        torch.library.opcheck(operators.gru_last_state_forward.default, (x, mask, parameters, keep))
    h, states = operators.gru_last_state_forward.default(x, mask, parameters, True)
    arguments = torch.ones_like(h), x, mask, parameters, states, [True] * 5
    torch.library.opcheck(operators.gru_last_state_backward.default, arguments)


# What compute-sanitizer runs, slowly, and what runs first: every kernel once, at sizes with tails, against float64.


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("targets", [None, 2])
def test_for_the_sanitizer_dynamic_mlp(
    request: pytest.FixtureRequest, targets: int | None, dtype: torch.dtype, rounded: bool
) -> None:
    if rounded:
        request.getfixturevalue("tf32")
    tolerance = TOLERANCES.get(dtype, 10 * torch.finfo(dtype).eps)
    delta = INFINITE if rounded else 0.1  # ten bits of mantissa move weights across a bound
    for case in (
        make((5, 35, 2), 34, 70, targets, dtype=dtype, codes_semantic=3),
        make((3, 5), 2, 600, targets, dtype=dtype),
    ):
        assert_close(on_device(case, delta), in_double(case, delta), max(tolerance, 3e-3 if rounded else 0))
        if rounded:
            on_device(case, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(35, 2, 5, 33), (9, 2, 120, 130), (5, 2, 600, 900)])
def test_for_the_sanitizer_gru_last_state(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Weights in shared memory; not in it; and one sequence a warp."""
    case = gru.make(*size, "scattered", dtype)
    expected = with_device(gru.of("reference"), gru.to(case, torch.float64), torch.device("cpu"))
    tolerance = TOLERANCES.get(dtype, 10 * torch.finfo(dtype).eps)
    assert_close(with_device(gru.of(), case, DEVICE), expected, tolerance)


TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12}


def entropy_and_gradients(tensors: list[Tensor], target: Tensor, backend: str, device: torch.device) -> list[Tensor]:
    state, table, bias = (t.to(device) for t in tensors)
    leaves = [state.requires_grad_(), table.requires_grad_()]
    loss = catalogue_cross_entropy(*leaves, target.to(device), bias, backend=backend)
    return [t.detach().cpu() for t in (loss, *torch.autograd.grad(loss, leaves))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("batch", "dim", "items"), [(1, 1, 1), (35, 33, 130), (70, 64, 3000)])
def test_for_the_sanitizer_catalogue_cross_entropy(batch: int, dim: int, items: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*n, generator=generator).to(dtype) for n in ((batch, dim), (items, dim), (items,))]
    target = torch.randint(items, (batch,), generator=generator)
    expected = entropy_and_gradients([t.double() for t in tensors], target, "reference", torch.device("cpu"))
    found = entropy_and_gradients(tensors, target, "native", DEVICE)
    assert_close(found, expected, TOLERANCES.get(dtype, 10 * torch.finfo(dtype).eps))


def low_rank_and_gradients(layer: LowRankMLP, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = layer(*leaves)
    gradients = torch.autograd.grad(y, [*leaves, *layer.parameters()], weights_of(y.detach()))
    return [t.detach().cpu() for t in (y, *gradients)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("sizes", "rank", "batch"), [((5, 9), 1, 1), ((35, 9, 33), 16, 70), ((64, 64), 16, 300)])
def test_for_the_sanitizer_low_rank_mlp(sizes: tuple[int, ...], rank: int, batch: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LowRankMLP(sizes, 5, rank, 0.1).to(dtype)
    exact = LowRankMLP(sizes, 5, rank, 0.1, backend="reference").double()
    exact.load_state_dict(layer.state_dict())
    inputs = [torch.randn(batch, n).to(dtype) for n in (sizes[0], 5, 5)]
    expected = low_rank_and_gradients(exact, [t.double() for t in inputs])
    found = low_rank_and_gradients(layer.to(DEVICE), [t.to(DEVICE) for t in inputs])
    assert_close(found, expected, TOLERANCES[dtype])
