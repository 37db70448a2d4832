"""The reference operations against loops over every index, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.ops.cases import normal
from solid_ext.ops import reference


def nearest_by_hand(x: Tensor, codebook: Tensor) -> list[int]:
    found = []
    for query in x.tolist():
        distances = [sum((q - c) ** 2 for q, c in zip(query, code, strict=True)) for code in codebook.tolist()]
        found.append(distances.index(min(distances)))
    return found


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (40, 7, 3), (9, 30, 5)])
def test_nearest_index(n: int, k: int, d: int) -> None:
    x, codebook = normal(n, d), normal(k, d, seed=1)
    assert reference.nearest_index(x, codebook).tolist() == nearest_by_hand(x, codebook)


def test_nearest_index_takes_the_first_of_equals() -> None:
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]])
    assert reference.nearest_index(x, codebook).tolist() == [1, 0, 0]


def test_nearest_index_of_masked_and_nan() -> None:
    codebook = torch.tensor([[math.nan], [5.0], [1.0]])
    x = torch.tensor([[1.0], [math.nan], [4.0], [1.0]])
    mask = torch.tensor([True, True, True, False])
    assert reference.nearest_index(x, codebook, mask).tolist() == [2, 0, 1, 0]


def test_nearest_index_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = normal(50, 4), normal(9, 4, seed=1)
    whole = reference.nearest_index(x, codebook)
    monkeypatch.setattr(reference, "QUERIES_PER_BLOCK", 7)
    assert torch.equal(reference.nearest_index(x, codebook), whole)
    assert reference.nearest_index(x[:0], codebook).shape == (0,)


def weight_by_hand(z: np.ndarray, a: np.ndarray, offset: np.ndarray, delta: float) -> np.ndarray:
    w = np.empty((len(z), *offset.shape))
    for b, i, o in itertools.product(*map(range, w.shape)):
        value = offset[i, o] + sum(z[b, k] * a[i, k, o] for k in range(z.shape[1]))
        w[b, i, o] = min(max(value, -delta), delta)
    return w


def test_dynamic_weight() -> None:
    z, a, offset = normal(4, 3), normal(6, 3, 2, seed=1), normal(6, 2, seed=2)
    for delta in (None, 0.5):
        expected = weight_by_hand(z.numpy(), a.numpy(), offset.numpy(), math.inf if delta is None else delta)
        np.testing.assert_allclose(reference.dynamic_weight(z, a, offset, delta).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("branches", ["both", "item", "semantic"])
@pytest.mark.parametrize("targets", [None, 3])
def test_dynamic_mlp(branches: str, targets: int | None) -> None:
    sizes, codes, batch, delta = (4, 5, 2), 3, 6, 0.4
    z = {b: normal(batch, codes, seed=s) for s, b in enumerate(["item", "semantic"]) if branches in (b, "both")}
    layers = list(itertools.pairwise(sizes))
    maps = {b: [normal(d + 1, codes, o, seed=d + s) for d, o in layers] for s, b in enumerate(z)}
    offsets = {b: [normal(d + 1, o, seed=2 * d + s) for d, o in layers] for s, b in enumerate(z)}
    x = normal(batch, sizes[0], seed=9) if targets is None else normal(batch, targets, sizes[0], seed=9)
    h = x.numpy().reshape(batch, -1, sizes[0])
    for layer, (d, o) in enumerate(layers):
        w = np.zeros((batch, d + 1, o))
        for branch, bound in [("item", delta), ("semantic", math.inf)]:
            if branch in z:
                a, offset = maps[branch][layer].numpy(), offsets[branch][layer].numpy()
                w += weight_by_hand(z[branch].numpy(), a, offset, bound)
        h = np.stack([h[b] @ w[b, :d] + w[b, d] for b in range(batch)])
        h = np.tanh(h) if layer == 0 else h
    y = reference.dynamic_mlp(
        x,
        z.get("item"),
        z.get("semantic"),
        maps.get("item", []),
        offsets.get("item", []),
        maps.get("semantic", []),
        offsets.get("semantic", []),
        delta=delta,
    )
    np.testing.assert_allclose(y.numpy(), h.reshape(y.shape), rtol=1e-10)


def test_clip_is_closed_for_gradients() -> None:
    z = torch.tensor([[1.0]], requires_grad=True)
    for value, expected in [(0.5, 1.0), (-0.5, 1.0), (0.500001, 0.0), (0.2, 1.0)]:
        offset = torch.tensor([[value - 1.0]])
        weight = reference.dynamic_weight(z, torch.ones(1, 1, 1), offset, 0.5)
        (gradient,) = torch.autograd.grad(weight.sum(), z)
        assert float(gradient) == expected
