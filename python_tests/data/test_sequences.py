"""Sequences gathered by index: the most recent items, oldest first, then padding."""

from __future__ import annotations

import numpy as np
import pytest

from solid_ext.data import Dataset, Rows, gather_sequences, leave_one_out, load_dataset, synthetic_dataset


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(([0] * 4 + [1] * 2 + [2] * 3, [1, 2, 3, 4, 5, 6, 1, 1, 7]))


def rows(*pairs: tuple[int, int]) -> Rows:
    return Rows(np.array([u for u, _ in pairs], dtype=np.int64), np.array([p for _, p in pairs], dtype=np.int64))


def test_by_hand(dataset: Dataset) -> None:
    chosen = rows((0, 3), (1, 5), (2, 8), (0, 0), (0, 4), (2, 9))
    sequences = gather_sequences(dataset, chosen, 3)
    assert sequences.dtype == np.int64
    assert sequences.tolist() == [[1, 2, 3], [5, 0, 0], [1, 1, 0], [0, 0, 0], [2, 3, 4], [1, 1, 7]]
    assert gather_sequences(dataset, chosen, 1).ravel().tolist() == [3, 5, 1, 0, 4, 7]
    assert gather_sequences(dataset, chosen, 6).tolist()[4] == [1, 2, 3, 4, 0, 0]
    assert gather_sequences(dataset, rows(), 5).shape == (0, 5)


@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_against_slices(length: int) -> None:
    world, _ = synthetic_dataset(50, 30, 3, seed=1, min_length=3, max_length=25)
    split = leave_one_out(world)
    for part in (split.train, split.valid, split.test):
        sequences = gather_sequences(world, part, length)
        for sequence, user, position in zip(sequences, part.users, part.positions, strict=True):
            history = world.items[world.offsets[user] : position][-length:]
            np.testing.assert_array_equal(sequence, np.pad(history, (0, length - history.size)))
    index = np.random.default_rng(0).permutation(len(split.train))[:20]
    np.testing.assert_array_equal(
        gather_sequences(world, split.train.take(index), length),
        gather_sequences(world, split.train, length)[index],
    )


def test_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="expected length >= 1, got 0"):
        gather_sequences(dataset, rows((0, 1)), 0)
    for user in (-1, 3):
        with pytest.raises(ValueError, match=rf"expected users in 0\.\.2, got {user}\.\.{user}"):
            gather_sequences(dataset, rows((user, 1)), 2)
    for pair in ((1, 3), (1, 7), (0, -1)):
        with pytest.raises(ValueError, match=f"history of their user, got {pair[1]} for user {pair[0]}"):
            gather_sequences(dataset, rows((2, 7), pair), 2)
