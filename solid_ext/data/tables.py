"""Tables from files, frames and arrays: one reader, one sentence for each thing that can be wrong."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

SEPARATORS = ("\t", ",", ";", "|", " ")
GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"
UTF8_BOM = b"\xef\xbb\xbf"
NAMED_LINES = 3  # malformed lines shown in a report or an error
SHOWN_CHARACTERS = 60
# The field count walks over the file in blocks, so that its masks stay small beside the file itself.
COUNT_BLOCK = 1 << 24


class Malformed:
    """Counts the lines that hold no row, keeps the first to name them, and refuses a file where they are too many.

    Args:
        limit: how many malformed lines are skipped before the file is refused.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit, self.count = limit, 0
        self.examples: list[str] = []

    def add(self, number: int, line: bytes, *, where: str, expected: str) -> None:
        """Count line `number` (from 1) of the file `where`, in which every line should be `expected`.

        Raises:
            ValueError: it is one more than the limit.
        """
        self.count += 1
        if len(self.examples) < NAMED_LINES:
            text = line.decode("utf-8", "replace").rstrip("\r")
            shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
            self.examples.append(f"line {number:,} {shown!r}")
        if self.count > self.limit:
            every = f"all lines but {self.limit:,}" if self.limit else "every line"
            more = f"{self.count:,} malformed ones by line {number:,}: " if self.limit else ""
            raise ValueError(f"{where}: expected {expected} in {every}, got {more}{'; '.join(self.examples)}")

    def report(self, name: str) -> dict[str, int | str]:
        """`{name: count}`, and the first ones as `name_examples` where there are any."""
        return {name: self.count} | ({f"{name}_examples": "; ".join(self.examples)} if self.count else {})


