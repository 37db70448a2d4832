"""Interactions in canonical columns: who, what and when, with raw ids of any type."""

from __future__ import annotations

import numbers
from typing import Any

import polars as pl

from solid_ext.data.reading import Reading, suggested
from solid_ext.data.tables import (
    EXACT_FLOAT,
    WHOLE_FLOAT,
    as_series,
    kind_of,
    lost_digits,
    note_missing,
    read_table,
    without_markers,
)
from solid_ext.data.times import normalise_timestamps
from solid_ext.forked import check_not_forked

NAME = "interactions"
TIMESTAMP = "timestamp"
ORDER = "each user's rows are taken to stand in the order in which they happened."


def read_interactions(
    source: Any,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = TIMESTAMP,
    rating: str | None = None,
    min_rating: float | None = None,
    reading: Reading | None = None,
) -> pl.DataFrame:
    """Read interactions in any form into the canonical columns.

    The rows keep the order of the source, and none is dropped but those that `min_rating` leaves out: what is missing
    is null. Ids are int64 or text; mixed ids, and every other type, are read as text. Timestamps are int64, float64,
    date or datetime (UTC); NaN and infinite ones are null, text must hold numbers or dates with the year first.

    Args:
        source: path (.tsv, .csv, .txt, .jsonl, .json, .parquet, .feather, also .gz; recognised by content), polars or
            pandas frame, mapping of column name to array, or a tuple of arrays `[N]`: (users, items) or
            (users, items, timestamps).
        user: name of the column of users in the source.
        item: name of the column of items.
        timestamp: name of the column of times. Without one called "timestamp" the result has none either;
            any other name must be there; None reads no times.
        rating: name of the column of ratings that `min_rating` looks at; by default "rating".
        min_rating: leave out the rows that are rated lower, or not at all.
        reading: counts the lines of a text file with another number of fields, which are skipped (None refuses the
            first), and takes notes of what was guessed.

    Returns:
        `[N]` rows with columns `user_id`, `item_id` and, where there are times, `timestamp`.

    Raises:
        ValueError: contents: a missing path or column, an empty, unreadable or ragged file, arrays of
            different lengths.
        TypeError: a source, an id or a time of a kind that cannot be one.
    """
    check_not_forked(NAME)
    reading = reading or Reading()
    if isinstance(source, tuple):
        if len(source) not in (2, 3):
            raise ValueError(f"{NAME}: expected a tuple (users, items[, timestamps]), got {len(source)} entries")
        user, item, timestamp = "user_id", "item_id", TIMESTAMP if len(source) == 3 else None
        source = dict(zip(("user_id", "item_id", TIMESTAMP), source, strict=False))
    user, item = column_name("user", user), column_name("item", item)
    timestamp = None if timestamp is None else column_name("timestamp", timestamp)
    rating = None if rating is None else column_name("rating", rating)
    number = isinstance(min_rating, numbers.Real) and not isinstance(min_rating, bool)
    if min_rating is not None and not (number and abs(min_rating) < float("inf")):
        raise TypeError(f"{NAME}: expected min_rating as a finite number, got {min_rating!r}")
    if rating is not None and min_rating is None:
        raise ValueError(f"{NAME}: expected min_rating beside rating={rating!r}, got none")
    rated = (rating or "rating") if min_rating is not None else None
    named = [name for name in (user, item, timestamp, rated) if name is not None]
    if len(set(named)) < len(named):
        raise ValueError(f"{NAME}: expected different columns for user, item and timestamp, got {', '.join(named)}")
    frame = read_table(
        source,
        name=NAME,
        required=[user, item],
        optional=named,
        reading=reading,
        headerless=(user, item, rated or "rating", timestamp or TIMESTAMP),
    )
    for name, column in (("timestamp", timestamp), ("rating", rated)):
        if column not in (None, TIMESTAMP, *frame.columns):
            near = suggested(name, reading.columns, among=named)
            hint = f" (did you mean {near!r}?)" if near else ""
            raise ValueError(f"{NAME}: expected a {name} column {column}, got none of that name{hint}")
    if frame.height == 0:
        raise ValueError(f"{NAME}: expected at least one row, got none below the header")
    columns = [_ids(frame[user], user, reading).alias("user_id"), _ids(frame[item], item, reading).alias("item_id")]
    if timestamp is not None and timestamp in frame.columns:
        times = normalise_timestamps(f"{NAME}: column {timestamp}", frame[timestamp], reading)
        columns.append(times.alias(TIMESTAMP))
    _note_columns(reading, timestamp, rated, named)
    found = pl.DataFrame(columns)
    if rated is not None and min_rating is not None:
        found = found.filter(_rated(frame[rated], rated, min_rating, reading))
        if found.height == 0:
            raise ValueError(f"{NAME}: expected rows with a {rated} of {min_rating:g} or more, got none")
    if TIMESTAMP in found.columns and found[TIMESTAMP].null_count():
        known = pl.col("user_id").is_not_null() & pl.col("item_id").is_not_null()
        if not found.select((known & pl.col(TIMESTAMP).is_not_null()).any()).item():
            reading.notes["note_times"] = f"The column {timestamp!r} holds no time in any row with ids: {ORDER}"
    return found


