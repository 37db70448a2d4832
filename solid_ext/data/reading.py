"""What reading a table meets with: lines that hold no row, the columns that are there, and what was guessed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

SHOWN_COLUMNS = 12  # of those that a sentence names
NAMED_LINES = 3  # malformed lines shown in a report or an error
SHOWN_CHARACTERS = 60

# What the columns are called elsewhere, in lower case without spaces and underscores: only to suggest them.
OTHER_NAMES = {
    "user_id": ("userid", "user", "uid", "reviewerid", "customerid", "customer", "visitorid", "sessionid", "memberid"),
    "item_id": (
        *("itemid", "item", "iid", "movieid", "movie", "productid", "product", "asin", "parentasin", "bookid", "isbn"),
        *("musicid", "songid", "trackid", "articleid", "articlesid", "sku", "stockcode", "businessid", "videoid"),
    ),
    "timestamp": (
        *("timestamp", "time", "ts", "date", "datetime", "unixreviewtime", "reviewtime", "createdat", "eventtime"),
        *("invoicedate", "unixtime", "timestampfloat", "when"),
    ),
    "rating": ("rating", "ratings", "score", "stars", "overall", "rate", "ratingfloat"),
    "title": ("title", "name", "movietitle", "itemname", "producttitle", "productname", "itemtitle"),
    "categories": ("categories", "category", "genres", "genre", "tags", "class", "classes", "topics"),
}


class Reading:
    """Counts the lines that hold no row, keeps the first to name them, and refuses a file where they are too many.

    Args:
        limit: how many malformed lines are skipped before the file is refused.

    Attributes:
        columns: the names of all columns that the source has.
        notes: counts, and under names that start with `note_` sentences on what was guessed, for a dataset's report.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit, self.count = limit, 0
        self.examples: list[str] = []
        self.columns: list[str] = []
        self.notes: dict[str, int | str] = {}

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


def kept_columns(found: Sequence[str], required: Sequence[str], optional: Sequence[str] | None, name: str) -> list[str]:
    """The columns of `found` to keep, in their order.

    Raises:
        ValueError: a required column is missing, or a kept one is there twice.
    """
    missing = [column for column in required if column not in found]
    if missing:
        likely = [(near, column) for column in missing if (near := suggested(column, found, among=required))]
        hint = ", ".join(f"{near!r} looks like {column}" for near, column in likely)
        if hint and name.startswith("items"):
            hint = f" ({hint}; the items' id column must be called as in the interactions)"
        elif hint:
            hint = f" ({hint}; user=, item=, timestamp= name the columns, on the command line --user, --item, ..)"
        more = f" and {len(found) - SHOWN_COLUMNS:,} more" if len(found) > SHOWN_COLUMNS else ""
        shown = (", ".join(map(str, found[:SHOWN_COLUMNS])) or "none") + more
        raise ValueError(f"{name}: expected columns {', '.join(required)}, got {shown}{hint}")
    # A column without a name is what a separator at the end of the header makes, or pandas' index.
    kept = [
        column for column in found if column in required or (column != "" if optional is None else column in optional)
    ]
    twice = sorted({str(column) for column in kept if kept.count(column) > 1})
    if twice:
        raise ValueError(f"{name}: expected every column once, got {', '.join(twice)} more than once")
    return kept


def suggested(column: str, found: Sequence[str], *, among: Sequence[str] = ()) -> str | None:
    """The name among `found` that most likely means `column`, or None; never one of `among`."""
    plain = {_plain(name): name for name in reversed([str(name) for name in found]) if name not in among}
    for name in (_plain(column), *OTHER_NAMES.get(column, ())):
        if name in plain:
            return plain[name]
    near = difflib.get_close_matches(_plain(column), list(plain), n=1, cutoff=0.75)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", str(name)).lower()
