"""The synthetic world follows its rule; its ceiling is what an oracle reaches and a learner approaches."""

from __future__ import annotations

import numpy as np
import pytest

from solid_ext.data import Dataset, SyntheticTruth, gather_sequences, leave_one_out, synthetic_dataset

CUTOFFS = (5, 10, 20)


def ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of every target among all items, 1 the best, ties against it."""
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    return (scores[:, 1:] >= own).sum(axis=1)


def measured(found: np.ndarray) -> dict[str, float]:
    metrics = {f"hr@{k}": float((found <= k).mean()) for k in CUTOFFS}
    metrics |= {f"ndcg@{k}": float(np.where(found <= k, 1 / np.log2(found + 1), 0).mean()) for k in CUTOFFS}
    return metrics | {"mrr": float((1 / found).mean())}


def last_items(dataset: Dataset, length: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rows = leave_one_out(dataset).test
    return gather_sequences(dataset, rows, length), dataset.items[rows.positions].astype(np.int64)


def next_semantics(dataset: Dataset, truth: SyntheticTruth) -> tuple[np.ndarray, np.ndarray]:
    """Semantics of every pair of neighbours in a history."""
    first = np.ones(dataset.num_interactions, dtype=bool)
    first[dataset.offsets[1:-1] - 1] = False
    before = np.flatnonzero(first[:-1])
    return truth.semantics[dataset.items[before]], truth.semantics[dataset.items[before + 1]]


def test_shapes_ids_metadata_and_times() -> None:
    dataset, truth = synthetic_dataset(30, 25, 4, seed=1, min_length=2, max_length=9)
    lengths = np.diff(dataset.offsets)
    assert (dataset.num_users, dataset.num_items) == (30, 25)
    assert lengths.min() >= 2
    assert lengths.max() <= 9
    assert dataset.items.min() >= 1
    assert dataset.items.max() <= 25
    assert np.unique(truth.semantics[1:]).tolist() == [1, 2, 3, 4]
    assert np.bincount(truth.semantics)[1:].tolist() == [7, 6, 6, 6]
    assert dataset.titles([1])[0].endswith(" No. 01")
    assert dataset.item_table["categories"].to_list() == [truth.names[s - 1] for s in truth.semantics[1:]]
    assert dataset.item_index(["item-25", "item-26"]).tolist() == [25, 0]
    assert dataset.timestamps is not None
    assert dataset.timestamps.min() > 1.5e9


def test_the_rule_is_one_cycle_through_all_semantics() -> None:
    _, truth = synthetic_dataset(5, 40, 8, seed=2)
    seen, semantic = [], 1
    for _ in range(8):
        seen.append(semantic)
        semantic = truth.successor[semantic]
    assert sorted(seen) == list(range(1, 9))
    assert semantic == 1


def test_same_seed_same_world() -> None:
    first, second, other = (synthetic_dataset(40, 30, 3, seed=seed)[0] for seed in (0, 0, 1))
    assert first.fingerprint == second.fingerprint != other.fingerprint
    np.testing.assert_array_equal(first.timestamps, second.timestamps)


@pytest.mark.parametrize(("predictability", "drift"), [(1.0, 0.0), (0.7, 0.0), (0.8, 0.3), (0.0, 0.0), (1.0, 1.0)])
def test_neighbours_follow_the_rule_as_often_as_planted(predictability: float, drift: float) -> None:
    dataset, truth = synthetic_dataset(4000, 50, 5, predictability=predictability, drift=drift, seed=3)
    before, after = next_semantics(dataset, truth)
    follows = (truth.successor[before] == after).mean()
    expected = predictability * (1 - drift + drift / 5) + (1 - predictability) / 5
    assert follows == pytest.approx(expected, abs=4 * np.sqrt(0.25 / before.size))
    within = np.bincount(dataset.items, minlength=51)[1:] / dataset.num_interactions
    np.testing.assert_allclose(within, 1 / 50, rtol=0.2)


@pytest.mark.parametrize(("predictability", "drift"), [(1.0, 0.0), (0.8, 0.1), (0.5, 1.0), (0.0, 0.5), (1.0, 0.99)])
def test_probabilities_are_the_frequencies(predictability: float, drift: float) -> None:
    dataset, truth = synthetic_dataset(
        5000, 7, 3, predictability=predictability, drift=drift, seed=1, min_length=40, max_length=40
    )
    stated = truth.probabilities(np.arange(8)[:, None])
    np.testing.assert_allclose(stated.sum(axis=1), 1.0, rtol=1e-12)
    assert not stated[:, 0].any()
    np.testing.assert_allclose(stated[0, 1:], 1 / 7)
    histories = dataset.items.reshape(5000, 40)
    counts = np.zeros((8, 8))
    np.add.at(counts, (histories[:, :-1].ravel(), histories[:, 1:].ravel()), 1)
    total = counts.sum(axis=1, keepdims=True)[1:]
    deviation = np.abs(counts[1:] / total - stated[1:])
    assert np.all(deviation <= 5 * np.sqrt(stated[1:] * (1 - stated[1:]) / total) + 1e-12)


def test_the_oracle_ranks_by_probability_and_never_ties() -> None:
    for predictability, drift in ((0.9, 0.2), (0.6, 1.0), (1.0, 0.995), (0.0, 0.0)):
        _, truth = synthetic_dataset(5, 11, 3, predictability=predictability, drift=drift, seed=6)
        sequences = np.pad(np.arange(12)[:, None], ((0, 0), (0, 2)))
        scores, stated = truth.oracle_scores(sequences), truth.probabilities(sequences)
        assert np.isneginf(scores[:, 0]).all()
        for row, probability in zip(scores[:, 1:], stated[:, 1:], strict=True):
            assert np.unique(row).size == row.size
            assert np.all(np.diff(probability[np.argsort(-row)]) <= 0)
        assert np.unique(scores[:, 1:].astype(np.float32), axis=1).shape == scores[:, 1:].shape


def test_padding_does_not_matter() -> None:
    _, truth = synthetic_dataset(5, 30, 5, seed=0)
    short, padded = np.array([[3, 9], [4, 0]]), np.array([[3, 9, 0, 0], [4, 0, 0, 0]])
    np.testing.assert_array_equal(truth.oracle_scores(short), truth.oracle_scores(padded))
    np.testing.assert_array_equal(truth.probabilities(short)[1], truth.probabilities(np.array([[7, 4]]))[0])


@pytest.mark.parametrize(("predictability", "drift"), [(1.0, 0.0), (0.85, 0.1), (0.5, 0.5), (0.0, 0.0)])
def test_the_oracle_reaches_the_ceiling(predictability: float, drift: float) -> None:
    dataset, truth = synthetic_dataset(
        6000, 200, 10, predictability=predictability, drift=drift, seed=11, min_length=3, max_length=5
    )
    sequences, targets = last_items(dataset)
    ceiling = truth.ceiling(sequences, CUTOFFS)
    reached = measured(ranks(truth.oracle_scores(sequences), targets))
    assert reached.keys() == ceiling.keys()
    for name, value in ceiling.items():
        assert reached[name] == pytest.approx(value, abs=4 * np.sqrt(0.25 / len(targets))), name
    if predictability == 1.0:
        assert ceiling["hr@20"] == pytest.approx(1.0)
        assert ceiling["hr@10"] == pytest.approx(0.5)
    if predictability == 0.0:
        assert ceiling["hr@10"] == pytest.approx(10 / 200)
        assert ceiling["mrr"] == pytest.approx(np.mean(1 / np.arange(1, 201)))


def learned_scores(dataset: Dataset, truth: SyntheticTruth, sequences: np.ndarray) -> np.ndarray:
    """A first-order model of semantics counted in training; items of one semantic in random order."""
    split = leave_one_out(dataset)
    before = truth.semantics[dataset.items[split.train.positions - 1]]
    after = truth.semantics[dataset.items[split.train.positions]]
    counts = np.zeros((truth.successor.size, truth.successor.size))
    np.add.at(counts, (before, after), 1.0)
    last = np.take_along_axis(sequences, (sequences != 0).sum(axis=1)[:, None] - 1, axis=1)[:, 0]
    order = np.random.default_rng(0).random(truth.semantics.size)
    return counts[truth.semantics[last]][:, truth.semantics] + 0.5 * order


def test_a_learner_comes_near_the_ceiling_if_predictable_and_stays_at_chance_if_not() -> None:
    for predictability in (0.9, 0.0):
        dataset, truth = synthetic_dataset(3000, 100, 10, predictability=predictability, drift=0.1, seed=5)
        sequences, targets = last_items(dataset)
        reached = measured(ranks(learned_scores(dataset, truth, sequences), targets))["hr@10"]
        noise = 4 * np.sqrt(0.25 / len(targets))
        assert reached == pytest.approx(truth.ceiling(sequences)["hr@10"], abs=noise)
        assert reached > 0.7 if predictability else reached < 0.1 + noise


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 10, 2), {}, "got 0, 10 and 2"),
        ((5, 3, 4), {}, "got 5, 3 and 4"),
        ((5, 3, 1), {}, "got 5, 3 and 1"),
        ((5, 9, 3), {"predictability": 1.1}, r"expected predictability in \[0, 1\], got 1.1"),
        ((5, 9, 3), {"drift": float("nan")}, r"expected drift in \[0, 1\], got nan"),
        ((5, 9, 3), {"min_length": 0}, "expected 1 <= min_length <= max_length, got 0, 20"),
        ((5, 9, 3), {"min_length": 9, "max_length": 8}, "expected 1 <= min_length <= max_length, got 9, 8"),
    ],
)
def test_refused(arguments: tuple[int, int, int], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_dataset(*arguments, **options)


def test_sequences_that_are_none() -> None:
    _, truth = synthetic_dataset(5, 9, 3)
    for wrong in (np.zeros((0, 3), dtype=int), np.zeros(3, dtype=int), np.zeros((2, 3))):
        with pytest.raises(ValueError, match=r"expected sequences \[B, L\] of integers"):
            truth.oracle_scores(wrong)
    with pytest.raises(ValueError, match=r"expected items in 0\.\.9, got others"):
        truth.oracle_scores(np.array([[10]]))
