"""Tables from files, frames and arrays: one reader, one sentence for each thing that can be wrong."""

from __future__ import annotations

import datetime
import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import PanicException

from solid_ext.data.files import ARROW_MAGIC, PARQUET_MAGIC, binary_columns, read_binary, read_file
from solid_ext.data.reading import Reading, kept_columns
from solid_ext.data.text import as_utf8, read_text
from solid_ext.files import expect_local

# Whole numbers from here on are not all floats: a float this large may stand for several integers.
EXACT_FLOAT = 2**53
WHOLE = r"^-?(?:0|[1-9]\d*)$"
WHOLE_FLOAT = r"^-?(?:0|[1-9]\d*)\.0+$"
EXPONENT = r"^-?\d+(?:\.\d+)?[eE][+-]?\d+$"
WIDEST = 2**127  # polars' widest integers lie below, and not below its negative
SHOWN = 80  # characters of a value in an error
# What a cell may be beside others of another kind.
SIMPLE = (str, bool, int, float, Decimal, datetime.date, datetime.time)
# Text by which other programs write that there is nothing.
MISSING = ("nan", "NaN", "NAN", "null", "NULL", "Null", "None", "N/A", "n/a", "NA", "#N/A", "<NA>", "NaT", "\\N")


def read_table(
    source: Any,
    *,
    name: str,
    required: Sequence[str],
    optional: Sequence[str] | None = None,
    reading: Reading | None = None,
    headerless: Sequence[str] = (),
) -> pl.DataFrame:
    """Read a table and keep the columns that are asked for.

    Text (see `read_text`) is read as strings; `required` columns of a text file become int64 where that loses nothing
    (see `integers`). Gzip, Parquet, Arrow (Feather) and JSON (an object a line, or one list of them) are recognised by
    their first bytes.

    Args:
        source: path, polars or pandas frame, or mapping of column name to one-dimensional array.
        name: what the table is called in error messages.
        required: columns that must be there.
        optional: further columns to keep where present; None keeps all.
        reading: counts the lines that are no rows, which are skipped, and takes notes; None refuses the first.
        headerless: what the columns of a MovieLens file (`1::1193::5`) without a header are called.

    Returns:
        A frame with the columns in the order of the source.

    Raises:
        ValueError: contents that cannot be read.
        TypeError: a kind of source or array that cannot be read.
    """
    reading = reading or Reading()
    if isinstance(source, (str, os.PathLike)):
        expect_local(source, name)
        return _read_file(Path(os.path.expanduser(source)), name, required, optional, reading, headerless)
    if isinstance(source, pl.LazyFrame):
        try:
            source = source.collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{name}: expected a LazyFrame that can be collected, got one that fails: {reason}"
            ) from error
    if isinstance(source, (pl.DataFrame, Mapping)) or _is_pandas_frame(source):
        found = list(source) if isinstance(source, Mapping) else list(source.columns)
        index = set(source.index.names) if _is_pandas_frame(source) else set()
        if lacking := [column for column in required if column not in found and column in index]:
            raise ValueError(
                f"{name}: expected columns {', '.join(required)}, got {', '.join(lacking)} in the index of the frame "
                "(reset_index() makes columns of it)"
            )
        reading.columns = [str(column) for column in found]
        kept = kept_columns(reading.columns, required, optional, name)
        # pandas numbers columns that have no name.
        by_name = dict(zip(reading.columns, found, strict=True))
        return _from_columns({column: source[by_name[column]] for column in kept}, kept, name, required)
    raise TypeError(f"{name}: expected a path, a polars or pandas frame or arrays by name, got {type(source).__name__}")


def as_series(name: str, values: Any, *, lists: bool = False) -> pl.Series:
    """Return one-dimensional values (polars, pandas, numpy, list) as a series; mixed ones become text.

    Whole numbers stay whole cell by cell: a float or a gap among integers changes none of them, and integers beyond
    128 bits become text. Times keep their nanoseconds, and those with a zone become UTC. No value becomes null.

    Args:
        lists: whether a value beside lists is the list of itself, as in a column of categories; otherwise it is
            refused.

    Raises:
        ValueError: another number of dimensions, or whole floats of 2^53 and more among other values.
        TypeError: values that are neither numbers, text nor times.
    """
    if isinstance(values, pl.Series):
        series = _from_objects(name, values.to_list(), lists) if values.dtype == pl.Object else values
    elif hasattr(values, "isna") and hasattr(values, "to_numpy"):
        series = _from_pandas(name, values, lists)
    elif isinstance(values, (list, tuple)):
        series = _from_objects(name, values, lists)
    elif callable(getattr(values, "detach", None)):
        series = _from_array(name, _from_tensor(name, values), lists)
    else:
        masked = isinstance(values, np.ma.MaskedArray) and values.ndim == 1
        series = _from_objects(name, values.tolist(), lists) if masked else _from_array(name, np.asarray(values), lists)
    if series.dtype == pl.Object:
        raise TypeError(f"{name}: expected numbers, text or times, got {kind_of(series)}")
    return series


