"""Scores of given items, as evaluation asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from solid_ext.data import Catalogue
from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import check_scorer, check_scores, inference, scorer_device
from solid_ext.serve.histories import flattened, for_all_or_each, known_histories, known_items, warn_of_newcomers
from solid_ext.serve.top_items import ROWS, SCORES


def score(
    scorer: Scorer,
    catalogue: Catalogue,
    histories: Sequence[Sequence[Any]],
    items: Sequence[Any],
    *,
    unknown: str = "error",
) -> np.ndarray:
    """The scores of items for each history: `scorer.score(scorer.encode(history), items)`, in raw ids.

    Memory is that of the result and of a block of 2^20 scores with what they are made of.

    Args:
        histories: B lists of raw ids, as `recommend` takes them.
        items: raw ids of the catalogue: T for all histories, or a list of T for each of them.
        unknown: of an item in a history: "error" refuses it, "ignore" reads the history without it.

    Returns:
        [B, T] in the scorer's dtype, logits where the scorer's scores are.

    Raises:
        ValueError: an unknown item, lists of items of several lengths or for another number of histories, scores that
            are not finite.
        TypeError: histories or items that are no such lists, ids that are neither numbers nor text nor times.
    """
    check_scorer("score", scorer)
    known = known_histories("score", catalogue, histories, unknown)
    lists, shared = for_all_or_each("score", "items", items, len(known))
    lengths = sorted({len(own) for own in lists})
    if len(lengths) > 1:
        raise ValueError(
            f"score: expected as many items for each history, got {lengths[0]} for one and {lengths[-1]} for another"
        )
    candidates = torch.stack(known_items("score", "items", catalogue, lists, "refuse"))
    warn_of_newcomers("score", scorer, sum(not len(own) for own in known), len(known), stacklevel=3)
    size, device = candidates.shape[1], scorer_device(scorer)
    rows = max(min(SCORES // max(size, 1), ROWS), 1)
    parts = []
    with inference(scorer) as asked:
        for first in range(0, len(known) if size else 0, rows):
            _, _, sequences = flattened(known[first : first + rows], scorer.length)
            offered = candidates[0] if shared else candidates[first : first + rows]
            found = asked.score(asked.encode(sequences.to(device)), offered.to(device))
            parts.append(check_scores("score", found, offered, len(sequences)).cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((len(known), size), np.float32)
