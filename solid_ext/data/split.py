"""Which interactions are predicted for training, validation and test, without letting the future leak."""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import numpy as np

from solid_ext.data.dataset import Dataset
from solid_ext.data.histories import before_ends, counts_by_user

MIN_HELD_OUT = 3  # one interaction for test, one for validation, and at least one to predict them from


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Prediction rows: predict items[positions[r]] from the items before it in the same user's history.

    Attributes:
        users: `[R] int64` user rows.
        positions: `[R] int64`, flat index into `Dataset.items`.
    """

    users: np.ndarray
    positions: np.ndarray

    def __post_init__(self) -> None:
        for name, array in (("users", self.users), ("positions", self.positions)):
            if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.ndim != 1:
                raise TypeError(f"Rows: expected {name} as a one-dimensional int64 array, got {array!r:.80}")
        if self.users.size != self.positions.size:
            raise ValueError(
                f"Rows: expected as many positions as users, got {self.positions.size} and {self.users.size}"
            )

    def __len__(self) -> int:
        return self.users.size

    def __repr__(self) -> str:
        return f"Rows({len(self):,} of {np.unique(self.users).size:,} users)"

    def take(self, index: np.ndarray | slice) -> Rows:
        """Return the rows that a numpy index (integers, mask or slice) selects."""
        return Rows(self.users[index], self.positions[index])


NO_ROWS = Rows(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Rows to train, validate and test on.

    Attributes:
        name: of the rule.
        train: rows to train on.
        valid: rows to validate on.
        test: rows to test on.
        train_end: `[U] int64`, flat end of each user's training part. What lies at or behind it must not be
            used in training, neither as target nor as history nor for statistics of items.
        report: counts of rows, users and of what could not be used.
    """

    name: str
    train: Rows
    valid: Rows
    test: Rows
    train_end: np.ndarray
    report: dict[str, int | str]

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {getattr(self, name)!r}" for name in ("train", "valid", "test"))
        return f"Split({self.name!r}: {parts})"


def leave_one_out(dataset: Dataset) -> Split:
    """Hold out the last interaction of every user for test and the one before it for validation.

    Users with fewer than 3 interactions are trained on only (`users_too_short`). Every other position with at
    least one item before it is a training row.

    Raises:
        ValueError: no training or no test row is left.

    Source: docs/evaluation.md#splits.
    """
    _check_dataset("leave_one_out", dataset)
    starts, ends = dataset.offsets[:-1], dataset.offsets[1:]
    held_out = np.flatnonzero(ends - starts >= MIN_HELD_OUT)
    train_end = ends.copy()
    train_end[held_out] -= 2
    return _split(
        "leave_one_out",
        dataset,
        train_end,
        valid=Rows(held_out, ends[held_out] - 2),
        test=Rows(held_out, ends[held_out] - 1),
        report={"users_too_short": dataset.num_users - held_out.size},
    )


