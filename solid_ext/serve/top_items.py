"""The best-scored items of the catalogue, found a block of scores at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import check_scorer, check_scores, inference, scorer_device
from solid_ext.serve.catalogue_scores import catalogue_scores
from solid_ext.serve.item_table import ItemTable

ROWS = 1024  # histories encoded and scored at once, at most
SCORES = 2**20  # at once, of all these histories: 4 MB in float32 stay in a processor's cache until the best are found
CHUNK = 64  # neighbouring scores of which the largest is looked at first; the root of SCORES / ROWS and of some k


def top_items(
    scorer: Scorer,
    num_items: int,
    histories: list[Tensor],
    k: int,
    exclude: bool,
    item_block: int | None = None,
    table: ItemTable | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best-scored items of 1 .. V for each history; of equal scores the lower item first.

    Memory is that of the result, of the item table and of one block of 2^20 (1,048,576) scores, of 1,024 histories or
    fewer; never a `B x V` array.

    Args:
        histories: item ids of each user, int64, oldest first, any length; only the last `scorer.length` are read.
        exclude: leave out what is in the history.
        item_block: items scored at once; None for as many as a block holds.
        table: that keeps what the scores read of the items; None computes it for this call.

    Returns:
        scores [B, k] (descending; -inf where the catalogue ran out), items [B, k] int64.

    Raises:
        ValueError: a score that is NaN or infinite.
    """
    check_scorer("recommend", scorer)
    table = table or ItemTable()
    parts = []
    with inference(scorer) as asked:
        for first in range(0, len(histories), ROWS):
            some = histories[first : first + ROWS]
            block = item_block or max(SCORES // len(some) // CHUNK, 1) * CHUNK
            parts.append(_top_of_block(asked, num_items, some, k, exclude, block, table))
    if not parts:
        return torch.zeros(0, k), torch.zeros(0, k, dtype=torch.int64)
    scores, items = (torch.cat(column) for column in zip(*parts, strict=True))
    return scores, items


def _top_of_block(
    scorer: Any, num_items: int, histories: list[Tensor], k: int, exclude: bool, item_block: int, table: ItemTable
) -> tuple[Tensor, Tensor]:
    """`top_items` of as many histories as fit, the scorer in eval mode."""
    batch, device = len(histories), scorer_device(scorer)
    owned, owner, sequences = _flat(histories, scorer.length)
    state = scorer.encode(sequences.to(device))
    scores_of = catalogue_scores(scorer, state, device, table)
    best = torch.empty(batch, 0, device="cpu")
    items = torch.empty(batch, 0, dtype=torch.int64, device="cpu")
    for first in range(1, num_items + 1, item_block):
        end = min(first + item_block, num_items + 1)
        scores = scores_of(first, end)
        check_scores("recommend", scores, torch.arange(first, end, device="cpu"), batch)
        if exclude:
            inside = (owned >= first) & (owned < end)
            scores[owner[inside], owned[inside] - first] = -torch.inf
        found, column = first_k(scores, k)
        column += first
        if first == 1:
            best, items = found, column
        else:  # what was best before has the lower items and comes first, so that it wins a tie
            best, place = first_k(torch.cat([best, found], dim=1), k)
            items = torch.cat([items, column], dim=1).gather(1, place)
    short = max(k - num_items, 0)
    pad = torch.nn.functional.pad
    return pad(best, (0, short), value=-torch.inf), pad(items, (0, short))


def _flat(histories: list[Tensor], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """All items of the histories [N], the row of each one [N], and the last `length` of each history [B, L]."""
    sizes = torch.tensor([len(history) for history in histories], dtype=torch.int64, device="cpu")
    owned, rows = torch.cat(histories), torch.arange(len(histories), device="cpu")
    owner = torch.repeat_interleave(rows, sizes)
    ends = sizes.cumsum(0)
    kept = sizes.clamp(max=length)
    place = torch.arange(len(owned), device="cpu") - (ends - kept)[owner]  # in its sequence; below 0: too long ago
    sequences = torch.zeros(len(histories), length, dtype=torch.int64, device="cpu")
    sequences[owner[place >= 0], place[place >= 0]] = owned[place >= 0]
    return owned, owner, sequences


def first_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row [B, T], or all T, in descending order, and their columns; ties: the lower column.

    An element is among them only if its chunk is among the k chunks that come first by their largest element, so that
    no more than those are searched.
    """
    k = min(k, scores.shape[1])
    chunks = scores.shape[1] // CHUNK
    if chunks < 4 * k:
        return _first_of_all(scores, k)
    whole = scores[:, : chunks * CHUNK].unflatten(1, (chunks, CHUNK))
    chosen = first_k(whole.amax(2), k)[1].sort(dim=1).values
    rows = torch.arange(len(scores), device=scores.device).unsqueeze(1)
    searched = torch.cat([whole[rows, chosen].flatten(1), scores[:, chunks * CHUNK :]], dim=1)
    values, place = _first_of_all(searched, k)
    start = torch.cat([chosen * CHUNK, chosen.new_full((len(chosen), 1), chunks * CHUNK)], dim=1)
    chunk = (place // CHUNK).clamp(max=k)
    return values, start.gather(1, chunk) + place - chunk * CHUNK


def _first_of_all(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, column = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    # Which of several equal ones topk takes is not said: where the last place is one of them, all are sorted.
    tied = (values[:, k - 1] == values[:, -1]).nonzero().squeeze(1) if values.shape[1] > k else column[:0, 0]
    column = column[:, :k].sort(dim=1).values
    if len(tied):
        column[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    values, order = scores.gather(1, column).sort(dim=1, descending=True, stable=True)
    return values, column.gather(1, order)
