"""The raw files of the paper's datasets, read block by block: reviews and ratings as published, and item metadata.

* Amazon 2018 reviews: one JSON object a line, with `reviewerID`, `asin`, `overall`, `unixReviewTime`.
* Amazon 2014 ratings: `user,item,rating,timestamp` without a header.
* Douban ratings: tab separated, with a header (`UserId ItemId Rating Timestamp`); -1 is a blank rating.

All plain or gzipped. Only the four columns are kept, so memory depends on the number of rows, never on the reviews'
texts. A line that holds no row is counted and named; a file with too many of them is refused.
"""

from __future__ import annotations

import ast
import html
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl

from solid_ext.data.files import BLOCK, inflated
from solid_ext.data.reading import Reading
from solid_ext.data.tables import integers
from solid_ext.data.text import UTF8_BOM

Layout = Literal["json", "csv", "tsv"]
Report = dict[str, int | str]
Skip = Callable[[int, bytes], None]  # counts a malformed line: its number, its text

LONGEST_LINE = 1 << 26  # a file without line ends must not end up in memory as one line
LONGEST_TITLE = 2000  # longer "titles" of Amazon 2018 are scripts of the page they were taken from

SEPARATORS = {"csv": ",", "tsv": "\t"}
FIELDS = ("user_id", "item_id", "rating", "timestamp")
# What the fields are called where a delimited file has a header (of Douban's two releases, and of copies of Amazon's).
HEADER_NAMES = {
    "user_id": ("user_id", "userid", "user", "reviewerid"),
    "item_id": ("item_id", "itemid", "item", "productid", "asin", "book_id", "music_id"),
    "rating": ("rating", "overall"),
    "timestamp": ("timestamp", "time", "unixreviewtime"),
}
JSON_FIELDS = ("reviewerID", "asin", "overall", "unixReviewTime")
EXPECTED = {
    "json": "JSON with reviewerID, asin, overall, unixReviewTime",
    "csv": "user,item,rating,timestamp",
    "tsv": "user, item, rating and timestamp between tabs",
}
DATES = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S")
NO_ROWS = pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String, "rating": pl.Float64, "timestamp": pl.Int64})


def read_raw(path: str | Path, layout: Layout, *, max_malformed: int = 100) -> tuple[pl.DataFrame, Report]:
    """Read users, items, ratings and times of a raw file, in the order of its lines.

    Ids are text, or int64 where every one is written exactly as an integer; times are whole seconds (dates of Douban's
    other release become seconds).

    Args:
        path: plain or gzipped.
        layout: "json" (Amazon 2018), "csv" (Amazon 2014) or "tsv" (Douban).
        max_malformed: how many malformed lines are skipped before the file is refused.

    Returns:
        `[N]` rows `user_id`, `item_id`, `rating` float64, `timestamp` int64; and `lines_read`, `malformed_lines` and
        the first of these.

    Raises:
        ValueError: a file that cannot be read, too many malformed lines, or no row at all.
    """
    where = f"raw file {str(path)!r}"
    malformed = Reading(max_malformed)
    skip = partial(malformed.add, where=where, expected=EXPECTED[layout])
    parse: Callable[[int, bytes], pl.DataFrame]
    parse = partial(_json_lines, skip) if layout == "json" else _Delimited(SEPARATORS[layout], where, skip)
    parts, lines = [NO_ROWS], 0
    for first, block in _blocks(Path(path), where):
        parts.append(parse(first, block))
        lines = first + block.count(b"\n") - block.endswith(b"\n")
    frame = pl.concat(parts)
    if frame.height == 0:
        found = "; ".join(malformed.examples) or "nothing"
        raise ValueError(f"{where}: expected lines of {EXPECTED[layout]}, got {found}")
    frame = frame.with_columns(integers(frame["user_id"]), integers(frame["item_id"]))
    return frame, {"lines_read": lines, **malformed.report("malformed_lines")}


def read_metadata(path: str | Path, *, max_malformed: int = 100) -> tuple[pl.DataFrame, Report]:
    """Read titles and categories of Amazon's item metadata: JSON lines (2018) or Python literals (2014), also gzipped.

    Args:
        path: one object a line, with `asin`, and `title`, `category` (2018) or `categories` (2014) where known.
        max_malformed: how many malformed lines are skipped before the file is refused.

    Returns:
        Rows `item_id`, `title`, `categories` ("a|b|c"), all text, in the order of the file, and the counts.

    Raises:
        ValueError: a file that cannot be read, too many malformed lines, or no row at all.
    """
    where = f"item metadata {str(path)!r}"
    malformed = Reading(max_malformed)
    rows: list[tuple[Any, str | None, str | None]] = []
    for first, block in _blocks(Path(path), where):
        for number, line in _lines(first, block):
            entry = _object(line)
            asin = entry.get("asin") if entry is not None else None
            if entry is None or not _is_text(asin):
                malformed.add(number, line, where=where, expected="an object with asin")
                continue
            rows.append((asin, _title(entry.get("title")), _categories(entry)))
    if not rows:
        raise ValueError(
            f"{where}: expected lines of objects with asin, got {'; '.join(malformed.examples) or 'nothing'}"
        )
    schema = {"item_id": pl.String, "title": pl.String, "categories": pl.String}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.with_columns(integers(table["item_id"])), malformed.report("malformed_metadata_lines")


def is_metadata(path: str | Path) -> bool:
    """Whether a file starts with "{", as Amazon's metadata does and no table with a header."""
    for _, block in _blocks(Path(path), f"item metadata {str(path)!r}"):
        return block.lstrip().startswith(b"{")
    return False


