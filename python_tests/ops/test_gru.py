"""gru_last_state against torch's own GRU: every backend, instruction set, size and mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from python_tests.ops.cases import IMPLEMENTATIONS, assert_close, assert_same, peak_bytes, weights_of
from solid_ext import build_info
from solid_ext.nn.last_state import LastState
from solid_ext.ops.gru import gru_last_state

SIZES = [  # B, L, D, H: single elements, tile edges, full vectors, several strips
    (1, 1, 1, 1),
    (2, 4, 3, 5),
    (31, 3, 31, 33),
    (32, 3, 32, 32),
    (33, 5, 33, 31),
    (70, 2, 16, 64),
    (500, 3, 5, 7),
]
operators = torch.ops.solid_ext
Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def right_padded(batch: int, length: int) -> Tensor:
    """Every number of positions, none and all included."""
    return torch.arange(length) < (torch.arange(batch) % (length + 1)).flip(0)[:, None]


def scattered(batch: int, length: int) -> Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(4)) < 0.6


MASKS: dict[str, Callable[[int, int], Tensor]] = {
    "full": lambda batch, length: torch.ones(batch, length, dtype=torch.bool),
    "right-padded": right_padded,
    "scattered": scattered,
}


def make(
    batch: int, length: int, inputs: int, units: int, mask: str = "full", dtype: torch.dtype = torch.float32
) -> Case:
    """x, mask and the parameters, at ordinary scale."""
    generator = torch.Generator().manual_seed(batch + 7 * inputs + units)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    return (
        normal(batch, length, inputs),
        MASKS[mask](batch, length),
        normal(3 * units, inputs, scale=inputs**-0.5),
        normal(3 * units, units, scale=units**-0.5),
        normal(3 * units, scale=0.3),
        normal(3 * units, scale=0.3),
    )


def to(case: Case, dtype: torch.dtype) -> Case:
    x, mask, *parameters = case
    return (x.to(dtype), mask, *(p.to(dtype) for p in parameters))


def truth(x: Tensor, mask: Tensor, *parameters: Tensor) -> Tensor:
    """nn.GRU's cell over the valid positions of one sequence after the other."""
    cell = nn.GRUCell(x.shape[2], parameters[1].shape[1], dtype=x.dtype)
    named = dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), parameters, strict=True))
    states = []
    start = sum(0 * t.sum() for t in (x, *parameters)).expand(1, parameters[1].shape[1])  # differentiable zeros
    for sequence, valid in zip(x, mask, strict=True):
        state = start
        for position in sequence[valid]:
            state = torch.func.functional_call(cell, named, (position[None], state))
        states.append(state)
    return torch.cat(states) if states else x.new_zeros(0, parameters[1].shape[1])


def of(backend: str = "native") -> Callable[..., Tensor]:
    return lambda *case: gru_last_state(*case, backend=backend)


def with_gradients(function: Callable[..., Tensor], case: Case) -> list[Tensor]:
    """The result, and the gradients of x and the parameters."""
    leaves = [t.detach().clone().requires_grad_(t.dtype != torch.bool) for t in case]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [leaves[0], *leaves[2:]], weights_of(y))]


def test_every_instruction_set_is_in_the_list() -> None:
    assert {"reference", *(f"native-{isa}" for isa in build_info()["isa_usable"])} == set(IMPLEMENTATIONS)


@cache
def problem(size: tuple[int, int, int, int], mask: str) -> tuple[Case, list[Tensor]]:
    """A case in float32, and its true result and gradients."""
    case = make(*size, mask)
    return case, with_gradients(truth, to(case, torch.float64))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", MASKS)
def test_forward_and_gradients(backend: str, size: tuple[int, int, int, int], mask: str) -> None:
    case, expected = problem(size, mask)
    assert_close(with_gradients(of(backend), to(case, torch.float64)), expected, 1e-13)
    assert_close(with_gradients(of(backend), case), expected, 1e-5)


