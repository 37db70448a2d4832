"""Co-occurrence features: counted by hand, blind to what is held out, and enough to find planted semantics."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from solid_ext import load_dataset
from solid_ext.data import Dataset, SyntheticTruth, cooccurrence_features, leave_one_out, semantics_from_features
from solid_ext.data.semantics.cooccurrence import WINDOW


def histories(*users: list[int]) -> Dataset:
    """A dataset of these items, numbered as they are."""
    owner = np.repeat(np.arange(len(users)), [len(items) for items in users])
    return load_dataset((owner, np.concatenate(users), np.arange(len(owner))))


def by_hand(dataset: Dataset, train_end: np.ndarray) -> np.ndarray:
    """The symmetric matrix that is factored, from loops over pairs of positions."""
    size = dataset.num_items + 1
    near = np.zeros((size, size))
    for start, end in zip(dataset.offsets[:-1], train_end, strict=True):
        items = dataset.items[start:end]
        for i, first in enumerate(items):
            for j, second in enumerate(items):
                if 0 < abs(i - j) <= WINDOW and first != second:
                    near[first, second] += 1
    count = near.sum(1)
    context = count**0.75 / (count**0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(near / (count[:, None] * context))
    information = np.where(near > 0, np.maximum(information, 0), 0)
    return (information + information.T) / 2


def test_features_are_the_factors_of_the_counts_by_hand(user_blocks: int) -> None:
    rng = np.random.default_rng(0)
    lengths = (2, 5, 14, 30, 3, 8, 1)
    dataset = histories(list(range(1, 13)), *(rng.integers(1, 13, size=length).tolist() for length in lengths))
    end = dataset.offsets[1:] - (np.diff(dataset.offsets) > 4)
    features = cooccurrence_features(dataset, end, dim=20, seed=0).astype(np.float64)
    assert features.shape == (13, 20)
    assert not features[:, 12:].any()
    # Left singular vectors times the roots of the values: F F' is the matrix's absolute value, (M M')^(1/2).
    matrix = by_hand(dataset, end)
    values, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(features @ features.T, vectors @ np.diag(np.abs(values)) @ vectors.T, atol=1e-5)


def test_what_is_held_out_changes_nothing(world: tuple[Dataset, SyntheticTruth]) -> None:
    dataset, _ = world
    end = leave_one_out(dataset).train_end
    items = dataset.items.copy()
    held_out = np.arange(len(items)) >= np.repeat(end, np.diff(dataset.offsets))
    items[held_out] = items[held_out][::-1]
    other = load_dataset((np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets)), items, dataset.timestamps))
    assert np.array_equal(other.item_ids.to_numpy(), np.arange(1, dataset.num_items + 1))
    expected = cooccurrence_features(dataset, end, seed=0)
    np.testing.assert_array_equal(cooccurrence_features(other, end, seed=0), expected)
    assert not np.array_equal(cooccurrence_features(other, other.offsets[1:], seed=0), expected)


def test_clusters_of_the_features_are_the_tastes_of_users() -> None:
    """Each of 300 users takes four fifths of his items from one of six groups of 20."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(6), 20))  # of items 1 .. 120
    users = [list(range(1, 121))]  # one who has all, so that items keep their numbers
    for taste in rng.integers(0, 6, size=300):
        own, any_item = 1 + rng.choice(np.flatnonzero(group == taste), 15), rng.integers(1, 121, size=15)
        users.append(np.where(rng.random(15) < 0.8, own, any_item).tolist())
    dataset = histories(*users)
    features = cooccurrence_features(dataset, leave_one_out(dataset).train_end, dim=16, seed=0)
    found = semantics_from_features(features, 6, seed=0, num_items=dataset.num_items)
    assert adjusted_rand_score(group, found.table[1:]) > 0.95


def test_an_item_without_neighbours_has_no_feature() -> None:
    dataset = histories([1, 2, 1], [3], [4, 4])
    features = cooccurrence_features(dataset, dataset.offsets[1:], dim=3, seed=0)
    assert features.any(axis=1).tolist() == [False, True, True, False, False]


def test_nothing_to_count_and_no_columns_are_refused() -> None:
    dataset = histories([1, 1], [2])
    with pytest.raises(ValueError, match="expected users with two different items to train on, got none"):
        cooccurrence_features(dataset, dataset.offsets[1:], seed=0)
    with pytest.raises(ValueError, match="expected dim >= 1, got 0"):
        cooccurrence_features(dataset, dataset.offsets[1:], dim=0, seed=0)
