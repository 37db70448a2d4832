"""Beyond accuracy: how much of the catalogue is recommended, how popular and how much alike it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from solid_ext.data import Dataset
from solid_ext.data.dataset import CATEGORY_SEPARATOR
from solid_ext.data.histories import blocks_before

_PAIRS = 1 << 20  # of items in a list, whose categories are compared at once


def beyond_accuracy(
    lists: NDArray[np.integer], dataset: Dataset, train_end: NDArray[np.int64], *, name: str = "beyond_accuracy"
) -> dict[str, float]:
    """What R lists of at most k recommended items are like, whoever they are for.

    With `n_v` interactions of item v and `U_v` users among the N interactions of the U users of the training part,

        coverage@k   = |items in any list| / V
        novelty@k    = mean over lists of the mean over their items of -log2(max(U_v, 1) / U)
        popularity@k = mean over lists of the mean over their items of n_v / N
        diversity@k  = mean over lists of the mean over pairs of their items of 1 - |C_v and C_w| / |C_v or C_w|

    where C_v are the categories of item v ("a|b" has two). Pairs with an item without categories and lists without a
    pair are left out of the diversity, which is not there where no list has one, as without categories.

    Args:
        lists: [R, k] integers, items 1 .. V, each once a row; 0 where a list has no more.
        dataset: the interactions, with the items' categories.
        train_end: `[U] int64`, as `Split.train_end`.

    Raises:
        ValueError: no list with an item, or items outside the catalogue.
        TypeError: lists of another kind.

    Source: docs/evaluation.md#beyond-accuracy; Vargas, Castells, Rank and relevance in novelty and diversity metrics
    for recommender systems, 2011.
    """
    if not isinstance(lists, np.ndarray) or lists.ndim != 2 or lists.dtype.kind not in "iu":
        got = f"{lists.dtype} {list(lists.shape)}" if isinstance(lists, np.ndarray) else type(lists).__name__
        raise TypeError(f"{name}: expected lists [R, k] of integers, got {got}")
    sizes = (lists > 0).sum(1)
    if not sizes.any() or lists.min() < 0 or lists.max() > dataset.num_items:
        got = f"{lists.min()}..{lists.max()}" if lists.size else "none"
        raise ValueError(
            f"{name}: expected lists of items 1..{dataset.num_items}, 0 where there are no more, got {got}"
        )
    filled: NDArray[np.int64] = lists[sizes > 0].astype(np.int64)
    k, there = filled.shape[1], filled > 0
    counts, users, all_users = _counted(dataset, train_end)
    novelty = np.where(users > 0, -np.log2(np.maximum(users, 1) / all_users), np.log2(all_users))
    values = {
        f"coverage@{k}": float(len(np.unique(filled[there])) / dataset.num_items),
        f"novelty@{k}": _mean_of_means(novelty[filled], there),
        f"popularity@{k}": _mean_of_means((counts / counts.sum())[filled], there),
    }
    diversity = _diversity(filled, _categories(dataset))
    return values if diversity is None else values | {f"diversity@{k}": diversity}


def _counted(dataset: Dataset, train_end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Interactions `[V + 1]` and users `[V + 1]` of each item in the training part, and how many users it has."""
    size = dataset.num_items + 1
    counts, users = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for _, user, items in blocks_before(dataset.offsets, dataset.items, train_end):
        counts += np.bincount(items, minlength=size)
        users += np.bincount(np.unique(user * size + items) % size, minlength=size)
    return counts, users, int(np.count_nonzero(train_end > dataset.offsets[:-1]))


def _mean_of_means(values: NDArray[np.float64], there: NDArray[np.bool_]) -> float:
    return float(((values * there).sum(1) / there.sum(1)).mean())


def _categories(dataset: Dataset) -> sparse.csr_array | None:
    """1 where an item has a category, `[V + 1, C]`; None for a dataset without any."""
    if "categories" not in dataset.item_table.columns:
        return None
    numbers: dict[str, int] = {}
    row, column = [], []
    for item, text in enumerate(dataset.item_table["categories"].to_list(), 1):
        for category in {part.strip() for part in str(text or "").split(CATEGORY_SEPARATOR)} - {""}:
            row.append(item)
            column.append(numbers.setdefault(category, len(numbers)))
    if not numbers:
        return None
    shape = (dataset.num_items + 1, len(numbers))
    return sparse.csr_array((np.ones(len(row), np.float32), (row, column)), shape=shape)


def _diversity(lists: NDArray[np.int64], categories: sparse.csr_array | None) -> float | None:
    """The mean over lists of the mean Jaccard distance of their pairs; None where no list has a pair."""
    if categories is None:
        return None
    sizes = np.diff(categories.indptr)
    total, counted = 0.0, 0
    for left, right in _pairs(lists):
        flat = left.ravel(), right.ravel()
        common = np.asarray(categories[flat[0]].multiply(categories[flat[1]]).sum(1)).reshape(left.shape)
        described = (sizes[left] > 0) & (sizes[right] > 0)
        distance = 1 - common / np.maximum(sizes[left] + sizes[right] - common, 1)
        pairs = described.sum(1)
        total += float(((distance * described).sum(1)[pairs > 0] / pairs[pairs > 0]).sum())
        counted += int((pairs > 0).sum())
    return total / counted if counted else None


def _pairs(lists: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Both items of all pairs of places, `[r, k (k - 1) / 2]` each, a bounded number of lists at a time."""
    first, second = np.triu_indices(lists.shape[1], 1)
    rows = max(_PAIRS // max(len(first), 1), 1)
    for start in range(0, len(lists), rows):
        some = lists[start : start + rows]
        yield some[:, first], some[:, second]
