"""Splits: what is held out, and that nothing of it leaks into training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from solid_ext.data import Dataset, Rows, Split, global_time, leave_one_out, load_dataset, synthetic_dataset


def make(lengths: list[int], seed: int = 0, times: bool = True) -> Dataset:
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = rng.integers(1, 30, users.size)
    return load_dataset((users, items, rng.permutation(10 * users.size)[: users.size]) if times else (users, items))


def check_never_leaks(dataset: Dataset, split: Split) -> None:
    """No position twice, each in its user's range, training strictly before train_end, the rest behind it."""
    starts, ends = dataset.offsets[:-1], dataset.offsets[1:]
    assert split.train_end.dtype == np.int64
    assert np.all((starts <= split.train_end) & (split.train_end <= ends))
    for rows in (split.train, split.valid, split.test):
        assert rows.users.dtype == rows.positions.dtype == np.int64
        assert np.all(starts[rows.users] < rows.positions), "a row without history"
        assert np.all(rows.positions < ends[rows.users])
    assert np.all(split.train.positions < split.train_end[split.train.users])
    for rows in (split.valid, split.test):
        assert np.all(rows.positions >= split.train_end[rows.users])
    everything = np.concatenate([split.train.positions, split.valid.positions, split.test.positions])
    assert np.unique(everything).size == everything.size
    # Every position of the training part but a user's first is a row.
    in_train = np.concatenate([np.arange(a + 1, b) for a, b in zip(starts, split.train_end, strict=True)])
    np.testing.assert_array_equal(np.sort(split.train.positions), in_train)
    seen = set(dataset.items[np.concatenate([np.arange(a, b) for a, b in zip(starts, split.train_end, strict=True)])])
    assert split.report["items_in_train"] == len(seen)
    for name in ("valid", "test"):
        rows = getattr(split, name)
        unseen = sum(item not in seen for item in dataset.items[rows.positions])
        assert split.report[f"{name}_rows_of_unseen_items"] == unseen
        assert split.report[f"{name}_rows"] == len(rows)


def test_leave_one_out_by_hand() -> None:
    dataset = make([4, 2, 3, 1])
    split = leave_one_out(dataset)
    check_never_leaks(dataset, split)
    assert split.name == "leave_one_out"
    assert split.train_end.tolist() == [2, 6, 7, 10]
    assert (split.train.users.tolist(), split.train.positions.tolist()) == ([0, 1], [1, 5])
    assert (split.valid.users.tolist(), split.valid.positions.tolist()) == ([0, 2], [2, 7])
    assert (split.test.users.tolist(), split.test.positions.tolist()) == ([0, 2], [3, 8])
    assert split.report["users_too_short"] == 2
    assert split.report["train_interactions"] == 6