def column_name(what: str, name: Any) -> str:
    """The name of a column as text; pandas numbers columns that have none.

    Raises:
        TypeError: neither text nor a whole number.
    """
    if isinstance(name, bool) or not isinstance(name, (str, numbers.Integral)):
        raise TypeError(f"{NAME}: expected {what} as the name of a column, got {name!r}")
    return str(name)


def normalise_ids(name: str, values: Any, reading: Reading | None = None) -> pl.Series:
    """Return raw ids as int64 or text, with null for missing ones (null, NaN, empty text, "nan", "NULL", "N/A", ..).

    Whole floats become integers, as pandas turns an integer column with gaps into floats; spaces around text go. That
    holds cell by cell: in a column that stays text, "1.0" is the same id as "1".

    Args:
        name: named in errors.
        values: `[N]`.
        reading: takes notes of what was guessed.

    Raises:
        TypeError: values that cannot be ids.
        ValueError: floats so large that different ids may have become the same.
    """
    series = as_series(name, values)
    dtype = series.dtype
    if dtype.is_nested():
        raise TypeError(f"{name}: expected numbers, text or times, got {kind_of(series)}")
    if dtype == pl.Null:
        return series.cast(pl.Int64)
    if dtype.is_float() or dtype.is_decimal():
        return _whole_ids(name, series)
    if dtype.is_integer():
        fits = series.cast(pl.Int64, strict=False).count() == series.count()
        return series.cast(pl.Int64 if fits else pl.String)
    try:
        text = series.cast(pl.String)
    except pl.exceptions.PolarsError as error:
        raise TypeError(f"{name}: expected ids that can be read as text, got {dtype}") from error
    return _without_fractions(name, without_markers(text), reading)


def _without_fractions(name: str, text: pl.Series, reading: Reading | None) -> pl.Series:
    """The column with the whole number in the place of every cell that writes one as a float."""
    floats = text.filter(text.str.contains(WHOLE_FLOAT).fill_null(False))
    if not floats.len():
        return text
    if reading is not None:
        reading.notes[f"note_floats_{name}"] = (
            f"{name}: {floats.len():,} ids are written as floats (such as {floats[0]!r}) among ids that are text; they "
            "are read as whole numbers, the same as those written without a fraction."
        )
    return text.str.replace(r"^(?:-(0)|(-?(?:0|[1-9]\d*)))\.0+$", "${1}${2}")


def _whole_ids(name: str, series: pl.Series) -> pl.Series:
    """Ids from floats or decimals: cell by cell the whole number, or the text of the fraction."""
    if series.dtype.is_float():
        exact = EXACT_FLOAT if series.dtype == pl.Float64 else 2**24
        series = series.fill_nan(None)
        large = (series.is_finite() & (series.abs() >= exact)).fill_null(False).arg_true()
        if len(large):
            raise ValueError(lost_digits(name, large[0] + 1, series[large[0]]))
    text = series.cast(pl.String).str.replace(r"\.0+$", "")
    whole = text.cast(pl.Int64, strict=False)
    return whole if whole.null_count() == series.null_count() else text


def _ids(column: pl.Series, name: str, reading: Reading) -> pl.Series:
    ids = normalise_ids(f"{NAME}: column {name}", column, reading)
    if column.dtype == pl.String and ids.null_count() > column.null_count():
        note_missing(name, column, reading)
    return ids


def _rated(column: pl.Series, name: str, least: float, reading: Reading) -> pl.Series:
    """The rows whose rating is `least` or more."""
    text = without_markers(column) if column.dtype == pl.String else column
    try:
        ratings = text.cast(pl.Float64, strict=False)
    except pl.exceptions.PolarsError as error:
        raise TypeError(f"{NAME}: column {name}: expected ratings as numbers, got {column.dtype}") from error
    wrong = (text.is_not_null() & ratings.is_null()).arg_true()
    if len(wrong):
        raise ValueError(
            f"{NAME}: column {name}: expected ratings as numbers, got {text[wrong[0]]!r} in row {wrong[0] + 1:,}"
        )
    kept = (ratings >= least).fill_null(False) & ratings.is_not_nan().fill_null(False)
    reading.notes["rows_below_min_rating"] = int((~kept).sum())
    return kept


def _note_columns(reading: Reading, timestamp: str | None, rated: str | None, named: list[str]) -> None:
    """Say that there are no times, and that there are ratings which nobody asked for."""
    if timestamp is None:
        reading.notes["note_times"] = f"No times are read: {ORDER}"
    elif timestamp not in reading.columns:
        near = suggested("timestamp", reading.columns, among=named)
        hint = f" The column {near!r} may hold the times: timestamp={near!r} (--timestamp {near}) reads it."
        reading.notes["note_times"] = f"There is no column {timestamp!r}: {ORDER}{hint if near else ''}"
    ratings = suggested("rating", reading.columns, among=named) if rated is None else None
    if ratings is not None:
        reading.notes["note_ratings"] = (
            f"The column {ratings!r} is not used: every row counts as one interaction, whatever the rating. "
            "min_rating=4 (--min-rating 4) would keep only the rows rated 4 or more."
        )
