"""Recommendations for the users of a dataset, a block of users at a time: a frame, or a file larger than memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from polars.io.plugins import register_io_source
from torch import Tensor

from solid_ext.data import Catalogue, Dataset, load_dataset
from solid_ext.data.catalogue import listed
from solid_ext.data.tables import shown
from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import check_scorer
from solid_ext.files import check_place, checked_path, written
from solid_ext.forked import check_not_forked
from solid_ext.serve.histories import check_unknown, checked_count, checked_flag, warn_of_newcomers
from solid_ext.serve.item_table import ItemTable
from solid_ext.serve.recommend import checked_rules
from solid_ext.serve.top_items import Rules, top_items

USERS = 4096  # whose recommendations are held at once
ENDINGS = (".parquet", ".csv")
NAME = "recommend_users"


@dataclass(frozen=True, eq=False)
class UserQuery:
    """What is asked of a model for users of a dataset, all of it checked; iterating computes a frame a block of users.

    Columns: `user_id` and `item_id` as the dataset and the model have them, `rank` from 1, `title`, `score`; the users
    in the order asked, the best item first. Memory: that of `top_items` for 4,096 users, besides what is there already.

    Attributes:
        users: [N] int64, rows of the dataset's users.
        numbers: [V' + 1] int64, the model's item of each of the dataset's, 0 for none.
    """

    scorer: Scorer
    catalogue: Catalogue
    dataset: Dataset
    users: np.ndarray
    numbers: np.ndarray
    k: int
    exclude_history: bool
    rules: Rules
    table: ItemTable | None

    @property
    def schema(self) -> pl.Schema:
        """The columns of every frame."""
        return pl.Schema(
            {
                "user_id": self.dataset.user_ids.dtype,
                "rank": pl.Int64(),
                "item_id": self.catalogue.table["item_id"].dtype,
                "title": pl.String(),
                "score": pl.Float64(),
            }
        )

    def __iter__(self) -> Iterator[pl.DataFrame]:
        titles = pl.Series(self.catalogue.titles(np.arange(1, self.catalogue.num_items + 1)), dtype=pl.String)
        for first in range(0, len(self.users), USERS):
            block = slice(first, first + USERS)
            yield self._frame(self.users[block], block, titles)

    def _frame(self, users: np.ndarray, block: slice, titles: pl.Series) -> pl.DataFrame:
        rules = Rules(*(rule[block] if isinstance(rule, list) else rule for rule in self.rules))
        scores, items = top_items(
            self.scorer,
            self.catalogue.num_items,
            [self._history(user) for user in users.tolist()],
            self.k,
            self.exclude_history,
            table=self.table,
            rules=rules,
        )
        kept = (scores > -torch.inf).numpy()
        row, place = kept.nonzero()
        item = pl.Series(items.numpy()[kept] - 1)
        columns = {
            "user_id": self.dataset.user_ids.gather(users[row]),
            "rank": place + 1,
            "item_id": self.catalogue.table["item_id"].gather(item),
            "title": titles.gather(item),
            "score": scores.double().numpy()[kept],
        }
        return pl.DataFrame(columns, schema=self.schema)

    def _history(self, user: int) -> Tensor:
        """The user's items that the model knows, in the dataset's order."""
        own = self.numbers[self.dataset.items[self.dataset.offsets[user] : self.dataset.offsets[user + 1]]]
        return torch.from_numpy(own[own > 0])


def user_query(
    scorer: Scorer,
    catalogue: Catalogue,
    data: Any,
    users: Sequence[Any] | None,
    k: int,
    *,
    exclude_history: bool = True,
    exclude: Sequence[Any] | None = None,
    include: Sequence[Any] | None = None,
    unknown: str = "error",
    table: ItemTable | None = None,
    stacklevel: int = 2,
) -> UserQuery:
    """Check what is asked of a model for users of a dataset, by their histories in it.

    A user's history is all of the user's interactions in the data's own order, of which the scorer reads the last
    `length`; the answer is that of `recommend` for it. Nothing of the data is kept but in the query.

    Args:
        data: a `Dataset`, or whatever `load_dataset` takes; not necessarily that which the model was fitted on.
        users: raw ids of users, in any order; None for all.
        exclude: as of `recommend`; a list of lists has one for each user.
        include: the same.
        unknown: "error" refuses items in a history that the model does not know; "ignore" reads it without them.
        table: as of `recommend`.
        stacklevel: of the warning about newcomers.

    Raises:
        ValueError: a user that the dataset lacks, with unknown "error" an item in a history that the model lacks, and
            as `recommend` and `load_dataset`.
        TypeError: users that are no list of ids, and as `recommend` and `load_dataset`.
    """
    check_not_forked(NAME)
    check_scorer(NAME, scorer)
    k = min(checked_count(NAME, k), catalogue.num_items)
    exclude_history = checked_flag(NAME, "exclude_history", exclude_history)
    check_unknown(NAME, unknown)
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
    rows = _rows_of(dataset, users)
    rules = checked_rules(NAME, catalogue, len(rows), exclude, include, unknown)
    numbers, counts = _known(dataset, catalogue)
    if unknown == "error":
        _check_known(NAME, dataset, numbers, counts, rows)
    counts = counts[rows]
    warn_of_newcomers(NAME, scorer, int((counts == 0).sum()), len(rows), stacklevel=stacklevel)
    return UserQuery(scorer, catalogue, dataset, rows, numbers, k, exclude_history, rules, table)


def _known(dataset: Dataset, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    """The model's item of each of the dataset's [V' + 1], 0 for none, and how many events of each user [N] are of one
    that the model knows."""
    numbers = np.concatenate(([0], catalogue.item_index(dataset.item_ids)))
    known = np.concatenate(([0], np.cumsum(numbers[dataset.items] > 0)))
    return numbers, known[dataset.offsets[1:]] - known[dataset.offsets[:-1]]


def _check_known(name: str, dataset: Dataset, numbers: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> None:
    """Refuse users with an item in their history that the model lacks.

    Raises:
        ValueError: the first such item and its user.
    """
    lacking = counts[rows] < np.diff(dataset.offsets)[rows]
    if lacking.any():
        user = int(rows[lacking.argmax()])
        own = dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]]
        item = dataset.item_ids[int(own[numbers[own] == 0][0]) - 1]
        raise ValueError(
            f"{name}: expected histories of items that the model knows, got {shown(item)} in that of user "
            f"{shown(dataset.user_ids[user])} (unknown='ignore' reads histories without such items)"
        )


def users_with_vectors(dataset: Dataset, catalogue: Catalogue, unknown: str) -> np.ndarray:
    """The rows [N'] of a dataset's users who have a vector: with unknown "ignore" those with an item that is known.

    Raises:
        ValueError: with unknown "error" an item in a history that the model lacks.
    """
    (numbers, counts), rows = _known(dataset, catalogue), np.arange(dataset.num_users)
    if unknown == "ignore":
        return rows[counts > 0]
    _check_known("user_vectors", dataset, numbers, counts, rows)
    return rows


def _rows_of(dataset: Dataset, users: Any) -> np.ndarray:
    """The dataset's rows of raw user ids, found by the rules by which items are; all of them for None."""
    if users is None:
        return np.arange(dataset.num_users)
    asked = listed(users)
    if asked is None or any(listed(user) is not None for user in asked):
        raise TypeError(f"{NAME}: expected users None for all, or a list of user ids, got {shown(users)}")
    by_id = Catalogue(dataset.user_ids.alias("item_id").to_frame())
    try:
        rows = by_id.item_index(asked) - 1
    except TypeError as error:
        raise TypeError(f"{NAME}: expected user ids as numbers, text or times, got {shown(users)}") from error
    if (rows < 0).any():
        raise ValueError(
            f"{NAME}: expected users of the data, got {shown(asked[int((rows < 0).argmax())])}, which is not among the "
            f"{dataset.num_users:,} users of {dataset.name!r}"
        )
    return rows


def user_histories(dataset: Dataset, rows: np.ndarray | None = None) -> list[list[Any]]:
    """The histories of these rows of a dataset's users, or of all, in raw ids, oldest first."""
    offsets, asked = dataset.offsets, range(dataset.num_users) if rows is None else rows.tolist()
    return [dataset.item_ids.gather(dataset.items[offsets[r] : offsets[r + 1]] - 1).to_list() for r in asked]


def write_vectors(path: Path, name: str, ids: pl.Series, blocks: Iterable[np.ndarray]) -> int:
    """Write ids [N], in a column of that name, and their vectors, in a column `vector`, as Parquet.

    Args:
        blocks: the vectors, [.., d] float32 each, one after the other as they are computed; one at least.

    Returns:
        d.
    """
    blocks = iter(blocks)
    first = next(blocks)
    schema = pl.Schema({name: ids.dtype, "vector": pl.Array(pl.Float32, first.shape[1])})

    def source(*_: Any) -> Iterator[pl.DataFrame]:  # as `write_users`
        done = 0
        for vectors in chain([first], blocks):
            yield pl.DataFrame({name: ids[done : done + len(vectors)], "vector": vectors}, schema=schema)
            done += len(vectors)

    with written(path) as partial:
        register_io_source(source, schema=schema).sink_parquet(partial)
    return first.shape[1]


def checked_out(path: Any, *, overwrite: bool = False, endings: Sequence[str] = ENDINGS) -> Path:
    """Where recommendations or vectors may be written.

    Raises:
        ValueError: another ending, a folder, a file or link that is there already, a place that cannot be written.
    """
    path = checked_path(path, "out")
    if path.suffix.lower() not in endings:
        raise ValueError(f"out: expected a file that ends in {' or '.join(endings)}, got {path}")
    if path.is_dir() or (os.path.lexists(path) and not overwrite):
        kind = "a folder" if path.is_dir() else "which exists (overwrite=True replaces it)"
        raise ValueError(f"out: expected a file that does not exist yet, got {path}, {kind}")
    check_place(path, "out", "file")
    return path


def write_users(query: UserQuery, path: Path, *, told: Callable[[int], None] | None = None) -> None:
    """Write the frames of a query, one after the other, as one Parquet or CSV file, whole or not at all.

    Args:
        path: of `checked_out`.
        told: called with the number of users after each block of them.

    Raises:
        ValueError: scores that are not finite; a file that cannot be written.
    """

    def source(*_: Any) -> Iterator[pl.DataFrame]:  # the query is written as it is: polars asks for no part of it
        done = 0
        for frame in query:
            yield frame
            block = min(USERS, len(query.users) - done)
            done += block
            if told is not None:
                told(block)

    frames = register_io_source(source, schema=query.schema)
    with written(path) as partial:
        if path.suffix.lower() == ".csv":
            frames.sink_csv(partial)
        else:
            frames.sink_parquet(partial)
