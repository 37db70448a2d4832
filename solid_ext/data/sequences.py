"""Item sequences as views by index: gathered for a batch when it is needed, never stored per prefix."""

from __future__ import annotations

import numpy as np

from solid_ext.data.dataset import Dataset
from solid_ext.data.split import Rows


def gather_sequences(dataset: Dataset, rows: Rows, length: int) -> np.ndarray:
    """Return the items before each row's position: the L most recent ones, oldest first, then zeros.

    sequence[r, j] = items[p - n + j] for j < n, else 0, with p the position and n = min(L, p - start of the
    user). A position at the end of a user's history asks for what comes after all of it.

    Args:
        dataset: the interactions.
        rows: `R` of them.
        length: `L`, at least 1.

    Returns:
        `[R, L] int64`.

    Raises:
        ValueError: a length below 1, users out of range, or positions outside their user's history.
    """
    if length < 1:
        raise ValueError(f"gather_sequences: expected length >= 1, got {length}")
    if len(rows) and (rows.users.min() < 0 or rows.users.max() >= dataset.num_users):
        raise ValueError(
            f"gather_sequences: expected users in 0..{dataset.num_users - 1}, "
            f"got {rows.users.min()}..{rows.users.max()}"
        )
    starts = dataset.offsets[rows.users]
    outside = np.flatnonzero((rows.positions < starts) | (rows.positions > dataset.offsets[rows.users + 1]))
    if outside.size:
        row = outside[0]
        raise ValueError(
            "gather_sequences: expected positions inside the history of their user, "
            f"got {rows.positions[row]} for user {rows.users[row]}"
        )
    count = np.minimum(rows.positions - starts, length)
    step = np.arange(length, dtype=np.int64)
    index = (rows.positions - count)[:, None] + step
    taken = dataset.items.take(index, mode="clip").astype(np.int64)
    return np.where(step < count[:, None], taken, 0)
