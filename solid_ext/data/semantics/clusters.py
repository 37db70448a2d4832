"""Semantics by clustering item features: k-means from k-means++ on L2-normalised rows."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from solid_ext.data.semantics.quality import sizes
from solid_ext.data.semantics.table import Semantics

# Full k-means up to here (100,000 items, 64 columns, 600 clusters: 11 s on one core), mini-batches beyond (3
# s there, with 1 % more inertia, and hardly growing).
LLOYD_MAX_ITEMS = 100_000
MINI_BATCH = 8192
TENTH, SEARCH = 0, -1  # counts that stand for a rule
LEAST_COUNT, MOST_COUNT = 16, 1024
SEARCH_COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
SEARCH_ITEMS = 4000
NORMALISED_BLOCK = 4096  # rows that are float64 at a time


def semantics_from_features(
    features: np.ndarray, count: int, *, seed: int, source: str = "id", num_items: int | None = None
) -> Semantics:
    """Cluster the items by k-means over their L2-normalised features.

    Items without features, that is with a row of zeros, get the fallback semantic.

    Args:
        features: `[V + 1, F]` with the padding row first, or `[V, F]`, real. Without `num_items` a first row
            of zeros is taken for padding.
        count: number of clusters; the result has count + 1 semantics, the last being the fallback. 0 takes a tenth of
            the items, between 16 and 1024; -1 takes the count of the best mean silhouette, see `search_count`.
        seed: of the initial centres, for which scikit-learn reads 32 bits of it.
        source: what the features are: "id", "text", "id+text", ...
        num_items: V.

    Raises:
        TypeError: features that are no matrix of real numbers.
        ValueError: another number of rows than V or V + 1, NaN or infinite features, or fewer different rows
            than clusters.

    Source: docs/method.md#module-1-item-to-semantic; Arthur and Vassilvitskii, k-means++, SODA 2007.
    """
    rows = _item_rows(features, num_items)
    if count < SEARCH:
        raise ValueError(f"semantics_from_features: expected count >= 1, 0 or -1, got {count}")
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0]) + 1
        raise ValueError(f"semantics_from_features: expected finite features, got NaN or infinity for item {bad}")
    known = np.any(rows != 0, axis=1)
    points = normalised(rows[known])
    unit = np.zeros((rows.shape[0] + 1, rows.shape[1]), dtype=np.float32)
    unit[1:][known] = points
    different = _different(points)
    searched: dict[str, float] = {}
    if count == TENTH and different:
        count = min(max(rows.shape[0] // 10, LEAST_COUNT), MOST_COUNT, different)
    elif count == SEARCH and different:
        count, searched = search_count(points, seed=seed)
    if different < max(count, 1):
        raise ValueError(
            f"semantics_from_features: expected at least {max(count, 1)} different rows for {max(count, 1)} clusters, "
            f"got {different}"
        )
    clusters = _k_means(points, count, seed)
    table = np.full(rows.shape[0] + 1, count + 1, dtype=np.int64)
    table[0] = 0
    table[1:][known] = clusters.labels + 1
    spread = points.shape[0] - float(np.square(points.sum(axis=0, dtype=np.float64)).sum()) / points.shape[0]
    explained = 1 - clusters.inertia / spread if spread > 0 else 1.0
    report = {**sizes(table, count + 1), "inertia": clusters.inertia, "explained": explained}
    if searched:
        report["silhouettes"] = searched
    return Semantics(table, count + 1, source, report=report, features=unit)


def search_count(points: np.ndarray, *, seed: int) -> tuple[int, dict[str, float]]:
    """The number of clusters with the highest mean silhouette, of 2, 3, 4, 6, 8, 12, ... 384.

    Each candidate clusters the same sample of at most 4,000 rows. The silhouette of a row is (b - a) / max(a, b), a
    its mean distance to the other rows of its cluster, b the least mean distance to those of another; 0 alone.
    A candidate leaves ten rows a cluster (or is at most 16): without a bound sentence vectors go to half as many
    clusters as items, where every pair of near duplicates is a cluster.

    Args:
        points: `[n, F] float32`.
        seed: of the sample and of the initial centres.

    Returns:
        The count, and the mean silhouette of every candidate by its count.

    Source: Rousseeuw, Silhouettes, 1987; scikit-learn, `silhouette_score`.
    """
    from sklearn.metrics import pairwise_distances, silhouette_score

    if points.shape[0] > SEARCH_ITEMS:
        points = points[np.random.default_rng(seed).choice(points.shape[0], SEARCH_ITEMS, replace=False)]
    different = _different(points)
    most = min(max(points.shape[0] // 10, LEAST_COUNT), points.shape[0] - 1, different)
    candidates = [count for count in SEARCH_COUNTS if count <= most]
    if not candidates:
        return 1, {}
    distance = pairwise_distances(points)
    np.fill_diagonal(distance, 0)
    found = {
        count: float(silhouette_score(distance, _k_means(points, count, seed).labels, metric="precomputed"))
        for count in candidates
    }
    return max(found, key=lambda count: found[count]), {str(count): value for count, value in found.items()}


def concatenate_features(*parts: np.ndarray) -> np.ndarray:
    """Join feature matrices of the same items side by side, each row of each part L2-normalised before.

    Args:
        parts: each `[V + 1, F_i]` or each `[V, F_i]`; a row of zeros (no such feature) stays zero.

    Returns:
        `[V + 1, sum F_i]` (or `[V, ...]`) float32.

    Raises:
        ValueError: no parts, or different numbers of rows.

    Source: docs/method.md#module-1-item-to-semantic.
    """
    if not parts or any(part.ndim != 2 for part in parts) or len({part.shape[0] for part in parts}) != 1:
        shapes = ", ".join(str(list(part.shape)) for part in parts) or "nothing"
        raise ValueError(f"concatenate_features: expected matrices with the same number of rows, got {shapes}")
    return np.concatenate([normalised(part) for part in parts], axis=1)


def normalised(rows: np.ndarray) -> np.ndarray:
    """L2-normalise rows to float32; in float64 and scaled first, so that neither tiny nor huge rows leave the range."""
    out = np.zeros(rows.shape, dtype=np.float32)
    for first in range(0, rows.shape[0], NORMALISED_BLOCK):
        block = rows[first : first + NORMALISED_BLOCK].astype(np.float64)
        largest = np.abs(block).max(axis=1, keepdims=True, initial=0.0)
        block = np.divide(block, largest, out=np.zeros_like(block), where=largest > 0)
        norm = np.linalg.norm(block, axis=1, keepdims=True)
        np.divide(block, norm, out=out[first : first + NORMALISED_BLOCK], where=norm > 0, casting="same_kind")
    return out


def _item_rows(features: np.ndarray, num_items: int | None) -> np.ndarray:
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.kind not in "fiu":
        got = (
            f"{features.dtype} {list(features.shape)}" if isinstance(features, np.ndarray) else type(features).__name__
        )
        raise TypeError(f"semantics_from_features: expected features [V + 1, F] or [V, F] of numbers, got {got}")
    rows = features.shape[0]
    if num_items is not None and rows not in (num_items, num_items + 1):
        raise ValueError(
            f"semantics_from_features: expected {num_items} or {num_items + 1} rows of features, got {rows}"
        )
    padded = rows == num_items + 1 if num_items is not None else rows > 1 and not features[0].any()
    return features[1:] if padded else features


def _different(points: np.ndarray) -> int:
    """Number of different rows. (`np.unique(axis=0)` compares column by column: minutes at 4,096 of them.)"""
    return len({row.tobytes() for row in points + np.float32(0)})  # -0 becomes 0


class _Clusters(NamedTuple):
    labels: np.ndarray
    centres: np.ndarray
    inertia: float


def _k_means(points: np.ndarray, count: int, seed: int) -> _Clusters:
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    options: dict[str, Any] = {"init": "k-means++", "n_init": 1, "random_state": seed % 2**32}
    mini_batch = points.shape[0] > LLOYD_MAX_ITEMS
    method = MiniBatchKMeans(count, batch_size=MINI_BATCH, **options) if mini_batch else KMeans(count, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # rows that differ by rounding: the report counts `empty`
        fitted = method.fit(points)
    return _Clusters(fitted.labels_, fitted.cluster_centers_, float(fitted.inertia_))