class _Delimited:
    """Lines of fields between separators to rows; the first line may name the fields."""

    def __init__(self, separator: str, where: str, skip: Skip) -> None:
        self.separator, self.where, self.skip = separator, where, skip
        self.places = {field: place for place, field in enumerate(FIELDS)}
        self.width = len(FIELDS)

    def __call__(self, first: int, block: bytes) -> pl.DataFrame:
        if first == 1:
            block, first = self._without_header(block)
        names = [f"field {place}" for place in range(self.width)] + ["beyond"]
        # A header of our own says how many fields there are, and polars keeps one row a line, blank ones included.
        table = pl.read_csv(
            self.separator.join(names).encode() + b"\n" + block,
            separator=self.separator,
            quote_char=None,
            infer_schema=False,
            truncate_ragged_lines=True,
            encoding="utf8-lossy",
        )
        fields = {field: pl.col(names[place]).str.strip_chars('" ') for field, place in self.places.items()}
        rows = table.select(
            fields["user_id"],
            fields["item_id"],
            fields["rating"].cast(pl.Float64, strict=False),
            _seconds(fields["timestamp"]),
            whole=pl.col("beyond").is_null(),
        ).rename({names[place]: field for field, place in self.places.items()})
        good = (
            pl.col("whole")
            & pl.all_horizontal(_is_id("user_id"), _is_id("item_id"))
            & pl.col("rating").is_finite().fill_null(False)
            & pl.col("timestamp").is_not_null()
        )
        kept = rows.select(good.alias("good"))["good"]
        if not kept.all():
            lines = block.split(b"\n")
            for row in (~kept).arg_true():
                if lines[row].strip():
                    self.skip(first + row, lines[row])
        return rows.filter(kept).select(NO_ROWS.columns)

    def _without_header(self, block: bytes) -> tuple[bytes, int]:
        line, _, rest = block.removeprefix(UTF8_BOM).partition(b"\n")
        found = [name.strip('"\r ').lower() for name in line.decode("utf-8", "replace").split(self.separator)]
        places = {
            field: place for field, names in HEADER_NAMES.items() for place, name in enumerate(found) if name in names
        }
        if "user_id" not in places or "item_id" not in places:
            return block.removeprefix(UTF8_BOM), 1
        if len(places) < len(FIELDS):
            lacking = ", ".join(field for field in FIELDS if field not in places)
            raise ValueError(
                f"{self.where}: expected a header with user, item, rating and time, got none for {lacking}"
            )
        self.places, self.width = places, len(found)
        return rest, 2


def _json_lines(skip: Skip, first: int, block: bytes) -> pl.DataFrame:
    """Lines of JSON reviews to rows."""
    rows = []
    for number, line in _lines(first, block):
        row = _review(line)
        if row is None:
            skip(number, line)
        else:
            rows.append(row)
    return pl.DataFrame(rows, schema=NO_ROWS.schema, orient="row")


def _review(line: bytes) -> tuple[str, str, float, int] | None:
    try:
        entry = json.loads(line)
        user, item, rating, time = (entry[field] for field in JSON_FIELDS)
        if not (_is_text(user) and _is_text(item) and math.isfinite(rating) and abs(time) < 2**63):
            return None
        return user, item, float(rating), int(time)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 can hold (JSON can spell half a character)."""
    return isinstance(value, str) and value != "" and value.encode("utf-8", "replace").decode() == value


def _is_id(field: str) -> pl.Expr:
    # A replacement character stands for bytes that were no UTF-8.
    return (pl.col(field).str.len_bytes() > 0).fill_null(False) & ~pl.col(field).str.contains("\ufffd", literal=True)


def _seconds(text: pl.Expr) -> pl.Expr:
    number = text.cast(pl.Float64, strict=False)
    seconds = pl.when(number.abs() < 2.0**63).then(number).cast(pl.Int64, strict=False)
    rest = pl.when(seconds.is_null()).then(text)
    dates = [rest.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("s") for form in DATES]
    return pl.coalesce(seconds, *dates)


def _object(line: bytes) -> dict[str, Any] | None:
    """A line's object: JSON, or the Python literal that the 2014 release wrote."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        try:
            entry = ast.literal_eval(line.decode("utf-8"))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return entry if isinstance(entry, dict) else None


def _title(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    title = _plain(value)
    return title if 0 < len(title) < LONGEST_TITLE else None


def _categories(entry: dict[str, Any]) -> str | None:
    found = entry.get("category", entry.get("categories"))
    while isinstance(found, list) and found and isinstance(found[0], list):
        found = found[0]  # 2014: several paths through the tree, the first of which is the item's main one
    if not isinstance(found, list):
        return None
    names = [_plain(name).replace("|", "/") for name in found if isinstance(name, str)]
    return "|".join(name for name in names if name) or None


def _plain(text: str) -> str:
    """Text without HTML entities, line ends and halves of characters."""
    return " ".join(html.unescape(text).encode("utf-8", "replace").decode().split())


def _lines(first: int, block: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(block.split(b"\n"), first):
        if line.strip():
            yield number, line


def _blocks(path: Path, where: str) -> Iterator[tuple[int, bytes]]:
    """Yield whole lines, `BLOCK` bytes or so at a time, with the number of the first of them (from 1)."""
    if not path.is_file():
        raise ValueError(f"{where}: expected an existing file, got {'a folder' if path.is_dir() else 'none'}")
    rest, number = b"", 1
    for data in inflated(path, where, BLOCK):
        head, end, rest_of_data = data.rpartition(b"\n")
        if not end:
            rest += data
            if len(rest) > LONGEST_LINE:
                raise ValueError(
                    f"{where}: expected lines of text, got one of more than {LONGEST_LINE:,} bytes at line {number:,}"
                )
            continue
        block = rest + head + end
        yield number, block
        number += block.count(b"\n")
        rest = rest_of_data
    if rest:
        yield number, rest
