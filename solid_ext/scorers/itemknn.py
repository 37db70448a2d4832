"""Item-based nearest neighbours: items that the users of the history's items had too, by the cosine."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from solid_ext.data import Dataset
from solid_ext.models.checks import check_candidates, check_sequences
from solid_ext.scorers.popularity import counted_interactions

# Pairs of items in one block of the similarity; each takes some 50 bytes while the block is made.
_PAIRS_PER_BLOCK = 2_000_000


class ItemKNN:
    """Scores an item by the sum of its cosine similarities to the different items of the sequence; a `Scorer`.

    `score(v) = sum over different u in s of S[u, v]` with `S[u, v] = |U_u and U_v| / (sqrt(|U_u| |U_v|) + shrink)`.
    `U_v` are the users who had item `v` in the counted part, `S[v, v] = 0`, and in each column of `S` the `k` largest
    values are kept. Scores are no log odds, so that a log loss of them says nothing.

    Memory: `S` is sparse, has at most `k V` entries and is made by blocks; a state holds the scores that are not 0.
    With `k = 1000` a small catalogue keeps all neighbours. On Amazon Scientific the usual default of 100 takes the
    sampled user-AUC from .674 to .640.

    Args:
        dataset: the interactions.
        train_end: `[U] int64`, flat ends: user `u`'s items `offsets[u] .. train_end[u] - 1` are counted.
        length: `L` of the sequences it is handed; 0 for the longest history of the dataset.
        neighbours: `k`; 0 for all.
        shrink: added to the denominator.

    Raises:
        ValueError: an end outside the user's history, a negative length, number of neighbours or shrinkage.

    Source: Sarwar et al., Item-based collaborative filtering recommendation algorithms, 2001.
    """

    def __init__(
        self,
        dataset: Dataset,
        train_end: NDArray[np.int64],
        length: int = 0,
        *,
        neighbours: int = 1000,
        shrink: float = 0.0,
    ) -> None:
        for name, value in (("length", length), ("neighbours", neighbours), ("shrink", shrink)):
            if value < 0:
                raise ValueError(f"ItemKNN: expected {name} >= 0, got {value}")
        counted = counted_interactions("ItemKNN", dataset, train_end)
        self.length = length or int(np.diff(dataset.offsets).max())
        users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))[counted]
        shape = (dataset.num_users, dataset.num_items + 1)
        seen = sparse.csr_array((np.ones(len(users)), (users, dataset.items[counted])), shape=shape)
        seen.data[:] = 1.0  # an item that a user had twice counts once
        self.similarity = _similarity(seen, neighbours, shrink)

    @classmethod
    def of(cls, similarity: sparse.csr_array, length: int) -> ItemKNN:
        """A scorer with a similarity [V + 1, V + 1] that is already there, for sequences of at most `length` items."""
        made = cls.__new__(cls)
        made.similarity, made.length = similarity, length
        return made

    def encode(self, sequences: Tensor) -> sparse.csr_array:
        """The scores of all items for `sequences: [B, L] int64`: `[B, V + 1]`, sparse."""
        return self.weighted(sequences, last_occurrences(sequences).double())

    def weighted(self, sequences: Tensor, weights: Tensor) -> sparse.csr_array:
        """The same with a weight for each position, `[B, L] float64`; positions of weight 0 count for nothing."""
        check_sequences(sequences, self.similarity.shape[0] - 1)  # scipy reads past its arrays for an id past the end
        counted = (weights > 0).numpy()
        ends = np.concatenate(([0], np.cumsum(counted.sum(1))))
        values, items = weights.numpy()[counted], sequences.numpy()[counted]
        if len(sequences) == 1:
            return self._weighted_row(items, values)
        # The rows of these items alone, as scipy would convert all of S to the weights' dtype for the product.
        items, place = np.unique(items, return_inverse=True)
        history = sparse.csr_array((values, place, ends), (len(sequences), len(items)))
        return history @ self.similarity[items].astype(values.dtype)

    def _weighted_row(self, items: np.ndarray, values: np.ndarray) -> sparse.csr_array:
        """`weighted` of one history: the same sums in the same order, without what scipy spends on being general."""
        matrix = self.similarity
        parts = [slice(matrix.indptr[item], matrix.indptr[item + 1]) for item in items]
        columns = np.concatenate([matrix.indices[part] for part in parts] or [matrix.indices[:0]])
        terms = [value * matrix.data[part].astype(values.dtype) for value, part in zip(values, parts, strict=True)]
        columns, place = np.unique(columns, return_inverse=True)
        sums = np.bincount(place, np.concatenate(terms) if terms else None, minlength=len(columns))
        return sparse.csr_array((sums, columns, [0, len(columns)]), (1, matrix.shape[1]))

    def score(self, state: sparse.csr_array, candidates: Tensor) -> Tensor:
        """Sums of similarities to `candidates: [B, T]` or `[T]` int64; `[B, T] float64`."""
        check_candidates(candidates, self.similarity.shape[0] - 1)
        items = candidates.numpy()
        if items.ndim == 1:
            return torch.from_numpy(state[:, items].toarray())
        rows = np.broadcast_to(np.arange(len(items))[:, None], items.shape)
        return torch.from_numpy(np.asarray(state[rows.ravel(), items.ravel()]).reshape(items.shape))


def last_occurrences(sequences: Tensor) -> Tensor:
    """[B, L] bool: True where a position holds an item that comes no more after it."""
    ordered, order = sequences.sort(dim=1, stable=True)
    last = ordered > 0
    last[:, :-1] &= ordered[:, :-1] != ordered[:, 1:]
    return torch.zeros_like(last).scatter_(1, order, last)


def _similarity(seen: sparse.csr_array, neighbours: int, shrink: float) -> sparse.csr_array:
    """S [V + 1, V + 1], a block of columns at a time, from `seen`, which is 1 where a user had an item."""
    by_item = seen.tocsc()
    norm = np.sqrt(by_item.sum(axis=0))
    # An item has pairs with as many items as its users had altogether.
    pairs = np.cumsum(by_item.T @ np.diff(seen.indptr).astype(float))
    block, columns = pairs // _PAIRS_PER_BLOCK, []
    for first in np.unique(block, return_index=True)[1]:
        last = np.searchsorted(block, block[first], "right")
        common = (by_item.T @ by_item[:, first:last]).tocoo()
        row, column = common.coords
        value = common.data / (norm[row] * norm[first + column] + shrink)
        kept = row != first + column
        part = sparse.csc_array((value[kept], (row[kept], column[kept])), shape=common.shape)
        columns.append(_largest(part, neighbours) if neighbours else part)
    return sparse.hstack(columns, format="csr")


def _largest(matrix: sparse.csc_array, count: int) -> sparse.csc_array:
    """The `count` largest values of each column; among equal ones those of the first rows."""
    matrix.sort_indices()
    column = np.repeat(np.arange(matrix.shape[1]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, column))
    place = np.arange(len(order)) - matrix.indptr[column]
    kept = order[place < count]
    return sparse.csc_array((matrix.data[kept], (matrix.indices[kept], column[kept])), shape=matrix.shape)
