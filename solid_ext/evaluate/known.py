"""Rows of a dataset that has items which a model lacks, as it would meet them in use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from solid_ext.data import Catalogue, Dataset, Rows, in_order_of
from solid_ext.evaluate.protocols import full_ranks
from solid_ext.evaluate.scorer import Scorer


def ranks_of_known(scorer: Scorer, catalogue: Catalogue, dataset: Dataset, rows: Rows) -> NDArray[np.int64]:
    """The rank of each row's target in the scorer's own catalogue, by full ranking, ties against it.

    A target that the catalogue has not is missed, with a rank behind all items of both, and a history is what the
    catalogue has of it; of an empty one the scorer knows what it knows of newcomers.

    Args:
        scorer: of the catalogue's items, by its numbers.
        dataset: in any order of items.

    Returns:
        `[R] int64`, in the order of the rows.
    """
    own = in_order_of(catalogue, dataset)
    known = own.items <= catalogue.num_items
    users = np.repeat(np.arange(own.num_users), np.diff(own.offsets))
    seen = replace(
        own,
        offsets=np.concatenate(([0], np.cumsum(np.bincount(users[known], minlength=own.num_users)))),
        items=own.items[known],
        timestamps=None if own.timestamps is None else own.timestamps[known],
        item_ids=catalogue.table["item_id"],
        item_table=catalogue.table,
    )
    ranks = np.full(len(rows), own.num_items + 1, dtype=np.int64)
    asked = known[rows.positions]
    place = np.cumsum(known) - 1  # of a known interaction among the known ones
    if asked.any():
        ranks[asked] = full_ranks(scorer, seen, Rows(rows.users[asked], place[rows.positions[asked]]))
    return ranks
