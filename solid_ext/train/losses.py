"""Prediction losses over the candidates of a sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(logits: Tensor) -> Tensor:
    """`l_CE` of one positive (column 0) and sampled negatives, mean over all pairs.

    Args:
        logits: [B, 1 + n], the positive first.

    Source: paper, Eq. 12.
    """
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1
    return F.binary_cross_entropy_with_logits(logits, labels)


def sampled_softmax(logits: Tensor, items: int = 0) -> Tensor:
    """`-log softmax(logits)[0]` over a positive (column 0) and its sampled negatives, mean over rows [B, 1 + n].

    With `items` = V each negative's logit loses `log(n q)`, q = 1 / (V - 1), so that the n uniform negatives stand for
    the whole catalogue: the denominator is then, on average, that of the full softmax.

    Source: Bengio and Senecal 2008, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic
    Language Model".
    """
    if items:
        correction = logits.new_zeros(logits.shape[1])
        correction[1:] = math.log((items - 1) / (logits.shape[1] - 1))
        logits = logits + correction
    return -logits.log_softmax(1)[:, 0].mean()


def full_softmax(logits: Tensor, column: Tensor, items: Tensor | None = None) -> Tensor:
    """`-log softmax(logits)[v]` over the catalogue, mean over rows.

    Args:
        logits: [B, K], a column an item, or a column all items that score alike.
        column: [B] int64, the positive's.
        items: [K], how many items each column stands for; None for one each. The loss is that of the catalogue written
            out: `log sum_c n_c exp(l_c) - l`.
    """
    if items is None:
        return F.cross_entropy(logits, column)
    many = items.to(torch.promote_types(logits.dtype, torch.float32)).log()
    return F.cross_entropy(logits + many, column) + many[column].mean()