def global_time(dataset: Dataset, valid: float = 0.1, test: float = 0.1) -> Split:
    """Cut all interactions at two moments: train before both, validate between them, test from the second.

    With times t sorted, T_test = t[N - round(N test)] and T_valid = t[N - round(N test) - round(N valid)]:
    training has t < T_valid, validation T_valid <= t < T_test, test t >= T_test. A cut never falls between
    equal times, so a window may be larger than asked for. Valid and test rows are all interactions of the
    window that have one before them in the user's history (`valid_without_history`, `test_without_history`
    count the others); that history may reach into the window, as it would in use.

    Args:
        dataset: with timestamps.
        valid: share of the interactions to validate on, in (0, 1).
        test: share to test on, in (0, 1), `valid + test` below 1.

    Raises:
        ValueError: no timestamps, other shares, or training, validation or test is left without rows.

    Source: docs/evaluation.md#splits.
    """
    _check_dataset("global_time", dataset)
    for name, share in (("valid", valid), ("test", test)):
        if isinstance(share, bool) or not isinstance(share, numbers.Real):
            raise TypeError(f"global_time: expected {name} as a share in (0, 1), got {share!r}")
    if dataset.timestamps is None:
        raise ValueError("global_time: expected a dataset with timestamps, got one without")
    if not (0.0 < valid < 1.0 and 0.0 < test < 1.0 and valid + test < 1.0):
        raise ValueError(f"global_time: expected shares in (0, 1) with a sum below 1, got {valid} and {test}")
    times, count = dataset.timestamps, dataset.num_interactions
    sizes = [max(round(count * share), 1) for share in (valid, test)]
    cuts = [max(count - sum(sizes), 0), count - sizes[1]]
    from_valid, from_test = np.partition(times, cuts)[cuts]
    in_train = times < from_valid
    train_end = dataset.offsets[:-1] + counts_by_user(dataset.offsets, in_train)
    has_history = _with_history(dataset)
    windows = {"valid": ~in_train & (times < from_test), "test": times >= from_test}
    report: dict[str, int | str] = {"valid_from": int(from_valid), "test_from": int(from_test)}
    report |= {f"{name}_without_history": int((windows[name] & ~has_history).sum()) for name in windows}
    report["timestamps_are_positions"] = int(_are_positions(dataset))
    return _split(
        "global_time",
        dataset,
        train_end,
        valid=_rows(dataset, windows["valid"] & has_history),
        test=_rows(dataset, windows["test"] & has_history),
        report=report,
    )


NEWEST = 0.2  # of the interactions that are new to a model, that an update validates on


def newest(dataset: Dataset, after: int | None = None, share: float = NEWEST) -> Split:
    """Hold out the newest interactions for validation, and nothing for test: how a model that goes on is validated.

    Of the N' interactions later than `after`, in the order of time, users one after the other at equal times, the last
    `round(N' share)`, but at least one, are held out; the validation rows are those of them that have one before them
    in the user's history, and the training rows are those of the others that are later than `after` too, for what is
    older has been learned. Without times, or where they are positions 1, 2, 3 .. within each user, nothing tells what
    is new: each user's last interaction is held out, and all others are trained on.

    Args:
        dataset: the interactions, old and new.
        after: the latest time that the model has been trained on; None for no time.
        share: in (0, 1).

    Raises:
        ValueError: nothing later than `after`, or training or validation is left without rows.

    Source: docs/evaluation.md#splits.
    """
    _check_dataset("newest", dataset)
    starts, ends = dataset.offsets[:-1], dataset.offsets[1:]
    report: dict[str, int | str] = {}
    new, held_out = later_than(dataset, after), np.zeros(dataset.num_interactions, dtype=bool)
    if dataset.timestamps is None or _are_positions(dataset):
        held_out[ends[ends - starts >= MIN_HELD_OUT - 1] - 1] = True
    else:
        found = np.flatnonzero(new)
        if not found.size:
            raise ValueError(
                f"update: expected interactions later than {after}, the latest that the model was trained on, got none "
                f"(the latest is {dataset.timestamps.max()})"
            )
        found = found[np.argsort(dataset.timestamps[found], kind="stable")]
        chosen = found[found.size - max(round(found.size * share), 1) :]
        held_out[chosen] = True
        report = {"new_interactions": found.size, "valid_from": int(dataset.timestamps[chosen[0]])}
    train_end = starts + counts_by_user(dataset.offsets, ~held_out)
    follow = new & _with_history(dataset)
    valid = _rows(dataset, held_out & follow)
    trained_on = int((follow & ~held_out).sum())
    if not len(valid) or not trained_on:
        raise ValueError(
            "update: expected at least two new interactions that follow another one of their user, one of them among "
            f"the newest {share:.0%} and one before, got {len(valid):,} and {trained_on:,} of {int(new.sum()):,} new "
            "ones; wait for more"
        )
    return _split(
        "newest",
        dataset,
        train_end,
        valid=valid,
        test=NO_ROWS,
        report=report,
        among=new,
        wanted=(),
    )


def later_than(dataset: Dataset, after: int | None) -> np.ndarray:
    """`[N] bool`, the interactions later than a time; all of them where there are no times that could tell."""
    times = dataset.timestamps
    if times is None or after is None or _are_positions(dataset):
        return np.ones(dataset.num_interactions, dtype=bool)
    return times > after