def kind_of(values: pl.Series) -> str:
    """What a column holds that is no ids or times, in a few words: its first cell and where that is."""
    row = next((row for row, value in enumerate(values, 1) if value is not None), 0)
    words = "an object" if values.dtype == pl.Struct else "a list" if values.dtype.is_nested() else str(values.dtype)
    return f"{words} in row {row:,}" if row else words


def integers(column: pl.Series) -> pl.Series:
    """Turn a column of text into int64 if that loses nothing, missing values (`MISSING`) aside.

    Every value is written exactly as the integer, or as that integer with ".0": "007" and "1e3" keep the column text.
    """
    numbers = column.cast(pl.Int64, strict=False)
    if (numbers.cast(pl.String).eq_missing(column)).all():
        return numbers
    known = without_markers(column)
    return _whole_numbers(known, _odd(known), column)


def _odd(known: pl.Series) -> pl.Series:
    """The rows that hold text which is no whole number."""
    return (~known.str.contains(f"{WHOLE}|{WHOLE_FLOAT}")).fill_null(False)


def _whole_numbers(known: pl.Series, odd: pl.Series, column: pl.Series) -> pl.Series:
    """The numbers that `known` spells where none of it is odd, or else the column."""
    if odd.any():
        return column
    numbers = known.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
    return numbers if numbers.null_count() == known.null_count() and "-0" not in known else column


def without_markers(column: pl.Series) -> pl.Series:
    """A column of text, with null where it is empty or spells that something is missing."""
    text = column.str.strip_chars()
    return text.set(text.is_in(["", *MISSING]).fill_null(False), None)


def note_missing(column: str, text: pl.Series, reading: Reading) -> None:
    """Say which cells of a column of ids spell that they are missing."""
    spelt = text.str.strip_chars().is_in(MISSING).fill_null(False)
    if spelt.any():
        words = ", ".join(repr(word) for word in text.filter(spelt).unique().sort().to_list()[:3])
        reading.notes[f"note_missing_{column}"] = (
            f"{int(spelt.sum()):,} cells of {column!r} hold {words}, which counts as a missing id."
        )


def _is_pandas_frame(source: Any) -> bool:
    return hasattr(source, "iloc") and hasattr(source, "columns")


def _from_columns(source: Any, kept: Sequence[str], name: str, required: Sequence[str]) -> pl.DataFrame:
    columns = [
        as_series(f"{name}: column {column}", source[column], lists=column not in required).alias(str(column))
        for column in kept
    ]
    lengths = {column.name: column.len() for column in columns}
    if len(set(lengths.values())) > 1:
        pairs = ", ".join(f"{column} {length:,}" for column, length in lengths.items())
        raise ValueError(f"{name}: expected arrays of one length, got {pairs}")
    return pl.DataFrame(columns)


def _from_objects(name: str, values: Sequence[Any], lists: bool) -> pl.Series:
    cells = [cell(name, value, row) for row, value in enumerate(values, 1)]
    moments = _from_moments(name, cells)
    if moments is not None:
        return moments
    if lists and any(isinstance(value, list) for value in cells):
        depth = max(_depth(value) for value in cells)
        cells = [None if value is None else _nested(value, depth) for value in cells]
    cells = _alike(name, cells, range(1, len(cells) + 1))
    try:
        series = pl.Series(cells, strict=False)
    except (TypeError, ValueError, OverflowError, AttributeError, pl.exceptions.PolarsError, PanicException) as error:
        row, odd = next(((row, value) for row, value in enumerate(cells, 1) if value is not None), (0, None))
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TypeError(
            f"{name}: expected numbers, text or times, got values that do not mix or are none of these, the first of "
            f"them {shown(odd)} in row {row:,} ({reason})"
        ) from error
    # `as_series` refuses objects.
    if series.dtype != pl.Object and series.null_count() > sum(value is None for value in cells):
        lost = next(row for row, value in enumerate(cells) if value is not None and series[row] is None)
        raise TypeError(
            f"{name}: expected values that can be one column, got {shown(cells[lost])} in row {lost + 1:,}, which does "
            f"not fit the others ({series.dtype})"
        )
    return series


