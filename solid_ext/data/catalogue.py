"""The items of a dataset by id: raw ids both ways, and titles; all that serving needs of the data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from solid_ext.data.interactions import normalise_ids


@dataclass(frozen=True, eq=False)
class Catalogue:
    """V items: item v in 1..V is row v - 1 of `table`.

    Attributes:
        table: `[V]` rows; column `item_id` holds the raw ids, `title`, where there is one, names the items.
    """

    table: pl.DataFrame

    @property
    def num_items(self) -> int:
        """V."""
        return self.table.height

    def item_index(self, raw_ids: Any) -> np.ndarray:
        """Return the item ids of raw ids.

        Ids are compared as text, so that "42", as a command line or JSON gives it, finds the item stored as
        42, and the other way round.

        Args:
            raw_ids: `[n]` of any type that ids may have.

        Returns:
            `[n] int64`, 0 for an unknown id.

        Raises:
            TypeError: values that cannot be ids.
        """
        asked = normalise_ids("item_index", raw_ids).cast(pl.String).alias("text").to_frame()
        found = asked.join(self._numbers_by_text, on="text", how="left", maintain_order="left")
        return found["item"].fill_null(0).to_numpy().astype(np.int64)

    def raw_items(self, items: Sequence[int] | np.ndarray) -> list[Any]:
        """Return the raw ids of items `[n]` in 1..V.

        Raises:
            ValueError: items out of range.
        """
        return self.table["item_id"].gather(self._rows("raw_items", items)).to_list()

    def titles(self, items: Sequence[int] | np.ndarray) -> list[str]:
        """Return the title of every item, or its raw id as text where there is none.

        Args:
            items: `[n]` ids in 1..V.

        Raises:
            ValueError: items out of range.
        """
        return self._titles.gather(self._rows("titles", items)).to_list()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as Parquet."""
        self.table.write_parquet(Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Catalogue:
        """Read what `save` wrote.

        Raises:
            ValueError: a file that is missing or holds no such table.
        """
        try:
            table = pl.read_parquet(Path(path))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(
                f"Catalogue.load: expected a Parquet file of items at {str(path)!r}, got {error}"
            ) from error
        if "item_id" not in table.columns:
            raise ValueError(f"Catalogue.load: expected a column item_id in {str(path)!r}, got {table.columns}")
        return cls(table)

    def _rows(self, name: str, items: Sequence[int] | np.ndarray) -> np.ndarray:
        index = np.asarray(items, dtype=np.int64).reshape(-1)
        if index.size and (index.min() < 1 or index.max() > self.num_items):
            raise ValueError(f"{name}: expected items in 1..{self.num_items}, got {index.min()}..{index.max()}")
        return index - 1

    @cached_property
    def _numbers_by_text(self) -> pl.DataFrame:
        numbers = np.arange(1, self.num_items + 1, dtype=np.int64)
        return pl.DataFrame({"text": self.table["item_id"].cast(pl.String), "item": numbers})

    @cached_property
    def _titles(self) -> pl.Series:
        names = self.table["item_id"].cast(pl.String)
        if "title" not in self.table.columns:
            return names
        return self.table.select(pl.col("title").cast(pl.String).fill_null(names)).to_series()
