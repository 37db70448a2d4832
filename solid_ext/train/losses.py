"""Prediction losses over the candidates of a sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from solid_ext.ops._arguments import Backend
from solid_ext.ops.catalogue_cross_entropy import catalogue_cross_entropy


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


def full_softmax(
    state: Tensor, table: Tensor, target: Tensor, items: Tensor | None = None, backend: Backend = "native"
) -> Tensor:
    """`-log softmax(state @ table.T)[v]` over the catalogue, mean over rows, in float32 or wider.

    Args:
        state: [B, d].
        table: [K, d], a row an item, or a row all items that score alike.
        target: [B] int64, the row of each state's positive item.
        items: [K], how many items each row stands for; None for one each. The loss is that of the catalogue written
            out: `log sum_k n_k exp(l_k) - l`.
        backend: "native", which never holds all logits, or "reference".
    """
    wide = torch.promote_types(table.dtype, torch.float32)
    state, table = state.to(wide), table.to(wide)
    if items is None:
        return catalogue_cross_entropy(state, table, target, backend=backend)
    many = items.to(wide).log()
    return catalogue_cross_entropy(state, table, target, many, backend=backend) + many[target].mean()
