"""dynamic_mlp's CUDA kernels on the host policy, through the Python that would start them on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from python_tests import host_policy
from python_tests.host_policy import ORDERS, KernelError
from python_tests.ops.test_dynamic_linear import (
    INFINITE,
    SIZES,
    Case,
    assert_close,
    assert_same,
    make,
    native,
    truth,
    weights_of,
    with_gradients,
)
from solid_ext.ops import _cuda, dynamic_linear_cuda

SHARED = 99 * 1024  # bytes of a block on sm_86, 89 and 120
LARGE = 227 * 1024  # and on sm_90 and 100
TOO_LARGE = 2  # Status::kTooLarge
Host = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
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
    return choose


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


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 products may round to TF32."""
    monkeypatch.setattr(dynamic_linear_cuda, "_may_round_to_tf32", lambda: True)


def expected_of(case: Case, delta: float, tanh_last: bool = False) -> list[Tensor]:
    return with_gradients(lambda c: truth(c, delta, tanh_last), case.to(torch.float64))


@pytest.mark.parametrize(("sizes", "codes"), SIZES)
def test_all_sizes(host: Host, sizes: tuple[int, ...], codes: int) -> None:
    settings = [("both", 0.1), ("item", 0.2), ("semantic", 0.1), ("both", INFINITE), ("item", INFINITE)]
    at = SIZES.index((sizes, codes))
    for batch in [1, 33]:
        branches, delta = settings[at % len(settings)]
        case = make(sizes, codes, batch, None, branches, codes_semantic=codes + 1)
        assert_close(run(case, delta), expected_of(case, delta), 2e-5)
        at += 1


@pytest.mark.parametrize("targets", [None, 1, 3])
def test_the_general_path(host: Host, targets: int | None) -> None:
    """T > 1, float64, and tiles that do not fit; weights in several pieces of columns, sequences one by one."""
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-12)):
        for shared in (SHARED, 10240):
            host(shared=shared)
            case = make((9, 33, 5), 34, 9, targets, dtype=dtype, codes_semantic=3)
            assert_close(run(case, 0.1, True), expected_of(case, 0.1, True), tolerance)


def groups_of(
    sizes: tuple[int, ...], width: int, batch: int, multiprocessors: int, shared: int, tf32: bool
) -> list[int]:
    """Groups of 32 sequences in a block of the forward's and the backward's tiles; 0: the kernels without tiles."""
    found = torch.zeros(2, dtype=torch.int64)
    call = (0, int(tf32), batch, 1, len(sizes) - 1, *sizes, 0, 0, width, width)
    host_policy.call("dynamic_cuda_groups", multiprocessors, shared, *call, found)
    return found.tolist()


@pytest.mark.parametrize(("batch", "multiprocessors"), [(130, 1), (70, 2), (70, 1000)])
def test_four_two_and_one_warps_across_sequences(host: Host, batch: int, multiprocessors: int) -> None:
    host(multiprocessors=multiprocessors)
    case = make((5, 34, 3), 4, batch)
    assert_close(run(case, 0.1), expected_of(case, 0.1), 2e-5)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize(
    ("shared", "multiprocessors", "groups"),
    [(LARGE, 1, [4, 4]), (LARGE, 2, [2, 2]), (LARGE, 1000, [1, 1]), (SHARED, 1, [4, 2])],
)
def test_each_tile_of_the_widths_of_the_paper(
    host: Host, monkeypatch: pytest.MonkeyPatch, shared: int, multiprocessors: int, groups: list[int], tf32: bool
) -> None:
    """D = O = k = 32: what an H100 would start, and one with 99 KB; in a row of sequences that ends within a tile."""
    monkeypatch.setattr(dynamic_linear_cuda, "_may_round_to_tf32", lambda: tf32)
    host(shared=shared, multiprocessors=multiprocessors)
    assert groups_of((32, 32), 32, 70, multiprocessors, shared, tf32) == groups
    case, delta = make((32, 32), 32, 70), INFINITE if tf32 else 0.1
    assert_close(run(case, delta), expected_of(case, delta), 3e-3 if tf32 else 2e-5)


