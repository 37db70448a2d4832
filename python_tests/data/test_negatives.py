"""Negatives: never an own item, every foreign one equally likely, always the same for the same generator."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from solid_ext.data import Dataset, NegativeSampler, leave_one_out, load_dataset, synthetic_dataset


def world(seed: int = 0) -> Dataset:
    return synthetic_dataset(80, 60, 5, seed=seed, min_length=3, max_length=40)[0]


def own_items(dataset: Dataset, user: int, end: int | None = None) -> set[int]:
    return set(dataset.items[dataset.offsets[user] : dataset.offsets[user + 1] if end is None else end].tolist())


def rejected(counts: np.ndarray) -> bool:
    """Whether a chi-square test at 1e-4 rejects that all cells are equally likely."""
    expected = counts.sum() / counts.size
    return bool(((counts - expected) ** 2 / expected).sum() > chi2.ppf(1 - 1e-4, counts.size - 1))


@pytest.mark.parametrize("distinct", [False, True])
def test_never_an_own_item_nor_one_outside_the_catalogue(distinct: bool) -> None:
    dataset = world()
    users = np.random.default_rng(0).integers(0, dataset.num_users, 500)
    drawn = NegativeSampler(dataset).sample(users, 15, np.random.default_rng(1), distinct=distinct)
    assert drawn.shape == (500, 15)
    assert drawn.dtype == np.int64
    assert drawn.min() >= 1
    assert drawn.max() <= dataset.num_items
    for user, row in zip(users, drawn, strict=True):
        assert not own_items(dataset, user) & set(row.tolist())
        assert not distinct or np.unique(row).size == row.size


def test_known_end_says_what_is_own() -> None:
    dataset = world(2)
    split = leave_one_out(dataset)
    users = np.arange(dataset.num_users)
    sampler = NegativeSampler(dataset, split.train_end)
    drawn = sampler.sample(users, 3000, np.random.default_rng(0))
    for user in users:
        foreign = set(range(1, dataset.num_items + 1)) - own_items(dataset, user, split.train_end[user])
        assert set(drawn[user].tolist()) == foreign


def test_a_rank_is_that_of_the_item_among_the_foreign_ones(user_blocks: int) -> None:
    dataset, users = world(4), np.repeat(np.arange(80), 3)
    ends = leave_one_out(dataset).train_end
    foreign = [
        sorted(set(range(1, dataset.num_items + 1)) - own_items(dataset, user, ends[user]))
        for user in range(dataset.num_users)
    ]
    sizes = np.array([len(foreign[user]) for user in users])
    ranks = np.random.default_rng(6).integers(0, sizes[:, None], size=(users.size, 9))
    expected = [[foreign[user][rank] for rank in row] for user, row in zip(users, ranks, strict=True)]
    drawn = NegativeSampler(dataset, ends).sample(users, 9, np.random.default_rng(6))
    assert drawn.tolist() == expected


@pytest.mark.parametrize("distinct", [False, True])
def test_uniform_over_what_is_foreign(distinct: bool) -> None:
    dataset = world(3)
    sampler, rng = NegativeSampler(dataset), np.random.default_rng(5)
    for user in (0, 1, 2):
        foreign = np.array(sorted(set(range(1, dataset.num_items + 1)) - own_items(dataset, user)))
        count = min(4, foreign.size - 1)
        drawn = sampler.sample(np.full(20_000, user), count, rng, distinct=distinct)
        for column in drawn.T:
            assert not rejected(np.bincount(column, minlength=dataset.num_items + 1)[foreign])


def test_distinct_draws_are_uniform_over_subsets_and_orders() -> None:
    dataset = load_dataset(([0, 0, 1, 1, 1, 1], [2, 5, 1, 3, 4, 6]))
    drawn = NegativeSampler(dataset).sample(np.zeros(60_000, dtype=int), 3, np.random.default_rng(0), distinct=True)
    codes, counts = np.unique(drawn @ [49, 7, 1], return_counts=True)
    assert codes.size == 4 * 3 * 2
    assert not rejected(counts)
    everything = NegativeSampler(dataset).sample(np.array([0, 0]), 4, np.random.default_rng(0), distinct=True)
    assert np.sort(everything, axis=1).tolist() == [[1, 3, 4, 6]] * 2


def test_pairs_of_columns_are_independent() -> None:
    dataset = load_dataset(([0, 0, 1, 1, 1], [2, 5, 1, 3, 4]))
    drawn = NegativeSampler(dataset).sample(np.zeros(45_000, dtype=int), 2, np.random.default_rng(3))
    _, counts = np.unique(drawn @ [7, 1], return_counts=True)
    assert counts.size == 9
    assert not rejected(counts)


def test_the_chi_square_test_itself_can_fail() -> None:
    rng = np.random.default_rng(0)
    assert not rejected(np.bincount(rng.integers(0, 50, 20_000), minlength=50))
    assert rejected(np.bincount((rng.random(20_000) ** 1.1 * 50).astype(int), minlength=50))


def test_deterministic_in_the_generator() -> None:
    dataset = world()
    sampler, users = NegativeSampler(dataset), np.arange(50)
    for distinct in (False, True):
        first, second, other = (
            sampler.sample(users, 9, np.random.default_rng(seed), distinct=distinct) for seed in (7, 7, 8)
        )
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, other)


def test_a_user_who_owns_nearly_everything() -> None:
    dataset = load_dataset(([0] * 4 + [1], [1, 2, 3, 4, 5]))
    sampler, rng = NegativeSampler(dataset), np.random.default_rng(0)
    assert sampler.sample(np.array([0]), 6, rng).tolist() == [[5] * 6]
    assert sampler.sample(np.array([0]), 1, rng, distinct=True).tolist() == [[5]]
    drawn = sampler.sample(np.array([1, 0]), 3, rng, distinct=True)
    assert drawn[1].tolist() == [5, 0, 0]
    assert set(drawn[0].tolist()) < {1, 2, 3, 4}
    assert len(set(drawn[0].tolist())) == 3
    nothing_known = NegativeSampler(dataset, dataset.offsets[:-1].copy())
    assert set(nothing_known.sample(np.array([0]), 200, rng).ravel().tolist()) == {1, 2, 3, 4, 5}


def test_a_user_who_owns_everything_gets_any_item_and_the_others_what_is_foreign() -> None:
    full = NegativeSampler(load_dataset(([0, 0, 0, 1], [1, 2, 3, 1])))
    assert full.owns_all.tolist() == [True, False]
    rng = np.random.default_rng(0)
    drawn = full.sample(np.array([0, 1]), 30_000, rng)
    assert not rejected(np.bincount(drawn[0], minlength=4)[1:])
    assert set(drawn[1].tolist()) == {2, 3}
    assert full.sample(np.array([0, 1]), 2, rng, distinct=True)[0].tolist() == [0, 0]


def test_users_with_enough_are_drawn_as_if_the_others_were_not_there() -> None:
    dataset = world()
    users = np.arange(20)
    for distinct in (False, True):
        alone = NegativeSampler(dataset).sample(users, 7, np.random.default_rng(4), distinct=distinct)
        # One more user, who owns everything, behind them.
        items = np.concatenate([dataset.items, np.arange(1, dataset.num_items + 1)])
        owners = np.append(np.repeat(np.arange(80), np.diff(dataset.offsets)), [80] * dataset.num_items)
        wider = NegativeSampler(load_dataset((owners, items)))
        again = wider.sample(users, 7, np.random.default_rng(4), distinct=distinct)
        np.testing.assert_array_equal(alone, again)


def test_empty_requests() -> None:
    sampler, rng = NegativeSampler(world()), np.random.default_rng(0)
    assert sampler.sample(np.zeros(0, dtype=int), 5, rng).shape == (0, 5)
    assert sampler.sample(np.arange(3), 0, rng, distinct=True).shape == (3, 0)


def test_refused() -> None:
    dataset = world()
    sampler, rng = NegativeSampler(dataset), np.random.default_rng(0)
    for user in (-1, dataset.num_users):
        with pytest.raises(ValueError, match=r"expected users in 0\.\.79"):
            sampler.sample(np.array([user]), 1, rng)
    with pytest.raises(ValueError, match="expected count >= 0, got -1"):
        sampler.sample(np.array([0]), -1, rng)
    with pytest.raises(TypeError, match=r"expected users \[R\] of integers, got float64 \[1\]"):
        sampler.sample(np.array([0.0]), 1, rng)
    with pytest.raises(TypeError, match="expected a numpy Generator, got int"):
        sampler.sample(np.array([0]), 1, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected known_end \[80\] int64"):
        NegativeSampler(dataset, dataset.offsets)
    with pytest.raises(ValueError, match="expected known_end inside every user's history"):
        NegativeSampler(dataset, dataset.offsets[1:] + 1)