def _alike(name: str, cells: list[Any], rows: Sequence[int]) -> list[Any]:
    """The cells, or where all are lists their entries, in kinds that polars takes as one without loss of any.

    Args:
        rows: of the cells, for errors.

    Raises:
        TypeError: cells that are no one column: numbers beside dates, lists beside text.
        ValueError: floats that have lost digits, halves of characters.
    """
    kinds = set(map(type, cells)) - {type(None)}
    if kinds == {list}:
        entries = [entry for value in cells if value is not None for entry in value]
        of_entries = [row for row, value in zip(rows, cells, strict=True) if value is not None for _ in value]
        taken = iter(_alike(name, entries, of_entries))
        return [None if value is None else list(islice(taken, len(value))) for value in cells]

    def first(of: set[type]) -> tuple[int, Any]:
        return next((row, value) for row, value in zip(rows, cells, strict=True) if type(value) in of)

    def refuse(expected: str, one: tuple[int, Any], other: tuple[int, Any]) -> TypeError:
        return TypeError(
            f"{name}: expected {expected}, got {shown(one[1])} in row {one[0]:,} beside {shown(other[1])} in row "
            f"{other[0]:,}"
        )

    if odd := {kind for kind in kinds if not issubclass(kind, SIMPLE)}:
        if len(kinds) > 1:
            found = first(odd)
            raise refuse("numbers, text or times", found, first(kinds - {type(found[1])}))
        return cells
    dates = {kind for kind in kinds if issubclass(kind, datetime.date)}
    numbers = {kind for kind in kinds if issubclass(kind, (int, float, Decimal))}
    if dates and numbers:
        row, date = first(dates)
        raise refuse("numbers or dates and not both", first(numbers), (row, str(date)))
    if bool in kinds and len(kinds) > 1:  # polars would make 1 of True
        cells = [str(value).lower() if isinstance(value, bool) else value for value in cells]
    text = any(issubclass(kind, str) for kind in kinds)
    if dates and text:  # polars would drop the nanoseconds of pandas' times
        cells = [str(value) if isinstance(value, datetime.date) else value for value in cells]
    if kinds - {float} and kinds & {float, Decimal}:
        # As one column polars would make floats of them all, and "1.0" of 1.0 beside text.
        cells = [_whole(name, row, value) for row, value in zip(rows, cells, strict=True)]
    if numbers and any(isinstance(value, int) and not -WIDEST <= value < WIDEST for value in cells):
        # Beyond polars' integers: as text each keeps all of its digits.
        cells = [None if value is None else _digits(name, row, value) for row, value in zip(rows, cells, strict=True)]
    for row, value in zip(rows, cells, strict=True) if text else ():
        if isinstance(value, str) and not value.isascii() and value.encode("utf-8", "replace").decode() != value:
            raise ValueError(f"{name}: expected text of whole characters, got half of one in {value!r} in row {row:,}")
    return cells


def _digits(name: str, row: int, value: Any) -> str:
    try:
        return str(value)
    except ValueError as error:
        raise ValueError(
            f"{name}: expected integers of at most {sys.get_int_max_str_digits():,} digits, got {shown(value)} in row "
            f"{row:,}"
        ) from error


def _depth(value: Any) -> int:
    """How many lists the innermost entry lies in."""
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _nested(value: Any, depth: int) -> Any:
    """The value with every entry as deep in lists."""
    if depth == 0 or value is None:
        return value
    return [_nested(entry, depth - 1) for entry in (value if isinstance(value, list) else [value])]


def _from_moments(name: str, cells: list[Any]) -> pl.Series | None:
    """Times among which are some of numpy or pandas, to the nanosecond and in UTC; None for any other cells.

    polars would read numpy's as counts of no unit, and drop the nanoseconds of pandas'.
    """
    kinds = set(map(type, cells)) - {type(None)}
    if not all(issubclass(kind, (datetime.date, np.datetime64)) for kind in kinds) or not any(
        kind is np.datetime64 or hasattr(kind, "to_datetime64") for kind in kinds
    ):
        return None
    moments = [np.datetime64("NaT") if value is None else _moment(value) for value in cells]
    units = {np.datetime_data(value.dtype)[0] for value in moments if not np.isnat(value)}
    if units == {"D"}:
        return _from_array(name, np.array(moments, dtype="M8[D]"), False)
    fine = any(not _same(value, value.astype("M8[us]")) for value in moments)
    found = np.array([value.astype("M8[ns]" if fine else "M8[us]") for value in moments])
    for row, (value, kept) in enumerate(zip(moments, found, strict=True), 1):
        if not _same(value, kept):
            raise ValueError(inexact_time(name, row, value, fine))
    return _from_array(name, found, False)


