"""A chain of semantics: which semantic follows which, counted; what a probe of semantics asks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from solid_ext.data import Dataset, Rows, Semantics, gather_sequences
from solid_ext.models.checks import check_candidates, check_sequences

DECAY = 0.8  # what a position counts for beside the one after it
PRIOR = 20.0  # rows of the overall frequencies that each semantic's counts are mixed with
_ROWS = 2**17  # sequences at a time


class SemanticChain:
    """Scores an item by how often its semantic came after those of the sequence, in log; a `Scorer`.

    `P(v | s) = sum_j a_j (n[c_j, c_v] + m p[c_v]) / ((n[c_j] + m) size[c_v])` over the positions j of the sequence.
    Here `c = sem[.]`, the weights `a_j = 0.8^age` sum to 1, `n` counts training rows targets after each semantic
    of their sequences, weighted alike, `p` are the targets' frequencies, and m = 20.

    It is what stage 1 learns first, in a second in place of minutes.

    Args:
        dataset: the interactions.
        rows: the training rows.
        semantics: of the items.
        length: L.

    Source: Rendle et al., Factorizing personalized Markov chains, 2010 (the chain, over classes of items).
    """

    def __init__(self, dataset: Dataset, rows: Rows, semantics: Semantics, length: int) -> None:
        self.semantics, self.length = semantics.table, length
        count = semantics.count + 1
        pairs = np.zeros(count * count)
        for first in range(0, len(rows), _ROWS):
            some = rows.take(np.arange(first, min(first + _ROWS, len(rows))))
            weights, valid, of_row = _weights(gather_sequences(dataset, some, length))
            come, go = self.semantics[valid], self.semantics[dataset.items[some.positions]][of_row]
            pairs += np.bincount(come * count + go, weights, count * count)
        counts = pairs.reshape(count, count)
        frequency = (counts.sum(0) + 1) / (counts.sum() + count)
        chance = (counts + PRIOR * frequency) / (counts.sum(1, keepdims=True) + PRIOR)
        self.chance = chance / np.maximum(np.bincount(self.semantics, minlength=count), 1)

    def encode(self, sequences: Tensor) -> NDArray[np.float64]:
        """P of an item of each semantic after `sequences: [B, L] int64`, `[B, C + 1]`."""
        check_sequences(sequences, len(self.semantics) - 1, self.length)
        weights, valid, of_row = _weights(sequences.numpy())
        size = (len(sequences), len(self.chance))
        return sparse.csr_array((weights, (of_row, self.semantics[valid])), shape=size) @ self.chance

    def score(self, state: NDArray[np.float64], candidates: Tensor) -> Tensor:
        """log P of `candidates: [B, T]` or `[T]` int64; `[B, T] float64`."""
        check_candidates(candidates, len(self.semantics) - 1)
        of = self.semantics[candidates.numpy()]
        chance = state[:, of] if of.ndim == 1 else np.take_along_axis(state, of, axis=1)
        return torch.from_numpy(np.log(np.maximum(chance, np.finfo(float).tiny)))


def _weights(sequences: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Of the valid positions of [B, L] sequences: weights that sum to 1 in each, their items, and their rows."""
    there = sequences > 0
    count = there.sum(1, keepdims=True)
    weights = np.where(there, DECAY ** (count - 1.0 - np.arange(sequences.shape[1])), 0.0)
    weights /= np.maximum(weights.sum(1, keepdims=True), np.finfo(float).tiny)
    return weights[there], sequences[there], np.nonzero(there)[0]
