"""Every operator checks what it will read and write, and reads tensors as what they are, not as their memory lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.ops import cases
from solid_ext.ops.catalogue_cross_entropy import catalogue_cross_entropy
from solid_ext.ops.dynamic_linear import dynamic_mlp
from solid_ext.ops.gru import gru_last_state
from solid_ext.ops.low_rank import low_rank_mlp
from solid_ext.ops.nearest_code import nearest_code, nearest_code_statistics
from solid_ext.ops.segment_sum import segment_sum
from solid_ext.ops.symbols import embed_symbols

normal = partial(cases.normal, dtype=torch.float32)
OPERATORS = torch.ops.solid_ext
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]]) > 0


def search(backend: str, mask: Tensor, x: Tensor, codebook: Tensor) -> list[Tensor]:
    return list(nearest_code_statistics(x, codebook, mask, backend=backend))


def gru(backend: str, mask: Tensor, x: Tensor, *parameters: Tensor) -> list[Tensor]:
    return [gru_last_state(x, mask, *parameters, backend=backend)]


def layers(backend: str, mask: Tensor, *given: Tensor) -> list[Tensor]:
    x, z_item, z_semantic, *maps = given
    tables = [maps[at : at + 2] for at in range(0, 8, 2)]
    return [dynamic_mlp(x, z_item, z_semantic, *tables, delta=0.3, backend=backend)]


def cross_entropy(backend: str, mask: Tensor, state: Tensor, table: Tensor, bias: Tensor) -> list[Tensor]:
    constant = bias.detach() if isinstance(bias, Tensor) else bias
    return [catalogue_cross_entropy(state, table, IDS, constant, reduction="none", backend=backend)]


def low_rank(backend: str, mask: Tensor, *given: Tensor) -> list[Tensor]:
    x, z_item, z_semantic, *tables = given
    return [low_rank_mlp(x, z_item, z_semantic, *([t] for t in tables), delta=0.3, backend=backend)]


Call = Callable[..., list[Tensor]]
GIVEN: dict[str, tuple[Call, list[tuple[int, ...]]]] = {
    "nearest_code": (search, [(4, 3, 5), (7, 5)]),
    "catalogue_cross_entropy": (cross_entropy, [(4, 5), (7, 5), (7,)]),
    "gru_last_state": (gru, [(4, 3, 5), (18, 5), (18, 6), (18,), (18,)]),
    "dynamic_mlp": (
        layers,
        [(4, 5), (4, 2), (4, 3), (6, 2, 6), (7, 2, 3), (6, 6), (7, 3), (6, 3, 6), (7, 3, 3), (6, 6), (7, 3)],
    ),
    "low_rank_mlp": (
        low_rank,
        [(4, 5), (4, 2), (4, 3), (3, 5), (5, 3), (5,), (4, 2, 3), (4, 3), (4, 3, 3), (4, 3)],
    ),
    "dynamic_mlp of targets": (
        layers,
        [(4, 2, 5), (4, 2), (4, 3), (6, 2, 6), (7, 2, 3), (6, 6), (7, 3), (6, 3, 6), (7, 3, 3), (6, 6), (7, 3)],
    ),
}


def negated(tensor: Tensor) -> Tensor:
    """The same numbers, of which the memory holds the opposite."""
    lazy = torch._neg_view((-tensor).detach())
    assert lazy.is_neg()
    return lazy


def imaginary(tensor: Tensor) -> Tensor:
    """The same numbers as the imaginary part of a lazy conjugate: strided, and negated."""
    lazy = torch.complex(tensor, -tensor).detach().conj().imag
    assert lazy.is_neg()
    return lazy


def overlapping(tensor: Tensor) -> Tensor:
    """All of the first row's numbers, again and again, by a stride of zero."""
    return tensor[:1].detach().expand(tensor.shape)