def _moment(value: Any) -> np.datetime64:
    if isinstance(value, np.datetime64):
        return value
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
    return value.to_datetime64() if hasattr(value, "to_datetime64") else np.datetime64(value)


def _same(value: np.datetime64, kept: np.datetime64) -> bool:
    return bool(np.isnat(value) or kept.astype(value.dtype) == value)


def inexact_time(name: str, row: int, value: np.datetime64, fine: bool) -> str:
    """The sentence about a time that is finer than nanoseconds, or too far away for its unit."""
    return (
        f"{name}: expected times in whole {'nano' if fine else 'micro'}seconds that fit in 64 bits, got {value} in row "
        f"{row:,}"
    )


def cell(name: str, value: Any, row: int | None = None) -> Any:
    """A value as Python has it: numpy's scalars and arrays, tensors of no dimension, tuples, UUIDs.

    Returns:
        None for every way in which pandas, numpy and decimals write "missing"; a list of such values for an array,
        series or tuple.

    Raises:
        TypeError: a tensor that holds no values.
    """
    if type(value) in (str, int, bool):  # most cells
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biufSU":
        value = value.item()
    elif isinstance(value, (np.ndarray, pl.Series)) or callable(getattr(value, "detach", None)):
        try:
            value = value.tolist() if isinstance(value, np.ndarray) else _values(value)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            where = "" if row is None else f" in row {row:,}"
            raise TypeError(f"{name}: expected numbers, text or times, got {shown(value)}{where}") from error
    if isinstance(value, (list, tuple)):
        return [cell(name, entry, row) for entry in value]
    if isinstance(value, uuid.UUID):
        return str(value)
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, Decimal) and value.is_nan():  # a signalling one compares with nothing
        return None
    return None if isinstance(value, np.datetime64) and np.isnat(value) else value


def _values(value: Any) -> Any:
    return value.to_list() if isinstance(value, pl.Series) else value.detach().cpu().tolist()