@pytest.mark.parametrize("tf32", [False, True])
def test_tiles_that_fit_are_never_left_for_the_general_kernels(tf32: bool) -> None:
    """With fewer blocks than multiprocessors too, where the fewest sequences a block are wanted and may not fit."""
    for width in (8, 32, 40, 64):
        for shared in range(32 * 1024, LARGE + 1, 8 * 1024):
            sizes = (width, width, width)
            crowded, idle = (groups_of(sizes, width, 128, count, shared, tf32) for count in (1, 1000))
            assert [bool(groups) for groups in crowded] == [bool(groups) for groups in idle]
            assert all(few <= many for few, many in zip(idle, crowded, strict=True))


@pytest.mark.parametrize(("sizes", "codes"), [((32, 32), 32), ((9, 33, 5), 40)])
def test_tf32(host: Host, rounded: None, sizes: tuple[int, ...], codes: int) -> None:
    """Ten bits of mantissa in the products; the clip's mask then differs where a weight lies on the bound."""
    for branches, delta in [("semantic", 0.1), ("item", INFINITE), ("both", INFINITE)]:
        case = make(sizes, codes, 35, None, branches)
        found, expected = run(case, delta), expected_of(case, delta)
        assert_close(found, expected, 3e-3)
        with pytest.raises(AssertionError):
            assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("targets", [None, 3])
def test_half_precision_in_and_out(host: Host, dtype: torch.dtype, targets: int | None) -> None:
    case = make((9, 33, 5), 7, 35, targets, dtype=dtype)
    found, expected = run(case, 0.1), expected_of(case, 0.1)
    assert {t.dtype for t in found} == {dtype}
    limit = torch.finfo(dtype).eps * 1.5
    assert_close(found[:1], expected[:1], limit)
    assert_close(found, expected, 3 * limit)


def integers(case: Case, seed: int = 5) -> Case:
    generator = torch.Generator().manual_seed(seed)
    return case.rebuilt([torch.randint(-2, 3, t.shape, generator=generator).to(t.dtype) for t in case.tensors()])


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("targets", [None, 2])
def test_integers_are_exact_and_the_clip_is_closed(
    host: Host, monkeypatch: pytest.MonkeyPatch, tf32: bool, targets: int | None
) -> None:
    """Small integers have exact sums, in TF32 too, with many weights exactly on the bound."""
    monkeypatch.setattr(dynamic_linear_cuda, "_may_round_to_tf32", lambda: tf32)
    monkeypatch.setattr(
        "python_tests.cuda.test_cuda_dynamic_linear.weights_of",
        lambda y: (torch.arange(y.numel()) % 3 - 1).to(y).view_as(y),
    )
    case = integers(make((6, 17), 3, 37, targets))
    on_bound = torch.einsum("bk,iko->bio", case.z_item, case.item_maps[0]) + case.item_offsets[0]
    assert (on_bound.abs() == 2).any()
    leaves = case.to(torch.float64).rebuilt([t.double().requires_grad_() for t in case.tensors()])
    y = truth(leaves, 2.0)
    upstream = (torch.arange(y.numel()) % 3 - 1).to(y).view_as(y)
    expected = [y.detach(), *torch.autograd.grad(y, leaves.tensors(), upstream)]
    assert_same([t.double() for t in run(case, 2.0)], expected)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize(("targets", "shared"), [(None, SHARED), (2, SHARED)])
def test_every_order_of_threads_gives_the_same_bits(
    host: Host, monkeypatch: pytest.MonkeyPatch, tf32: bool, targets: int | None, shared: int
) -> None:
    """Of blocks too, whose sums of the parameters are added in strips of the batch."""
    monkeypatch.setattr(dynamic_linear_cuda, "_may_round_to_tf32", lambda: tf32)
    case = make((3, 5), 2, 600, targets)
    expected = run(case, 0.1)
    for order in ORDERS[1:]:
        host(order=order)
        assert_same(run(case, 0.1), expected)
    assert_close(expected, expected_of(case, 0.1), 3e-2 if tf32 else 2e-5)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize(("targets", "dtype"), [(None, torch.float32), (3, torch.float32), (None, torch.bfloat16)])
def test_nothing_lies_outside_its_array(
    host: Host, monkeypatch: pytest.MonkeyPatch, tf32: bool, targets: int | None, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(dynamic_linear_cuda, "_may_round_to_tf32", lambda: tf32)
    host(call=host_policy.call_sanitized, order=2)
    case = make((5, 35, 2), 34, 35, targets, dtype=dtype, codes_semantic=3)
    found = run(case, 0.1)
    host(call=host_policy.call, order=0)
    assert_same(found, run(case, 0.1))


def test_maps_that_are_not_aligned(host: Host) -> None:
    case = make((7, 8), 3, 5)
    moved = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t) for t in case.tensors()]
    assert moved[3].data_ptr() % 16 == 4
    assert_same(run(case.rebuilt(moved), 0.1), run(case, 0.1))