def test_it_is_the_last_state_of_nn_gru(backend: str) -> None:
    gru = nn.GRU(12, 9, batch_first=True, dtype=torch.float64)
    x, mask = torch.randn(20, 6, 12, dtype=torch.float64), right_padded(20, 6)
    states = gru(x)[0]
    length = mask.sum(1)
    expected = states[torch.arange(20), (length - 1).clamp(min=0)] * (length > 0)[:, None]
    found = gru_last_state(x, mask, gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0, backend=backend)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(backend: str, dtype: torch.dtype) -> None:
    case = make(35, 4, 9, 33, "scattered", dtype)
    expected = with_gradients(truth, to(case, torch.float64))
    found = with_gradients(of(backend), case)
    assert {t.dtype for t in found} == {dtype}
    # The native backend rounds only what it writes; the reference rounds every step.
    assert_close(found, expected, torch.finfo(dtype).eps * (1 if backend == "native" else 40))


def test_gates_to_a_few_units_in_the_last_place(backend: str) -> None:
    """One unit without a memory of its own: h = (1 - sigmoid(z)) tanh(n), over the whole range."""
    values = torch.cat([torch.logspace(-30, 2, 3000), torch.linspace(0.2, 1.2, 2000), torch.tensor([0.0, 1e30])])
    values = torch.cat([values, -values])
    nothing = torch.zeros(3, 1)
    one = torch.tensor([[0.0], [0.0], [1.0]])
    mask = torch.ones(len(values), 1, dtype=torch.bool)

    def error(weight: Tensor, bias: Tensor, expected: Tensor) -> Tensor:
        found = gru_last_state(values[:, None, None], mask, weight, nothing, bias, torch.zeros(3), backend=backend)
        return (found.squeeze(1).double() - expected).abs() / expected.abs().clamp(min=2e-38)

    eps = torch.finfo(torch.float32).eps
    curved = error(one, torch.tensor([0.0, -90.0, 0.0]), values.double().tanh())  # z = sigmoid(-90): nothing kept
    assert bool((curved <= 4 * eps).all())
    gate = torch.tensor([[0.0], [1.0], [0.0]])
    bias = torch.tensor([0.0, 0.0, 30.0])  # n = 1: h = 1 - z
    kept = (-values.double()).sigmoid()
    assert bool((error(gate, bias, kept) * kept <= 4 * eps).all())  # 1 - z loses what z has rounded away


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_read(backend: str, batch: int, length: int) -> None:
    case = make(batch, length, 4, 5)
    y = of(backend)(*case)
    assert y.shape == (batch, 5)
    assert bool((y == 0).all())
    if backend == "native":  # the reference's zeros depend on nothing
        for gradient in with_gradients(of(), case)[1:]:
            assert bool((gradient == 0).all())


def test_masked_positions_are_not_read() -> None:
    case = make(40, 5, 6, 18, "scattered")
    x, mask = case[0].clone(), case[1]
    expected = with_gradients(of(), case)
    x[~mask] = float("nan")
    found = with_gradients(of(), (x, *case[1:]))
    assert_same(found, expected)
    assert bool((found[1][~mask] == 0).all())


def test_nan_stays_where_torch_leaves_it(backend: str) -> None:
    case = make(40, 3, 5, 18, "right-padded")
    x, mask, *parameters = case
    broken = x.clone()
    broken[1, 0, 2] = float("nan")
    assert bool(mask[1, 0])
    y = of(backend)(broken, mask, *parameters)
    assert bool(y[1].isnan().all())
    assert int(y.isnan().any(1).sum()) == 1
    for at, weight in enumerate(parameters):
        changed = [p.clone() for p in parameters]
        changed[at].view(-1)[weight.numel() - 1] = float("nan")
        y = of(backend)(x, mask, *changed)
        assert torch.equal(y.isnan().any(1), mask.any(1))


def test_layouts_of_any_stride() -> None:
    case = make(21, 4, 6, 18, "scattered")
    expected = with_gradients(of(), case)

    def spread(t: Tensor) -> Tensor:
        """The same values, transposed in memory and with gaps."""
        wide = torch.zeros((*t.shape[::-1], 2), dtype=t.dtype)
        view = wide[..., 0].permute(*reversed(range(t.dim())))
        view.copy_(t)
        return view

    leaves = [spread(t).requires_grad_(t.dtype != torch.bool) for t in case]
    y = of()(*leaves)
    found = [y.detach(), *torch.autograd.grad(y, [leaves[0], *leaves[2:]], spread(weights_of(y)))]
    assert_same(found, expected)
    x = case[0]
    assert_same([of()(x.transpose(0, 1).contiguous().transpose(0, 1), *case[1:])], expected[:1])
    assert_same(
        [of()(x[:, :1].expand(-1, 4, -1), *case[1:])], [of()(x[:, :1].expand(-1, 4, -1).contiguous(), *case[1:])]
    )


