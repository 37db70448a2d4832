"""The baseline that every model has to beat: the same list of popular items for everybody."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solid_ext.data import Dataset, Split
from solid_ext.data.histories import before_ends, blocks_before
from solid_ext.models.checks import check_candidates


def checked_ends(name: str, dataset: Dataset, train_end: NDArray[np.int64]) -> NDArray[np.int64]:
    """The flat ends of the users' counted interactions, `train_end [U] int64`.

    Raises:
        ValueError: an end outside the user's history, in the words of the scorer `name`.
    """
    end = np.asarray(train_end)
    if end.shape != (dataset.num_users,):
        raise ValueError(f"{name}: expected train_end [U={dataset.num_users}], got {list(end.shape)}")
    outside = (end < dataset.offsets[:-1]) | (end > dataset.offsets[1:])
    if outside.any():
        user = int(outside.argmax())
        raise ValueError(
            f"{name}: expected train_end of user {user} in "
            f"{dataset.offsets[user]}..{dataset.offsets[user + 1]}, got {end[user]}"
        )
    return end


def counted_interactions(name: str, dataset: Dataset, train_end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where an interaction lies before its user's end: `train_end [U] int64`, flat -> `[N] bool`.

    Raises:
        ValueError: as `checked_ends`.
    """
    return before_ends(dataset.offsets, checked_ends(name, dataset, train_end))


def log_odds(counts: Tensor) -> Tensor:
    """`log((n_v + 1/2) / (N - n_v + 1/2))` of counts `n: [V]`, `N` their sum; `[V] float64`."""
    frequency = counts.double()
    return torch.log((frequency + 0.5) / (frequency.sum() - frequency + 0.5))


class Popularity:
    """Scores an item by how often it was interacted with; a `Scorer` that reads nothing of the sequence.

    `score(v) = log((n_v + 1/2) / (N - n_v + 1/2))` with `n_v` interactions of item `v` among the `N` that are counted
    is the smoothed log odds that an interaction is with `v`. It rises with the count and is equal for equal counts, so
    that the ranking is that of the counts and the log loss can be compared with a model's.

    Which interactions are counted is the caller's explicit choice, and it moves the numbers:

    * `split.train_end` counts the training part, which is what a trained model's parameters know, for validation and
      for test. This is the popularity of the project's tables.
    * `dataset.offsets[1:] - 1` counts everything but each user's last item. Under leave-one-out it adds the validation
      items, which lie in the past of the test items: on Amazon Scientific the sampled user-AUC of the test items rises
      from .628 to .640, and the full-ranking metrics hardly move.

    Args:
        dataset: the interactions.
        train_end: `[U] int64`, flat ends: user `u`'s items `offsets[u] .. train_end[u] - 1` are counted.
        length: `L` of the sequences it is handed, as for any scorer; nothing depends on it.

    Attributes:
        counts: `[V + 1] int64`, 0 for the padding item 0.

    Raises:
        ValueError: an end outside the user's history.
    """

    def __init__(self, dataset: Dataset, train_end: NDArray[np.int64], length: int = 1) -> None:
        end = checked_ends("Popularity", dataset, train_end)
        if length < 1:
            raise ValueError(f"Popularity: expected length >= 1, got {length}")
        self.length = length
        counts = np.zeros(dataset.num_items + 1, dtype=np.int64)
        for _, _, items in blocks_before(dataset.offsets, dataset.items, end):
            counts += np.bincount(items, minlength=counts.size)
        self.counts = torch.from_numpy(counts)
        self._scores = log_odds(self.counts)

    @classmethod
    def of_split(cls, dataset: Dataset, split: Split, length: int = 1) -> Popularity:
        """Counts the training part of a split, `split.train_end`."""
        return cls(dataset, split.train_end, length)

    def encode(self, sequences: Tensor) -> int:
        """The number of `sequences: [B, L] int64` is all that popularity keeps of them."""
        return len(sequences)

    def score(self, state: int, candidates: Tensor) -> Tensor:
        """Log odds of `candidates: [B, T]` or `[T]` int64; `[B, T] float64` (exact order of any counts)."""
        check_candidates(candidates, len(self._scores) - 1)
        return self._scores[candidates].expand(state, -1)