@pytest.mark.parametrize("lay", [negated, imaginary, overlapping])
@pytest.mark.parametrize("name", GIVEN)
def test_tensors_are_read_as_what_they_are(backend: str, name: str, lay: Callable[[Tensor], Tensor]) -> None:
    call, shapes = GIVEN[name]
    plain = [normal(*shape, seed=at).requires_grad_() for at, shape in enumerate(shapes)]
    for at in range(len(plain)):
        odd = [*plain[:at], lay(plain[at]), *plain[at + 1 :]]
        same = [*plain[:at], lay(plain[at]).clone().resolve_neg().contiguous(), *plain[at + 1 :]]
        for tensors in (odd, same):
            tensors[at].requires_grad_()
        found, wanted = call(backend, MASK, *odd), call(backend, MASK, *same)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
        with torch.no_grad():
            for one, other in zip(call(backend, MASK, *odd), wanted, strict=True):
                torch.testing.assert_close(one, other)
        # The gradient that arrives may be lazy too.
        output, expected = (next(part for part in parts if part.requires_grad) for parts in (found, wanted))
        up = normal(*output.shape, seed=9)
        leaves = [*plain[:at], *plain[at + 1 :]]
        ours = torch.autograd.grad(output, leaves, negated(up), allow_unused=True)
        theirs = torch.autograd.grad(expected, leaves, up, allow_unused=True)
        for one, other in zip(ours, theirs, strict=True):
            if other is not None:
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", GIVEN)
def test_masks_of_any_layout_are_read(backend: str, name: str) -> None:
    call, shapes = GIVEN[name]
    tensors = [normal(*shape, seed=at) for at, shape in enumerate(shapes)]
    wide = torch.zeros(3, 4, 2, dtype=torch.bool)
    wide[:, :, 1] = MASK.T
    for mask, same in ((wide[:, :, 1].T, MASK), (MASK[:1].expand(4, 3), MASK[:1].repeat(4, 1))):
        for one, other in zip(call(backend, mask, *tensors), call(backend, same, *tensors), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_no_tensor_is_named(backend: str, name: str) -> None:
    call, shapes = GIVEN[name]
    tensors: list[Any] = [normal(*shape, seed=at) for at, shape in enumerate(shapes)]
    for at in range(len(tensors)):
        given = [*tensors[:at], tensors[at].numpy(), *tensors[at + 1 :]]
        with pytest.raises(TypeError, match=r"expected \w.* a tensor, got ndarray"):
            call(backend, MASK, *given)
    if name in ("nearest_code", "gru_last_state"):
        with pytest.raises(TypeError, match="expected mask a tensor, got ndarray"):
            call(backend, MASK.numpy(), *tensors)
        for mask in (MASK.long(), MASK.float(), MASK.to(torch.uint8)):
            with pytest.raises(TypeError, match=r"expected mask of torch\.bool"):
                call(backend, mask, *tensors)


X, CODES, IDS = normal(4, 5), normal(7, 5), torch.tensor([0, 3, 6, 6])
SEQUENCES, SYMBOL, AGE = torch.tensor([[1, 2, 0], [3, 0, 0]]), normal(4, 5), normal(3, 5)
GRU = [normal(*shape, seed=at) for at, shape in enumerate([(18, 5), (18, 6), (18,), (18,)])]
STEPS = normal(4, 3, 5)
MAPS = [normal(*shape, seed=at) for at, shape in enumerate([(6, 2, 6), (7, 2, 3), (6, 6), (7, 3)])]
Z = normal(4, 2)
HIDDEN = torch.zeros(24)
LOW = [normal(*shape, seed=at) for at, shape in enumerate([(3, 5), (3, 3), (3,), (4, 2, 3), (4, 3)])]
KEPT = torch.zeros(4 * 3 + 32 * 4 * 3)
STATES = torch.zeros(3, 4, 6)
REFUSED: list[tuple[str, Sequence[Any], str]] = [
    ("nearest_code", (STEPS, CODES, None), r"expected x \[N, D\], got \[4, 3, 5\]"),
    ("nearest_code", (X, CODES[:, :3], None), r"expected codebook \[K, D=5\], got \[7, 3\]"),
    ("nearest_code", (X, CODES.double(), None), "got torch.float32 and torch.float64"),
    ("nearest_code", (X.long(), CODES, None), "got torch.int64 and torch.float32"),
    ("nearest_code", (X, CODES, IDS > 99), None),
    ("nearest_code", (X, CODES, IDS[:2] > 0), r"expected mask \[4\], got \[2\]"),
    ("nearest_code", (X, CODES, IDS), "expected mask of torch.bool, got torch.int64"),
    ("nearest_code_statistics", (X, CODES[:, :3], None, True), r"expected codebook \[K, D=5\]"),
    ("segment_sum", (X, IDS, None, 7), None),
    ("segment_sum", (X, IDS, None, 6), r"expected index in 0 \.\. 5, got 6"),
    ("segment_sum", (X, IDS - 1, None, 7), r"expected index in 0 \.\. 6, got -1"),
    ("segment_sum", (X, IDS * 10**12, None, 7), r"expected index in 0 \.\. 6, got 3000000000000"),
    ("segment_sum", (X, IDS[:3], None, 7), r"expected index \[4\], got \[3\]"),
    ("segment_sum", (X, IDS.int(), None, 7), "expected index of torch.int64, got torch.int32"),
    ("segment_sum", (X.bfloat16(), IDS, None, 7), "expected values of float32 or float64, got torch.bfloat16"),
    ("segment_sum", (X.long(), IDS, None, 7), "expected values of float32 or float64, got torch.int64"),
    ("segment_sum", (X, IDS, IDS[:2] > 0, 7), r"expected mask \[4\], got \[2\]"),
    ("segment_sum", (X, IDS, None, 0), "expected num_codes >= 1, got 0"),
    ("segment_sum", (X[0], IDS, None, 7), r"expected values \[N, D\], got \[5\]"),
    ("catalogue_cross_entropy", (X, CODES, IDS, CODES[:, 0], Z[:, 0], [True, True]), None),
    ("catalogue_cross_entropy", (X, CODES[:, :3], IDS, None, None, [True, True]), r"expected table \[V >= 1, D=5\]"),
    ("catalogue_cross_entropy", (X, CODES.double(), IDS, None, None, [True, True]), "expected table of torch.float32"),
    ("catalogue_cross_entropy", (X, CODES, IDS + 1, None, None, [True, True]), r"expected target in 0 \.\. 6, got 7"),
    ("catalogue_cross_entropy", (X, CODES, IDS[:3], None, None, [True, True]), r"expected target \[B=4\], got \[3\]"),
    ("catalogue_cross_entropy", (X, CODES, IDS, X[0], None, [True, True]), r"expected bias \[V=7\], got \[5\]"),
    ("catalogue_cross_entropy", (X, CODES, IDS, None, X[0], [True, True]), r"expected weight \[4\], got \[5\]"),
    (
        "catalogue_cross_entropy",
        (X.half(), CODES.half(), IDS, None, Z[:, 0].half(), [True] * 2),
        "weight of torch.float32",
    ),
    ("catalogue_cross_entropy", (X, CODES, IDS, None, None, [True]), "expected wanted for state and table, got 1"),
    ("dropout", (X, IDS[0], 0.5), None),
    ("dropout", (X, IDS, 0.5), r"expected key \[\], got \[4\]"),
    ("dropout", (X, IDS[0].int(), 0.5), "expected key of torch.int64, got torch.int32"),
    ("dropout", (X.long(), IDS[0], 0.5), "expected x of a floating dtype, got torch.int64"),
    ("dropout", (X, IDS[0], 1.0), "expected 0 <= probability < 1, got 1.0"),
    ("embed_symbols", (SEQUENCES, SYMBOL, AGE, False), None),
    ("embed_symbols", (SEQUENCES, SYMBOL[:3], AGE, False), r"expected sequences in 0 \.\. 2, got 3"),
    ("embed_symbols", (SEQUENCES * 10**9, SYMBOL, AGE, False), r"expected sequences in 0 \.\. 3, got 1000000000"),
    ("embed_symbols", (-SEQUENCES, SYMBOL, AGE, False), r"expected sequences in 0 \.\. 3, got -1"),
    ("embed_symbols", (-SEQUENCES, normal(6, 5), AGE, True), r"expected sequences in 0 \.\. .*, got -1"),
    ("embed_symbols", (SEQUENCES.int(), SYMBOL, AGE, False), "expected sequences of torch.int64"),
    ("embed_symbols", (SEQUENCES, SYMBOL, AGE[:2], False), r"expected age \[L=3 or more, D=5\], got \[2, 5\]"),
    ("embed_symbols", (SEQUENCES, SYMBOL, AGE[:, :4], False), r"expected age \[L=3 or more, D=5\], got \[3, 4\]"),
    ("embed_symbols", (SEQUENCES, SYMBOL, AGE.double(), False), "expected age of torch.float32, got torch.float64"),
    ("embed_symbols", (SEQUENCES, SYMBOL.half(), AGE.half(), False), "expected symbol of float32 or float64"),
    ("embed_symbols", (SEQUENCES, SYMBOL, AGE, True), r"expected symbol \[B L=6, D >= 1\], got \[4, 5\]"),
    ("gru_last_state_forward", (STEPS, MASK, GRU, True), None),
    ("gru_last_state_forward", (STEPS, MASK, GRU[:3], True), "expected 4 parameters, got 3"),
    ("gru_last_state_forward", (STEPS, MASK[:, :2], GRU, True), r"expected mask \[B=4, L=3\], got \[4, 2\]"),
    ("gru_last_state_forward", (STEPS[:, :, :4], MASK, GRU, True), r"expected weight_input \[3H=18, D=4\]"),
    ("gru_last_state_forward", (STEPS, MASK, [*GRU[:2], GRU[2][:9], GRU[3]], True), r"expected bias_input \[3H=18\]"),
    ("gru_last_state_forward", (STEPS, MASK, [GRU[0].double(), *GRU[1:]], True), "expected weight_input of torch.f"),
    ("gru_last_state_backward", (normal(4, 6), STEPS, MASK, GRU, STATES, [True] * 5), None),
    ("gru_last_state_backward", (normal(4, 5), STEPS, MASK, GRU, STATES, [True] * 5), r"expected dh \[4, 6\]"),
    ("gru_last_state_backward", (normal(4, 6), STEPS, MASK, GRU, STATES[1:], [True] * 5), "expected states"),
    ("gru_last_state_backward", (normal(4, 6), STEPS, MASK, GRU, STATES.double(), [True] * 5), "expected states of"),
    ("gru_last_state_backward", (normal(4, 6), STEPS, MASK, GRU, STATES, [True] * 4), "expected wanted"),
    ("dynamic_mlp_forward", (X, None, Z, MAPS, 0.1, False, True), None),
    ("dynamic_mlp_forward", (X, None, None, MAPS, 0.1, False, True), "expected z_item or z_semantic"),
    ("dynamic_mlp_forward", (X, Z, Z, MAPS[:3], 0.1, False, True), "expected 4 parameters a layer, got 3"),
    ("dynamic_mlp_forward", (X, None, Z, [], 0.1, False, True), "expected 2 parameters a layer, got 0"),
    ("dynamic_mlp_forward", (X, None, Z[:3], MAPS, 0.1, False, True), r"expected z_semantic \[B=4, k >= 1\]"),
    ("dynamic_mlp_forward", (X[:, :4], None, Z, MAPS, 0.1, False, True), r"expected semantic map \[D \+ 1=5"),
    ("dynamic_mlp_forward", (X, None, Z, [*MAPS[:3], MAPS[3][:5]], 0.1, False, True), "expected semantic offset"),
    ("dynamic_mlp_forward", (X, None, Z, [*MAPS[:3], MAPS[3].half()], 0.1, False, True), "of x's dtype"),
    ("dynamic_mlp_backward", (normal(4, 3), X, None, Z, MAPS, None, HIDDEN, 0.1, False, [True] * 7), None),
    ("dynamic_mlp_backward", (normal(4, 2), X, None, Z, MAPS, None, HIDDEN, 0.1, False, [True] * 7), "expected dy"),
    ("dynamic_mlp_backward", (normal(4, 3), X, None, Z, MAPS, None, HIDDEN[:9], 0.1, False, [True] * 7), "hidden"),
    ("dynamic_mlp_backward", (normal(4, 3), X, None, Z, MAPS, None, HIDDEN, 0.1, True, [True] * 7), "expected y"),
    ("dynamic_mlp_backward", (normal(4, 3), X, None, Z, MAPS, None, HIDDEN, 0.1, False, [True] * 6), "wanted"),
    ("low_rank_mlp_forward", (X, None, Z, None, LOW, 1, 0.1, True), None),
    ("low_rank_mlp_forward", (X, None, None, None, LOW, 1, 0.1, True), "expected 3 parameters for each of 1 layers"),
    ("low_rank_mlp_forward", (X, Z, Z, None, LOW, 1, 0.1, True), "expected 7 parameters for each of 1 layers, got 5"),
    ("low_rank_mlp_forward", (X, None, Z, None, LOW, 0, 0.1, True), "expected 5 parameters for each of 0 layers"),
    ("low_rank_mlp_forward", (X, None, Z, None, LOW, 1, -0.1, True), "expected delta >= 0, got -0.1"),
    ("low_rank_mlp_forward", (X, None, Z[:3], None, LOW, 1, 0.1, True), r"expected z_semantic \[B=4, k >= 1\]"),
    ("low_rank_mlp_forward", (X[:, :4], None, Z, None, LOW, 1, 0.1, True), r"expected enter \[r=3, D=4\]"),
    ("low_rank_mlp_forward", (X, None, Z, X[0, 0], LOW, 1, 0.1, True), "expected D_P = D_0 = 5 with a gate, got 3"),
    ("low_rank_mlp_backward", (normal(4, 3), X, None, Z, None, LOW, KEPT, 1, 0.1, [True] * 9), None),
    ("low_rank_mlp_backward", (normal(4, 2), X, None, Z, None, LOW, KEPT, 1, 0.1, [True] * 9), "expected dy"),
    ("low_rank_mlp_backward", (normal(4, 3), X, None, Z, None, LOW, KEPT[1:], 1, 0.1, [True] * 9), "expected kept"),
    ("low_rank_mlp_backward", (normal(4, 3), X, None, Z, None, LOW, KEPT, 1, 0.1, [True] * 8), "expected wanted"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_operators_check_what_they_read_and_write(name: str, arguments: Sequence[Any], message: str | None) -> None:
    operator = getattr(OPERATORS, name)
    if message is None:
        operator(*arguments)
        return
    with pytest.raises((ValueError, TypeError), match=message):
        operator(*arguments)


def test_every_operator_is_in_the_list() -> None:
    registered = {
        schema.name.removeprefix("solid_ext::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("solid_ext::")
    }
    assert registered == {name for name, _, _ in REFUSED}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_summed_and_embedded_in_float32(dtype: torch.dtype) -> None:
    values = normal(50, 6, dtype=dtype)
    index = torch.arange(50) % 3
    expected = segment_sum(values.float(), index, None, 3).to(dtype)
    assert torch.equal(segment_sum(values, index, None, 3), expected)
    wide = embed_symbols(SEQUENCES, SYMBOL.to(dtype).float(), AGE.to(dtype).float(), False).to(dtype)
    assert torch.equal(embed_symbols(SEQUENCES, SYMBOL.to(dtype), AGE.to(dtype), False), wide)


def test_numpy_numbers_are_sizes_and_bounds() -> None:
    from solid_ext.nn import Codebook, DynamicMLP

    layer = DynamicMLP(sizes=(np.int64(5), 3), code_dim=np.int32(2), delta=np.float32(0.5))
    assert layer(X, Z, Z).shape == (4, 3)
    assert Codebook(np.int64(3), np.int64(5), decay=np.float64(0.5))(X).index.shape == (4,)


def not_finite(tensors: list[Tensor], at: int, value: float, element: int) -> list[Tensor]:
    broken = [tensor.clone() for tensor in tensors]
    broken[at].view(-1)[element % broken[at].numel()] = value
    return [tensor.requires_grad_() for tensor in broken]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("delta", [0.05, 0.0, torch.inf])
@pytest.mark.parametrize("name", ["gru_last_state", "dynamic_mlp", "dynamic_mlp of targets"])
def test_what_is_not_finite_goes_the_same_way_in_every_back_end(
    backend: str, name: str, delta: float, value: float
) -> None:
    """Forward NaN and infinity themselves, backward which gradients are finite."""
    call, shapes = GIVEN[name]
    tensors = [normal(*shape, seed=at) for at, shape in enumerate(shapes)]

    def run(backend: str, given: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if name == "gru_last_state":
            (y,) = call(backend, MASK, *given)
        else:
            x, z_item, z_semantic, *maps = given
            tables = [maps[at : at + 2] for at in range(0, 8, 2)]
            y = dynamic_mlp(x, z_item, z_semantic, *tables, delta=delta, backend=backend)
        return y.detach(), list(torch.autograd.grad(y.sum(), given))

    for at in range(len(tensors)):
        for element in (0, 13):
            y, gradients = run(backend, not_finite(tensors, at, value, element))
            expected, theirs = run("reference", not_finite(tensors, at, value, element))
            torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
            for one, other in zip(gradients, theirs, strict=True):
                assert torch.equal(one.isfinite(), other.isfinite())


def test_a_masked_position_that_is_not_finite_reaches_nothing(backend: str) -> None:
    call, shapes = GIVEN["gru_last_state"]
    tensors = [normal(*shape, seed=at) for at, shape in enumerate(shapes)]
    clean = [tensor.clone().requires_grad_() for tensor in tensors]
    tensors[0][~MASK] = torch.nan
    broken = [tensor.requires_grad_() for tensor in tensors]
    results = []
    for given in (clean, broken):
        (y,) = call(backend, MASK, *given)
        results.append([y, *torch.autograd.grad(y.sum(), given)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert int(results[1][1][~MASK].count_nonzero()) == 0


def test_nearest_code_refuses_before_the_number_of_a_mask_matters() -> None:
    with pytest.raises(ValueError, match=r"expected mask \[4\], got \[4, 1\]"):
        nearest_code(X, CODES, MASK[:, :1])


@pytest.mark.parametrize("wrong", [np.zeros((4, 5)), [[0.0] * 5] * 4])
def test_segment_sum_and_embed_symbols_name_what_is_no_tensor(wrong: Any) -> None:
    kind = type(wrong).__name__
    for given, name in (((wrong, IDS, None), "values"), ((X, wrong, None), "index"), ((X, IDS, wrong), "mask")):
        with pytest.raises(TypeError, match=f"segment_sum: expected {name} a tensor, got {kind}"):
            segment_sum(*given, 7)
    given = [SEQUENCES, SYMBOL, AGE]
    for at, name in enumerate(("sequences", "symbol", "age")):
        with pytest.raises(TypeError, match=f"embed_symbols: expected {name} a tensor, got {kind}"):
            embed_symbols(*given[:at], wrong, *given[at + 1 :], False)