def test_nan_stays_where_torch_leaves_it(host: Host) -> None:
    case = make((5, 6, 4), 3, 34)
    nan = float("nan")
    for name, at in [("x", (3, 2)), ("z_item", (4, 1)), ("z_semantic", (5, 0))]:
        broken = replace(case, **{name: getattr(case, name).clone()})
        getattr(broken, name)[at] = nan
        y = run(broken, 0.1)[0]
        assert bool(y[at[0]].isnan().all())
        assert int(y.isnan().any(1).sum()) == 1


@pytest.mark.parametrize("targets", [None, 2])
def test_nan_weight_passes_no_gradient(host: Host, targets: int | None) -> None:
    case = make((3, 4), 2, 5, targets)
    case.item_offsets[0][1, 2] = float("nan")
    for one, other in zip(run(case, 0.1), with_gradients(native(0.1), case), strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", [None, 0, 1, 4])
def test_empty_batch_and_no_targets(host: Host, targets: int | None) -> None:
    for batch in (0, 3) if targets == 0 else (0,):
        y, *gradients = run(make((4, 5, 3), 2, batch, targets), 0.1)
        assert y.shape == ((batch, 3) if targets is None else (batch, targets, 3))
        for gradient in gradients:
            assert bool((gradient == 0).all())


def test_layer_without_inputs_is_its_bias(host: Host) -> None:
    case = make((0, 4), 3, 5, branches="semantic")
    assert_close(run(case, 0.1), expected_of(case, 0.1), 1e-5)


@pytest.mark.parametrize("targets", [None, 2])
def test_only_wanted_gradients_are_computed(host: Host, targets: int | None) -> None:
    case = make((4, 7, 5), 3, 9, targets)
    everything = run(case, 0.1)[1:]
    for chosen in [{0}, {1}, {2}, {3}, {5}, {8, 9}, {0, 6, 7}]:
        found = run(case, 0.1, wanted=[at in chosen for at in range(11)])[1:]
        assert_same(found, [everything[at] for at in sorted(chosen)])


def test_more_memory_than_a_device_has_is_refused(host: Host) -> None:
    host(shared=1024)
    with pytest.raises(KernelError, match=f"status {TOO_LARGE}"):
        run(make((300, 4), 2, 3, 2), 0.1)


def test_workspace_holds_nothing_of_the_size_of_the_weights(host: Host) -> None:
    """O(B (D + O + k)) floats, and at most sixteen sums of each parameter."""
    batch, size = 1 << 20, 64
    sizes = (0, 0, batch, 1, 2, size, size, size, 0, 0, size, size)
    assert _cuda.query("dynamic_cuda_workspace", *sizes) <= 4 * (
        batch * 5 * size + 16 * 4 * (size + 1) ** 2 * size + 4096
    )


def test_too_many_layers_get_a_sentence(host: Host) -> None:
    case = make((2,) * 18, 1, 2, branches="semantic")
    with pytest.raises(ValueError, match="expected at most 16 layers on a CUDA device, got 17"):
        run(case, 0.1)


def test_tf32_follows_torch() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for setting in ("tf32", "ieee"):
            torch.backends.cuda.matmul.fp32_precision = setting
            assert dynamic_linear_cuda._may_round_to_tf32() == (setting == "tf32")
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("delta", [0.1, 0.0, torch.inf])
@pytest.mark.parametrize("targets", [None, 2])
def test_what_is_not_finite_goes_the_same_way_as_in_plain_torch(
    host: Host, targets: int | None, delta: float, value: float
) -> None:
    case = make((5, 6, 3), 2, 4, targets)
    for at in range(11):
        tensors = [tensor.clone() for tensor in case.tensors()]
        tensors[at].view(-1)[13 % tensors[at].numel()] = value
        broken = case.rebuilt(tensors)
        y, *gradients = run(broken, delta)
        wanted, *others = with_gradients(native(delta, "reference"), broken)
        torch.testing.assert_close(y, wanted, equal_nan=True, rtol=1e-5, atol=1e-5)
        for one, other in zip(gradients, others, strict=True):
            assert torch.equal(one.isfinite(), other.isfinite()), at
