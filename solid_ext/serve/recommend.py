"""Recommendations: the best items of the catalogue for a history."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solid_ext.data import Catalogue
from solid_ext.data.catalogue import listed
from solid_ext.data.tables import shown
from solid_ext.evaluate import Scorer
from solid_ext.scorers import WithNewcomers
from solid_ext.serve.item_table import ItemTable
from solid_ext.serve.top_items import top_items


class Recommendation(NamedTuple):
    """One recommended item."""

    item: Any  # the raw id
    title: str
    score: float  # logit


def recommend(
    scorer: Scorer,
    catalogue: Catalogue,
    histories: Sequence[Sequence[Any]],
    k: int,
    *,
    exclude_history: bool = True,
    unknown: str = "error",
    table: ItemTable | None = None,
) -> list[list[Recommendation]]:
    """Recommend k items for each history of raw item ids.

    Any number of threads may ask at once, and so may a forked process: nothing of the scorer is written. Memory: see
    `top_items`.

    Args:
        histories: a list of lists of raw ids, oldest first; arrays and series do as well. An empty history, and one of
            unknown ids alone with "ignore", gets what the scorer gives a newcomer (`SOLID`: the most popular items of
            the training part), and a warning says how many did.
        exclude_history: never recommend what is in the history.
        unknown: "error" refuses an id that the catalogue lacks; "ignore" reads the history without it.
        table: that keeps what the scores read of the items from one call to the next; None computes it for this call.

    Returns:
        For each history up to k recommendations, best first.

    Raises:
        ValueError: k < 1, an unknown item, or scores that are not finite.
        TypeError: a k that is no integer, histories that are no list of lists, ids that are neither numbers nor text.
    """
    k = checked_count(k)
    known = known_items("recommend", catalogue, checked_histories(histories), unknown)
    new = sum(not len(history) for history in known)
    if new:
        popular = ", the most popular items of the training part" if isinstance(scorer, WithNewcomers) else ""
        warnings.warn(
            f"recommend: histories without an item that the model knows: {new} of {len(known)}; "
            f"they get what a newcomer gets{popular}",
            stacklevel=3,
        )
    k = min(k, catalogue.num_items)
    scores, items = top_items(scorer, catalogue.num_items, known, k, exclude_history, table=table)
    return named(catalogue, scores, items)


def checked_count(k: Any) -> int:
    """How many items are asked for.

    Raises:
        ValueError: less than 1.
        TypeError: no integer.
    """
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"recommend: expected k as an integer, got {k!r}")
    k = operator.index(k)
    if k < 1:
        raise ValueError(f"recommend: expected k of at least 1, got {k}")
    return k


def named(catalogue: Catalogue, scores: Tensor, items: Tensor) -> list[list[Recommendation]]:
    """What `top_items` found, scores and items [B, k], with raw ids and titles; without places that no item took."""
    kept = scores > -torch.inf
    flat = items[kept].numpy()
    entries = [
        Recommendation(*entry)
        for entry in zip(catalogue.raw_items(flat), catalogue.titles(flat), scores[kept].tolist(), strict=True)
    ]
    ends = np.cumsum(kept.sum(1).numpy())
    return [entries[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if len(ends) else []


def checked_histories(histories: Any) -> list[list[Any]]:
    """The histories as a list of lists.

    Raises:
        TypeError: anything else than a list, array or series of such.
    """
    rows = listed(histories)
    if rows is None:
        raise TypeError(f"recommend: expected a list of histories, each a list of item ids, got {shown(histories)}")
    found = []
    for number, row in enumerate(rows):
        history = listed(row)
        if history is None:
            raise TypeError(
                f"recommend: expected each history to be a list of item ids, got {shown(row)} as history {number} "
                "(one history is a list in a list: [[a, b]])"
            )
        found.append(history)
    return found


def known_items(what: str, catalogue: Catalogue, histories: list[list[Any]], unknown: str) -> list[Tensor]:
    """The items of each history that the catalogue has, `[n] int64` each.

    Args:
        what: begins the errors' sentences.
        unknown: "error" refuses an id that the catalogue lacks, "ignore" leaves it out.

    Raises:
        ValueError: such an id, or another value of `unknown`.
        TypeError: values that cannot be ids.
    """
    if unknown not in ("error", "ignore"):
        raise ValueError(f"{what}: expected unknown 'error' or 'ignore', got {unknown!r}")
    flat = [item for history in histories for item in history]
    index = catalogue.item_index(flat)
    if unknown == "error" and (index == 0).any():
        place = int((index == 0).argmax())
        raise ValueError(
            f"{what}: expected items of the catalogue, got {shown(flat[place])}, which is not in it "
            "(unknown='ignore' reads histories without such items)"
        )
    ends = np.cumsum([len(history) for history in histories], dtype=np.int64)
    return [torch.from_numpy(part[part > 0]) for part in np.split(index, ends[:-1])] if histories else []
