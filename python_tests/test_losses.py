"""Losses against numbers worked out by hand and torch's own."""

from __future__ import annotations

import math

import torch

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