def test_gradient_of_a_sum(backend: str) -> None:
    """The upstream gradient of a sum has stride 0."""
    case = make(9, 3, 4, 5, dtype=torch.float64)
    leaves = [t.requires_grad_(t.dtype != torch.bool) for t in case]
    wanted = [leaves[0], *leaves[2:]]
    found = torch.autograd.grad(of(backend)(*leaves).sum(), wanted)
    assert_close(list(found), list(torch.autograd.grad(truth(*leaves).sum(), wanted)), 1e-13)


def test_only_wanted_gradients_are_computed() -> None:
    case = make(40, 3, 5, 17, "scattered")
    everything = with_gradients(of(), case)[1:]
    tensors = [case[0], *case[2:]]
    for chosen in [{0}, {1}, {2}, {3}, {4}, {1, 3}, {0, 2, 4}]:
        leaves = [t.clone().requires_grad_(at in chosen) for at, t in enumerate(tensors)]
        y = of()(leaves[0], case[1], *leaves[1:])
        y.backward(weights_of(y))
        for at, leaf in enumerate(leaves):
            assert (leaf.grad is None) == (at not in chosen)
            if leaf.grad is not None:
                assert torch.equal(leaf.grad, everything[at])


def test_results_with_and_without_gradients_are_the_same(backend: str) -> None:
    case = make(40, 4, 5, 17, "right-padded")
    with torch.no_grad():
        y = of(backend)(*case)
    assert torch.equal(y, with_gradients(of(backend), case)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
def test_any_number_of_threads_gives_the_same_bits(mask: str, dtype: torch.dtype) -> None:
    case = make(600, 3, 17, 33, mask, dtype)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 8, 1):
            torch.set_num_threads(threads)
            found.append(with_gradients(of(), case))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("size", [(70, 3, 32, 32), (21, 4, 5, 9), (1500, 2, 4, 8)])
def test_nothing_is_read_before_it_is_written(backend: str, size: tuple[int, int, int, int], mask: str) -> None:
    """Deterministic mode fills new tensors, workspaces included, with NaN."""
    case = make(*size, mask)
    expected = with_gradients(of(backend), case)
    torch.use_deterministic_algorithms(True)
    try:
        found = with_gradients(of(backend), case)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(found, expected)


def test_a_step_keeps_the_states_and_little_more() -> None:
    batch, length, size = 4096, 10, 32
    leaves = [t.requires_grad_(t.dtype != torch.bool) for t in make(batch, length, size, size)]
    wanted = [leaves[0], *leaves[2:]]
    upstream = torch.ones(batch, size)

    def step(backend: str) -> int:
        return peak_bytes(lambda: torch.autograd.grad(of(backend)(*leaves), wanted, upstream))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        native, written = step("native"), step("reference")
        with torch.no_grad():
            serving = peak_bytes(lambda: of()(*leaves))
    finally:
        torch.set_num_threads(before)
    states = results = 4 * batch * length * size
    gates = 3 * states
    assert native < states + results + 0.35 * gates  # h, upstream, parameters, strips and tiles
    assert native - states - results - 8 * batch * size < 0.25 * gates
    assert serving < 0.15 * states
    assert written > gates  # the measure sees what the reference writes


@pytest.mark.parametrize("mask", MASKS)
def test_gradcheck(backend: str, mask: str) -> None:
    x, valid, *parameters = make(5, 3, 3, 4, mask, torch.float64)
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    assert torch.autograd.gradcheck(lambda x, *rest: gru_last_state(x, valid, *rest, backend=backend), leaves)


