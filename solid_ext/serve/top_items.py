"""The best-scored items of the catalogue, found a block of scores at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import check_scorer, check_scores, inference, scorer_device
from solid_ext.serve.catalogue_scores import catalogue_scores
from solid_ext.serve.histories import flattened, pairs
from solid_ext.serve.item_table import ItemTable

ROWS = 1024  # histories encoded and scored at once, at most
SCORES = 2**20  # at once, of all these histories: 4 MB in float32 stay in a processor's cache until the best are found
CHUNK = 64  # neighbouring scores of which the largest is looked at first
MOST = 8  # times k: of more candidates than that, a row is searched whole


class Rules(NamedTuple):
    """Which items may be recommended, besides the rule about the history.

    Attributes:
        exclude: items 1 .. V that are left out, `[n] int64`: of all histories, or a list with those of each.
        include: the only items that are scored, in the same form; None for the whole catalogue.
    """

    exclude: Tensor | list[Tensor] | None = None
    include: Tensor | list[Tensor] | None = None


def top_items(
    scorer: Scorer,
    num_items: int,
    histories: list[Tensor],
    k: int,
    exclude: bool,
    item_block: int | None = None,
    table: ItemTable | None = None,
    rules: Rules = Rules(),  # noqa: B008 (it has no state)
) -> tuple[Tensor, Tensor]:
    """The k best-scored items of 1 .. V for each history; of equal scores the lower item first.

    Memory is that of the result, of the item table and of one block of 2^20 (1,048,576) scores, of 1,024 histories or
    fewer; never a `B x V` array, whatever the rules. Where they include some items, no others are scored; where these
    differ by history, all that any of 1,024 histories includes are scored for each of them.

    Args:
        histories: item ids of each user, int64, oldest first, any length; only the last `scorer.length` are read.
        exclude: leave out what is in the history.
        item_block: items scored at once; None for as many as a block holds.
        table: that keeps what the scores read of the items; None computes it for this call.
        rules: what else may be recommended.

    Returns:
        scores [B, k] (descending; -inf where there were no more items), items [B, k] int64.

    Raises:
        ValueError: a score that is NaN or infinite.
    """
    check_scorer("recommend", scorer)
    table = table or ItemTable()
    parts = []
    with inference(scorer) as asked:
        for first in range(0, len(histories), ROWS):
            block = slice(first, first + ROWS)
            own = Rules(*(rule[block] if isinstance(rule, list) else rule for rule in rules))
            parts.append(_top_of_block(asked, num_items, histories[block], k, exclude, item_block, table, own))
    if not parts:
        return torch.zeros(0, k, device="cpu"), torch.zeros(0, k, dtype=torch.int64, device="cpu")
    scores, items = (torch.cat(column) for column in zip(*parts, strict=True))
    return scores, items


def _top_of_block(
    scorer: Any,
    num_items: int,
    histories: list[Tensor],
    k: int,
    exclude: bool,
    item_block: int | None,
    table: ItemTable,
    rules: Rules,
) -> tuple[Tensor, Tensor]:
    """`top_items` of as many histories as fit, the scorer in eval mode."""
    owned, owner, sequences = flattened(histories, scorer.length)
    state = scorer.encode(sequences.to(scorer_device(scorer)))
    mask = Mask(num_items, rules, (owned, owner) if exclude else None)
    return best_of_state(scorer, state, len(histories), k, mask, table, item_block)


def best_of_state(
    scorer: Any, state: Any, batch: int, k: int, mask: Mask, table: ItemTable, item_block: int | None = None
) -> tuple[Tensor, Tensor]:
    """`top_items` of as many histories as fit, which are encoded already.

    Args:
        state: what the scorer's `encode` made of `batch` sequences.
        mask: which items may be among the best.
    """
    item_block = item_block or max(SCORES // batch // CHUNK, 1) * CHUNK
    scores_of = catalogue_scores(scorer, state, scorer_device(scorer), table, mask.offered)
    best = torch.empty(batch, 0, device="cpu")
    items = torch.empty(batch, 0, dtype=torch.int64, device="cpu")
    for first in range(1, mask.size + 1, item_block):
        end = min(first + item_block, mask.size + 1)
        scores = scores_of(first, end)
        check_scores("recommend", scores, mask.items(torch.arange(first, end, device="cpu")), batch)
        scores = mask.applied(scores, first, end)
        if items.shape[1] == k:
            best, items = better_k(best, items, scores, first)
        else:  # what was best before has the lower items and comes first, so that it wins a tie
            found, column = first_k(scores, k)
            best, place = _first_of_all(torch.cat([best.to(found), found], dim=1), k)
            items = torch.cat([items, column + first], dim=1).gather(1, place)
    items, short = mask.items(items), k - items.shape[1]
    pad = torch.nn.functional.pad
    return pad(best, (0, short), value=-torch.inf), pad(items, (0, short))


class Mask:
    """What the rules and the histories leave of the scores of a block of histories.

    Attributes:
        offered: the items that are scored, ascending; None for 1 .. V. Places count from 1 among them.
        size: how many.
    """

    def __init__(self, num_items: int, rules: Rules, owned: tuple[Tensor, Tensor] | None) -> None:
        self.offered: Tensor | None = None
        self.size, excluded = num_items, rules.exclude
        if rules.include is not None:
            include = rules.include if isinstance(rules.include, Tensor) else torch.cat(rules.include)
            self.offered = include.unique()
            if isinstance(excluded, Tensor):
                self.offered, excluded = self.offered[~torch.isin(self.offered, excluded)], None
            self.size = len(self.offered)
        left_out = ([] if owned is None else [owned]) + ([pairs(excluded)] if isinstance(excluded, list) else [])
        self.out = self._places(left_out)
        self.out_of_all = self._place(excluded) if isinstance(excluded, Tensor) else None
        self.only = self._places([pairs(rules.include)]) if isinstance(rules.include, list) else None

    def items(self, places: Tensor) -> Tensor:
        """The items at these places."""
        return places if self.offered is None else self.offered[places - 1]

    def _place(self, items: Tensor) -> Tensor:
        """Where the items stand among those that are scored; 0 for one that is not."""
        if self.offered is None or not len(self.offered):
            return items if self.offered is None else torch.zeros_like(items)
        place = torch.searchsorted(self.offered, items).clamp(max=len(self.offered) - 1)
        return torch.where(self.offered[place] == items, place + 1, 0)

    def _places(self, lists: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
        """Places and rows of the items and rows together."""
        if not lists:
            return None
        return self._place(torch.cat([items for items, _ in lists])), torch.cat([rows for _, rows in lists])

    def applied(self, scores: Tensor, first: int, end: int) -> Tensor:
        """The scores [B, end - first] of these places, -inf where an item may not be recommended; may write them."""
        if self.only is not None:
            place, row = self.only
            inside = (place >= first) & (place < end)
            at = row[inside], place[inside] - first
            kept = torch.full_like(scores, -torch.inf)
            kept[at] = scores[at]
            scores = kept
        if self.out is not None:
            place, row = self.out
            inside = (place >= first) & (place < end)
            scores[row[inside], place[inside] - first] = -torch.inf
        if self.out_of_all is not None:
            inside = (self.out_of_all >= first) & (self.out_of_all < end)
            scores[:, self.out_of_all[inside] - first] = -torch.inf
        return scores


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
