"""What is worked out over all interactions, beside loops over users."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from solid_ext.data.histories import before_ends, blocks_before, blocks_of_users, counts_by_user

RAGGED = np.array([0, 0, 3, 4, 4, 11, 13, 13])  # seven users, the first, the fourth and the last without anything


@pytest.mark.parametrize("size", [1, 3, 4, 7, 100])
def test_blocks_are_all_users_in_order_and_no_larger_than_asked(size: int) -> None:
    blocks = list(blocks_of_users(RAGGED, size))
    assert [user for block in blocks for user in range(block.start, block.stop)] == list(range(7))
    for block in blocks:
        lengths = np.diff(RAGGED)[block]
        assert lengths.sum() <= size or np.count_nonzero(lengths) == 1
    if size == 100:
        assert len(blocks) == 1


def test_a_dataset_without_interactions_is_one_block() -> None:
    assert list(blocks_of_users(np.zeros(4, dtype=np.int64))) == [slice(0, 3)]


def test_blocks_of_what_lies_before_ends(user_blocks: int) -> None:
    items, ends = np.arange(20, 33, dtype=np.int32), np.array([0, 2, 3, 4, 11, 12, 13])
    found = [
        (users.start + place, int(item))
        for users, user, own in blocks_before(RAGGED, items, ends)
        for place, item in zip(user.tolist(), own, strict=True)
    ]
    assert found == [(user, int(items[place])) for user in range(7) for place in range(RAGGED[user], ends[user])]


def test_what_lies_before_its_users_end() -> None:
    ends = np.array([0, 2, 3, 4, 11, 12, 13])
    expected = [place < ends[user] for user in range(7) for place in range(RAGGED[user], RAGGED[user + 1])]
    assert before_ends(RAGGED, ends).tolist() == expected


def test_chosen_interactions_are_counted_by_user() -> None:
    chosen = np.random.default_rng(0).random(13) < 0.5
    expected = [chosen[low:high].sum() for low, high in pairwise(RAGGED)]
    assert 0 < chosen.sum() < 13
    assert counts_by_user(RAGGED, chosen).tolist() == expected
    assert counts_by_user(RAGGED, np.flatnonzero(chosen)).tolist() == expected
