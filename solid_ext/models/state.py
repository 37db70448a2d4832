"""What the models hand on: user states, what waits for candidates, and what a whole catalogue is compared by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from solid_ext.ops._arguments import Backend

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


class Catalogue(NamedTuple):
    """What a softmax over all items is computed from: its logits are `state @ table.T`, up to a constant of each row.

    Attributes:
        state: [B, d].
        table: [K, d], a row an item, or a row all items that score alike.
        target: [B] int64, the row of each state's positive item.
        items: [K] int64, how many items each row stands for; None where every row is one item.
        backend: what computes the loss, "native" or "reference".
    """

    state: Tensor
    table: Tensor
    target: Tensor
    items: Tensor | None = None
    backend: Backend = "native"
