"""Arrays over all interactions, made without another array of their size that holds each one's user or place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 1 << 22  # interactions that are worked on at once where their order is needed: 32 MB a column of int64


def blocks_of_users(offsets: np.ndarray, size: int = BLOCK) -> Iterator[slice]:
    """Yield slices of users, in order and all of them, whose interactions are `size` at most, or one user's.

    Args:
        offsets: `[U + 1] int64`, as a `Dataset` has them.
    """
    first, users = 0, offsets.size - 1
    while first < users:
        last = int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1
        block = slice(first, min(max(last, first + 1), users))
        yield block
        first = block.stop


def blocks_before(
    offsets: np.ndarray, items: np.ndarray, ends: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield block after block of users what they have before their ends; `ends [U] int64` are flat.

    Args:
        offsets, items: as a `Dataset` has them.

    Returns:
        The users; and of their n interactions each one's user, counted from the block's first, and item: `[n] int64`,
        `[n] int32`.
    """
    for users in blocks_of_users(offsets):
        own, end = offsets[users.start : users.stop + 1], ends[users]
        user = np.repeat(np.arange(own.size - 1), end - own[:-1])
        yield users, user, items[own[0] : own[-1]][before_ends(own - own[0], end - own[0])]


def before_ends(offsets: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return `[N] bool`: whether an interaction lies before its user's end; `ends [U] int64` are flat."""
    starts, stops = offsets[:-1], offsets[1:]
    return np.repeat(np.tile([True, False], starts.size), np.stack([ends - starts, stops - ends], axis=1).ravel())


def counts_by_user(offsets: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return `[U] int64`: how many of each user's interactions are chosen, `[N] bool` or the ascending places."""
    places = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
    return np.diff(np.searchsorted(places, offsets))
