"""Derivatives beyond the first and in forward mode: right, or refused by a sentence, in every operation and layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from python_tests.ops.cases import normal
from solid_ext.models.decoder import CodebookDecoder
from solid_ext.models.symbols import SymbolEmbedding
from solid_ext.nn import Codebook, DynamicLinear, LastState, Lookup
from solid_ext.ops.dropout import dropout
from solid_ext.ops.nearest_code import codebook_lookup, nearest_code
from solid_ext.ops.segment_sum import segment_sum
from solid_ext.ops.symbols import embed_symbols

# torch loads its own rules of forward mode by a function that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")

IDS = torch.tensor([[1, 3, 0], [2, 0, 0]])


def decoded(x: Tensor) -> Tensor:
    codebook, decoder = Codebook(3, 4, update="gradient").double(), CodebookDecoder(4, 5).double()
    everywhere = torch.ones(x.shape[:-1], dtype=torch.bool)
    return decoder.look_up(decoder.decode_entries(codebook.weight.detach().clone()), codebook(x), everywhere)


X, CODES = normal(2, 3, 4), normal(5, 4, seed=1)
OF_X: dict[str, Callable[[Tensor], Tensor]] = {
    "distance": lambda x: nearest_code(x, CODES).distance,
    "rotation": lambda x: nearest_code(x, CODES, gradient="rotation").distance,
    "cosine": lambda x: nearest_code(x, CODES, metric="cosine").distance,
    "Codebook": lambda x: Codebook(5, 4).double()(x).loss,
    "gru_last_state": lambda x: LastState(4).double()(x, IDS > 0),
    "DynamicLinear": lambda x: DynamicLinear(4, 3, 2, 0.1, activation="tanh").double()(x, normal(2, 2), normal(2, 2)),
}


@pytest.mark.parametrize("name", OF_X)
def test_second_derivatives_of_kernels_are_refused_and_never_left_out(name: str) -> None:
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(OF_X[name](x).sum(), x, create_graph=True)  # the incoming gradient is a constant
    with pytest.raises(NotImplementedError, match=r"expected derivatives of first order of the native backend"):
        (first.sum() + x.square().sum()).backward()


@pytest.mark.parametrize("module", [Lookup(4, 3), SymbolEmbedding(4, 3, 3)])
def test_a_gradient_that_depends_on_the_one_that_comes_in_is_refused_too(module: nn.Module) -> None:
    up = torch.ones(2, 3, 3, requires_grad=True)
    gradients = torch.autograd.grad(module(IDS), list(module.parameters()), up, create_graph=True)
    with pytest.raises(NotImplementedError, match=rf"{type(module).__name__}: expected derivatives of first order"):
        gradients[0].sum().backward()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", OF_X)
def test_forward_mode_of_kernels_is_refused_and_never_zero(name: str, frozen: bool) -> None:
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative of the native"):
        OF_X[name](forward_ad.make_dual(X.clone().requires_grad_(not frozen), X))
    with forward_ad.dual_level():
        OF_X[name](X)  # which has no tangent


@pytest.mark.parametrize("name", [n for n in OF_X if n not in ("gru_last_state", "DynamicLinear", "Codebook")])
@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.hessian])
def test_forward_mode_transforms_of_kernels_are_refused(name: str, transform: Callable[..., Any]) -> None:
    with pytest.raises(NotImplementedError, match="no forward-mode derivative of the native"):
        transform(lambda x: OF_X[name](x).sum())(X)


def test_forward_mode_of_the_sums_and_the_embedding_is_refused() -> None:
    with forward_ad.dual_level():
        rows = forward_ad.make_dual(normal(6, 4), normal(6, 4))
        with pytest.raises(NotImplementedError, match="segment_sum: expected no forward-mode"):
            segment_sum(rows, IDS.flatten(), None, 4)
        with pytest.raises(NotImplementedError, match="embed_symbols: expected no forward-mode"):
            embed_symbols(IDS, rows, normal(3, 4), True)
        with pytest.raises(NotImplementedError, match="dropout: expected no forward-mode"):
            dropout(rows, IDS[0, 0], 0.5)


def test_forward_mode_of_the_operators_under_the_functions_is_refused() -> None:
    operators = torch.ops.solid_ext
    with forward_ad.dual_level():
        rows = forward_ad.make_dual(normal(6, 4), normal(6, 4))
        with pytest.raises(NotImplementedError, match="segment_sum: expected no forward-mode"):
            operators.segment_sum(rows, IDS.flatten(), None, 4)
        with pytest.raises(NotImplementedError, match="nearest_code: expected no forward-mode"):
            operators.nearest_code(rows, normal(3, 4), None)
        maps = [forward_ad.make_dual(normal(5, 2, 3), normal(5, 2, 3))]
        with pytest.raises(NotImplementedError, match="dynamic_mlp_forward: expected no forward-mode"):
            operators.dynamic_mlp_forward(normal(6, 1, 4), normal(6, 2), None, [*maps, normal(5, 3)], 0.1, False, False)
        assert operators.segment_sum(normal(6, 4), IDS.flatten(), None, 4).shape == (4, 4)


def test_a_gradient_of_a_vmap_is_that_of_the_batch() -> None:
    codes = normal(5, 4, seed=1)

    def of_rows(x: Tensor) -> Tensor:
        return torch.vmap(lambda rows: nearest_code(rows, codes).distance.sum())(x).sum()

    expected = torch.func.grad(lambda x: nearest_code(x, codes).distance.sum())(X)
    torch.testing.assert_close(torch.func.grad(of_rows)(X), expected)


@pytest.mark.parametrize("gradient", ["none", "straight_through", "rotation"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_reference_has_second_derivatives_and_forward_mode(gradient: Any, metric: Any) -> None:
    codes = normal(5, 4, seed=1).requires_grad_()
    x, mask = normal(6, 4).requires_grad_(), torch.arange(6) != 2

    def distance(x: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(x, codes, mask, gradient=gradient, metric=metric, backend="reference").distance

    assert torch.autograd.gradcheck(distance, (x, codes), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(distance, (x, codes))


@pytest.mark.parametrize("gradient", ["none", "straight_through", "rotation"])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (1.0, 0.0), (0.2, 0.8), (0.5, 0.5), (0.0, 1.0), (0.0, 0.0)])
def test_forward_mode_of_the_reference_is_the_transpose_of_the_kernels_gradient(
    gradient: Any, factors: tuple[float, float]
) -> None:
    x, mask = X.flatten(0, 1), torch.arange(6) != 2
    options: dict[str, Any] = {"gradient": gradient, "metric": "l2", "sums": True, "distance_gradient": factors}
    ups, tangents = (normal(6, 4, seed=2), normal(6, seed=3)), (normal(6, 4, seed=4), normal(5, 4, seed=5))
    leaves = x.clone().requires_grad_(), CODES.clone().requires_grad_()
    found = codebook_lookup(*leaves, mask, backend="native", **options)
    total = (found.quantized * ups[0]).sum()
    if any(factors):
        total = total + (found.distance * ups[1]).sum()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    backward = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True) if g is not None)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(value, tangent) for value, tangent in zip((x, CODES), tangents, strict=True)]
        found = codebook_lookup(*duals, mask, backend="reference", **options)
        moved = [forward_ad.unpack_dual(part).tangent for part in (found.quantized, found.distance)]
    forward = sum((m * u).sum() for m, u in zip(moved, ups, strict=True) if m is not None)
    torch.testing.assert_close(forward, backward)
