"""How good semantics are: sizes, and agreement with categories that were not used to make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl


def sizes(table: np.ndarray, count: int) -> dict[str, Any]:
    """Numbers of items, of semantics without any, and the sizes of the semantics but for the fallback.

    Args:
        table: `[V + 1] int64` in 0..C.
        count: C, the fallback.

    Returns:
        {"items", "clusters" (C - 1), "fallback_items", "empty", "smallest", "median", "largest", "largest_share"}.
    """
    items = np.bincount(table[1:], minlength=count + 1)[1:]
    own = items[:-1]
    return {
        "items": table.size - 1,
        "clusters": count - 1,
        "fallback_items": int(items[-1]),
        "empty": int((own == 0).sum()),
        "smallest": int(own.min()),
        "median": float(np.median(own)),
        "largest": int(own.max()),
        "largest_share": float(own.max() / (table.size - 1)),
    }


def purity(labels: np.ndarray, classes: np.ndarray) -> float:
    """Share of the items that are of their label's most frequent class.

    Args:
        labels, classes: `[n]` non-negative integers, n > 0.

    Source: Manning, Raghavan, Schuetze, Introduction to Information Retrieval, 2008, 16.3.
    """
    number = int(classes.max()) + 1
    pairs, count = np.unique(labels.astype(np.int64) * number + classes, return_counts=True)
    largest = np.zeros(int(labels.max()) + 1, dtype=np.int64)
    np.maximum.at(largest, pairs // number, count)
    return float(largest.sum() / labels.size)


def agreement(table: np.ndarray, count: int, categories: pl.Series, seed: int) -> dict[str, Any]:
    """Purity and normalised mutual information of semantics and categories, and both by chance.

    Both grow with the number of clusters whatever the items, so each stands beside the value for the same
    clusters dealt out at random. Items without a category or in the fallback do not count.

    Args:
        table: `[V + 1] int64`.
        count: C, the fallback.
        categories: `[V]` text, null for none.
        seed: of the deal.

    Returns:
        {"categories": different ones, "purity", "purity_by_chance", "nmi", "nmi_by_chance"}; {} where fewer than
        two categories are known.

    Source: scikit-learn, `normalized_mutual_info_score`.
    """
    from sklearn.metrics import normalized_mutual_info_score

    known = (table[1:] != count) & categories.is_not_null().to_numpy()
    classes = categories.filter(pl.Series(known)).rank("dense").to_numpy().astype(np.int64)
    if classes.size == 0 or classes.max() < 2:
        return {}
    labels = table[1:][known]
    chance = np.random.default_rng(seed).permutation(labels)
    return {
        "categories": int(classes.max()),
        "purity": purity(labels, classes),
        "purity_by_chance": purity(chance, classes),
        "nmi": float(normalized_mutual_info_score(classes, labels)),
        "nmi_by_chance": float(normalized_mutual_info_score(classes, chance)),
    }
