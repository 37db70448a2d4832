"""The lists that a scorer would recommend at the rows of a split, and what they are like."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from solid_ext.data import Dataset, Rows, Split
from solid_ext.evaluate import Scorer, beyond_accuracy
from solid_ext.serve.item_table import ItemTable
from solid_ext.serve.top_items import top_items

K = 10
ROWS = 16384  # whose histories are held at once


def recommended_lists(
    scorer: Scorer, dataset: Dataset, rows: Rows, k: int = K, table: ItemTable | None = None
) -> NDArray[np.int64]:
    """The k best items for the history before each row, [R, k], without what is in it; 0 where there are no more."""
    found = np.zeros((len(rows), k), np.int64)
    table = table or ItemTable()
    for first in range(0, len(rows), ROWS):
        some = rows.take(slice(first, first + ROWS))
        starts = dataset.offsets[some.users]
        histories = [
            torch.from_numpy(dataset.items[start:end].astype(np.int64))
            for start, end in zip(starts.tolist(), some.positions.tolist(), strict=True)
        ]
        scores, items = top_items(scorer, dataset.num_items, histories, k, True, table=table)
        found[first : first + ROWS] = torch.where(scores > -torch.inf, items, 0).numpy()
    return found


def evaluate_beyond(
    scorer: Scorer, dataset: Dataset, split: Split, *, table: ItemTable | None = None
) -> dict[str, float]:
    """`beyond_accuracy` of the ten best items for each test row, by the same histories as accuracy is measured on.

    Every row counts alike, so that a user with several test rows has several lists.

    Source: docs/evaluation.md#beyond-accuracy.
    """
    lists = recommended_lists(scorer, dataset, split.test, table=table)
    return beyond_accuracy(lists, dataset, split.train_end, name="evaluate_beyond")
