"""A dataset that grows: the rows of another file go into it, read by the rules of the first one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from solid_ext.data.dataset import NOTE, Dataset, Source, of_indexed, read_source
from solid_ext.data.growth import joined_items
from solid_ext.data.prepare import (
    AS_THEY_ARE,
    MILLION,
    MILLIONTHS,
    NO_TIMES,
    OF_THE_WHOLE,
    Indexed,
    align_items,
    in_unit,
    index_interactions,
    missing_times_note,
    unit_of,
)
from solid_ext.data.times import PER_SECOND, expect_one_unit, in_other_unit

RULES = "read_as"
"""The entry of a dataset's report that holds, as JSON, how its columns were read."""
APPENDED = f"{NOTE}appended_"
"""How the entries begin that say of the rows which were appended last what the dataset's own do not."""
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
    the same user, item and time, is a duplicate and left out (`appended_duplicates`); nothing tells it of a row without
    a time, which takes that of its user's row before it, a new one or the dataset's last. Where times were dates on
    both sides, all are in the finer unit of the two. Items that have a description keep it; `items` describes the
    others. The report is that of the whole.

    Args:
        dataset: read by rules that `rules_of` knows, or by the usual names of columns.
        source: as of `load_dataset`, but no prepared folder.
        items: as of `load_dataset`.
        max_malformed: as of `load_dataset`.

    Raises:
        ValueError: what `load_dataset` refuses; times in another unit than the dataset's that are not dates on both
            sides, or only one of both has any; a source all rows of which the dataset has.
    """
    rules = dict(rules_of(dataset) or {})
    if items is None:
        rules = {name: value for name, value in rules.items() if name not in ("title", "categories")}
    new = read_source(source, items=items, max_malformed=max_malformed, **rules)
    dataset, found = _in_one_unit(dataset, new.rows.drop_nulls(["user_id", "item_id"]))
    if not found.height:
        raise ValueError(f"append: expected rows with a user and an item, got {new.rows.height:,} rows without")
    old_rows, new_rows = as_rows(dataset), _without_duplicates(found)
    read = new_rows.height
    ids = [name for name in ("user_id", "item_id") if old_rows[name].dtype != new_rows[name].dtype]
    as_text = [pl.col(name).cast(pl.String) for name in ids]
    old_rows, new_rows = old_rows.with_columns(as_text), new_rows.with_columns(as_text)
    if dataset.timestamps is not None:
        new_rows = new_rows.join(old_rows.unique(), on=old_rows.columns, how="anti", maintain_order="left")
    if not new_rows.height:
        raise ValueError(f"append: expected interactions that the dataset has not, got {read:,} that it has")
    indexed = index_interactions(pl.concat([old_rows, new_rows]), drop_duplicates=False)
    table, counts, undescribed = _described(dataset, new, indexed)
    report = _of_the_whole(dataset, new, indexed) | counts
    report["exact_duplicates"] = _count(dataset, "exact_duplicates") + found.height - read
    report["appended_rows"] = _count(dataset, "appended_rows") + new_rows.height
    report["appended_duplicates"] = _count(dataset, "appended_duplicates") + read - new_rows.height
    if ids:
        report["note_text_ids"] = f"{' and '.join(ids)} of both are text now, as those of one of them were."
    if undescribed:
        report["note_undescribed"] = f"{undescribed:,} items are new and have no description (items= gives them one)."
    else:
        report.pop("note_undescribed", None)
    return of_indexed(indexed, dataset.name, table, report)


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


def _in_one_unit(dataset: Dataset, rows: pl.DataFrame) -> tuple[Dataset, pl.DataFrame]:
    """The dataset, and rows of a source with times as it has them: int64, null where one is missing, or no such column.

    Raises:
        ValueError: times of two units that are not both of dates, or only one of both has any.
    """
    found = NO_TIMES
    held = dataset.timestamp_unit
    known = rows["timestamp"].is_not_null().to_numpy() if "timestamp" in rows.columns else np.zeros(0, dtype=bool)
    times = np.zeros(rows.height, dtype=np.int64)
    if known.any():
        given = rows["timestamp"].drop_nulls()
        found = unit_of(given)
        times[known] = in_unit(given, found)
    if held != found and rows.height:
        if not {held, found} <= PER_SECOND.keys():
            raise ValueError(f"append: expected times of the unit that the dataset has, {held}, got {found}")
        unit = max(held, found, key=PER_SECOND.__getitem__)
        times[known] = in_other_unit("append", times[known], found, unit)
        if unit != held and dataset.timestamps is not None:
            said = f"Times are in {unit} now, and no longer in {held}, as rows that were appended need it."
            report = {**dataset.report, "timestamp_unit": unit, "note_unit": said}
            dataset = replace(
                dataset, timestamps=in_other_unit("append", dataset.timestamps, held, unit), report=report
            )
    if dataset.timestamps is None:
        return dataset, rows.drop("timestamp", strict=False)
    if found == AS_THEY_ARE:
        expect_one_unit("append", dataset.timestamps, times[known])
    elif found == MILLIONTHS:
        expect_one_unit("append", dataset.timestamps / MILLION, times[known] / MILLION)
    return dataset, rows.with_columns(timestamp=pl.Series(times).set(pl.Series(~known), None))


def _without_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows but those that repeat an earlier one in user, item and time; nothing tells it of one without a time."""
    if "timestamp" not in rows.columns:
        return rows
    return rows.filter(pl.struct(pl.all()).is_first_distinct() | pl.col("timestamp").is_null())


