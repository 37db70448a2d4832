"""What the models hand on: user states, what waits for candidates, and the logits of a whole catalogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Layers = Callable[[Tensor], Tensor]
"""The last layers of a batch of sequences: states [B, d] or [B, T, d] -> the same shape."""


class CandidateState(NamedTuple):
    """A user state that waits for its candidates, of a backbone that reads them.

    Attributes:
        embedded: [B, L, d], the embedded item sequences.
        mask: [B, L] bool, their valid positions.
        layers: the last layers of these sequences.
    """

    embedded: Tensor
    mask: Tensor
    layers: Layers


class UserState(NamedTuple):
    """What a forward pass makes of a batch of sequences.

    Attributes:
        vector: u [B, d], or what makes it for each candidate.
        auxiliary_loss: L_align of Eq. 13, a scalar; 0 without a codebook or a semantic trunk.
        codebook_index: [B, L] int64, the codebook entry of each position, 0 at padding; None without a codebook.
    """

    vector: Tensor | CandidateState
    auxiliary_loss: Tensor
    codebook_index: Tensor | None


class CatalogueLogits(NamedTuple):
    """What a softmax over all items is computed from.

    Attributes:
        logits: [B, K], in a column for each item, or one for all items that score alike.
        column: [B] int64, the column of each row's positive item.
        items: [K] int64, how many items each column stands for; None where every column is one item.
    """

    logits: Tensor
    column: Tensor
    items: Tensor | None = None
