"""Uniform negatives from the catalogue minus the user's own items, exact and without rejection."""

from __future__ import annotations

import numpy as np

from solid_ext.data.dataset import Dataset
from solid_ext.data.histories import blocks_before


class NegativeSampler:
    """Draws items that a user does not own, each with the same probability.

    With o_0 < o_1 < ... the user's own items, g_i = o_i - 1 - i foreign items lie below o_i. The foreign item
    of rank r (from 0) is therefore r + 1 + #{i : g_i <= r}: one bisection of the own items per draw instead of trying
    until it fits, so the cost does not depend on how much of the catalogue a user owns. All that is kept is the own
    items, 4 bytes each.

    A user who owns every item has no foreign one: such users' negatives are uniform over the whole catalogue, so that
    one of them does not stop a training (`owns_all` marks them).

    Args:
        dataset: interactions of U users with V items.
        known_end: `[U] int64`, flat end of what counts as a user's own items; by default the whole history.

    Raises:
        TypeError: `known_end` of another shape or dtype.
        ValueError: `known_end` outside a user's history.
    """

    def __init__(self, dataset: Dataset, known_end: np.ndarray | None = None) -> None:
        starts, ends = dataset.offsets[:-1], dataset.offsets[1:]
        if known_end is None:
            known_end = ends
        if not isinstance(known_end, np.ndarray) or known_end.dtype != np.int64 or known_end.shape != starts.shape:
            raise TypeError(f"NegativeSampler: expected known_end [{starts.size}] int64, got {known_end!r:.80}")
        if np.any(known_end < starts) or np.any(known_end > ends):
            raise ValueError("NegativeSampler: expected known_end inside every user's history, got ends outside")
        self.num_users, self.num_items = dataset.num_users, dataset.num_items
        stride = self.num_items + 1
        self._own_count = np.zeros(self.num_users, dtype=np.int64)
        self._own_start = np.zeros(self.num_users, dtype=np.int64)
        self._own = np.empty(max(dataset.num_interactions, 1), dtype=np.int32)  # of all users; takes what is written
        filled = 0
        for users, owner, items in blocks_before(dataset.offsets, dataset.items, known_end):
            # Sorted and thinned by hand: numpy's unique hashes first, 15 s instead of 1 s for 8 million pairs.
            pairs = np.sort(owner * stride + items)
            owner, items = np.divmod(pairs[np.diff(pairs, prepend=-1) != 0], stride)
            self._own[filled : filled + items.size] = items
            count = np.bincount(owner, minlength=users.stop - users.start)
            self._own_count[users], self._own_start[users] = count, filled + np.cumsum(count) - count
            filled += items.size
        self.owns_all = self._own_count == self.num_items
        """`[U] bool`: users without a foreign item."""

    def sample(self, users: np.ndarray, count: int, rng: np.random.Generator, *, distinct: bool = False) -> np.ndarray:
        """Draw negatives, uniform over the items that each row's user does not own.

        Args:
            users: `[R]` user rows.
            count: negatives per row.
            rng: the same state gives the same draws.
            distinct: without replacement within a row, in uniformly random order; a user with fewer foreign items
                than `count` gets them all, and 0 behind them.

        Returns:
            `[R, count] int64`.

        Raises:
            TypeError: users that are no row of integers, or another kind of generator.
            ValueError: users out of range, or a count below 0.
        """
        users = np.asarray(users)
        if users.ndim != 1 or users.dtype.kind not in "iu":
            raise TypeError(
                f"NegativeSampler.sample: expected users [R] of integers, got {users.dtype} {list(users.shape)}"
            )
        if count < 0:
            raise ValueError(f"NegativeSampler.sample: expected count >= 0, got {count}")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"NegativeSampler.sample: expected a numpy Generator, got {type(rng).__name__}")
        if users.size == 0 or count == 0:
            return np.zeros((users.size, count), dtype=np.int64)
        if users.min() < 0 or users.max() >= self.num_users:
            raise ValueError(
                f"NegativeSampler.sample: expected users in 0..{self.num_users - 1}, got {users.min()}..{users.max()}"
            )
        users = users.astype(np.int64, copy=False)
        foreign = self.num_items - self._own_count[users]
        if distinct:
            return self._sample_distinct(users, foreign, count, rng)
        owns_all = self.owns_all[users]
        if not owns_all.any():
            return self._items(users, rng.integers(0, foreign[:, None], size=(users.size, count), dtype=np.int64))
        sizes = np.where(owns_all, self.num_items, foreign)
        ranks = rng.integers(0, sizes[:, None], size=(users.size, count), dtype=np.int64)
        return np.where(owns_all[:, None], ranks + 1, self._items(users, ranks))

    def _sample_distinct(
        self, users: np.ndarray, foreign: np.ndarray, count: int, rng: np.random.Generator
    ) -> np.ndarray:
        enough = foreign >= count
        if enough.all():
            return self._items(users, _distinct_ranks(foreign, count, rng))
        found = np.zeros((users.size, count), dtype=np.int64)
        if enough.any():
            found[enough] = self._items(users[enough], _distinct_ranks(foreign[enough], count, rng))
        for row in np.flatnonzero(~enough & (foreign > 0)):
            own = slice(row, row + 1)
            found[own, : foreign[row]] = self._items(users[own], rng.permutation(foreign[row])[None, :])
        return found

    def _items(self, users: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """The foreign items of ranks `[R, n]`."""
        start, count = self._own_start[users][:, None], self._own_count[users][:, None]
        passed = np.zeros_like(ranks)  # own items below the one that is sought, found bit by bit
        for bit in reversed(range(int(count.max()).bit_length())):
            more = passed + (1 << bit)
            last = self._own.take(start + more - 1, mode="clip")
            np.copyto(passed, more, where=(more <= count) & (last - more <= ranks))
        return ranks + 1 + passed


def _distinct_ranks(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `[R, count]` ranks in 0..sizes[r] - 1, all different in a row, every subset and order as likely.

    Floyd's sampling for all rows at once: step j draws from 0..sizes - count + j and takes the upper end
    where that is drawn already; no draw is repeated. The rows are shuffled because late steps favour high
    ranks.
    """
    ranks = np.empty((sizes.size, count), dtype=np.int64)
    for step in range(count):
        upper = sizes - count + step
        drawn = rng.integers(0, upper + 1)
        taken = (ranks[:, :step] == drawn[:, None]).any(axis=1)
        ranks[:, step] = np.where(taken, upper, drawn)
    return rng.permuted(ranks, axis=1)
