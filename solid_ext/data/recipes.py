"""The paper's eight datasets: from the public raw file, by its filtering, to a `Dataset`; held against Table 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from solid_ext.data.dataset import Dataset, load_dataset
from solid_ext.data.raw import Layout, Report, is_metadata, read_metadata, read_raw
from solid_ext.data.tables import read_table
from solid_ext.forked import check_not_forked


@dataclass(frozen=True)
class Statistics:
    """A dataset's size."""

    users: int
    items: int
    interactions: int

    @property
    def density(self) -> float:
        """`interactions / (users x items)`."""
        return self.interactions / (self.users * self.items)

    @classmethod
    def of(cls, dataset: Dataset) -> Statistics:
        """The size of a dataset."""
        return cls(dataset.num_users, dataset.num_items, dataset.num_interactions)


@dataclass(frozen=True)
class Recipe:
    """How a raw file becomes a dataset of the paper.

    Attributes:
        source: the public file.
        metadata: the public file of its items, where there is one.
        layout: how its lines look, see `read_raw`.
        table1: what the paper's Table 1 prints.
        core: users and items with fewer interactions are dropped until none is left; 0 keeps all.
        described: only items that the metadata knows count, and equal lines (user, item, rating, time) count once.
        counted: what other sources count in the same data, where Table 1 departs from it.
        note: why.
    """

    source: str
    layout: Layout
    table1: Statistics
    core: int = 0
    described: bool = False
    counted: Statistics | None = None
    note: str = ""
    metadata: str = ""


def _amazon_2018(category: str, table1: Statistics, counted: Statistics | None = None, note: str = "") -> Recipe:
    source, metadata = f"Amazon Review 2018, {category}_5.json.gz", f"meta_{category}.json.gz"
    return Recipe(source, "json", table1, core=5, described=True, counted=counted, note=note, metadata=metadata)


HEADER_COUNTED = "Table 1 has one user, item and interaction more, as if the header line counted"

RECIPES = {
    "arts": _amazon_2018("Arts_Crafts_and_Sewing", Statistics(45_486, 21_019, 395_150)),
    "office": _amazon_2018(
        "Office_Products",
        Statistics(87_436, 25_986, 684_837),
        Statistics(87_346, 25_986, 684_837),
        "Table 1 prints 87,436 users, other sources of the same data count 87,346: likely swapped digits",
    ),
    "instruments": _amazon_2018("Musical_Instruments", Statistics(24_962, 9_964, 208_926)),
    "scientific": _amazon_2018("Industrial_and_Scientific", Statistics(8_442, 4_385, 59_427)),
    "cds": Recipe("Amazon Review 2014, ratings_CDs_and_Vinyl.csv", "csv", Statistics(1_578_597, 486_360, 3_749_004)),
    "electronic": Recipe(
        "Amazon Review 2014, ratings_Electronics.csv", "csv", Statistics(4_201_696, 476_002, 7_824_482)
    ),
    "book": Recipe(
        "Douban, douban_book.tsv",
        "tsv",
        Statistics(46_549, 212_996, 1_861_533),
        counted=Statistics(46_548, 212_995, 1_908_081),
        note=HEADER_COUNTED + ", and then one interaction fewer for each of its users",
    ),
    "music": Recipe(
        "Douban, douban_music.tsv",
        "tsv",
        Statistics(39_743, 164_224, 1_792_502),
        counted=Statistics(39_742, 164_223, 1_792_501),
        note=HEADER_COUNTED,
    ),
}


