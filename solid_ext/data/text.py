"""Delimited text: its encoding, line ends, separator, header and quotes; every cell comes out as text."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from solid_ext.data.reading import Reading, kept_columns

SEPARATORS = ("\t", ",", ";", "|", " ")
MOVIELENS = b"::"  # the separator of MovieLens' .dat files, which have no header
UTF8_BOM = b"\xef\xbb\xbf"
# UTF-32 first: its mark begins with that of UTF-16.
ENCODINGS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
# Files are read in blocks of about this many bytes, so that masks stay in the cache and small beside the file itself.
BLOCK = 1 << 22
INTEGER = re.compile(r"-?\d+")


def read_text(
    data: bytes,
    where: str,
    required: Sequence[str],
    optional: Sequence[str] | None,
    reading: Reading,
    headerless: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> pl.DataFrame:
    """Read delimited text into columns of strings, spaces around a cell taken off, empty cells null.

    The separator (tab, comma, semicolon, bar, space; `::` of MovieLens) is found from the header. Tab separated text
    has no quoting unless its header is quoted; in all other text a quote at the start of a field quotes it. Lines that
    repeat the header are left out and counted, lines of another length are malformed.

    Args:
        data: the file as `as_utf8` gives it; lines end in LF, CR LF or CR.
        where: named in errors.
        required, optional: columns, as in `read_table`.
        reading: counts malformed lines and notes what was guessed.
        headerless: what the columns of a `::` file without a header are called.
        whole: columns that are int64 instead where every cell is spelt exactly as its integer or empty.

    Raises:
        ValueError: other bytes, columns that are missing, lines that are no rows, quotes that never close.
    """
    data = _line_feeds(data)
    first = 1
    if data[:1] in (b"\n", b"\r"):
        blank = len(data) - len(data.lstrip(b"\r\n"))
        first += data.count(b"\n", 0, blank)
        data = data[blank:]
    if data[:4].lower() == b"sep=" and data[5:6] in (b"\n", b"\r"):  # a line that Excel writes for itself
        data, first = data.partition(b"\n")[2], first + 1
    header_bytes = _first_line(data).rstrip(b"\r")
    if header_bytes.count(MOVIELENS) >= 2 and b"\t" not in data:
        data, header_bytes = data.replace(MOVIELENS, b"\t"), header_bytes.replace(MOVIELENS, b"\t")
        fields = header_bytes.decode("utf-8", "replace").split("\t")
        if _is_data(fields, required) and len(fields) == len(headerless):
            reading.notes["note_header"] = f"The file has no header: its columns are taken as {', '.join(headerless)}."
            data, first = "\t".join(headerless).encode() + b"\n" + data, first - 1
            header_bytes = _first_line(data)
    try:
        header = header_bytes.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(data, where, first, error) from error
    separator, found = _separator(header, required)
    if _is_data(found, required):
        raise ValueError(
            f"{where}: expected a header with columns {', '.join(required)}, got data in the first line "
            f"{header[:60]!r} (put a line of column names above it)"
        )
    reading.columns = found
    kept = kept_columns(found, required, optional, where)
    quoted = b'"' in data and (separator != "\t" or _quotes_all(header.split("\t")))
    if quoted and separator != " " and not _well_quoted(data, separator):
        blocks = iter([_by_csv(data, separator, found, kept, where, reading, first)])
    else:
        blocks = _by_polars(data, separator, quoted, found, kept, where, reading, first)
    cells = _Cells(kept, required, whole)
    for block in blocks:
        cells.add(block)
    frame, inside = cells.frame(), cells.headers
    if inside:
        reading.notes["repeated_headers"] = inside
        reading.notes["note_headers"] = f"{inside:,} lines repeat the header inside the file; they are left out."
    if frame.height == 0 and reading.count:
        raise ValueError(
            f"{where}: expected lines of {len(found)} fields as in the header {header[:60]!r}, got none: "
            f"{'; '.join(reading.examples)}"
        )
    return frame


class _Cells:
    """Columns of text as they come in blocks, those of `whole` as integers for as long as these spell the text."""

    def __init__(self, kept: Sequence[str], required: Sequence[str], whole: Sequence[str]) -> None:
        self.columns: dict[str, list[pl.Series]] = {name: [] for name in kept}
        self.required = required
        self.whole = {name for name in kept if name in whole}
        self.headers = 0  # lines that repeat the header

    def add(self, block: pl.DataFrame) -> None:
        frame = pl.DataFrame([self._cells(block[name]) for name in self.columns])
        # No integer is a name, unless pandas numbered the columns.
        if all(frame[name].dtype == pl.String or INTEGER.fullmatch(name) for name in self.required):
            same = [pl.col(name).cast(pl.String) == name for name in self.required]
            repeated = frame.select(pl.all_horizontal(same).fill_null(False)).to_series()
            if repeats := int(repeated.sum()):
                frame, self.headers = frame.filter(~repeated), self.headers + repeats
        for name, column in self.columns.items():
            column.append(frame[name])

    def _cells(self, text: pl.Series) -> pl.Series:
        if text.name in self.whole:
            numbers = text.cast(pl.Int64, strict=False)
            spelt = numbers.cast(pl.String)
            if spelt.eq_missing(text).all():
                return numbers
        text = text.str.strip_chars().replace("", None)
        if text.name in self.whole:
            if spelt.eq_missing(text).all():
                return numbers
            self.whole.remove(text.name)
            self.columns[text.name][:] = [part.cast(pl.String) for part in self.columns[text.name]]
        return text

    def frame(self) -> pl.DataFrame:
        """All blocks, one below the other."""
        return pl.DataFrame([pl.concat(self.columns.pop(name)) for name in list(self.columns)])


def as_utf8(data: bytes, where: str) -> bytes:
    """Text of UTF-8, or of UTF-16 and UTF-32 with a byte order mark, as UTF-8 without a mark.

    Raises:
        ValueError: binary data, or bytes that are not what the mark says.
    """
    for mark, encoding in ENCODINGS:
        if data.startswith(mark):
            try:
                data = data.decode(encoding).encode("utf-8")
            except UnicodeError as error:
                raise ValueError(
                    f"{where}: expected {encoding.upper()} text, as its mark says, got bytes that are not ({error})"
                ) from error
            break
    data = data.removeprefix(UTF8_BOM)
    at = data.find(b"\0")
    if at >= 0:
        raise ValueError(
            f"{where}: expected UTF-8 text, got binary data (a zero byte in line {data.count(10, 0, at) + 1:,})"
        )
    return data


def _first_line(data: bytes) -> bytes:
    end = data.find(b"\n")
    return data if end < 0 else data[:end]  # partition would copy the rest too


def _line_feeds(data: bytes) -> bytes:
    """Lines that end in CR alone (old Macs, or glued files) made lines that end in LF; a CR inside quotes stays."""
    alone = b"\r" in data and data.count(b"\r") > data.count(b"\r\n")
    if alone and (b'"' not in data or b"\r" in _first_line(data).rstrip(b"\r")):
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data


def _is_data(fields: list[str], required: Sequence[str]) -> bool:
    """Whether a first line is a row rather than a header: it has numbers in it and none of the names."""
    numbers = pl.Series(fields, dtype=pl.String).str.strip_chars().cast(pl.Float64, strict=False).count()
    return len(fields) > 1 and numbers > 0 and not set(fields) & set(required)


def _separator(header: str, required: Sequence[str]) -> tuple[str, list[str]]:
    """Find the separator whose fields hold the required columns, else the first that separates anything."""
    splits = [(mark, _header_fields(header, mark)) for mark in SEPARATORS]
    for mark, fields in splits:
        if set(required) <= set(fields):
            return mark, fields
    return next((split for split in splits if len(split[1]) > 1), splits[1])


def _header_fields(header: str, separator: str) -> list[str]:
    fields = header.split(separator)
    if separator != "\t" or _quotes_all(fields):
        with contextlib.suppress(csv.Error):  # of a CR inside the line: the columns that it makes are refused by name
            fields = next(csv.reader([header], delimiter=separator, skipinitialspace=separator != " "), [])
    return [name.strip() for name in fields]


def _quotes_all(fields: list[str]) -> bool:
    return all(len(name) > 1 and name.startswith('"') and name.endswith('"') for name in fields)


def _well_quoted(data: bytes, separator: str) -> bool:
    """Whether every quote opens a field, closes one, or is doubled inside one."""
    text = np.frombuffer(b"\n" + data + b"\n", dtype=np.uint8)
    at = np.flatnonzero(text == ord('"'))
    opens, closes = at[0::2], at[1::2]
    before = np.isin(text[opens - 1], [ord(mark) for mark in (separator, "\n", '"')])
    after = np.isin(text[closes + 1], [ord(mark) for mark in (separator, "\n", "\r", '"')])
    return bool(at.size % 2 == 0 and before.all() and after.all())


def _by_csv(
    data: bytes, separator: str, found: list[str], kept: list[str], where: str, reading: Reading, first: int
) -> pl.DataFrame:
    """Spaces before quoted fields, and quotes inside fields that are not quoted: Python's reader, line by line."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(data, where, first, error) from error
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    rows: list[list[str]] = []
    begun = first
    try:
        next(lines)
        begun = lines.line_num + first
        for row in lines:
            if len(row) == len(found):
                rows.append(row)
            elif row:
                line = separator.join(row).encode()
                reading.add(begun, line, where=where, expected=f"{len(found)} fields")
            begun = lines.line_num + first
    except csv.Error as error:
        shown = text.split("\n")[begun - first][:60]
        raise ValueError(
            f"{where}: expected every quote to be closed and doubled inside a quoted field, got line {begun:,} "
            f"{shown!r} ({error}; take its quotes out, or separate the fields by tabs)"
        ) from error
    columns = dict(zip(found, zip(*rows, strict=True), strict=True)) if rows else {}
    return pl.DataFrame({name: pl.Series(columns.get(name, ()), dtype=pl.String) for name in kept})