def read_table(
    source: Any,
    *,
    name: str,
    required: Sequence[str],
    optional: Sequence[str] | None = None,
    malformed: Malformed | None = None,
) -> pl.DataFrame:
    """Read a table and keep the columns that are asked for.

    Text (any separator of tab, comma, semicolon, bar, space, found from the header) is read as UTF-8 strings:
    tab separated files have no quoting, all others the ordinary double quotes. `required` columns of a text
    file become int64 when every value is written exactly as an integer (so "007" stays text). Gzip and
    Parquet are recognised by their first bytes.

    Args:
        source: path, polars or pandas frame, or mapping of column name to one-dimensional array.
        name: what the table is called in error messages.
        required: columns that must be there.
        optional: further columns to keep where present; None keeps all.
        malformed: counts the lines of a text file with another number of fields, which are skipped; None refuses
            the first.

    Returns:
        A frame with the columns in the order of the source.

    Raises:
        ValueError: contents that cannot be read.
        TypeError: a kind of source or array that cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), name, required, optional, malformed or Malformed())
    if isinstance(source, pl.LazyFrame):
        source = source.collect()
    if isinstance(source, pl.DataFrame):
        kept = _kept(source.columns, required, optional, name)
        return pl.DataFrame([as_series(f"{name}: column {column}", source[column]).alias(column) for column in kept])
    if isinstance(source, Mapping) or _is_pandas_frame(source):
        found = list(source.columns) if _is_pandas_frame(source) else list(source)
        kept = _kept(found, required, optional, name)
        columns = [as_series(f"{name}: column {column}", source[column]).alias(str(column)) for column in kept]
        lengths = {column.name: column.len() for column in columns}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{name}: expected arrays of one length, got {_pairs(lengths)}")
        return pl.DataFrame(columns)
    raise TypeError(f"{name}: expected a path, a polars or pandas frame or arrays by name, got {type(source).__name__}")


def as_series(name: str, values: Any) -> pl.Series:
    """Return one-dimensional values (polars, pandas, numpy, list) as a series; mixed ones become text.

    Raises:
        ValueError: another number of dimensions.
        TypeError: values that are neither numbers, text nor times.
    """
    if isinstance(values, pl.Series):
        series = _from_objects(name, values.to_list()) if values.dtype == pl.Object else values
    elif hasattr(values, "isna") and hasattr(values, "to_numpy"):
        series = _from_pandas(name, values)
    elif isinstance(values, (list, tuple)):
        series = _from_objects(name, values)
    else:
        series = _from_array(name, np.asarray(values))
    if series.dtype == pl.Object:
        raise TypeError(f"{name}: expected numbers, text or times, got {series.dtype}")
    return series


def _is_pandas_frame(source: Any) -> bool:
    return hasattr(source, "iloc") and hasattr(source, "columns")


def _pairs(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{column} {length:,}" for column, length in lengths.items())


def _kept(found: Sequence[str], required: Sequence[str], optional: Sequence[str] | None, name: str) -> list[str]:
    missing = [column for column in required if column not in found]
    if missing:
        raise ValueError(f"{name}: expected columns {', '.join(required)}, got {', '.join(map(str, found)) or 'none'}")
    kept = [column for column in found if optional is None or column in required or column in optional]
    twice = sorted({str(column) for column in kept if kept.count(column) > 1})
    if twice:
        raise ValueError(f"{name}: expected every column once, got {', '.join(twice)} more than once")
    return kept


def _from_objects(name: str, values: Sequence[Any]) -> pl.Series:
    # A NaN among objects is pandas' and numpy's way of writing "missing"; as text it would become an id
    # "NaN".
    cleaned = [None if isinstance(value, float) and value != value else value for value in values]
    try:
        return pl.Series(cleaned, strict=False)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise TypeError(f"{name}: expected numbers, text or times, got values that do not mix ({error})") from error


def _from_pandas(name: str, values: Any) -> pl.Series:
    if isinstance(values.dtype, np.dtype) and values.dtype.kind != "O":
        return _from_array(name, values.to_numpy())
    # Extension and object columns go through Python objects: the direct way would need pyarrow.
    return _from_objects(name, values.astype(object).where(~values.isna(), None).to_list())


def _from_array(name: str, values: np.ndarray) -> pl.Series:
    if values.ndim != 1:
        raise ValueError(f"{name}: expected a one-dimensional array, got shape {list(values.shape)}")
    if values.dtype.kind == "O":
        return _from_objects(name, values.tolist())
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind == "M" and values.dtype not in (np.dtype("M8[D]"), np.dtype("M8[ns]")):
        values = values.astype("M8[us]")
    if values.dtype.kind not in "biufUM":
        raise TypeError(f"{name}: expected numbers, text or times, got dtype {values.dtype}")
    return pl.Series(values)


def _read_file(
    path: Path, name: str, required: Sequence[str], optional: Sequence[str] | None, malformed: Malformed
) -> pl.DataFrame:
    if not path.exists():
        raise ValueError(f"{name}: expected an existing file, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"{name}: expected a file, got the folder {str(path)!r}")
    try:
        data = path.read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: expected a readable file, got {str(path)!r} ({error})") from error
    if not data:
        raise ValueError(f"{name}: expected a header and rows, got the empty file {str(path)!r}")
    if data.startswith(PARQUET_MAGIC):
        return _read_parquet(path, data, name, required, optional)
    if ".parquet" in path.suffixes[-2:]:
        raise ValueError(f"{name}: expected a Parquet file, got {str(path)!r}, which does not start as one")
    return _read_text(path, data, name, required, optional, malformed)


def _read_parquet(
    path: Path, data: bytes, name: str, required: Sequence[str], optional: Sequence[str] | None
) -> pl.DataFrame:
    try:
        kept = _kept(list(pl.read_parquet_schema(io.BytesIO(data))), required, optional, f"{name} in {str(path)!r}")
        return pl.read_parquet(data, columns=kept)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{name}: expected a readable Parquet file, got {str(path)!r} ({error})") from error


def _read_text(
    path: Path,
    data: bytes,
    name: str,
    required: Sequence[str],
    optional: Sequence[str] | None,
    malformed: Malformed,
) -> pl.DataFrame:
    where = f"{name} in {str(path)!r}"
    data = data.removeprefix(UTF8_BOM)
    header_bytes = io.BytesIO(data).readline().rstrip(b"\r\n")
    if b"\0" in data:
        raise ValueError(f"{where}: expected UTF-8 text, got binary data")
    try:
        header = header_bytes.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected UTF-8 text, got bytes that are not ({error})") from error
    separator, found = _separator(header, required)
    kept = _kept(found, required, optional, where)
    quote = None if separator == "\t" else '"'
    skipped = _check_fields(data, separator, b'"' in data and quote is not None, len(found), where, malformed)
    try:
        frame = pl.read_csv(
            data,
            separator=separator,
            quote_char=quote,
            columns=kept,
            infer_schema=False,
            truncate_ragged_lines=malformed.count > 0,
        )
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{where}: expected readable UTF-8 text, got {str(error).splitlines()[0]!r}") from error
    if skipped.any():
        frame = frame.filter(pl.Series(~skipped[1 : 1 + frame.height]))
    return frame.select(kept).with_columns(integers(frame[column]) for column in required)


def _separator(header: str, required: Sequence[str]) -> tuple[str, list[str]]:
    """Find the separator whose fields hold the required columns, else the one that gives the most fields."""
    splits = [(mark, _header_fields(header, mark)) for mark in SEPARATORS]
    for mark, fields in splits:
        if set(required) <= set(fields):
            return mark, fields
    return max(splits, key=lambda split: len(split[1]))


def _header_fields(header: str, separator: str) -> list[str]:
    if separator == "\t":
        return header.split(separator)
    return next(csv.reader([header], delimiter=separator), [])


def _check_fields(
    data: bytes, separator: str, quoted: bool, expected: int, where: str, malformed: Malformed
) -> np.ndarray:
    """Count the lines with another number of fields as malformed; return these and the blank ones.

    polars fills short lines with nulls without a word, so the separators outside quotes are counted here,
    block by block. Returns `[lines] bool`, the header first; a line end inside quotes ends no line.
    """
    text = np.frombuffer(data, dtype=np.uint8)
    marks: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    inside, seen = 0, 0
    for first in range(0, text.size, COUNT_BLOCK):
        block = text[first : first + COUNT_BLOCK]
        is_mark, is_end = block == ord(separator), block == ord("\n")
        if quoted:
            parity = (np.cumsum(block == ord('"'), dtype=np.uint8) + np.uint8(inside)) & 1
            inside = int(parity[-1])
            is_mark &= parity == 0
            is_end &= parity == 0
        at, mark = np.flatnonzero(is_end), np.flatnonzero(is_mark)
        marks.append(np.searchsorted(mark, at) + seen)
        ends.append(at + first)
        seen += mark.size
    end, count = np.concatenate(ends), np.concatenate(marks)
    if end.size == 0 or end[-1] != text.size - 1:
        end, count = np.append(end, text.size), np.append(count, seen)
    if inside:
        raise ValueError(f"{where}: expected every quote to be closed, got one that is still open at the end")
    start = np.concatenate(([0], end[:-1] + 1))
    length = end - start
    blank = (length == 0) | ((length == 1) & (text[np.minimum(start, text.size - 1)] == ord("\r")))
    fields = np.diff(count, prepend=0) + 1
    ragged = ~blank & (fields != expected)
    number, counted = 1, 0
    for wrong in np.flatnonzero(ragged):
        number, counted = number + data.count(b"\n", counted, int(start[wrong])), int(start[wrong])
        malformed.add(number, data[counted : int(end[wrong])], where=where, expected=f"{expected} fields")
    return blank | ragged


def integers(column: pl.Series) -> pl.Series:
    """Turn a column of text into int64 if that loses nothing: every value is exactly how the integer is written."""
    numbers = column.cast(pl.Int64, strict=False)
    return numbers if (numbers.cast(pl.String).eq_missing(column)).all() else column
