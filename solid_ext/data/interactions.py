"""Interactions in canonical columns: who, what and when, with raw ids of any type."""

from __future__ import annotations

from typing import Any

import polars as pl

from solid_ext.data.tables import Malformed, as_series, read_table

NAME = "interactions"
ISO_DATE = r"^\d{4}-\d{2}-\d{2}"


def read_interactions(
    source: Any,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    malformed: Malformed | None = None,
) -> pl.DataFrame:
    """Read interactions in any form into the canonical columns.

    The rows keep the order of the source, and no row is dropped: what is missing is null. Ids are int64 or
    text; mixed ids, and every other type, are read as text. Timestamps are int64, float64, date or datetime
    (UTC); NaN and infinite ones are null, text must hold numbers or ISO dates.

    Args:
        source: path (.tsv, .csv, .txt, .parquet, also .gz; the separator is found from the header), polars or
            pandas frame, mapping of column name to array, or a tuple of arrays `[N]`: (users, items) or
            (users, items, timestamps).
        user: name of the column of users in the source.
        item: name of the column of items.
        timestamp: name of the column of times. Without one called "timestamp" the result has none either;
            any other name must be there; None reads no times.
        malformed: counts the lines of a text file with another number of fields, which are skipped; None refuses
            the first.

    Returns:
        `[N]` rows with columns `user_id`, `item_id` and, where there are times, `timestamp`.

    Raises:
        ValueError: contents: a missing path or column, an empty, unreadable or ragged file, arrays of
            different lengths.
        TypeError: a source, an id or a time of a kind that cannot be one.
    """
    if isinstance(source, tuple):
        if len(source) not in (2, 3):
            raise ValueError(f"{NAME}: expected a tuple (users, items[, timestamps]), got {len(source)} entries")
        user, item, timestamp = "user_id", "item_id", "timestamp" if len(source) == 3 else None
        source = dict(zip(("user_id", "item_id", "timestamp"), source, strict=False))
    named = [user, item] if timestamp is None else [user, item, timestamp]
    if len(set(named)) < len(named):
        raise ValueError(f"{NAME}: expected different columns for user, item and timestamp, got {', '.join(named)}")
    frame = read_table(source, name=NAME, required=[user, item], optional=named, malformed=malformed)
    if timestamp not in (None, "timestamp", *frame.columns):
        raise ValueError(f"{NAME}: expected a timestamp column {timestamp}, got none of that name")
    columns = [
        normalise_ids(f"{NAME}: column {user}", frame[user]).alias("user_id"),
        normalise_ids(f"{NAME}: column {item}", frame[item]).alias("item_id"),
    ]
    if timestamp is not None and timestamp in frame.columns:
        columns.append(normalise_timestamps(f"{NAME}: column {timestamp}", frame[timestamp]).alias("timestamp"))
    if frame.height == 0:
        raise ValueError(f"{NAME}: expected at least one row, got none below the header")
    return pl.DataFrame(columns)


def normalise_ids(name: str, values: Any) -> pl.Series:
    """Return raw ids as int64 or text, with null for missing ones (null, NaN, empty text).

    Whole floats become integers, as pandas turns an integer column with gaps into floats.

    Raises:
        TypeError: values that cannot be ids.
    """
    series = as_series(name, values)
    dtype = series.dtype
    if dtype.is_nested():
        raise TypeError(f"{name}: expected numbers, text or times, got {dtype}")
    if dtype == pl.Null:
        return series.cast(pl.Int64)
    if dtype.is_float():
        series = series.fill_nan(None)
        whole = series.is_finite() & (series == series.floor()) & (series.abs() < 2.0**63)
        return series.cast(pl.Int64 if whole.all() else pl.String)
    if dtype.is_integer():
        fits = series.cast(pl.Int64, strict=False).count() == series.count()
        return series.cast(pl.Int64 if fits else pl.String)
    try:
        text = series.cast(pl.String)
    except pl.exceptions.PolarsError as error:
        raise TypeError(f"{name}: expected ids that can be read as text, got {dtype}") from error
    return text.replace("", None)


def normalise_timestamps(name: str, values: Any) -> pl.Series:
    """Return timestamps as int64, float64, date or datetime (UTC), with null for missing and infinite ones.

    Whole floats become int64.

    Raises:
        TypeError: a dtype that is no time.
        ValueError: text that is no time, or integers beyond 64 bits.
    """
    series = as_series(name, values)
    if series.dtype == pl.String:
        series = _parse_times(name, series)
    dtype = series.dtype
    if dtype == pl.Null:
        return series.cast(pl.Int64)
    if isinstance(dtype, pl.Datetime):
        in_utc = series if dtype.time_zone is None else series.dt.convert_time_zone("UTC")
        return in_utc.dt.replace_time_zone(None)
    if dtype == pl.Date:
        return series
    if dtype.is_integer():
        return _as_int64(name, series)
    if dtype.is_float() or dtype.is_decimal():
        real = series.cast(pl.Float64)
        real = real.to_frame("t").select(pl.when(pl.col("t").is_finite()).then("t")).to_series()
        whole = (real == real.floor()) & (real.abs() < 2.0**63)
        return real.cast(pl.Int64) if whole.all() else real
    raise TypeError(f"{name}: expected timestamps as numbers, dates or ISO text, got {dtype}")


def _as_int64(name: str, series: pl.Series) -> pl.Series:
    try:
        return series.cast(pl.Int64)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{name}: expected timestamps that fit in 64 bits, got {series.max()!r}") from error


def _parse_times(name: str, series: pl.Series) -> pl.Series:
    text = series.str.strip_chars().replace("", None)
    for dtype in (pl.Int64, pl.Float64):
        numbers = text.cast(dtype, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
    try:
        # Day and month of other forms would be a guess.
        times = text.set(~text.str.contains(ISO_DATE), None).str.to_datetime(strict=False)
    except pl.exceptions.PolarsError:
        times = numbers
    wrong = (text.is_not_null() & times.is_null()).arg_true()
    if len(wrong):
        row = wrong[0]
        raise ValueError(f"{name}: expected numbers or ISO dates, got {text[row]!r} in row {row + 1:,}")
    return times
