"""Semantics that the data has: a category of each item."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

from solid_ext.data.dataset import CATEGORY_SEPARATOR, Dataset
from solid_ext.data.semantics.quality import sizes
from solid_ext.data.semantics.table import Semantics

FALLBACK_NAME = "(other)"

Level = Literal["all", "first", "last"]


def semantics_from_categories(
    dataset: Dataset, *, column: str = "categories", level: Level = "all", min_items: int = 1
) -> Semantics:
    """Give every item the semantic of its category; semantics are numbered by sorted category name.

    Args:
        dataset: with a table of items.
        column: of that table, categories as text "a|b|c".
        level: "all" takes the whole text, "first" a, "last" c.
        min_items: categories with fewer items, and items without one, go to the fallback semantic, the last.

    Raises:
        ValueError: a missing column, another level, or every item would fall back.

    Source: docs/method.md#module-1-item-to-semantic.
    """
    if level not in ("all", "first", "last"):
        raise ValueError(f"semantics_from_categories: expected level all, first or last, got {level!r}")
    if min_items < 1:
        raise ValueError(f"semantics_from_categories: expected min_items >= 1, got {min_items}")
    if column not in dataset.item_table.columns:
        found = ", ".join(dataset.item_table.columns)
        raise ValueError(f"semantics_from_categories: expected a column {column!r} of the items, got {found}")
    categories = item_categories(dataset, column, level).to_frame("category")
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
    table = np.concatenate(([0], labels))
    return Semantics(table, len(names), f"{column}:{level}", names, sizes(table, len(names)))


def item_categories(dataset: Dataset, column: str = "categories", level: Level = "all") -> pl.Series:
    """Every item's category as text, null where it has none (or the table has no such column): `[V]`."""
    if column not in dataset.item_table.columns:
        return pl.Series(column, [None] * dataset.num_items, dtype=pl.String)
    text = pl.col(column).cast(pl.String)
    if level != "all":
        parts = text.str.split(CATEGORY_SEPARATOR)
        text = parts.list.first() if level == "first" else parts.list.last()
    return dataset.item_table.select(text.str.strip_chars().replace("", None)).to_series()