def prepare_raw(name: str, raw: str | Path, *, items: str | Path | None = None, max_malformed: int = 100) -> Dataset:
    """Make one of the paper's datasets of its public raw file.

    Amazon 2018: equal lines count once, only items of the metadata count, then the 5-core. Amazon 2014 and Douban:
    every line counts. The report tells what each rule dropped and how the result compares with Table 1.

    Args:
        name: of `RECIPES`.
        raw: the file, plain or gzipped.
        items: Amazon's metadata (JSON lines, or the 2014 release's Python literals), or a table with `item_id` and
            perhaps `title` and `categories`.
        max_malformed: how many malformed lines of either file are skipped before it is refused.

    Raises:
        ValueError: another name, a file that cannot be read, too many malformed lines, or nothing left to keep.

    Source: paper, Table 1.
    """
    if name not in RECIPES:
        raise ValueError(f"prepare_raw: expected one of {', '.join(RECIPES)}, got {name!r}")
    check_not_forked("prepare_raw")
    recipe = RECIPES[name]
    frame, report = read_raw(raw, recipe.layout, max_malformed=max_malformed)
    table = None
    if items is not None:
        table, counts = _read_items(items, max_malformed)
        report |= {"metadata": Path(items).name} | counts
    elif recipe.described:
        report["metadata"] = f"none given; Table 1 leaves out the items that {recipe.metadata} (--items) lacks"
    frame, counts = _filter(frame, recipe, table)
    if frame.height == 0:
        raise ValueError(
            f"{name}: expected interactions in the {recipe.core}-core of {str(raw)!r}, got none of "
            f"{report['lines_read']:,} lines"
        )
    dataset = load_dataset(frame.drop("rating"), items=table, name=name, drop_duplicates=False)
    return replace(dataset, report={"source": recipe.source} | report | counts | dataset.report)


def compare_with_table1(name: str, found: Statistics) -> str:
    """Say whether a dataset's size is that of Table 1, or by how much it is not.

    Args:
        name: of `RECIPES`.
    """
    recipe = RECIPES[name]
    if found == recipe.table1:
        return "match"
    if found == recipe.counted:
        return f"match with what other sources count in the same data; {recipe.note}"
    parts = []
    for what in ("users", "items", "interactions"):
        got, expected = getattr(found, what), getattr(recipe.table1, what)
        if got != expected:
            parts.append(f"{what} {got - expected:+,} ({(got - expected) / expected:+.2%})")
    return f"no match: {', '.join(parts)}" + (f"; {recipe.note}" if recipe.note else "")


def k_core(users: np.ndarray, items: np.ndarray, core: int) -> np.ndarray:
    """Mark the largest set of interactions in which every user and every item occurs at least `core` times.

    Args:
        users, items: `[N]` integers from 0. core: 0 and 1 keep all.

    Returns:
        `[N] bool`.
    """
    kept = np.ones(users.size, dtype=bool)
    while True:
        busy = np.bincount(users[kept], minlength=users.max(initial=0) + 1) >= core
        popular = np.bincount(items[kept], minlength=items.max(initial=0) + 1) >= core
        enough = kept & busy[users] & popular[items]
        if np.array_equal(enough, kept):
            return kept
        kept = enough


def _filter(frame: pl.DataFrame, recipe: Recipe, table: pl.DataFrame | None) -> tuple[pl.DataFrame, Report]:
    """Apply a recipe's rules, each counted."""
    report: Report = {}
    if recipe.described:
        read = frame.height
        frame = frame.unique(keep="first", maintain_order=True)
        report["equal_lines"] = read - frame.height
        if table is not None:
            read = frame.height
            frame = frame.filter(frame["item_id"].cast(pl.String).is_in(table["item_id"].cast(pl.String).implode()))
            report["rows_of_items_without_metadata"] = read - frame.height
    if recipe.core:
        read = frame.height
        users, items = (frame[column].rank("dense").to_numpy() - 1 for column in ("user_id", "item_id"))
        frame = frame.filter(pl.Series(k_core(users, items, recipe.core), dtype=pl.Boolean))
        report[f"rows_outside_{recipe.core}_core"] = read - frame.height
    return frame, report


def _read_items(path: str | Path, max_malformed: int) -> tuple[pl.DataFrame, Report]:
    if is_metadata(path):
        return read_metadata(path, max_malformed=max_malformed)
    return read_table(path, name="items", required=("item_id",)), {}