@pytest.mark.parametrize("seed", range(5))
def test_splits_never_leak(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = make(rng.integers(1, 12, size=40).tolist(), seed)
    check_never_leaks(dataset, leave_one_out(dataset))
    assert dataset.timestamps is not None
    for valid, test in ((0.1, 0.1), (0.3, 0.05), (0.05, 0.6)):
        split = global_time(dataset, valid, test)
        check_never_leaks(dataset, split)
        in_train = np.zeros(dataset.num_interactions, dtype=bool)
        for start, end in zip(dataset.offsets[:-1], split.train_end, strict=True):
            in_train[start:end] = True
        times = dataset.timestamps
        assert times[in_train].max() < times[~in_train].min()
        assert times[split.train.positions].max() < times[split.valid.positions].min()
        assert times[split.valid.positions].max() < times[split.test.positions].min()
        assert times[in_train].max() < split.report["valid_from"] <= times[split.valid.positions].min()
        assert split.report["test_from"] <= times[split.test.positions].min()
        # The windows hold the shares asked for: times are all different here.
        later = [int((times >= split.report[name]).sum()) for name in ("test_from", "valid_from")]
        expected = [test * times.size, (valid + test) * times.size]
        np.testing.assert_allclose(later, expected, atol=1.0)
        outside = dataset.num_interactions - int(in_train.sum()) - len(split.valid) - len(split.test)
        assert outside == split.report["valid_without_history"] + split.report["test_without_history"]


def test_global_time_by_hand_keeps_equal_times_together() -> None:
    users = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    times = [0, 1, 5, 8, 1, 5, 5, 9, 5, 8]
    dataset = load_dataset((users, list(range(10)), times))
    # Sorted times 0 1 1 5 5 5 5 8 8 9: the cut of the last 0.5 falls among the fives and takes them all.
    split = global_time(dataset, valid=0.2, test=0.3)
    check_never_leaks(dataset, split)
    assert (split.report["valid_from"], split.report["test_from"]) == (5, 8)
    assert split.train_end.tolist() == [2, 5, 8]
    assert split.train.positions.tolist() == [1]
    assert split.valid.positions.tolist() == [2, 5, 6]
    assert split.test.positions.tolist() == [3, 7, 9]
    assert split.report["valid_without_history"] == 1
    assert split.report["test_without_history"] == 0
    assert split.report["timestamps_are_positions"] == 0


def test_positions_as_timestamps_are_reported() -> None:
    users = np.repeat([0, 1], [9, 4])
    dataset = load_dataset((users, np.arange(13), np.concatenate([np.arange(1, 10), np.arange(1, 5)])))
    assert global_time(dataset, 0.2, 0.2).report["timestamps_are_positions"] == 1


def test_splits_that_leave_nothing() -> None:
    with pytest.raises(ValueError, match=r"leave_one_out: expected validation rows, got none from .*longest history 2"):
        leave_one_out(make([2, 2, 2]))
    with pytest.raises(ValueError, match=r"leave_one_out: expected training rows, got none .*longest history 3"):
        leave_one_out(make([3, 3]))
    dataset = load_dataset(([0, 0, 0, 0], [1, 2, 3, 4], [5, 5, 5, 5]))
    with pytest.raises(ValueError, match="global_time: expected training rows, got none"):
        global_time(dataset)
    dataset = load_dataset(([0] * 7, list(range(7)), [1, 2, 5, 5, 5, 5, 5]))
    with pytest.raises(ValueError, match="global_time: expected validation rows, got none"):
        global_time(dataset, 0.3, 0.3)


def test_global_time_refuses_what_it_cannot_split() -> None:
    with pytest.raises(ValueError, match="global_time: expected a dataset with timestamps, got one without"):
        global_time(make([5, 5], times=False))
    for shares in ((0.0, 0.1), (0.1, 0.0), (0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1)):
        with pytest.raises(ValueError, match=r"expected shares in \(0, 1\) with a sum below 1"):
            global_time(make([5, 5]), *shares)


def test_rows_can_be_taken() -> None:
    rows = Rows(np.array([4, 5, 6]), np.array([7, 8, 9]))
    assert len(rows) == 3
    assert rows.take(np.array([2, 0, 2])).positions.tolist() == [9, 7, 9]
    assert rows.take(slice(1, None)).users.tolist() == [5, 6]
    assert len(rows.take(rows.users > 9)) == 0
    with pytest.raises(TypeError, match="Rows: expected users as a one-dimensional int64 array"):
        Rows(np.array([1], dtype=np.int32), np.array([1]))
    with pytest.raises(ValueError, match="Rows: expected as many positions as users, got 1 and 2"):
        Rows(np.array([1, 2]), np.array([1]))


def test_shared_data_split(shared_data: Path) -> None:
    dataset = load_dataset(shared_data / "amazon_scientific")
    split = leave_one_out(dataset)
    check_never_leaks(dataset, split)
    assert len(split.test) == len(split.valid) == dataset.num_users
    assert len(split.train) == dataset.num_interactions - 3 * dataset.num_users
    films = load_dataset(shared_data / "movielens_100k")
    check_never_leaks(films, global_time(films))


def test_synthetic_data_split() -> None:
    dataset, _ = synthetic_dataset(60, 40, 4, seed=3)
    check_never_leaks(dataset, leave_one_out(dataset))
    check_never_leaks(dataset, global_time(dataset))
