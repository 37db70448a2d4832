"""Recommendations: the best items of the catalogue for a history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from solid_ext.data import Catalogue
from solid_ext.evaluate import Scorer
from solid_ext.serve.histories import (
    checked_count,
    checked_flag,
    for_all_or_each,
    known_histories,
    known_items,
    warn_of_newcomers,
)
from solid_ext.serve.item_table import ItemTable
from solid_ext.serve.top_items import Rules, top_items


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
    exclude: Sequence[Any] | None = None,
    include: Sequence[Any] | None = None,
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
        exclude: raw ids that are never recommended: a list for all histories, or a list of lists, one for each.
        include: the only raw ids that are recommended, in the same form; where they are fewer than k, so is the answer.
            What is excluded or in the history stays out, and an empty list leaves nothing.
        unknown: "error" refuses an id that the catalogue lacks, in histories, `exclude` and `include`; "ignore" reads
            all of them without it.
        table: that keeps what the scores read of the items from one call to the next; None computes it for this call.

    Returns:
        For each history up to k recommendations, best first.

    Raises:
        ValueError: k < 1, an unknown item, lists of items for another number of histories, or scores that are not
            finite.
        TypeError: a k that is no integer, histories that are no list of lists, ids that are neither numbers nor text.
    """
    k = min(checked_count("recommend", k), catalogue.num_items)
    exclude_history = checked_flag("recommend", "exclude_history", exclude_history)
    known = known_histories("recommend", catalogue, histories, unknown)
    rules = checked_rules("recommend", catalogue, len(known), exclude, include, unknown)
    warn_of_newcomers("recommend", scorer, sum(not len(items) for items in known), len(known), stacklevel=3)
    scores, items = top_items(scorer, catalogue.num_items, known, k, exclude_history, table=table, rules=rules)
    return entries(catalogue, scores, items)


def checked_rules(name: str, catalogue: Catalogue, histories: int, exclude: Any, include: Any, unknown: str) -> Rules:
    """`exclude` and `include` of a call, in raw ids, as items; see `recommend`.

    Raises: as `recommend`, in the words of the function `name`.
    """
    rules: list[Tensor | list[Tensor] | None] = []
    for what, given in (("exclude", exclude), ("include", include)):
        if given is None:
            rules.append(None)
            continue
        lists, shared = for_all_or_each(name, what, given, histories)
        found = known_items(name, what, catalogue, lists, unknown)
        rules.append(found[0] if shared else found)
    return Rules(*rules)


def entries(catalogue: Catalogue, scores: Tensor, items: Tensor) -> list[list[Recommendation]]:
    """What `top_items` found, scores and items [B, k], with raw ids and titles."""
    kept = scores > -np.inf
    flat = items[kept].numpy()
    found = [
        Recommendation(*entry)
        for entry in zip(catalogue.raw_items(flat), catalogue.titles(flat), scores[kept].tolist(), strict=True)
    ]
    ends = np.cumsum(kept.sum(1).numpy())
    return [found[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if len(ends) else []