def _by_polars(
    data: bytes,
    separator: str,
    quoted: bool,
    found: list[str],
    kept: list[str],
    where: str,
    reading: Reading,
    first: int,
) -> Iterator[pl.DataFrame]:
    """The rows of the columns to keep, a block of lines at a time: polars holds 16 bytes a cell beside the text."""
    header = separator.join(str(place) for place in range(len(found))).encode() + b"\n"
    blocks = _lines(data, separator, quoted, len(found), where, reading, first)
    for start, stop, skipped in blocks:
        try:
            frame = pl.read_csv(
                header + data[start:stop] if start else data[:stop],
                separator=separator,
                quote_char='"' if quoted else None,
                columns=[found.index(name) for name in kept],
                infer_schema=False,
                truncate_ragged_lines=reading.count > 0,
            )
        except pl.exceptions.PolarsError as error:
            for _ in blocks:  # malformed lines further on are said first
                pass
            try:
                data.decode("utf-8")
            except UnicodeDecodeError as wrong:
                raise _not_utf8(data, where, first, wrong) from error
            raise ValueError(f"{where}: expected readable text, got {str(error).splitlines()[0]!r}") from error
        frame.columns = kept
        if skipped.any():
            rows = skipped if start else skipped[1:]
            frame = frame.filter(pl.Series(~rows[: frame.height]))
        yield frame


