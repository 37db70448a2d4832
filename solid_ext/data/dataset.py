"""The canonical dataset: flat arrays of interactions, raw ids both ways, metadata, and what was dropped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from solid_ext.data.catalogue import Catalogue
from solid_ext.data.files import nearest_file
from solid_ext.data.interactions import column_name, normalise_ids, read_interactions
from solid_ext.data.prepare import (
    AS_THEY_ARE,
    NO_TIMES,
    Indexed,
    align_items,
    description_text,
    index_interactions,
)
from solid_ext.data.reading import Reading, suggested
from solid_ext.data.storage import METADATA, read_folder, write_folder
from solid_ext.data.tables import read_table
from solid_ext.files import checked_path, expect_local
from solid_ext.forked import check_not_forked

CATEGORY_SEPARATOR = "|"
TABLE_SUFFIXES = (
    *(".tsv.gz", ".tsv", ".csv.gz", ".csv", ".txt.gz", ".txt", ".parquet"),
    *(".jsonl.gz", ".jsonl", ".json.gz", ".json", ".feather", ".arrow", ".dat"),
)
NOTE = "note_"  # how the names of a report begin that hold a sentence for people
FINGERPRINTED = ("title", "categories")  # the metadata that semantics and splits are made of


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Interactions of U users with V items, each user's oldest first, held flat.

    Attributes:
        name: what results and reports call the data.
        offsets: `[U + 1] int64`; user u's interactions are `items[offsets[u]:offsets[u + 1]]`.
        items: `[N] int32`, ids 1..V; 0 is padding and never occurs here.
        timestamps: `[N] int64`, not decreasing within a user, or None. These three are arrays in memory, or
            mapped from the file of a dataset folder.
        user_ids: raw ids `[U]`.
        item_ids: raw ids `[V]`; item v is `item_ids[v - 1]`.
        item_table: `[V]` rows in item order: column `item_id` and the metadata there is (`title`,
            `categories` "a|b|c").
        report: what was read, which rule touched how many rows, and under names that begin with `note_` in sentences
            what was guessed.

    Raises:
        TypeError: arrays of another dtype or number of dimensions.
        ValueError: parts that do not fit together.
    """

    name: str
    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray | None
    user_ids: pl.Series
    item_ids: pl.Series
    item_table: pl.DataFrame
    report: dict[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_not_forked("Dataset")
        _check_array("offsets", self.offsets, np.int64)
        _check_array("items", self.items, np.int32)
        if self.offsets.size < 2 or self.offsets[0] != 0 or np.any(np.diff(self.offsets) < 0):
            raise ValueError("Dataset: expected offsets [U + 1] that start at 0 and never decrease, got others")
        if self.offsets[-1] != self.items.size:
            raise ValueError(f"Dataset: expected offsets that end at {self.items.size}, got {self.offsets[-1]}")
        for name, value, kind in (
            ("user_ids", self.user_ids, pl.Series),
            ("item_ids", self.item_ids, pl.Series),
            ("item_table", self.item_table, pl.DataFrame),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"Dataset: expected {name} as a polars {kind.__name__}, got {type(value).__name__}")
        for name, ids, count in (
            ("user_ids", self.user_ids, self.num_users),
            ("item_ids", self.item_ids, None),
        ):
            if count is not None and ids.len() != count:
                raise ValueError(f"Dataset: expected {name} [{count}], got [{ids.len()}]")
            if ids.dtype.is_nested():
                raise ValueError(f"Dataset: expected {name} as numbers, text or times, got {ids.dtype!s:.80}")
            if ids.null_count() or ids.n_unique() != ids.len():
                raise ValueError(f"Dataset: expected {name} that are all there and different, got others")
        if self.items.size and (self.items.min() < 1 or self.items.max() > self.num_items):
            raise ValueError(
                f"Dataset: expected items in 1..{self.num_items}, got {self.items.min()}..{self.items.max()}"
            )
        if "item_id" not in self.item_table.columns or not self.item_table["item_id"].equals(self.item_ids):
            raise ValueError("Dataset: expected an item_table whose column item_id equals item_ids, got another")
        if self.timestamps is not None:
            _check_array("timestamps", self.timestamps, np.int64)
            if self.timestamps.size != self.items.size:
                raise ValueError(f"Dataset: expected timestamps [{self.items.size}], got [{self.timestamps.size}]")
            back = self.timestamps[1:] < self.timestamps[:-1]  # their difference may not fit in 64 bits
            inner = self.offsets[1:-1]
            back[inner[(inner > 0) & (inner < self.items.size)] - 1] = False
            if back.any():
                raise ValueError("Dataset: expected timestamps that never decrease within a user, got others")

    @property
    def num_users(self) -> int:
        """U."""
        return self.offsets.size - 1

    @property
    def num_items(self) -> int:
        """V."""
        return self.item_ids.len()

    @property
    def num_interactions(self) -> int:
        """N."""
        return self.items.size

    @property
    def timestamp_unit(self) -> str:
        """What one unit of the times is: "seconds", "microseconds" or "nanoseconds" where they were dates, else a
        sentence."""
        return str(self.report.get("timestamp_unit", NO_TIMES if self.timestamps is None else AS_THEY_ARE))

    def __repr__(self) -> str:
        times = (
            "without times"
            if self.timestamps is None or not self.items.size
            else f"times {self.timestamps.min()}..{self.timestamps.max()}"
        )
        metadata = ", ".join(self.item_table.columns[1:]) or "none"
        return (
            f"Dataset({self.name!r}: {self.num_users:,} users, {self.num_items:,} items, "
            f"{self.num_interactions:,} interactions, {times}, metadata {metadata})"
        )

    @property
    def notes(self) -> list[str]:
        """The sentences of the report: what was guessed about the data."""
        return [str(value) for name, value in self.report.items() if name.startswith(NOTE)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that results depend on: equal for equal data, however it was stored.

        That is offsets, items, times, raw ids of users and items, titles and categories; neither the name, the report
        nor other metadata.
        """
        check_not_forked("fingerprint")
        digest = hashlib.sha256()

        def add(name: str, values: np.ndarray, dtype: str) -> None:
            """Where the array has that type it is hashed as it lies, a mapped one too."""
            digest.update(f"{name} {values.size}\n".encode())
            digest.update(np.ascontiguousarray(values, dtype).data)

        add("offsets", self.offsets, "<i8")
        add("items", self.items, "<i4")
        if self.timestamps is not None:
            add("timestamps", self.timestamps, "<i8")
        texts = {"user_id": self.user_ids, "item_id": self.item_ids}
        texts |= {name: self.item_table[name] for name in FINGERPRINTED if name in self.item_table.columns}
        for name, column in texts.items():
            text = _text(column)
            add(f"lengths of {name}", text.str.len_bytes().cast(pl.Int64).fill_null(-1).to_numpy(), "<i8")
            add(name, np.frombuffer(text.str.join("").item().encode("utf-8"), dtype=np.uint8), "u1")
        return digest.hexdigest()

    @cached_property
    def catalogue(self) -> Catalogue:
        """The items without the interactions."""
        return Catalogue(self.item_table)

    def item_index(self, raw_ids: Any) -> np.ndarray:
        """Return the item ids of raw ids; see `Catalogue.item_index`."""
        return self.catalogue.item_index(raw_ids)

    def titles(self, items: Sequence[int] | np.ndarray) -> list[str]:
        """Return the title of every item, or its raw id as text; see `Catalogue.titles`."""
        return self.catalogue.titles(items)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the canonical folder (interactions.safetensors, two Parquet tables, metadata.json) and return its path.

        It is written beside its place and renamed, so that it is never there by half.

        Args:
            folder: to make, with its parents.
            overwrite: replace the folder if it exists and is a dataset folder.

        Raises:
            ValueError: the folder exists (and holds something else), or cannot be written.
        """
        check_not_forked("Dataset.save")
        arrays = {"offsets": self.offsets, "items": self.items}
        if self.timestamps is not None:
            arrays["timestamps"] = self.timestamps
        tables = {
            "users": self.user_ids.alias("user_id").to_frame(),
            "items": self.item_table,
        }
        metadata = {
            "name": self.name,
            "users": self.num_users,
            "items": self.num_items,
            "interactions": self.num_interactions,
            "fingerprint": self.fingerprint,
            "report": self.report,
        }
        path = checked_path(folder, "Dataset.save")
        write_folder(path, arrays, tables, metadata, overwrite=overwrite)
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Dataset:
        """Read a folder that `save` wrote; its arrays are mapped from the file, which takes memory as they are used.

        Raises:
            ValueError: missing or unreadable files, another format version, or contents that do not match the
                stored fingerprint.
        """
        check_not_forked("Dataset.load")
        path = checked_path(folder, "Dataset.load")
        arrays, tables, metadata = read_folder(path, ("users", "items"))
        try:
            dataset = cls(
                name=metadata["name"],
                offsets=arrays["offsets"],
                items=arrays["items"],
                timestamps=arrays.get("timestamps"),
                user_ids=tables["users"]["user_id"],
                item_ids=tables["items"]["item_id"],
                item_table=tables["items"],
                report=metadata["report"],
            )
            expected = metadata["fingerprint"]
        except (KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise ValueError(f"Dataset.load: expected a consistent dataset in {str(path)!r}, got {error}") from error
        if dataset.fingerprint != expected:
            raise ValueError(
                f"Dataset.load: expected fingerprint {expected} in {str(path)!r}, got {dataset.fingerprint}"
            )
        return dataset


def load_dataset(
    source: Any,
    *,
    items: Any = None,
    name: str | None = None,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    rating: str | None = None,
    min_rating: float | None = None,
    title: str | None = None,
    categories: str | None = None,
    drop_duplicates: bool = True,
    max_malformed: int = 0,
) -> Dataset:
    """Make a `Dataset` of interactions in any form, by the rules of `solid_ext.data.prepare`, each counted.

    Args:
        source: a canonical folder (`Dataset.save`), a folder with `interactions.tsv.gz` (or .tsv, .csv, .txt,
            .parquet) and perhaps `items.*` beside it, or what `read_interactions` takes: file, frame, arrays.
        items: metadata (path, frame or mapping) whose id column is called as in the interactions.
        name: of the dataset; by default that of the folder or file, else "interactions".
        user: name of the column of users.
        item: name of the column of items.
        timestamp: name of the column of times, see `read_interactions`.
        rating: name of the column of ratings that `min_rating` looks at; by default "rating".
        min_rating: leave out the rows that are rated lower, or not at all.
        title: name of the column of titles in `items`; by default "title".
        categories: name of the column of categories ("a|b|c") in `items`; by default "categories".
        drop_duplicates: drop rows equal to an earlier one in user, item and time.
        max_malformed: how many lines of a text file with another number of fields are skipped (`malformed_lines`
            counts them) before it is refused.

    Raises:
        ValueError: contents that cannot be read, or nothing to read.
        TypeError: a source, an id or a time of a kind that cannot be one.
    """
    check_not_forked("load_dataset")
    if isinstance(max_malformed, bool) or not isinstance(max_malformed, int) or max_malformed < 0:
        raise ValueError(f"load_dataset: expected max_malformed as a whole number of 0 or more, got {max_malformed!r}")
    if isinstance(source, (str, os.PathLike)):
        expect_local(source, "load_dataset")
        path = Path(os.path.expanduser(source))
        if os.path.exists(path / METADATA):
            if items is not None:
                raise ValueError(f"load_dataset: expected no items beside the dataset folder {str(path)!r}, got some")
            given = {"rating": rating, "min_rating": min_rating, "title": title, "categories": categories}
            unused = [f"{key}={value!r}" for key, value in given.items() if value is not None]
            others = {
                "user": (user, "user_id"),
                "item": (item, "item_id"),
                "timestamp": (timestamp, "timestamp"),
                "drop_duplicates": (drop_duplicates, True),
                "max_malformed": (max_malformed, 0),
            }
            unused += [f"{key}={value!r}" for key, (value, usual) in others.items() if value != usual]
            if unused:
                raise ValueError(
                    f"load_dataset: expected no {', '.join(unused)} beside the dataset folder {str(path)!r}, which "
                    "is prepared already (prepare it again from its source)"
                )
            loaded = Dataset.load(path)
            return loaded if name is None else replace(loaded, name=name)
    found = read_source(
        source,
        items=items,
        user=user,
        item=item,
        timestamp=timestamp,
        rating=rating,
        min_rating=min_rating,
        title=title,
        categories=categories,
        max_malformed=max_malformed,
    )
    indexed = index_interactions(found.rows, drop_duplicates=drop_duplicates)
    report = found.notes | indexed.report
    table = indexed.item_ids.to_frame()
    if found.described is not None:
        table, counts = align_items(found.described, indexed.item_ids)
        report = report | counts | found.notes_of_items
    return of_indexed(indexed, name or found.name or "interactions", table, report)


def of_indexed(indexed: Indexed, name: str, table: pl.DataFrame, report: dict[str, int | str]) -> Dataset:
    """The dataset of numbered interactions; `table` describes their items in the order of their numbers."""
    return Dataset(
        name=name,
        offsets=indexed.offsets,
        items=indexed.items,
        timestamps=indexed.timestamps,
        user_ids=indexed.user_ids,
        item_ids=indexed.item_ids,
        item_table=table,
        report=report,
    )


class Source(NamedTuple):
    """What a source of interactions holds, read and not numbered yet.

    Attributes:
        rows: as `read_interactions` returns them.
        notes: what is to be said of them, for a report.
        described: the table of items as `read_items` returns it; None where there is none.
        notes_of_items: what is to be said of that.
        name: of the folder or file; None for neither.
    """

    rows: pl.DataFrame
    notes: dict[str, int | str]
    described: pl.DataFrame | None
    notes_of_items: dict[str, int | str]
    name: str | None


def read_source(
    source: Any,
    *,
    items: Any = None,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    rating: str | None = None,
    min_rating: float | None = None,
    title: str | None = None,
    categories: str | None = None,
    max_malformed: int = 0,
) -> Source:
    """Read what `load_dataset` makes a dataset of, with its arguments; no prepared folder."""
    name = None
    if isinstance(source, (str, os.PathLike)):
        expect_local(source, "load_dataset")
        path = Path(os.path.expanduser(source))
        if not os.path.exists(path):  # of a name too long for the system too
            raise ValueError(
                f"load_dataset: expected an existing file or folder, got {str(path)!r}{nearest_file(path)}"
            )
        if path.is_dir():
            source = _find(path, "interactions")
            if source is None:
                found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
                raise ValueError(
                    f"load_dataset: expected {METADATA} or interactions.tsv.gz in {str(path)!r}, got {found}; "
                    "if one of the files is meant, name it"
                )
            items = _find(path, "items") if items is None else items
        name = _stem(path)
    if items is None and (title is not None or categories is not None):
        raise ValueError(
            "load_dataset: expected items beside title= and categories=, which name columns of it, got none"
        )
    reading = Reading(max_malformed)
    rows = read_interactions(
        source, user=user, item=item, timestamp=timestamp, rating=rating, min_rating=min_rating, reading=reading
    )
    notes = (reading.report("malformed_lines") if reading.count else {}) | reading.notes
    described: pl.DataFrame | None = None
    notes_of_items: dict[str, int | str] = {}
    if items is not None:
        named = {
            ours: None if theirs is None else column_name(ours, theirs)
            for ours, theirs in (("title", title), ("categories", categories))
        }
        described, notes_of_items = read_items(items, column_name("item", item), named)
    return Source(rows, notes, described, notes_of_items, name)


def _check_array(name: str, array: Any, dtype: type[np.generic]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"Dataset: expected {name} as a one-dimensional {np.dtype(dtype)} array, got {got}")


def _stem(path: Path) -> str:
    name = path.resolve().name
    for suffix in TABLE_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _find(folder: Path, stem: str) -> Path | None:
    """The folder's one file of that stem, or None.

    Raises:
        ValueError: several.
    """
    found = [folder / (stem + suffix) for suffix in TABLE_SUFFIXES if (folder / (stem + suffix)).is_file()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(
            f"load_dataset: expected one file {stem}.* in {str(folder)!r}, got {names} (name the one meant)"
        )
    return found[0] if found else None


def read_items(source: Any, item: str, named: dict[str, str | None]) -> tuple[pl.DataFrame, dict[str, int | str]]:
    """The table of items with its id column, titles and categories under our names, and what is to be said of it."""
    reading = Reading()
    try:
        table = read_table(
            source, name="items", required=(item,), reading=reading, headerless=(item, "title", "categories")
        )
    except ValueError:
        # The interactions may call their column otherwise than our own tables of items do.
        if item == "item_id" or item in reading.columns or "item_id" not in reading.columns:
            raise
        item = "item_id"
        table = read_table(source, name="items", required=(item,), reading=reading)
    if item != "item_id" and "item_id" in table.columns:
        raise ValueError(f"items: expected one id column, got both {item} and item_id")
    ids = normalise_ids(f"items: column {item}", table[item], reading).alias("item_id")
    table = table.drop(item).insert_column(0, ids)
    notes = {f"{name}_of_items": note for name, note in reading.notes.items()}
    # Copied before anything is dropped: one column may be both.
    copies: dict[str, pl.Series] = {}
    for ours, theirs in named.items():
        if theirs is not None:
            found = "item_id" if theirs == item else theirs
            if found not in table.columns:
                got = ", ".join(table.columns)
                raise ValueError(f"items: expected a column {theirs} of {ours}, got {got}")
            copies[ours] = table[found].alias(ours)
        elif ours not in table.columns and (near := suggested(ours, table.columns)):
            notes[f"note_{ours}"] = (
                f"The items have no column {ours!r}, and {near!r} is not read as such: {ours}={near!r} "
                f"(--{ours} {near}) reads it."
            )
    copied = {theirs for theirs in named.values() if theirs is not None and theirs not in (item, "item_id", *named)}
    table = table.drop(copied).with_columns(copies.values())
    for ours in named:
        if ours in table.columns:
            text, missing = description_text(f"items: column {ours}", table[ours])
            table = table.with_columns(text.alias(ours))
            if missing:
                notes[f"missing_{ours}"] = missing
                notes[f"note_missing_{ours}"] = (
                    f"{missing:,} cells of {ours!r} hold a word such as 'nan' or 'N/A', which counts as none."
                )
    if "categories" in table.columns and table["categories"].dtype == pl.String:
        notes |= _category_notes(table["categories"].drop_nulls())
    return table, notes


def _category_notes(categories: pl.Series) -> dict[str, int | str]:
    """Say where a column of categories seems to be separated by something else than our mark."""
    if categories.str.contains(CATEGORY_SEPARATOR, literal=True).any():
        return {}
    for mark in (";", ","):
        share = float(categories.str.contains(mark, literal=True).mean() or 0.0)  # type: ignore[arg-type]
        if share > 0.5:
            return {
                "note_separator": f"Categories are separated by {CATEGORY_SEPARATOR!r}, which never occurs; {mark!r} "
                f"occurs in {share:.0%} of them. Each text counts as one category."
            }
    return {}


def _text(column: pl.Series) -> pl.Series:
    """A column as text, null where it is null; lists and structures as JSON."""
    if column.dtype.is_nested():
        cells = [None if value is None else json.dumps(value, default=str) for value in column.to_list()]
        return pl.Series(cells, dtype=pl.String)
    return column.cast(pl.String)
