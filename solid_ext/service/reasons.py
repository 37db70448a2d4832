"""Why an item was recommended, in a sentence and in numbers, and the history as the model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from solid_ext.serve.recommend import Recommendation
from solid_ext.service.served import Served, plain

SIMILAR = 2  # items of the history that a sentence names


def recommended(served: Served, history: Sequence[int], entries: Sequence[Recommendation]) -> list[dict[str, Any]]:
    """The recommended items with a reason each.

    Args:
        history: items 1 .. V, oldest first.
    """
    numbers = served.catalogue.item_index([entry.item for entry in entries])
    return [
        {"item": plain(entry.item), "title": entry.title, "score": entry.score, "reason": reason}
        for entry, reason in zip(entries, _reasons(served, history, numbers, entries), strict=True)
    ]


def seen(served: Served, history: Sequence[int]) -> list[dict[str, Any]]:
    """The items of a history, the semantic of each, and whether the model reads it."""
    first = len(history) - served.network.length
    return [
        {**item, "semantic": served.semantic(served.semantic_of(number)), "read": place >= first}
        for place, (number, item) in enumerate(zip(history, served.items(list(history)), strict=True))
    ]


def _reasons(
    served: Served, history: Sequence[int], numbers: np.ndarray, entries: Sequence[Recommendation]
) -> list[dict[str, Any]]:
    window = list(dict.fromkeys(reversed(history[-served.network.length :])))  # the latest first
    neighbours = served.solid.neighbours
    found = []
    for number, entry in zip(numbers.tolist(), entries, strict=True):
        parts = {"logit": entry.score}
        similar: list[int] = []
        if neighbours is not None and neighbours.weight and window:
            near = neighbours.knn.similarity[window, :][:, [number]].toarray().ravel()
            near = near * neighbours.decay ** np.arange(len(window))
            similar = [window[place] for place in np.argsort(-near, kind="stable")[:SIMILAR] if near[place] > 0]
        semantic = served.semantic_of(number)
        found.append(
            {
                "text": _sentence(served, semantic, similar, window),
                "parts": parts,
                "similar": served.items(similar),
                "semantic": semantic,
            }
        )
    return found


def _sentence(served: Served, semantic: int, similar: Sequence[int], window: Sequence[int]) -> str:
    if not window:
        return "Popular with everybody; the history is empty."
    same = [number for number in window if served.semantic_of(number) == semantic]
    if similar:
        return f"Chosen together with {' and '.join(served.catalogue.titles(list(similar)))}."
    if same:
        return f"Of the kind of {served.catalogue.titles(same[:1])[0]}."
    return "The model expects it after this history."
