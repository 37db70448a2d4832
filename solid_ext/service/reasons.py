"""Why an item was recommended, in a sentence and in numbers, and the history as the model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from solid_ext.serve import Explanation, Recommendation
from solid_ext.service.served import Served, plain

NAMED = 2  # items of the history that a sentence names


def recommended(served: Served, history: Sequence[int], found: Sequence[Recommendation]) -> list[dict[str, Any]]:
    """The recommended items with a reason each: what `SOLID.explain_items` says, as the page shows it.

    Args:
        history: items 1 .. V, oldest first.
    """
    asked = [entry.item for entry in found]
    numbers = served.catalogue.item_index(asked).tolist()
    explained = served.solid.explain_items(served.catalogue.raw_items(list(history)), asked)
    return [
        {
            "item": plain(entry.item),
            "title": entry.title,
            "score": entry.score,
            "reason": {
                **_reason(own),
                "semantic": served.semantic_of(number),
            },
        }
        for number, entry, own in zip(numbers, found, explained, strict=True)
    ]


def seen(served: Served, history: Sequence[int]) -> list[dict[str, Any]]:
    """The items of a history, the semantic of each, and whether the model reads it."""
    first = len(history) - served.network.length
    return [
        {**item, "semantic": served.semantic(served.semantic_of(number)), "read": place >= first}
        for place, (number, item) in enumerate(zip(history, served.items(list(history)), strict=True))
    ]


def _reason(explained: Explanation) -> dict[str, Any]:
    """A sentence, the parts that were not nothing, and the items of the history that speak for it most."""
    near = sorted((part for part in explained.history if part.neighbours > 0), key=lambda part: -part.neighbours)
    moving = sorted(
        (part for part in explained.history if (part.effect or 0) > 0), key=lambda part: -(part.effect or 0)
    )
    named = (near or moving)[:NAMED]
    titles = " and ".join(part.title for part in named)
    if not explained.history:
        text = "Popular with everybody; the history is empty."
    elif near:
        text = f"Goes together with {titles}."
    elif moving:
        text = f"Comes after {titles}."
    else:
        text = "The model expects it, whatever the history."
    return {
        "text": text,
        "parts": {name: value for name, value in explained.parts.items() if value},
        "similar": [{"item": plain(part.item), "title": part.title} for part in named],
    }
