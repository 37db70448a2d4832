"""Module 1: one semantic per item, from a category column or from clusters of item features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from solid_ext.data.dataset import CATEGORY_SEPARATOR, Dataset

FALLBACK_NAME = "(other)"
# Full k-means up to here (100,000 items, 64 columns, 600 clusters: 11 s on one core), mini-batches beyond (3
# s there, with 1 % more inertia, and hardly growing).
LLOYD_MAX_ITEMS = 100_000
MINI_BATCH = 8192


@dataclass(frozen=True, eq=False)
class Semantics:
    """One semantic per item.

    Attributes:
        table: `[V + 1] int64`; `table[0]` is 0 (padding), the others 1..C.
        count: C. The last semantic, C, is the fallback for items without category or features, and for items
            unseen in use.
        source: where the semantics come from.
        names: `[C]` names of semantics 1..C, or None.
        report: number of items, of items in the fallback, and sizes of the other semantics.

    Raises:
        TypeError: a table of another dtype or number of dimensions.
        ValueError: a table or names that do not fit C.

    Source: design, Module 1.
    """

    table: np.ndarray
    count: int
    source: str
    names: list[str] | None = None
    report: dict[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table = self.table
        if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.ndim != 1 or table.size < 2:
            raise TypeError(f"Semantics: expected table [V + 1] int64, got {table!r:.80}")
        if table[0] != 0 or table[1:].min() < 1 or table[1:].max() > self.count:
            raise ValueError(
                f"Semantics: expected 0 for padding and 1..{self.count} else, got {table[0]} and "
                f"{table[1:].min()}..{table[1:].max()}"
            )
        if self.names is not None and len(self.names) != self.count:
            raise ValueError(f"Semantics: expected {self.count} names, got {len(self.names)}")

    @property
    def fallback(self) -> int:
        """C, the semantic of items about which nothing is known."""
        return self.count


def semantics_from_categories(
    dataset: Dataset,
    *,
    column: str = "categories",
    level: Literal["all", "first", "last"] = "all",
    min_items: int = 1,
) -> Semantics:
    """Give every item the semantic of its category; semantics are numbered by sorted category name.

    Args:
        dataset: with a table of items.
        column: of that table, categories as text "a|b|c".
        level: "all" takes the whole text, "first" a, "last" c.
        min_items: categories with fewer items, and items without one, go to the fallback semantic, the last.

    Raises:
        ValueError: a missing column, another level, or every item would fall back.

    Source: design, Module 1.
    """
    if level not in ("all", "first", "last"):
        raise ValueError(f"semantics_from_categories: expected level all, first or last, got {level!r}")
    if min_items < 1:
        raise ValueError(f"semantics_from_categories: expected min_items >= 1, got {min_items}")
    if column not in dataset.item_table.columns:
        found = ", ".join(dataset.item_table.columns)
        raise ValueError(f"semantics_from_categories: expected a column {column!r} of the items, got {found}")
    text = pl.col(column).cast(pl.String)
    if level != "all":
        parts = text.str.split(CATEGORY_SEPARATOR)
        text = parts.list.first() if level == "first" else parts.list.last()
    categories = dataset.item_table.select(category=text.str.strip_chars().replace("", None))
    kept = (
        categories.drop_nulls()
        .group_by("category")
        .len()
        .filter(pl.col("len") >= min_items)
        .select("category")
        .sort("category")
    )
    if kept.height == 0:
        raise ValueError(
            f"semantics_from_categories: expected a category of at least {min_items} items in {column!r}, got none"
        )
    numbered = kept.with_row_index("semantic", offset=1)
    semantics = categories.join(numbered, on="category", how="left", maintain_order="left")["semantic"]
    names = [*kept["category"].to_list(), FALLBACK_NAME]
    labels = semantics.fill_null(len(names)).to_numpy().astype(np.int64)
    return _semantics(labels, len(names), f"{column}:{level}", names)


def semantics_from_features(
    features: np.ndarray, count: int, *, seed: int, source: str = "id", num_items: int | None = None
) -> Semantics:
    """Cluster the items by k-means over their L2-normalised features.

    Items without features, that is with a row of zeros, get the fallback semantic.

    Args:
        features: `[V + 1, F]` with the padding row first, or `[V, F]`, real. Without `num_items` a first row
            of zeros is taken for padding.
        count: number of clusters; the result has count + 1 semantics, the last being the fallback.
        seed: of the initial centres.
        source: what the features are: "id", "text", "id+text", ...
        num_items: V.

    Raises:
        TypeError: features that are no matrix of real numbers.
        ValueError: another number of rows than V or V + 1, NaN or infinite features, or fewer different rows
            than clusters.

    Source: design, Module 1.
    """
    rows = _item_rows(features, num_items)
    if count < 1:
        raise ValueError(f"semantics_from_features: expected count >= 1, got {count}")
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0]) + 1
        raise ValueError(f"semantics_from_features: expected finite features, got NaN or infinity for item {bad}")
    known = np.any(rows != 0, axis=1)
    points = _normalised(rows[known]).astype(np.float32)
    different = np.unique(points, axis=0).shape[0]
    if different < count:
        raise ValueError(
            f"semantics_from_features: expected at least {count} different rows for {count} clusters, got {different}"
        )
    labels = np.full(rows.shape[0], count + 1, dtype=np.int64)
    labels[known] = _k_means(points, count, seed) + 1
    return _semantics(labels, count + 1, source, None)


def concatenate_features(*parts: np.ndarray) -> np.ndarray:
    """Join feature matrices of the same items side by side, each row of each part L2-normalised before.

    Args:
        parts: each `[V + 1, F_i]` or each `[V, F_i]`; a row of zeros (no such feature) stays zero.

    Returns:
        `[V + 1, sum F_i]` (or `[V, ...]`) float64.

    Raises:
        ValueError: no parts, or different numbers of rows.

    Source: design, Module 1.
    """
    if not parts or any(part.ndim != 2 for part in parts) or len({part.shape[0] for part in parts}) != 1:
        shapes = ", ".join(str(list(part.shape)) for part in parts) or "nothing"
        raise ValueError(f"concatenate_features: expected matrices with the same number of rows, got {shapes}")
    return np.concatenate([_normalised(part) for part in parts], axis=1)


def text_features(dataset: Dataset, *, dim: int = 64, seed: int) -> np.ndarray:
    """Return features of title and categories: TF-IDF of the words, projected by a truncated SVD.

    Args:
        dataset: with a table of items.
        dim: number of columns; where the texts have fewer words or items than that, the last ones are zero.
        seed: of the randomised SVD.

    Returns:
        `[V + 1, dim] float32`; row 0 and the rows of items without words are zero.

    Raises:
        ValueError: no item has a word.

    Source: design, Module 1.
    """
    # Imported here because it takes a second, which only who clusters should wait for.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    if dim < 1:
        raise ValueError(f"text_features: expected dim >= 1, got {dim}")
    columns = [column for column in ("title", "categories") if column in dataset.item_table.columns]
    text = dataset.item_table.select(
        text=pl.concat_str([pl.col(column).cast(pl.String) for column in columns], separator=" ", ignore_nulls=True)
        if columns
        else pl.lit("")
    )["text"]
    has_words = text.str.contains(r"\w").fill_null(False).to_numpy()
    if not has_words.any():
        raise ValueError("text_features: expected items with a title or categories, got none")
    weights = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True).fit_transform(
        text.filter(pl.Series(has_words)).to_list()
    )
    features = np.zeros((dataset.num_items + 1, dim), dtype=np.float32)
    rank = min(dim, *weights.shape)
    left, scale, _ = randomized_svd(weights, rank, random_state=seed)
    features[1 + np.flatnonzero(has_words), :rank] = left * scale
    return features


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


def _normalised(rows: np.ndarray) -> np.ndarray:
    """L2-normalise in fp64, scaled first so that neither tiny nor huge rows leave the range."""
    rows = rows.astype(np.float64)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    rows = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)


def _k_means(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if points.shape[0] <= LLOYD_MAX_ITEMS:
        return KMeans(count, n_init=1, random_state=seed).fit_predict(points)
    return MiniBatchKMeans(count, n_init=1, batch_size=MINI_BATCH, random_state=seed).fit_predict(points)


def _semantics(labels: np.ndarray, count: int, source: str, names: list[str] | None) -> Semantics:
    sizes = np.bincount(labels, minlength=count + 1)[1:count]
    report: dict[str, int | str] = {
        "items": labels.size,
        "fallback_items": int((labels == count).sum()),
        "smallest": int(sizes.min()),
        "median": int(np.median(sizes)),
        "largest": int(sizes.max()),
    }
    return Semantics(np.concatenate(([0], labels)), count, source, names, report)
