"""The items of a dataset by id: raw ids both ways, and titles; all that serving needs of the data."""

from __future__ import annotations

import datetime
import decimal
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from solid_ext.data.tables import cell, shown
from solid_ext.forked import check_not_forked

COUNTS = "solid_ext: interactions in the training part"
"""The column of a saved catalogue that holds `counts`; metadata has no column of this name."""
WHOLE_FLOAT = re.compile(r"-?(?:0|[1-9]\d*)\.0+\Z")
_OTHER_IDS = (datetime.date, datetime.time)  # a datetime is a date


@dataclass(frozen=True, eq=False, repr=False)
class Catalogue:
    """V items: item v in 1..V is row v - 1 of `table`.

    Looking up ids and titles takes time in proportion to what is asked, once the tables for it are made, and calls
    nothing that starts threads: it works in a forked process too.

    Attributes:
        table: `[V]` rows; column `item_id` holds the raw ids, `title`, where there is one, names the items.
        counts: `[V] int64`, how often each item was interacted with in the training part, which is what a model knows
            for newcomers; None where nothing was trained.

    Raises:
        ValueError: counts of another length.
    """

    table: pl.DataFrame
    counts: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.counts is not None and self.counts.shape != (self.num_items,):
            raise ValueError(f"Catalogue: expected counts [V={self.num_items}], got {list(self.counts.shape)}")

    @property
    def num_items(self) -> int:
        """V."""
        return self.table.height

    def __repr__(self) -> str:
        metadata = ", ".join(self.table.columns[1:]) or "none"
        return f"Catalogue({self.num_items:,} items, metadata {metadata})"

    def item_index(self, raw_ids: Any) -> np.ndarray:
        """Return the item ids of raw ids.

        Ids are compared as text, so that "42", as a command line or JSON gives it, finds the item stored as
        42, and the other way round; 42.0 and "42.0" find both.

        Args:
            raw_ids: `[n]` of any type that ids may have.

        Returns:
            `[n] int64`, 0 for an unknown id.

        Raises:
            TypeError: values that cannot be ids.
        """
        asked = listed(raw_ids)
        if asked is None:
            raise TypeError(f"item_index: expected a list of item ids, got {shown(raw_ids)}")
        numbers = self._numbers_by_text
        found = np.zeros(len(asked), dtype=np.int64)
        kinds = set(map(type, asked))
        if kinds in ({int}, {str}):  # all at once by what `_texts` tries first
            with suppress(ValueError):  # an integer of more digits than Python writes
                found[:] = [numbers.get(text, 0) for text in (asked if kinds == {str} else map(str, asked))]
        for place in np.flatnonzero(found == 0):
            for text in _texts(asked[place]):
                if text in numbers:
                    found[place] = numbers[text]
                    break
        return found

    def raw_items(self, items: Sequence[int] | np.ndarray) -> list[Any]:
        """Return the raw ids of items `[n]` in 1..V.

        Raises:
            ValueError: items out of range.
        """
        return [self._raw_ids[row] for row in self._rows("raw_items", items).tolist()]

    def titles(self, items: Sequence[int] | np.ndarray) -> list[str]:
        """Return the title of every item, or its raw id as text where there is none.

        Args:
            items: `[n]` ids in 1..V.

        Raises:
            ValueError: items out of range.
        """
        return [self._titles[row] for row in self._rows("titles", items).tolist()]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table, with the counts where there are any, as Parquet."""
        check_not_forked("Catalogue.save")
        table = self.table.drop(COUNTS, strict=False)
        if self.counts is not None:
            table = table.with_columns(pl.Series(COUNTS, self.counts, dtype=pl.Int64))
        table.write_parquet(Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Catalogue:
        """Read what `save` wrote.

        Raises:
            ValueError: a file that is missing or holds no such table.
        """
        check_not_forked("Catalogue.load")
        try:
            table = pl.read_parquet(Path(path), glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(
                f"Catalogue.load: expected a Parquet file of items at {str(path)!r}, got {error}"
            ) from error
        if "item_id" not in table.columns:
            raise ValueError(f"Catalogue.load: expected a column item_id in {str(path)!r}, got {table.columns}")
        if table["item_id"].dtype.is_nested():
            kind = str(table["item_id"].dtype)
            raise ValueError(f"Catalogue.load: expected ids as numbers, text or times in {str(path)!r}, got {kind:.80}")
        if COUNTS not in table.columns:
            return cls(table)
        counts = table[COUNTS]
        if counts.dtype != pl.Int64 or counts.null_count() or (counts < 0).any():
            raise ValueError(f"Catalogue.load: expected whole numbers of 0 or more in {COUNTS!r} of {str(path)!r}")
        return cls(table.drop(COUNTS), counts.to_numpy().copy())

    def _rows(self, name: str, items: Sequence[int] | np.ndarray) -> np.ndarray:
        asked = np.asarray(items)
        if asked.size and asked.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected items as whole numbers in 1..{self.num_items}, got {shown(items)}")
        index = asked.astype(np.int64).reshape(-1)
        if index.size and (index.min() < 1 or index.max() > self.num_items):
            raise ValueError(f"{name}: expected items in 1..{self.num_items}, got {index.min()}..{index.max()}")
        return index - 1

    # Plain Python, made once: polars works on threads of its own, which a forked process has not.

    @cached_property
    def _raw_ids(self) -> list[Any]:
        return self.table["item_id"].to_list()

    @cached_property
    def _numbers_by_text(self) -> dict[str, int]:
        return {str(raw): row + 1 for row, raw in enumerate(self._raw_ids)}

    @cached_property
    def _titles(self) -> list[str]:
        titles = self.table["title"].to_list() if "title" in self.table.columns else [None] * self.num_items
        return [str(raw if title is None else title) for raw, title in zip(self._raw_ids, titles, strict=True)]


def listed(values: Any) -> list[Any] | None:
    """An ordered collection as a list: a list, tuple, range, array, tensor or series; None for anything else.

    Neither text nor sets nor mappings nor frames nor tensors without values are lists of ids.
    """
    if isinstance(values, (list, tuple, range)):
        return list(values)
    if getattr(values, "ndim", 1) == 0 or hasattr(values, "columns") or getattr(values, "is_meta", False):
        return None
    convert = getattr(values, "to_list", None) or getattr(values, "tolist", None)
    return list(convert()) if callable(convert) else None


def _texts(value: Any) -> tuple[str, ...]:
    """What an id may be called in the catalogue, as text; nothing for a missing one, and for an integer of thousands
    of digits, which no column of ids holds.

    Raises:
        TypeError: a value that cannot be an id.
    """
    value = cell("item_index", value)
    if isinstance(value, str):
        return (value, value.partition(".")[0]) if WHOLE_FLOAT.match(value) else (value,)
    if value is None:
        return ()
    try:
        if isinstance(value, (float, decimal.Decimal)) and value not in (float("inf"), float("-inf")):
            return (str(int(value)), str(value)) if value == int(value) else (str(value),)
        if isinstance(value, (int, float, decimal.Decimal, *_OTHER_IDS)) and not isinstance(value, bool):
            return (str(value),)
    except ValueError:  # more digits than Python writes
        return ()
    raise TypeError(f"item_index: expected item ids as numbers, text or times, got {shown(value)}")
