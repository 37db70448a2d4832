"""Data that grows under a model: its items keep their numbers, and new ones come after them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from solid_ext.data.catalogue import Catalogue
from solid_ext.data.dataset import Dataset


def in_order_of(catalogue: Catalogue, dataset: Dataset) -> Dataset:
    """The dataset with the catalogue's items first, by the catalogue's numbers, and those that are new after them.

    A dataset numbers items by their sorted ids, so that a new one moves those behind it; a model cannot. Items of the
    catalogue that the dataset has not are there without interactions. Known items keep their ids and descriptions as
    the catalogue has them. Ids are compared as text, as `Catalogue.item_index` does.

    Returns:
        The dataset itself where its items are the catalogue's in the same order.
    """
    if dataset.item_ids.equals(catalogue.table["item_id"]):
        return dataset
    number = catalogue.item_index(dataset.item_ids)
    new = np.flatnonzero(number == 0)
    number[new] = catalogue.num_items + 1 + np.arange(new.size)
    table = joined_items(catalogue.table, dataset.item_table[new])
    items = np.concatenate(([0], number)).astype(np.int32)[dataset.items]
    return replace(dataset, items=items, item_ids=table["item_id"], item_table=table)


def joined_items(known: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """Two tables of items, one below the other; columns of another type become text, those of one alone null.

    New ids that spell whole numbers become such where the known ones are.
    """
    new = new.with_columns(_as_numbers_of(known["item_id"], new["item_id"]).alias("item_id"))
    both = {name for name in known.columns if name in new.columns and known[name].dtype != new[name].dtype}
    as_text = [pl.col(name).cast(pl.String) for name in known.columns if name in both]
    return pl.concat([known.with_columns(as_text), new.with_columns(as_text)], how="diagonal")


def expect_ids_like(name: str, known: pl.Series, new: pl.Series) -> None:
    """Refuse new ids `[n]` beside which the known ones could not stay what they are.

    Known text stays text beside numbers, and known numbers numbers beside text that spells such; any other id would
    make text of every known one, and what a program compares the recommended ids with would no longer be found.

    Raises:
        ValueError: such an id.
    """
    new = _as_numbers_of(known, new)
    if known.dtype in (pl.String, new.dtype) or not new.len():
        return
    kind = "whole numbers of 64 bits" if known.dtype.is_integer() else str(known.dtype)
    odd = new.filter(_numbers(known, new).is_null()) if known.dtype.is_integer() else new
    raise ValueError(
        f"{name}: expected new items with ids that are {kind}, as those of the model are, got {odd[0]!r} (a model that "
        "is fitted anew on data with both has ids that are text)"
    )


def _as_numbers_of(known: pl.Series, new: pl.Series) -> pl.Series:
    """The new ids, of the known ones' type where these are whole numbers and all of the new ones spell such."""
    if not known.dtype.is_integer() or known.dtype == new.dtype:
        return new
    numbers = _numbers(known, new)
    return new if numbers.null_count() > new.null_count() else numbers


def _numbers(known: pl.Series, new: pl.Series) -> pl.Series:
    text = new.cast(pl.String)
    plain = text.str.contains(r"^(?:0|-?[1-9]\d*)$").fill_null(False)  # "007" is another id than 7
    return text.set(~plain, None).cast(known.dtype, strict=False)


def of_items(table: pl.DataFrame) -> Dataset:
    """A dataset of these items without interactions, of one user who has none: what features are made of."""
    ids = table["item_id"]
    nothing = np.zeros(0, dtype=np.int32)
    return Dataset("items", np.zeros(2, dtype=np.int64), nothing, None, pl.Series("user_id", [0]), ids, table)
