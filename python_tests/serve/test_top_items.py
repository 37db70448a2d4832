"""The search for the best: what a stable sort of everything gives, ties, exclusions and odd widths included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from solid_ext.serve.top_items import better_k, first_k


def by_sorting(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, column = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], column[:, :k]


def world(kind: str, width: int, rows: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    scores = torch.randn(rows, width, generator=generator)
    if kind == "ties":
        scores = (scores * 3).round()
    if kind == "all alike":
        scores = torch.zeros(rows, width)
    if kind == "mostly excluded":
        scores[torch.rand(rows, width, generator=generator) < 0.99] = -torch.inf
        scores[0] = -torch.inf
    if kind == "rising":
        scores = scores.sort(dim=1).values
    return scores


KINDS = ["random", "ties", "all alike", "mostly excluded", "rising"]


@pytest.mark.parametrize("width", [1, 63, 64, 65, 1000, 4096, 5001])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_k_are_those_of_a_stable_sort(kind: str, width: int) -> None:
    scores = world(kind, width)
    for k in (1, 3, 10, 17, 5001):
        for found, expected in zip(first_k(scores, k), by_sorting(scores, k), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_block_after_block_the_best_are_those_of_all(kind: str) -> None:
    scores = world(kind, 5001)
    for k in (1, 10, 40):
        for block in (50, 700, 2048):
            best, items = first_k(scores[:, :block], k)
            for first in range(block, 5001, block):
                best, items = better_k(best, items, scores[:, first : first + block], first)
            expected = by_sorting(scores, k)
            finite = expected[0] > -torch.inf  # which of the excluded ones fill up the rest is nobody's concern
            assert torch.equal(best, expected[0])
            assert torch.equal(items[finite], expected[1][finite])