def _of_the_whole(dataset: Dataset, new: Source, indexed: Indexed) -> dict[str, int | str]:
    """The report of both: what is counted in all rows anew, what was left out summed, and sentences on the new rows
    alone, such as how their cells are spelt, beside those on the others."""
    report = {
        name: value
        for name, value in dataset.report.items()
        if name not in OF_THE_WHOLE and not name.startswith(APPENDED)
    }
    for name, value in {**new.notes, **new.notes_of_items}.items():
        if isinstance(value, int):
            report[name] = _count(dataset, name) + value
        elif not name.startswith(NOTE):
            report[name] = value
        elif value != report.get(name):
            report[APPENDED + name.removeprefix(NOTE)] = f"Of the rows appended last: {value}"
    report |= indexed.report
    report["rows_read"] = int(dataset.report.get("rows_read", dataset.num_interactions)) + new.rows.height
    report["rows_without_ids"] = (
        _count(dataset, "rows_without_ids") + new.rows.height - new.rows.drop_nulls(["user_id", "item_id"]).height
    )
    if dataset.timestamps is not None:
        for name in ("missing_timestamps", "users_without_timestamps"):
            report[name] = _count(dataset, name) + int(indexed.report[name])
        if report["missing_timestamps"]:
            report["note_missing_times"] = missing_times_note(int(report["missing_timestamps"]))
        report["timestamp_unit"] = dataset.timestamp_unit
    return report


def _count(dataset: Dataset, name: str) -> int:
    return int(dataset.report.get(name, 0))


def _described(dataset: Dataset, new: Source, indexed: Indexed) -> tuple[pl.DataFrame, dict[str, int | str], int]:
    """The table of all items, the counts of that, and how many of the new ones it says nothing of, where it says
    anything of others."""
    held = _with_words(dataset.item_table)
    both, counts = held, {}
    if new.described is not None:
        both = joined_items(held, _with_words(new.described))
        counts = align_items(new.described, indexed.item_ids)[1]
    if both["item_id"].dtype != indexed.item_ids.dtype:
        both = both.with_columns(pl.col("item_id").cast(indexed.item_ids.dtype))
    table, found = align_items(both, indexed.item_ids)
    if len(table.columns) == 1:
        return table, {}, 0
    without = int(found["items_without_metadata"])
    if "items_without_metadata" in dataset.report or counts:
        counts = {name: value for name, value in counts.items() if name != "note_items"} | {
            "items_without_metadata": without
        }
    if "note_items" in found:
        counts["note_items"] = found["note_items"]
    return table, counts, max(without - (dataset.num_items - held.height), 0)


def _with_words(table: pl.DataFrame) -> pl.DataFrame:
    """The items that the table says anything of."""
    others = [pl.col(name).is_not_null() for name in table.columns if name != "item_id"]
    return table.filter(pl.any_horizontal(others)) if others else table.head(0)
