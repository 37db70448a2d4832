"""First-order Markov chain: what came next after the last item, by popularity where that is equal."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from solid_ext.data import Dataset
from solid_ext.models.checks import check_candidates, check_sequences
from solid_ext.scorers.popularity import counted_interactions


class Markov:
    """Scores an item by how often it came right after the sequence's last item; a `Scorer`.

    The score is the log odds of `P(v | u) = (n_uv + p_v) / (n_u + 1)` with `p_v = (n_v + 1/2) / (N + V/2)`. Here `n_uv`
    are the steps from `u` to `v` among the `n_u` steps from `u`, and `n_v` the interactions with `v` among the `N` that
    are counted. As `p_v < 1`, the order is that of the steps, and popularity decides among equals. After padding alone
    the order is that of popularity.

    Args:
        dataset: the interactions.
        train_end: `[U] int64`, flat ends: user `u`'s items `offsets[u] .. train_end[u] - 1` are counted.

    Raises:
        ValueError: an end outside the user's history.

    Source: Rendle et al., Factorizing personalized Markov chains, 2010 (the chain without its factors).
    """

    length = 1

    def __init__(self, dataset: Dataset, train_end: NDArray[np.int64]) -> None:
        counted = counted_interactions("Markov", dataset, train_end)
        size = dataset.num_items + 1
        step = counted[1:].copy()  # from interaction i to i + 1, both counted and of one user
        step[np.setdiff1d(dataset.offsets, (0, len(counted))) - 1] = False
        come, go = dataset.items[:-1][step], dataset.items[1:][step]
        self.steps = sparse.csr_array((np.ones(len(come)), (come, go)), shape=(size, size))
        self.left = np.asarray(self.steps.sum(axis=1))
        frequency = np.bincount(dataset.items[counted], minlength=size) + 0.5
        self.popularity = frequency / frequency[1:].sum()

    def encode(self, sequences: Tensor) -> NDArray[np.int64]:
        """The last item of `sequences: [B, 1] int64`, `[B]`."""
        check_sequences(sequences, len(self.popularity) - 1, self.length)
        return sequences[:, 0].numpy()

    def score(self, state: NDArray[np.int64], candidates: Tensor) -> Tensor:
        """Log odds of `candidates: [B, T]` or `[T]` int64; `[B, T] float64`."""
        check_candidates(candidates, len(self.popularity) - 1)
        items = candidates.numpy()
        if items.ndim == 1:
            steps = self.steps[state][:, items].toarray()
        else:
            came = np.broadcast_to(state[:, None], items.shape)
            steps = np.asarray(self.steps[came.ravel(), items.ravel()]).reshape(items.shape)
        likely = steps + self.popularity[items]
        return torch.from_numpy(np.log(likely / (self.left[state][:, None] + 1 - likely)))
