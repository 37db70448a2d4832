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
from solid_ext.evaluate.scorer import check_scorer, checked_scores, inference, scorer_device
from solid_ext.scorers import WithNewcomers

ROWS = 1024  # histories encoded at once, at most
SCORES = 2**22  # logits at once: 16 MB in float32, and a few times that while the best are found
ITEMS = 65536  # items scored at once, at most


class Recommendation(NamedTuple):
    """One recommended item."""

    item: Any  # the raw id
    title: str
    score: float  # logit


def top_items(
    scorer: Scorer, num_items: int, histories: list[Tensor], k: int, exclude: bool, item_block: int = ITEMS
) -> tuple[Tensor, Tensor]:
    """The k best-scored items of 1 .. V for each history; of equal scores the lower item first.

    Memory is that of the result and of one block, 1,024 histories by 65,536 items or fewer, whose logits number
    2^22 (4,194,304) at most where the catalogue has no fewer than 4,096 items; never a `B x V` array.

    Args:
        histories: item ids of each user, int64, oldest first, any length; only the last `scorer.length` are read.
        exclude: leave out what is in the history.
        item_block: items scored at once.

    Returns:
        scores [B, k] (descending; -inf where the catalogue ran out), items [B, k] int64.

    Raises:
        ValueError: a score that is NaN or infinite.
    """
    check_scorer("recommend", scorer)
    rows = min(max(SCORES // min(item_block, num_items), 1), ROWS)
    parts = []
    with inference(scorer) as asked:
        for first in range(0, len(histories), rows):
            parts.append(_top_of_block(asked, num_items, histories[first : first + rows], k, exclude, item_block))
    if not parts:
        return torch.zeros(0, k, device="cpu"), torch.zeros(0, k, dtype=torch.int64, device="cpu")
    scores, items = (torch.cat(column) for column in zip(*parts, strict=True))
    return scores, items


def _top_of_block(
    scorer: Scorer, num_items: int, histories: list[Tensor], k: int, exclude: bool, item_block: int
) -> tuple[Tensor, Tensor]:
    """`top_items` of as many histories as fit, the scorer in eval mode."""
    sequences = torch.zeros(len(histories), scorer.length, dtype=torch.int64, device="cpu")
    for row, history in enumerate(histories):
        recent = history[-scorer.length :]
        sequences[row, : len(recent)] = recent
    sizes = torch.tensor([len(history) for history in histories], dtype=torch.int64, device="cpu")
    owner = torch.repeat_interleave(torch.arange(len(histories), device="cpu"), sizes)
    owned = torch.cat(histories)
    device = scorer_device(scorer)
    state = scorer.encode(sequences.to(device))
    best, items = (
        torch.empty(len(histories), 0, device="cpu"),
        torch.empty(len(histories), 0, dtype=torch.int64, device="cpu"),
    )
    for first in range(1, num_items + 1, item_block):
        block = torch.arange(first, min(first + item_block, num_items + 1), device="cpu")
        scores = checked_scores("recommend", scorer, state, block.to(device), len(histories)).cpu()
        if exclude:
            inside = (owned >= first) & (owned < first + len(block))
            scores[owner[inside], owned[inside] - first] = -torch.inf
        found, column = _first_k(scores, k)
        # What was best before has the lower items and comes first, so that it wins a tie.
        best, place = _first_k(torch.cat([best.to(found), found], dim=1), k)
        items = torch.cat([items, column + first], dim=1).gather(1, place)
    short = max(k - num_items, 0)
    pad = torch.nn.functional.pad
    return pad(best, (0, short), value=-torch.inf), pad(items, (0, short))


def _first_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row [B, T], or all T, in descending order, and their columns; ties: the lower column."""
    k = min(k, scores.shape[1])
    values, column = scores.topk(k, dim=1)
    column = column.sort(dim=1).values
    # Which of several equal ones topk takes is not said: where the last place is one of them, all are sorted.
    tied = ((scores >= values[:, -1:]).sum(1) > k).nonzero().squeeze(1)
    if len(tied):
        column[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    values, order = scores.gather(1, column).sort(dim=1, descending=True, stable=True)
    return values, column.gather(1, order)


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

    Any number of threads may ask at once, and so may a forked process: nothing is written. Memory: see `top_items`.

    Args:
        histories: a list of lists of raw ids, oldest first; arrays and series do as well. An empty history, and one of
            unknown ids alone with "ignore", gets what the scorer gives a newcomer (`SOLID`: the most popular items of
            the training part), and a warning says how many did.
        exclude_history: never recommend what is in the history.
        unknown: "error" refuses an id that the catalogue lacks; "ignore" reads the history without it.

    Returns:
        For each history up to k recommendations, best first.

    Raises:
        ValueError: k < 1, an unknown item, or scores that are not finite.
        TypeError: a k that is no integer, histories that are no list of lists, ids that are neither numbers nor text.
    """
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"recommend: expected k as an integer, got {k!r}")
    k = operator.index(k)
    if k < 1:
        raise ValueError(f"recommend: expected k of at least 1, got {k}")
    if unknown not in ("error", "ignore"):
        raise ValueError(f"recommend: expected unknown 'error' or 'ignore', got {unknown!r}")
    known = _known(catalogue, checked_histories(histories), unknown)
    new = sum(not len(history) for history in known)
    if new:
        popular = ", the most popular items of the training part" if isinstance(scorer, WithNewcomers) else ""
        warnings.warn(
            f"recommend: histories without an item that the model knows: {new} of {len(known)}; "
            f"they get what a newcomer gets{popular}",
            stacklevel=3,
        )
    scores, items = top_items(scorer, catalogue.num_items, known, min(k, catalogue.num_items), exclude_history)
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


def _known(catalogue: Catalogue, histories: list[list[Any]], unknown: str) -> list[Tensor]:
    """The items of each history that the catalogue has, `[n] int64` each."""
    flat = [item for history in histories for item in history]
    index = catalogue.item_index(flat)
    if unknown == "error" and (index == 0).any():
        place = int((index == 0).argmax())
        raise ValueError(
            f"recommend: expected items of the catalogue, got {shown(flat[place])}, which is not in it "
            "(unknown='ignore' reads histories without such items)"
        )
    ends = np.cumsum([len(history) for history in histories], dtype=np.int64)
    return [torch.from_numpy(part[part > 0]) for part in np.split(index, ends[:-1])] if histories else []
