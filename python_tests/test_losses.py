"""Losses against numbers worked out by hand and torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from solid_ext.config import Config
from solid_ext.train.losses import binary_cross_entropy, full_softmax, sampled_softmax


def test_binary_cross_entropy_of_one_positive_and_two_negatives() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0]], dtype=torch.float64)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)) / 3
    torch.testing.assert_close(binary_cross_entropy(logits).item(), expected)


def test_sampled_softmax_is_log_of_the_number_of_candidates_at_a_tie() -> None:
    torch.testing.assert_close(sampled_softmax(torch.zeros(3, 5)).item(), math.log(5))


def test_full_softmax_counts_items_from_one() -> None:
    logits = torch.tensor([[0.0, 0.0, math.log(2)]], dtype=torch.float64)
    torch.testing.assert_close(full_softmax(logits, torch.tensor([3])).item(), math.log(2))
    torch.testing.assert_close(full_softmax(logits, torch.tensor([1])).item(), math.log(4))


def test_log_q_over_every_other_item_is_the_full_softmax() -> None:
    torch.manual_seed(0)
    catalogue = torch.randn(4, 9, dtype=torch.float64)
    positives = torch.full((4,), 1)  # item 1 is column 0; the other 8 items are the negatives
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


def test_log_q_needs_a_sampled_softmax() -> None:
    with pytest.raises(ValueError, match="log_q: expected False with loss auto, got True"):
        Config().replace(log_q=True)
