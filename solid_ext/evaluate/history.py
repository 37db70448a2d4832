"""The distinct items of ragged user histories, without a `users x items` array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solid_ext.data import Dataset, Rows
from solid_ext.data.histories import blocks_before, counts_by_user
from solid_ext.data.prepare import sorted_rows


def first_occurrence(dataset: Dataset) -> NDArray[np.bool_]:
    """True where an interaction is the user's first with its item; `[N] bool`.

    The distinct items of a history are then the marked ones of its slice, whatever the slice's end.
    """
    first = np.empty(dataset.num_interactions, bool)
    for users, user, items in blocks_before(dataset.offsets, dataset.items, dataset.offsets[1:]):
        pair = user * (dataset.num_items + 1) + items
        order = sorted_rows(pair)  # within a pair the earliest interaction comes first
        pair = pair[order]
        first[dataset.offsets[users.start] + order] = np.diff(pair, prepend=-1) != 0
    return first


def distinct_counts(dataset: Dataset, first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of different items of each user, from `first_occurrence`; `[U] int64`."""
    return counts_by_user(dataset.offsets, first)


def history_pairs(
    dataset: Dataset, rows: Rows, first: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (row, item) of the distinct items before each row's position, the row's own target left out.

    Args:
        rows: `R` prediction rows.
        first: `[N] bool`, of `first_occurrence`.

    Returns:
        `(row [M] int64 in 0..R-1, item [M] int64)`, in ascending order of the item, so that a block of the
        catalogue is a slice.
    """
    start = dataset.offsets[rows.users]
    length = rows.positions - start
    row = np.repeat(np.arange(length.size), length)
    flat = np.arange(row.size) + np.repeat(start - (np.cumsum(length) - length), length)
    item = dataset.items[flat].astype(np.int64)
    target = dataset.items[rows.positions]
    kept = np.flatnonzero(first[flat] & (item != target[row]))
    kept = kept[np.argsort(item[kept], kind="stable")]
    return row[kept], item[kept]
