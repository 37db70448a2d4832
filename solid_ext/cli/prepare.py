"""solid-ext prepare: a dataset folder from a file of interactions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.table import Table
from rich.text import Text

from solid_ext.cli.sources import NAMED_DATASETS, open_dataset
from solid_ext.cli.terminal import console, one_line

if TYPE_CHECKING:
    from solid_ext import Dataset as Interactions


@dataclass(frozen=True)
class Prepare:
    """Make a dataset folder: Parquet interactions, items and id maps, and a report of what was read.

    Example: solid-ext prepare interactions --raw ratings.csv --user userId --item movieId --out data/ratings

    Example: solid-ext prepare office --raw Office_Products_5.json.gz --items meta_Office_Products.json.gz --out office

    The paper's datasets are made of the public raw files, each by its filtering, and held against Table 1:
    arts, office, instruments, scientific (Amazon 2018 5-core reviews, JSON lines; with the metadata as --items),
    cds, electronic (Amazon 2014 ratings, CSV), book, music (Douban ratings, TSV). Files may be gzipped.
    """

    kind: Annotated[
        Literal[
            "interactions",
            "arts",
            "office",
            "instruments",
            "scientific",
            "cds",
            "electronic",
            "book",
            "music",
            "movielens-100k",
            "synthetic",
        ],
        tyro.conf.Positional,
    ]
    """What to prepare: a file of interactions, a dataset of the paper from its raw file, or a named dataset."""
    out: Path
    """The folder to make."""
    raw: Path | None = None
    """The file of interactions (TSV, CSV, JSON lines, Parquet or Feather), or the raw file of one of the paper's
    datasets."""
    items: Path | None = None
    """A file with one row an item: item_id, title, categories joined by "|"; for the paper's datasets also Amazon's
    metadata as published."""
    user: str = "user_id"
    """interactions: name of the column of users."""
    item: str = "item_id"
    """interactions: name of the column of items."""
    timestamp: str = "timestamp"
    """interactions: name of the column of times; without one the order of the file counts."""
    rating: str | None = None
    """interactions: name of the column of ratings that --min-rating looks at; by default "rating"."""
    min_rating: float | None = None
    """interactions: leave out the rows that are rated lower, or not at all."""
    title: str | None = None
    """interactions: name of the column of titles in --items; by default "title"."""
    categories: str | None = None
    """interactions: name of the column of categories (a|b|c) in --items; by default "categories"."""
    max_malformed: int = 100
    """How many malformed lines of the raw file are skipped, counted and named before it is refused."""
    append: bool = False
    """interactions: put the rows of --raw into the dataset folder --out, read by the columns that it was prepared with;
    rows that it has are left out and counted."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def run(self) -> None:
        from solid_ext.data import RECIPES
        from solid_ext.data.dataset import METADATA
        from solid_ext.data.storage import check_folder
        from solid_ext.files import owned_place

        if self.kind in ("interactions", *RECIPES) and self.raw is None:
            raise ValueError(f"prepare: expected --raw FILE with the {self.kind} data, got none")
        self._check_flags()
        if self.raw is not None and (self.raw / METADATA).exists():
            raise ValueError(f"prepare: expected --raw FILE, got the dataset folder {self.raw}")
        check_folder(self.out, overwrite=self.overwrite or self.append)
        with owned_place(self.out, "prepare"):  # from reading to writing: of two appends none loses the other's rows
            self._prepare()
        console.print(f"wrote {self.out}")

    def _prepare(self) -> None:
        from solid_ext.data import RECIPES, load_dataset, prepare_raw
        from solid_ext.data.append import COLUMNS, with_rules

        if self.kind in RECIPES and self.raw is not None:
            dataset = prepare_raw(self.kind, self.raw, items=self.items, max_malformed=self.max_malformed)
        elif self.append:
            dataset = self._appended()
        elif self.kind == "interactions":
            rules = {name: getattr(self, name) for name in COLUMNS}
            dataset = load_dataset(self.raw, items=self.items, max_malformed=self.max_malformed, **rules)
            dataset = replace(with_rules(dataset, rules), name=self.out.name)
        else:
            dataset = open_dataset(self.kind)
        dataset.save(self.out, overwrite=self.overwrite or self.append)
        describe(dataset)
        if self.kind in RECIPES:
            show_table1(dataset)

    def _appended(self) -> Interactions:
        """The dataset in --out with the rows of --raw."""
        from solid_ext.data import Dataset
        from solid_ext.data.append import COLUMNS, append_interactions, rules_of, with_rules

        held = Dataset.load(self.out)
        rules, defaults = rules_of(held), Prepare(self.kind, self.out)
        asked = {name: getattr(self, name) for name in COLUMNS}
        if rules is None:  # prepared by an earlier version, or not from a file: what is said now is remembered
            rules = asked
            held = with_rules(held, rules)
        for name, value in asked.items():
            if value not in (getattr(defaults, name), rules.get(name)):
                flag = name.replace("_", "-")
                raise ValueError(
                    f"append: expected --{flag} {rules.get(name)}, as {self.out} was prepared with, got {value}"
                )
        named = ", ".join(f"{name} {value}" for name, value in rules.items() if value is not None)
        console.print(f"columns as {self.out} was prepared: {named}", markup=False)
        grown = append_interactions(held, self.raw, items=self.items, max_malformed=self.max_malformed)
        rows, users, items = (
            getattr(grown, name) - getattr(held, name) for name in ("num_interactions", "num_users", "num_items")
        )
        console.print(f"{rows:,} interactions, {users:,} users and {items:,} items are new")
        return grown

    def _check_flags(self) -> None:
        """Refuse what would be ignored."""
        columns = ("user", "item", "timestamp", "rating", "min_rating", "title", "categories")
        if self.append and (self.kind != "interactions" or self.overwrite):
            got = "--overwrite" if self.overwrite else self.kind
            raise ValueError(f"prepare: expected --append with interactions and without --overwrite, got {got}")
        asked = [] if self.kind == "interactions" else list(columns)
        if self.kind in NAMED_DATASETS:
            asked += ["raw", "items"]
        defaults = Prepare(self.kind, self.out)
        given = [f"--{name.replace('_', '-')}" for name in asked if getattr(self, name) != getattr(defaults, name)]
        if given:
            raise ValueError(f"prepare: expected no {', '.join(given)} with {self.kind}, whose form is known, got some")


def describe(dataset: Interactions) -> None:
    """Print a dataset's size and what reading it met with."""
    console.print(
        Text.assemble(
            (console.shown(one_line(dataset.name)), "bold"),
            f": {dataset.num_users:,} users, {dataset.num_items:,} items, {dataset.num_interactions:,} interactions",
        )
    )
    for note in dataset.notes:
        console.print(f"  note: {note}", markup=False)
    for name, value in dataset.report.items():
        if not name.startswith("note_"):
            console.print(f"  {name}: {value}", style="dim", markup=False)


def show_table1(dataset: Interactions) -> None:
    """Print a dataset's size beside what the paper's Table 1 says of it."""
    from solid_ext.data import RECIPES, Statistics, compare_with_table1

    found, printed = Statistics.of(dataset), RECIPES[dataset.name].table1
    table = Table("", "here", "Table 1", "difference")
    for name in ("users", "items", "interactions"):
        here, there = getattr(found, name), getattr(printed, name)
        table.add_row(name, f"{here:,}", f"{there:,}", f"{here - there:+,}" if here != there else "none")
    table.add_row("density", f"{found.density:.7f}", f"{printed.density:.7f}", "")
    console.print(table)
    console.print(f"Table 1: {compare_with_table1(dataset.name, found)}")
