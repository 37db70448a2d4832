"""Losses against numbers worked out by hand and torch's own."""

from __future__ import annotations

import math

import numpy as np
import torch

from solid_ext.config import ModelConfig
from solid_ext.models import SemanticRecommender
from solid_ext.train.losses import binary_cross_entropy, full_softmax, sampled_softmax


def test_binary_cross_entropy_of_one_positive_and_two_negatives() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0]], dtype=torch.float64)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)) / 3
    torch.testing.assert_close(binary_cross_entropy(logits).item(), expected)


def test_sampled_softmax_is_log_of_the_number_of_candidates_at_a_tie() -> None:
    torch.testing.assert_close(sampled_softmax(torch.zeros(3, 5)).item(), math.log(5))


def test_full_softmax_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, math.log(2)]], dtype=torch.float64)
    torch.testing.assert_close(full_softmax(logits, torch.tensor([2])).item(), math.log(2))
    torch.testing.assert_close(full_softmax(logits, torch.tensor([0])).item(), math.log(4))


def test_full_softmax_over_semantics_is_that_over_their_items() -> None:
    torch.manual_seed(0)
    semantics = np.array([0, 2, 1, 2, 4, 4, 4, 2, 1])  # of items 1 .. 8; none of semantic 3
    model = SemanticRecommender(ModelConfig(dim=8), semantics).double().eval()
    items = torch.tensor([1, 8, 5])
    state = model.encode(torch.tensor([[1, 3, 0], [8, 0, 0], [4, 5, 6]]))
    written_out = model.score(state, torch.arange(1, 9))
    losses = full_softmax(written_out, items - 1), full_softmax(*model.over_catalogue(state, items))
    torch.testing.assert_close(*losses)
    gradients = [
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True) for loss in losses
    ]
    for expected, found in zip(*gradients, strict=True):
        assert (expected is None) == (found is None)
        if expected is not None:
            torch.testing.assert_close(found, expected)


def test_log_q_over_every_other_item_is_the_full_softmax() -> None:
    torch.manual_seed(0)
    catalogue = torch.randn(4, 9, dtype=torch.float64)
    positives = torch.zeros(4, dtype=torch.int64)  # column 0; the other 8 items are the negatives
    torch.testing.assert_close(sampled_softmax(catalogue, items=9), full_softmax(catalogue, positives))


def test_log_q_denominator_is_the_catalogues_on_average() -> None:
    torch.manual_seed(0)
    items, negatives = 200, 5
    scores = torch.randn(items, dtype=torch.float64)
    drawn = torch.randint(1, items, (2000, negatives))
    logits = torch.cat([scores[0].expand(len(drawn), 1), scores[drawn]], dim=1)
    # exp(loss) = denominator / exp(positive), a row at a time
    rows = torch.stack([sampled_softmax(row[None], items=items) for row in logits])
    expected = scores.exp().sum() / scores[0].exp()
    assert abs(rows.exp().mean() / expected - 1) < 0.1