def test_opcheck() -> None:
    x, mask, *parameters = make(6, 3, 4, 5, "scattered")
    for keep in (True, False):
        torch.library.opcheck(operators.gru_last_state_forward.default, (x, mask, parameters, keep))
    h, states = operators.gru_last_state_forward.default(x, mask, parameters, True)
    for wanted in ([True] * 5, [False, True, False, False, True]):
        arguments = (torch.ones_like(h), x, mask, parameters, states, wanted)
        torch.library.opcheck(operators.gru_last_state_backward.default, arguments)


@pytest.mark.slow
def test_compile_without_breaks_for_any_batch() -> None:
    def step(*case: Tensor) -> Tensor:
        return gru_last_state(*case).square()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (6, 9, 30):
        case = make(batch, 4, 3, 5, "right-padded")
        assert_close(with_gradients(compiled, case), with_gradients(step, case), 1e-6)


def test_autocast_takes_x_in_the_dtype_of_the_parameters() -> None:
    case = make(6, 3, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = gru_last_state(case[0].bfloat16(), *case[1:])
    assert_same([y], [gru_last_state(case[0].bfloat16().float(), *case[1:])])


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (TypeError, "expected x a tensor, got list", {0: [1.0]}),
        (ValueError, r"expected x \[B, L, D >= 1\], got \[6, 3\]", {0: torch.zeros(6, 3)}),
        (ValueError, r"expected x \[B, L, D >= 1\], got \[6, 3, 0\]", {0: torch.zeros(6, 3, 0)}),
        (TypeError, "expected x of a floating dtype, got torch.int64", {0: torch.zeros(6, 3, 4, dtype=torch.int64)}),
        (TypeError, "expected mask of torch.bool, got torch.float32", {1: torch.ones(6, 3)}),
        (TypeError, "expected mask a tensor, got NoneType", {1: None}),
        (ValueError, r"expected mask \[B=6, L=3\], got \[6, 2\]", {1: torch.ones(6, 2, dtype=torch.bool)}),
        (ValueError, r"expected weight_input \[3H=15, D=4\], got \[15, 3\]", {2: torch.zeros(15, 3)}),
        (TypeError, "expected weight_input a tensor, got NoneType", {2: None}),
        (ValueError, r"expected weight_hidden \[3H, H >= 1\], got \[15\]", {3: torch.zeros(15)}),
        (ValueError, r"expected weight_hidden \[3H=15, H=5\], got \[12, 5\]", {3: torch.zeros(12, 5)}),
        (ValueError, r"expected bias_input \[3H=15\], got \[5\]", {4: torch.zeros(5)}),
        (
            TypeError,
            "expected bias_hidden of torch.float32, got torch.float64",
            {5: torch.zeros(15).double()},
        ),
        (
            ValueError,
            "expected mask on cpu, got meta",
            {1: torch.ones(6, 3, dtype=torch.bool, device="meta")},
        ),
        (ValueError, "expected bias_input on cpu, got meta", {4: torch.zeros(15, device="meta")}),
        (ValueError, "expected x a dense tensor, got torch.sparse_coo", {0: torch.zeros(6, 3, 4).to_sparse()}),
        (ValueError, "expected mask a dense tensor", {1: torch.ones(6, 3, dtype=torch.bool).to_sparse()}),
        (ValueError, "expected weight_input a dense tensor", {2: torch.zeros(15, 4).to_sparse()}),
    ],
)
def test_what_does_not_fit_gets_a_sentence(error: type[Exception], message: str, changed: dict[int, object]) -> None:
    case: list[object] = list(make(6, 3, 4, 5))
    for at, value in changed.items():
        case[at] = value
    with pytest.raises(error, match="^gru_last_state: " + message):
        gru_last_state(*case)  # type: ignore[arg-type]


def test_an_unknown_backend_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="expected backend 'native' or 'reference', got 'cuda'"):
        gru_last_state(*make(6, 3, 4, 5), backend="cuda")  # type: ignore[arg-type]


def test_last_state_holds_a_gru_cell_whatever_the_backend() -> None:
    native, reference = LastState(8), LastState(8, "reference")
    assert set(native.state_dict()) == {f"cell.{name}" for name in nn.GRUCell(8, 8).state_dict()}
    reference.load_state_dict(native.state_dict())
    x, mask = torch.randn(12, 4, 8), right_padded(12, 4)
    assert_close([native(x, mask)], [reference(x, mask)], 1e-6)
