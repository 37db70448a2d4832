"""Distinct items of ragged histories against sets."""

from __future__ import annotations

import numpy as np
import pytest

from solid_ext.data import Dataset, Rows, load_dataset
from solid_ext.evaluate.history import distinct_counts, first_occurrence, history_pairs


@pytest.fixture
def ragged() -> Dataset:
    """Histories of 1 to 40 interactions with 12 items."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(30), rng.integers(1, 41, 30))
    return load_dataset((users, rng.integers(1, 13, users.size), np.arange(users.size)))


def test_marks_the_first_interaction_with_each_item(user_blocks: int) -> None:
    dataset = load_dataset(([1, 1, 1, 1, 2, 2], [1, 2, 1, 2, 2, 2], np.arange(6)))
    assert first_occurrence(dataset).tolist() == [True, True, False, False, True, False]


def test_counts_equal_the_sizes_of_sets(ragged: Dataset, user_blocks: int) -> None:
    slices = zip(ragged.offsets[:-1], ragged.offsets[1:], strict=True)
    expected = [len(set(ragged.items[start:stop].tolist())) for start, stop in slices]
    assert distinct_counts(ragged, first_occurrence(ragged)).tolist() == expected


def test_pairs_equal_sets_without_the_target(ragged: Dataset) -> None:
    users = np.repeat(np.arange(ragged.num_users), np.diff(ragged.offsets))
    order = np.random.default_rng(1).permutation(users.size)
    rows = Rows(users[order], np.arange(users.size)[order])  # each user's first too: an empty history
    row, item = history_pairs(ragged, rows, first_occurrence(ragged))
    assert (np.diff(item) >= 0).all()
    expected = {
        (place, int(before))
        for place, (user, position) in enumerate(zip(rows.users, rows.positions, strict=True))
        for before in ragged.items[ragged.offsets[user] : position]
        if before != ragged.items[position]
    }
    assert len(row) == len(expected)
    assert set(zip(row.tolist(), item.tolist(), strict=True)) == expected
