"""A dataset that grows: the rows of another file go into it, read by the rules of the first one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from solid_ext.data.dataset import Dataset, load_dataset
from solid_ext.data.growth import joined_items
from solid_ext.data.prepare import Indexed, align_items, index_interactions

RULES = "read_as"
"""The entry of a dataset's report that holds, as JSON, how its columns were read."""
SUMMED = ("rows_read", "rows_without_ids", "exact_duplicates", "missing_timestamps", "malformed_lines")
COLUMNS = ("user", "item", "timestamp", "rating", "min_rating", "title", "categories")


def with_rules(dataset: Dataset, rules: dict[str, Any]) -> Dataset:
    """The dataset with the arguments of `load_dataset` that it was read by, which `append_interactions` goes by."""
    return replace(dataset, report={**dataset.report, RULES: json.dumps(rules)})


def rules_of(dataset: Dataset) -> dict[str, Any] | None:
    """How the dataset's columns were read; None where it does not say."""
    try:
        rules = json.loads(str(dataset.report[RULES]))
    except (KeyError, ValueError):
        return None
    return rules if isinstance(rules, dict) and rules.keys() <= {*COLUMNS} else None


def append_interactions(dataset: Dataset, source: Any, *, items: Any = None, max_malformed: int = 0) -> Dataset:
    """The dataset with the interactions of another source after its own, as if one source had held both.

    Raw ids are kept; numbers may move, as those of every dataset follow its sorted ids. A row that the dataset has,
    the same user, item and time, is a duplicate and left out (`appended_duplicates`). Items that have a description
    keep it; `items` describes the others.

    Args:
        dataset: read by rules that `rules_of` knows, or by the usual names of columns.
        source: as of `load_dataset`, but no prepared folder.
        items: as of `load_dataset`.
        max_malformed: as of `load_dataset`.

    Raises:
        ValueError: what `load_dataset` refuses; times in another unit than the dataset's, or only one of both has any;
            a source all rows of which the dataset has.
    """
    rules = dict(rules_of(dataset) or {})
    if items is None:
        rules = {name: value for name, value in rules.items() if name not in ("title", "categories")}
    new = load_dataset(source, items=items, name=dataset.name, max_malformed=max_malformed, **rules)
    _expect_same_times(dataset, new)
    old_rows, new_rows = as_rows(dataset), as_rows(new)
    ids = [name for name in ("user_id", "item_id") if old_rows[name].dtype != new_rows[name].dtype]
    as_text = [pl.col(name).cast(pl.String) for name in ids]
    old_rows, new_rows = old_rows.with_columns(as_text), new_rows.with_columns(as_text)
    read = new_rows.height
    if dataset.timestamps is not None:
        new_rows = new_rows.join(old_rows.unique(), on=old_rows.columns, how="anti", maintain_order="left")
    if not new_rows.height:
        raise ValueError(f"append: expected interactions that the dataset has not, got {read:,} that it has")
    indexed = index_interactions(pl.concat([old_rows, new_rows]), drop_duplicates=False)
    table, undescribed = _described(dataset, new, indexed)
    counts = {
        "appended_rows": int(dataset.report.get("appended_rows", 0)) + new_rows.height,
        "appended_duplicates": int(dataset.report.get("appended_duplicates", 0)) + read - new_rows.height,
    }
    report = {**dataset.report, **new.report, **indexed.report, **counts, **_summed(dataset, new)}
    report["timestamp_unit"] = dataset.report.get("timestamp_unit", indexed.report["timestamp_unit"])
    if RULES in dataset.report:
        report[RULES] = dataset.report[RULES]
    if ids:
        report["note_text_ids"] = f"{' and '.join(ids)} of both are text now, as those of one of them were."
    if undescribed:
        report["note_undescribed"] = f"{undescribed:,} items are new and have no description (items= gives them one)."
    else:
        report.pop("note_undescribed", None)
    return Dataset(
        name=dataset.name,
        offsets=indexed.offsets,
        items=indexed.items,
        timestamps=indexed.timestamps,
        user_ids=indexed.user_ids,
        item_ids=indexed.item_ids,
        item_table=table,
        report=report,
    )


def as_rows(dataset: Dataset) -> pl.DataFrame:
    """The interactions with raw ids, each user's oldest first: `[N]` rows of user_id, item_id and perhaps timestamp."""
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    columns = [
        dataset.user_ids.gather(users).alias("user_id"),
        dataset.item_ids.gather(dataset.items.astype(np.int64) - 1).alias("item_id"),
    ]
    if dataset.timestamps is not None:
        columns.append(pl.Series("timestamp", dataset.timestamps))
    return pl.DataFrame(columns)


def _expect_same_times(dataset: Dataset, new: Dataset) -> None:
    held, found = (data.report.get("timestamp_unit", "as in the source") for data in (dataset, new))
    if held != found:
        raise ValueError(f"append: expected times of the unit that the dataset has, {held}, got {found}")


def _described(dataset: Dataset, new: Dataset, indexed: Indexed) -> tuple[pl.DataFrame, int]:
    """The table of all items, and how many of those that are new it says nothing of, where others are described."""
    both = joined_items(_with_words(dataset.item_table), _with_words(new.item_table))
    if both["item_id"].dtype != indexed.item_ids.dtype:
        both = both.with_columns(pl.col("item_id").cast(indexed.item_ids.dtype))
    table, counts = align_items(both, indexed.item_ids)
    before = dataset.num_items - _with_words(dataset.item_table).height
    without = int(counts["items_without_metadata"]) - before
    return table, max(without, 0) if len(table.columns) > 1 else 0


def _with_words(table: pl.DataFrame) -> pl.DataFrame:
    """The items that the table says anything of."""
    others = [pl.col(name).is_not_null() for name in table.columns if name != "item_id"]
    return table.filter(pl.any_horizontal(others)) if others else table.head(0)


def _summed(dataset: Dataset, new: Dataset) -> dict[str, int]:
    """Counts of what both sources had."""
    found = {}
    for name in SUMMED:
        values = [data.report[name] for data in (dataset, new) if isinstance(data.report.get(name), int)]
        if values:
            found[name] = sum(int(value) for value in values)
    return found
