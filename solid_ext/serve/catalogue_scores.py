"""The scores of whole ranges of the catalogue, by what each kind of scorer does: nothing is looked up item by item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from solid_ext.models import DynamicRecommender
from solid_ext.scorers import FineTuned, WithNeighbours, WithNewcomers
from solid_ext.scorers.popularity import log_odds
from solid_ext.serve.item_table import ItemTable

RangeScores = Callable[[int, int], Tensor]
"""`(first, end) -> [B, end - first]`, the scores of the items at places first .. end - 1, counted from 1, on the CPU;
the caller may write them."""


def catalogue_scores(
    scorer: Any, state: Any, device: torch.device, table: ItemTable, offered: Tensor | None = None
) -> RangeScores:
    """What `scorer.score(state, items)` gives for items that follow each other.

    A `DynamicRecommender` multiplies rows of its item table, what wraps one adds to the result, and any other scorer is
    asked.

    Args:
        state: what the scorer's `encode` made of sequences [B, L].
        device: where the scorer wants its candidates.
        table: of the model's items.
        offered: [T] int64, the items whose places are counted; None for 1 .. V.
    """
    if _scores_as(scorer, WithNewcomers):
        inner = catalogue_scores(scorer.model, state.model, device, table, offered)
        return _with_newcomers(inner, scorer, state.new.cpu(), offered) if state.new.any() else inner
    if _scores_as(scorer, WithNeighbours):
        added = state.added if offered is None else state.added[:, np.concatenate(([0], offered.numpy()))]
        return _with_added(catalogue_scores(scorer.model, state.model, device, table, offered), added)
    if _scores_as(scorer, FineTuned):
        return catalogue_scores(scorer.model, state, device, table, offered)
    if _scores_as(scorer, DynamicRecommender) and isinstance(state, Tensor):
        keys = table.of(scorer)
        return _of_keys(scorer, state, keys if offered is None else keys[offered.to(device) - 1])

    def asked(first: int, end: int) -> Tensor:
        items = torch.arange(first, end, device=device) if offered is None else offered[first - 1 : end - 1].to(device)
        return scorer.score(state, items).to("cpu", memory_format=torch.contiguous_format, copy=True)

    return asked


def _scores_as(scorer: Any, kind: Any) -> bool:
    """Whether it is of this kind and scores as the kind does, not in a way of its own."""
    its_own: Any = type(scorer)
    return isinstance(scorer, kind) and its_own.score is kind.score


def _of_keys(model: DynamicRecommender, state: Tensor, keys: Tensor) -> RangeScores:
    query, constant = model.query(state)

    def scores(first: int, end: int) -> Tensor:
        logits = query @ keys[first - 1 : end - 1].T
        return (logits if constant is None else logits.add_(constant)).cpu()

    return scores


def _with_added(inner: RangeScores, added: sparse.csr_array) -> RangeScores:
    """The same with a sparse [B, V + 1] added: where it holds nothing, nothing is read."""
    row = torch.from_numpy(np.repeat(np.arange(added.shape[0]), np.diff(added.indptr)))
    item, value = torch.from_numpy(added.indices).long(), torch.from_numpy(added.data)
    if bool((item == 0).any()):  # padding is not a part of any range
        row, item, value = row[item > 0], item[item > 0], value[item > 0]
    ordered = False

    def scores(first: int, end: int) -> Tensor:
        nonlocal ordered, row, item, value
        logits = inner(first, end)
        part = slice(None)
        if end - first < added.shape[1] - 1:
            if not ordered:  # so that each part of the catalogue finds its own together
                item, order = item.sort()
                row, value, ordered = row[order], value[order], True
            part = slice(*torch.searchsorted(item, torch.tensor([first, end], device="cpu")).tolist())
        logits.view(-1)[row[part] * logits.shape[1] + (item[part] - first)] += value[part].to(logits)
        return logits

    return scores


def _with_newcomers(inner: RangeScores, scorer: WithNewcomers, new: Tensor, offered: Tensor | None) -> RangeScores:
    popular = log_odds(scorer.counts)
    popular = popular if offered is None else popular[offered - 1]

    def scores(first: int, end: int) -> Tensor:
        logits = inner(first, end)
        logits[new] = popular[first - 1 : end - 1].to(logits)
        return logits

    return scores