def latest(dataset: Dataset, train_end: np.ndarray) -> int | None:
    """The latest time before the users' ends `[U]`, for `newest`; None without times, or where they are positions."""
    if dataset.timestamps is None or _are_positions(dataset):
        return None
    before = before_ends(dataset.offsets, train_end)
    return int(dataset.timestamps[before].max()) if before.any() else None


def everything(dataset: Dataset, after: int | None = None) -> Split:
    """Train on all interactions, or on all that are later than a time: none is held out, so that none can measure.

    Raises:
        ValueError: no user has such an interaction with one before it.
    """
    _check_dataset("everything", dataset)
    ends, among = dataset.offsets[1:].copy(), later_than(dataset, after)
    return _split(
        "everything", dataset, ends, valid=NO_ROWS, test=NO_ROWS, report={}, among=among, wanted=("training",)
    )


def _check_dataset(name: str, dataset: Dataset) -> None:
    if not isinstance(dataset, Dataset):
        raise TypeError(f"{name}: expected a Dataset (load_dataset makes one), got {type(dataset).__name__}")
    if not dataset.num_interactions:
        raise ValueError(f"{name}: expected interactions, got a dataset without any")


def _rows(dataset: Dataset, chosen: np.ndarray) -> Rows:
    """The rows that predict the chosen interactions, `[N] bool`."""
    positions = np.flatnonzero(chosen)
    users = np.arange(dataset.num_users, dtype=np.int64)
    return Rows(np.repeat(users, counts_by_user(dataset.offsets, positions)), positions)


def _with_history(dataset: Dataset) -> np.ndarray:
    """`[N] bool`: whether an interaction has another one of its user before it."""
    found = np.ones(dataset.num_interactions, dtype=bool)
    starts = dataset.offsets[:-1]
    found[starts[starts < found.size]] = False
    return found


def _are_positions(dataset: Dataset) -> bool:
    """Whether the times are 1, 2, 3 ... within every user: no moment cuts such an order for all at once."""
    times, starts = dataset.timestamps, dataset.offsets[:-1]
    if times is None or not (times[starts[starts < times.size]] == 1).all():
        return False
    return bool((_with_history(dataset)[1:] <= (times[1:] == times[:-1] + 1)).all())


def _split(
    name: str,
    dataset: Dataset,
    train_end: np.ndarray,
    *,
    valid: Rows,
    test: Rows,
    report: dict[str, int | str],
    among: np.ndarray | bool = True,
    wanted: tuple[str, ...] = ("training", "validation", "test"),
) -> Split:
    is_train = before_ends(dataset.offsets, train_end)
    train = _rows(dataset, is_train & _with_history(dataset) & among)
    for part, rows in (("training", train), ("validation", valid), ("test", test)):
        if part in wanted and len(rows) == 0:
            longest = int(np.diff(dataset.offsets).max())
            raise ValueError(
                f"{name}: expected {part} rows, got none from {dataset.num_interactions:,} interactions of "
                f"{dataset.num_users:,} users (longest history {longest:,})"
            )
    seen = np.zeros(dataset.num_items + 1, dtype=bool)
    seen[dataset.items[is_train]] = True
    report = report | {
        "train_rows": len(train),
        "valid_rows": len(valid),
        "test_rows": len(test),
        "train_interactions": int(is_train.sum()),
        "items_in_train": int(seen.sum()),
        "valid_rows_of_unseen_items": int((~seen[dataset.items[valid.positions]]).sum()),
        "test_rows_of_unseen_items": int((~seen[dataset.items[test.positions]]).sum()),
    }
    return Split(name=name, train=train, valid=valid, test=test, train_end=train_end, report=report)


def make_split(name: str, dataset: Dataset) -> Split:
    """The split of that name: leave_one_out or global_time, as the configuration's `split` has it."""
    return {"leave_one_out": leave_one_out, "global_time": global_time}[name](dataset)
