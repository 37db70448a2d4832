"""Recommendations: the best items of the catalogue for a history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solid_ext.data import Catalogue
from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import inference, scorer_device


class Recommendation(NamedTuple):
    """One recommended item."""

    item: Any  # the raw id
    title: str
    score: float  # logit


def top_items(
    scorer: Scorer, num_items: int, histories: list[Tensor], k: int, exclude: bool, item_block: int = 65536
) -> tuple[Tensor, Tensor]:
    """The k best-scored items of 1 .. V for each history, in blocks: never a `B x V` array.

    Args:
        histories: item ids of each user, int64, oldest first, any length; only the last `scorer.length` are read.
        exclude: leave out what is in the history.
        item_block: items scored at once; memory is B x this.

    Returns:
        scores [B, k] (descending; -inf where the catalogue ran out), items [B, k] int64.
    """
    sequences = torch.zeros(len(histories), scorer.length, dtype=torch.int64)
    for row, history in enumerate(histories):
        recent = history[-scorer.length :]
        sequences[row, : len(recent)] = recent
    sizes = torch.tensor([len(history) for history in histories], dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(histories)), sizes)
    owned = torch.cat(histories) if histories else torch.zeros(0, dtype=torch.int64)
    device = scorer_device(scorer)
    best = torch.full((len(histories), k), -torch.inf)
    items = torch.zeros(len(histories), k, dtype=torch.int64)
    with inference(scorer):
        state = scorer.encode(sequences.to(device))
        for first in range(1, num_items + 1, item_block):
            block = torch.arange(first, min(first + item_block, num_items + 1))
            scores = scorer.score(state, block.to(device)).float().cpu()
            if exclude:
                inside = (owned >= first) & (owned < first + len(block))
                scores[owner[inside], owned[inside] - first] = -torch.inf
            merged = torch.cat([best, scores], dim=1)
            best, column = merged.topk(k, dim=1)
            items = torch.cat([items, block.expand(len(histories), -1)], dim=1).gather(1, column)
    return best, items


def recommend(
    scorer: Scorer,
    catalogue: Catalogue,
    histories: Sequence[Sequence[Any]],
    k: int,
    *,
    exclude_history: bool = True,
    unknown: str = "error",
) -> list[list[Recommendation]]:
    """Recommend k items for each history of raw item ids.

    Args:
        histories: raw ids, oldest first; an empty history gets what the model gives a newcomer.
        exclude_history: never recommend what is in the history.
        unknown: "error" refuses an id that the catalogue lacks; "ignore" reads the history without it.

    Returns:
        For each history up to k recommendations, best first.

    Raises:
        ValueError: k < 1, an unknown item, or a history that is a single string.
    """
    if k < 1:
        raise ValueError(f"recommend: expected k of at least 1, got {k}")
    if unknown not in ("error", "ignore"):
        raise ValueError(f"recommend: expected unknown 'error' or 'ignore', got {unknown!r}")
    known = []
    for history in histories:
        if isinstance(history, (str, bytes)):
            raise ValueError(f"recommend: expected each history to be a list of item ids, got {history!r}")
        index = catalogue.item_index(list(history))
        if unknown == "error" and (index == 0).any():
            missing = [item for item, number in zip(history, index, strict=True) if number == 0]
            raise ValueError(f"recommend: expected items of the catalogue, got {missing[0]!r}, which is not in it")
        known.append(torch.from_numpy(index[index > 0]))
    scores, items = top_items(scorer, catalogue.num_items, known, min(k, catalogue.num_items), exclude_history)
    results = []
    for row_scores, row_items in zip(scores.tolist(), items.numpy(), strict=True):
        found = [(item, score) for item, score in zip(row_items, row_scores, strict=True) if score > -torch.inf]
        ids = [item for item, _ in found]
        raw, titles = catalogue.raw_items(ids), catalogue.titles(ids)
        results.append(
            [Recommendation(*entry) for entry in zip(raw, titles, (score for _, score in found), strict=True)]
        )
    return results