def shown(value: Any) -> str:
    """The value as errors show it, on one line of at most 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"an integer of {value.bit_length():,} bits" if isinstance(value, int) else type(value).__name__
    if "\n" in text:
        return type(value).__name__
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _whole(name: str, row: int, value: Any) -> Any:
    if not isinstance(value, (float, Decimal)) or value in (float("inf"), float("-inf")) or value != int(value):
        return value
    if isinstance(value, float) and abs(value) >= EXACT_FLOAT:
        raise ValueError(lost_digits(name, row, value))
    return int(value)


def lost_digits(name: str, row: int, value: float) -> str:
    """The sentence about a float that may stand for several integers."""
    return (
        f"{name}: expected whole numbers with all of their digits, got the float {value!r} in row {row:,} "
        "(read the column as integers or as text)"
    )


def _from_pandas(name: str, values: Any, lists: bool) -> pl.Series:
    if isinstance(values.dtype, np.dtype) and values.dtype.kind != "O":
        return _from_array(name, values.to_numpy(), lists)
    if not hasattr(values, "where") or not hasattr(values, "dt"):  # an array or index, without its series
        values = sys.modules["pandas"].Series(values)
    if hasattr(values.dtype, "tz"):
        return _from_array(name, values.dt.tz_convert(None).to_numpy(), lists)
    # Extension and object columns go through Python objects: the direct way would need pyarrow.
    return _from_objects(name, values.astype(object).where(~values.isna(), None).to_list(), lists)


def _from_tensor(name: str, values: Any) -> np.ndarray:
    """A tensor of torch as an array; what numpy has no dtype for (bfloat16) goes through float32 exactly."""
    if values.is_meta:
        raise TypeError(f"{name}: expected a tensor that holds values, got one on the device meta, which has none")
    values = values.detach().cpu()
    try:
        return values.numpy()
    except TypeError:
        pass
    try:
        return values.float().numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers, text or times, got a tensor of {values.dtype}") from error


def _from_array(name: str, values: np.ndarray, lists: bool) -> pl.Series:
    if values.ndim != 1:
        raise ValueError(f"{name}: expected a one-dimensional array, got shape {list(values.shape)}")
    if values.dtype.kind in "OT":  # T: text of any length, which may have gaps
        return _from_objects(name, values.tolist(), lists)
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: expected bytes that are UTF-8 text, got {error.object!r:.80}") from error
    if values.dtype.kind == "M" and values.dtype not in (np.dtype("M8[D]"), np.dtype("M8[ns]")):
        fine = np.datetime_data(values.dtype)[0] in ("ns", "ps", "fs", "as")
        exact = values.astype("M8[ns]" if fine else "M8[us]")
        lost = np.flatnonzero((exact.astype(values.dtype) != values) & ~np.isnat(values))
        if lost.size:
            raise ValueError(inexact_time(name, int(lost[0]) + 1, values[lost[0]], fine))
        values = exact
    if values.dtype.kind not in "biufUM" or (values.dtype.itemsize > 8 and values.dtype.kind == "f"):
        raise TypeError(f"{name}: expected numbers, text or times, got dtype {values.dtype}")
    return pl.Series(values.astype(np.float32) if values.dtype == np.float16 else values)


def _read_file(
    path: Path,
    name: str,
    required: Sequence[str],
    optional: Sequence[str] | None,
    reading: Reading,
    headerless: Sequence[str],
) -> pl.DataFrame:
    data = read_file(path, name)
    where = f"{name} in {str(path)!r}"
    if data.startswith((PARQUET_MAGIC, ARROW_MAGIC)):
        reading.columns = binary_columns(data, where)
        kept = kept_columns(reading.columns, required, optional, where)
        return _from_columns(read_binary(data, where, kept), kept, name, required)
    if ".parquet" in path.suffixes[-2:]:
        raise ValueError(f"{name}: expected a Parquet file, got {str(path)!r}, which does not start as one")
    data = as_utf8(data, where)
    if data[:200].lstrip()[:1] in (b"{", b"["):
        return _from_json(data, where, name, required, optional, reading)
    whole = required if optional is None else [*required, *optional]
    frame = read_text(data, where, required, optional, reading, headerless, whole)
    del data
    return frame.with_columns(_ids(column, frame[column], reading) for column in required)


def _from_json(
    data: bytes, where: str, name: str, required: Sequence[str], optional: Sequence[str] | None, reading: Reading
) -> pl.DataFrame:
    """Rows of a JSON list of objects, or of one object a line."""
    rows: list[dict[str, Any]] = []
    if data.lstrip().startswith(b"["):
        try:
            listed = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: expected a list of JSON objects, got text that is none ({error})") from error
        if not listed or not all(isinstance(row, dict) for row in listed):
            raise ValueError(f"{where}: expected a list of JSON objects, got a list of something else")
        rows = listed
    else:
        for number, line in enumerate(data.split(b"\n"), 1):
            if line.strip():
                row = _object(line)
                if row is None:
                    reading.add(number, line, where=where, expected="a JSON object")
                else:
                    rows.append(row)
    found = list(dict.fromkeys(key for row in rows for key in row))
    if len(rows) == 1 and all(isinstance(value, (list, dict)) for value in rows[0].values()):
        raise ValueError(
            f"{where}: expected a JSON object a row, got one object that holds them all (pandas writes rows by "
            "to_json(path, orient='records', lines=True))"
        )
    reading.columns = found
    kept = kept_columns(found, required, optional, where)
    return _from_columns({column: [row.get(column) for row in rows] for column in kept}, kept, name, required)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _ids(column: str, text: pl.Series, reading: Reading) -> pl.Series:
    """A column of ids of a text file, int64 or text, as `integers` gives it, with notes on what their spelling made."""
    if text.dtype == pl.Int64:
        return text
    known = without_markers(text)
    if known.null_count() > text.null_count():
        note_missing(column, text, reading)
    odd = _odd(known)
    found = _whole_numbers(known, odd, text)
    if found.dtype == pl.Int64:
        floats = known.filter(known.str.contains(WHOLE_FLOAT).fill_null(False))
        if floats.len():
            reading.notes[f"note_ids_{column}"] = (
                f"{floats.len():,} ids of {column!r} are written as floats (such as {floats[0]!r}); they are read as "
                "whole numbers."
            )
        return found
    powers = known.str.contains(EXPONENT).fill_null(False)
    if powers.any():
        row = int(powers.arg_true()[0])
        reading.notes[f"note_exponents_{column}"] = (
            f"{int(powers.sum()):,} ids of {column!r} look like numbers written with an exponent ({known[row]!r} in "
            f"row {row + 1:,}): a spreadsheet may have cut their digits, so that different ids became the same."
        )
    if 0 < odd.sum() * 10 < known.count():
        row = int(odd.arg_true()[0])
        reading.notes[f"note_ids_{column}"] = (
            f"The ids of {column!r} are read as text, because {odd.sum():,} of {known.count():,} are no whole numbers "
            f"({known[row]!r} in row {row + 1:,})."
        )
    return found
