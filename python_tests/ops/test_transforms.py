"""torch.func on every operation: vmap with shared and with own tensors, gradients, gradients of each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.ops.cases import normal
from solid_ext.ops import (
    catalogue_cross_entropy,
    dynamic_linear,
    dynamic_mlp,
    gru_last_state,
    low_rank_mlp,
    nearest_code,
)
from solid_ext.ops.dropout import dropout
from solid_ext.ops.nearest_code import nearest_code_statistics
from solid_ext.ops.segment_sum import segment_sum
from solid_ext.ops.symbols import embed_symbols

# torch loads its own rules of forward mode by a function that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")

B, D, K, R = 3, 4, 2, 3
MASK, IDS = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]) > 0, torch.tensor([[1, 3, 0], [2, 0, 0], [1, 1, 2]])


def mlp(backend: str) -> Callable[..., Tensor]:
    def run(x: Tensor, z: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return dynamic_mlp(x, z, z, [a, c], [b, d], [a, c], [b, d], delta=0.3, backend=backend)

    return run


def low_rank(backend: str) -> Callable[..., Tensor]:
    def run(x: Tensor, z: Tensor, gate: Tensor, u: Tensor, v: Tensor, s: Tensor, a: Tensor, b: Tensor) -> Tensor:
        tables = [u], [v], [s], [a], [b], [a], [b]
        return low_rank_mlp(x, z, z, *tables, delta=0.3, gate=gate, backend=backend)

    return run


def of(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [normal(1, *shape, seed=seed)[0] for seed, shape in enumerate(shapes)]


# For each operation what makes it of a backend, and its tensors, the first of which is its batch.
CASES: dict[str, tuple[Callable[[str], Callable[..., Any]], list[Tensor]]] = {
    "dynamic_linear": (
        lambda backend: lambda x, z, a, b: dynamic_linear(x, z, z, a, b, a, b, delta=0.3, backend=backend),
        of((B, D), (B, K), (D + 1, K, 5), (D + 1, 5)),
    ),
    "dynamic_mlp": (mlp, of((B, D), (B, K), (D + 1, K, 5), (D + 1, 5), (6, K, 2), (6, 2))),
    "dynamic_mlp of targets": (mlp, of((B, 2, D), (B, K), (D + 1, K, 5), (D + 1, 5), (6, K, 2), (6, 2))),
    "low_rank_mlp": (low_rank, of((B, D), (B, K), (), (R, D), (D, R), (D,), (R + 1, K, R), (R + 1, R))),
    "gru_last_state": (
        lambda backend: lambda x, *weights: gru_last_state(x, MASK, *weights, backend=backend),
        of((B, 3, D), (3 * R, D), (3 * R, R), (3 * R,), (3 * R,)),
    ),
    "cross-entropy": (
        lambda backend: lambda x, table: catalogue_cross_entropy(x, table, IDS[:, 0], backend=backend),
        of((B, D), (6, D)),
    ),
    "cross-entropies": (
        lambda backend: lambda x, t: catalogue_cross_entropy(x, t, IDS[:, 0], reduction="none", backend=backend),
        of((B, D), (6, D)),
    ),
    "nearest_code": (lambda backend: lambda x, codes: nearest_code(x, codes, backend=backend)[1:], of((B, D), (6, D))),
    "rotation": (
        lambda backend: lambda x, codes: nearest_code(x, codes, gradient="rotation", backend=backend).quantized,
        of((B, D), (6, D)),
    ),
    "dropout": (
        lambda backend: lambda x: dropout(x, torch.tensor(5), 0.5, backend=backend),
        of((B, D)),
    ),
}


def first(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else sum(part.sum() for part in found)


def several(tensors: list[Tensor], own: bool) -> tuple[list[Tensor], tuple[int | None, ...]]:
    """Three elements of a batch, with tensors of their own each, or all but the first shared."""
    batched = [t if at and not own else torch.stack([t, t * 0.7, t - 0.1]) for at, t in enumerate(tensors)]
    return batched, tuple(None if at and not own else 0 for at in range(len(tensors)))


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", CASES)
def test_vmap_is_a_loop(name: str, own: bool) -> None:
    make, tensors = CASES[name]
    batched, dims = several(tensors, own)
    found = torch.vmap(make("native"), dims)(*batched)
    for at in range(3):
        expected = make("reference")(*(t if d is None else t[at] for t, d in zip(batched, dims, strict=True)))
        torch.testing.assert_close(first(torch.utils._pytree.tree_map(lambda t, at=at: t[at], found)), first(expected))


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_each_sample_is_that_of_a_loop(name: str) -> None:
    make, tensors = CASES[name]
    wanted = tuple(range(len(tensors)))
    batched, dims = several(tensors, False)

    def loss(backend: str) -> Callable[..., Tensor]:
        return lambda *given: first(make(backend)(*given)).square().sum()

    found = torch.vmap(torch.func.grad(loss("native"), wanted), dims)(*batched)
    for at in range(3):
        given = [t if d is None else t[at] for t, d in zip(batched, dims, strict=True)]
        leaves = [t.clone().requires_grad_() for t in given]
        expected = torch.autograd.grad(loss("reference")(*leaves), leaves)
        plain = torch.func.grad(loss("native"), wanted)(*given)
        for of_sample, alone, truth in zip(found, plain, expected, strict=True):
            torch.testing.assert_close(of_sample[at], truth)
            torch.testing.assert_close(alone, truth)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("dropout", "rotation")])
def test_second_derivatives_and_forward_mode_are_refused_inside_transforms_too(name: str) -> None:
    make, (x, *rest) = CASES[name]

    def loss(x: Tensor) -> Tensor:
        return first(make("native")(x, *rest)).square().sum()

    with pytest.raises(NotImplementedError, match="backend='reference' has it"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x)
    with pytest.raises(NotImplementedError, match="backend='reference' has it"):
        torch.func.jvp(loss, (x,), (x,))


def test_a_product_with_the_hessian_is_the_references_or_refused() -> None:
    make, (x, *rest) = CASES["dynamic_mlp"]
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(make("native")(leaf, *rest).sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference' has it"):
        torch.autograd.grad((gradient * x).sum(), leaf)
    with pytest.raises(NotImplementedError, match="backend='reference' has it"):
        torch.func.jvp(lambda x: nearest_code(x, normal(6, D)).distance, (x,), (x,))


def test_vmap_of_what_has_no_gradient() -> None:
    x, codes = normal(5, 3, D), normal(5, 6, D)
    found = torch.vmap(lambda x, codes: nearest_code_statistics(x, codes)[3:])(x, codes)
    sums = torch.vmap(lambda x: segment_sum(x, torch.tensor([1, 0, 1]), None, 2))(x)
    tables = torch.vmap(lambda table: embed_symbols(IDS, table, table[:3], False))(normal(5, 6, D))
    for at in range(5):
        expected = nearest_code_statistics(x[at], codes[at])
        assert torch.equal(found[0][at], expected.counts)
        assert torch.equal(found[1][at], expected.sums)
        assert torch.equal(sums[at], segment_sum(x[at], torch.tensor([1, 0, 1]), None, 2))
        assert torch.equal(tables[at], embed_symbols(IDS, normal(5, 6, D)[at], normal(5, 6, D)[at][:3], False))