def _not_utf8(data: bytes, where: str, first: int, error: UnicodeDecodeError) -> ValueError:
    """The error that names the first line that is no UTF-8."""
    number = data.count(b"\n", 0, error.start) if error.object == data else 0
    line = data.split(b"\n", number + 1)[number].decode("latin-1")[:60]
    return ValueError(
        f"{where}: expected UTF-8 text, got other bytes in line {number + first:,}, {line!r} if they are Latin-1 "
        "(iconv -f latin1 -t utf-8 turns them)"
    )


def _lines(
    data: bytes, separator: str, quoted: bool, expected: int, where: str, reading: Reading, first: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Count the lines with another number of fields as malformed; blocks of whole lines and which to leave out.

    polars fills short lines with nulls without a word, so the separators outside quotes are counted here. A line end
    inside quotes ends no line.

    Yields:
        Where a block starts and stops, and `[lines] bool` of those that are malformed or blank, the header's among them
        in the first block.
    """
    text = np.frombuffer(data, dtype=np.uint8)
    number, counted, start = first, 0, 0
    while start < text.size:
        stop, outside = _block(data, start, quoted, whole=quoted and separator == " ")
        if stop == text.size and outside is not None and not outside[-1]:
            raise ValueError(f"{where}: expected every quote to be closed, got one that is still open at the end")
        block = text[start:stop]
        is_end = block == ord("\n")
        marks = is_end | (block == ord(separator))
        if outside is not None:
            marks &= outside
        at = np.flatnonzero(marks)
        last = np.flatnonzero(is_end[at])  # of the marks, those that end a line
        end = at[last]
        if end.size == 0 or end[-1] != block.size - 1:
            last, end = np.append(last, at.size), np.append(end, block.size)
        fields = np.diff(last, prepend=-1)
        begin = np.concatenate(([0], end[:-1] + 1))
        length = end - begin
        blank = (length == 0) | ((length == 1) & (block[np.minimum(begin, block.size - 1)] == ord("\r")))
        ragged = ~blank & (fields != expected)
        for wrong in np.flatnonzero(ragged):
            line = start + int(begin[wrong])
            number, counted = number + data.count(b"\n", counted, line), line
            reading.add(number, data[line : start + int(end[wrong])], where=where, expected=f"{expected} fields")
        yield start, stop, blank | ragged
        start = stop


def _block(data: bytes, start: int, quoted: bool, *, whole: bool) -> tuple[int, np.ndarray | None]:
    """Where a block of whole lines stops that starts at `start`, and which of its bytes lie outside quotes.

    Returns:
        The stop, and `[stop - start] bool`, or None where nothing is quoted.
    """
    size = len(data) - start if whole else BLOCK
    while True:
        end = min(start + size, len(data))
        outside = None
        if quoted:
            block = np.frombuffer(data, dtype=np.uint8, count=end - start, offset=start)
            outside = np.cumsum(block == ord('"'), dtype=np.uint8) & 1 == 0
        if end == len(data):
            return end, outside
        stop = data.rfind(b"\n", start, end) + 1
        while outside is not None and stop > start and not outside[stop - 1 - start]:
            stop = data.rfind(b"\n", start, stop - 1) + 1
        if stop > start:
            return stop, None if outside is None else outside[: stop - start]
        size *= 2  # a line longer than a block
