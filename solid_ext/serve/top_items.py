"""The best-scored items of the catalogue, found a block of scores at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import check_scorer, check_scores, inference, scorer_device
from solid_ext.serve.catalogue_scores import RangeScores, catalogue_scores
from solid_ext.serve.item_table import ItemTable

ROWS = 1024  # histories encoded and scored at once, at most
SCORES = 2**20  # at once, of all these histories: 4 MB in float32 stay in a processor's cache until the best are found
CHUNK = 64  # neighbouring scores of which the largest is looked at first
MOST = 8  # times k: of more candidates than that, a row is searched whole


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
            block = item_block or block_of(len(some))
            parts.append(_top_of_block(asked, num_items, some, k, exclude, block, table))
    if not parts:
        return torch.zeros(0, k, device="cpu"), torch.zeros(0, k, dtype=torch.int64, device="cpu")
    scores, items = (torch.cat(column) for column in zip(*parts, strict=True))
    return scores, items


def block_of(batch: int) -> int:
    """How many items so many histories are scored for at once."""
    return max(SCORES // batch // CHUNK, 1) * CHUNK


def _top_of_block(
    scorer: Any, num_items: int, histories: list[Tensor], k: int, exclude: bool, item_block: int, table: ItemTable
) -> tuple[Tensor, Tensor]:
    """`top_items` of as many histories as fit, the scorer in eval mode."""
    device = scorer_device(scorer)
    owned, owner, sequences = _flat(histories, scorer.length)
    state = scorer.encode(sequences.to(device))
    scores_of = catalogue_scores(scorer, state, device, table)
    left_out = (owner, owned) if exclude else None
    return best_of_ranges(scores_of, num_items, len(histories), k, left_out, item_block)


def best_of_ranges(
    scores_of: RangeScores,
    num_items: int,
    batch: int,
    k: int,
    left_out: tuple[Tensor, Tensor] | None,
    item_block: int,
) -> tuple[Tensor, Tensor]:
    """`top_items` of scores that are given a range of items at a time.

    Args:
        left_out: rows [N] and items [N] int64 of what may not be among the best; None for nothing.
    """
    best = torch.empty(batch, 0, device="cpu")
    items = torch.empty(batch, 0, dtype=torch.int64, device="cpu")
    for first in range(1, num_items + 1, item_block):
        end = min(first + item_block, num_items + 1)
        scores = scores_of(first, end)
        check_scores("recommend", scores, torch.arange(first, end, device="cpu"), batch)
        if left_out is not None:
            owner, owned = left_out
            inside = (owned >= first) & (owned < end)
            scores[owner[inside], owned[inside] - first] = -torch.inf
        if items.shape[1] == k:
            best, items = better_k(best, items, scores, first)
        else:  # what was best before has the lower items and comes first, so that it wins a tie
            found, column = first_k(scores, k)
            best, place = _first_of_all(torch.cat([best.to(found), found], dim=1), k)
            items = torch.cat([items, column + first], dim=1).gather(1, place)
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
    """The k largest of each row [B, T], or all T, in descending order, and their columns; ties: the lower column."""
    k = min(k, scores.shape[1])
    if scores.shape[1] < 4 * k * CHUNK:
        return _first_of_all(scores, k)
    chunks, peaks = _chunks(scores)
    least = peaks.topk(k, dim=1).values[:, -1:]  # k chunks hold as much: no smaller score is among the first k
    found = _gathered(chunks, peaks >= least, lambda some, rows: some >= least[rows], MOST * k)
    if found is None:
        return _first_of_all(scores, k)
    values, place = _first_of_all(found[0], k)
    return values, found[1].gather(1, place)


def better_k(best: Tensor, items: Tensor, scores: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The k best of `best` [B, k], whose items come before, and of the scores [B, T] of items from `first` on.

    Only what is larger than the last of the best can take a place among them: of equal scores the lower item is first.
    """
    k, found = best.shape[1], None
    if scores.shape[1] >= 4 * CHUNK:
        least = best[:, -1:]
        chunks, peaks = _chunks(scores)
        found = _gathered(chunks, peaks > least, lambda some, rows: some > least[rows], MOST * k)
    values, column = first_k(scores, k) if found is None else found
    best, place = _first_of_all(torch.cat([best, values], dim=1), k)
    return best, torch.cat([items, column + first], dim=1).gather(1, place)


def _chunks(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The scores [B, T] as chunks [B, C, CHUNK], the last one filled up with -inf, and the largest of each [B, C]."""
    short = -scores.shape[1] % CHUNK
    if short:
        scores = torch.nn.functional.pad(scores, (0, short), value=-torch.inf)
    chunks = scores.unflatten(1, (-1, CHUNK))
    return chunks, chunks.amax(2)


def _gathered(
    chunks: Tensor, searched: Tensor, wanted: Callable[[Tensor, Tensor], Tensor], most: int
) -> tuple[Tensor, Tensor] | None:
    """The wanted scores of the searched chunks [B, C] bool, in the order of their columns, and these: [B, m] each.

    Rows that have fewer are filled up with -inf. None where a row has more than `most`, as with many equal scores.
    """
    row, chunk = searched.nonzero(as_tuple=True)
    if len(row) > most * len(chunks):
        return None
    some = chunks[row, chunk]
    place, inside = wanted(some, row).nonzero(as_tuple=True)
    row = row[place]
    counts = row.bincount(minlength=len(chunks))
    width = int(counts.max())
    if width > most:
        return None
    position = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    values = chunks.new_full((len(chunks), width), -torch.inf)
    column = row.new_zeros(len(chunks), width)
    values[row, position] = some[place, inside]
    column[row, position] = chunk[place] * CHUNK + inside
    return values, column


def _first_of_all(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`first_k` by a search of everything."""
    k = min(k, scores.shape[1])
    values, column = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    # Which of several equal ones topk takes is not said: where the last place is one of them, all are sorted.
    tied = (values[:, k - 1] == values[:, -1]).nonzero().squeeze(1) if values.shape[1] > k else column[:0, 0]
    column = column[:, :k].sort(dim=1).values
    if len(tied):
        column[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    values, order = scores.gather(1, column).sort(dim=1, descending=True, stable=True)
    return values, column.gather(1, order)
