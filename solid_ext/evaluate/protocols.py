"""The two evaluation protocols: against sampled negatives, and against the whole catalogue.

Both give the same numbers for any batch and block size, as far as the scorer's own scores do not depend on
what it is asked together with. Several processes (`solid_ext.distributed`) divide the batches of one process among
them, so that they give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solid_ext import distributed
from solid_ext.data import Dataset, NegativeSampler, Rows, gather_sequences
from solid_ext.evaluate.history import distinct_counts, first_occurrence, history_pairs
from solid_ext.evaluate.metrics import (
    Metrics,
    areas_of_first,
    auc,
    log_loss,
    mrr,
    ranking_metrics,
    ranks_of_first,
    user_auc,
)
from solid_ext.evaluate.scorer import Scorer, check_scorer, checked_scores, inference, scorer_device

# Rows per draw of negatives: bounds the sampler's workspace, and is fixed so that no other size matters.
_ROWS_PER_DRAW = 8192


def evaluate_sampled(
    scorer: Scorer,
    dataset: Dataset,
    rows: Rows,
    *,
    negatives: int = 99,
    seed: int = 0,
    batch_size: int = 1024,
    cutoffs: Sequence[int] = (5, 10, 20),
    candidates: NDArray[np.int32] | None = None,
) -> Metrics:
    """Ranks each row's target among sampled items that its user never interacted with (the paper's protocol).

    Keys: `auc` (all rows together), `user_auc` (mean over users), `log_loss` (scores as logits), and for
    every cutoff `ndcg@K` and `hr@K`. AUC counts a tie as one half; ranks count a tie against the target.

    A user with fewer than `negatives` unseen items is ranked among those there are. Rows of users who had every item
    hold no comparison: they are in none of the means, and have rank 1 and area one half in the result's arrays, which
    keep one entry a row.

    Args:
        scorer: a model, see `Scorer`.
        dataset: the interactions.
        rows: the `R` rows to predict.
        negatives: sampled items per row.
        seed: of the negatives, which are the same for every scorer and every `batch_size`.
        batch_size: sequences scored at once.
        cutoffs: the `K` of the ranking metrics.
        candidates: what `sampled_candidates` drew for these rows, to be used again instead of drawing.

    Raises:
        ValueError: no rows, rows outside the dataset, no user with an unseen item, or scores that are not finite.

    Source: docs/evaluation.md#sampled-protocol.
    """
    _check_cutoffs("evaluate_sampled", cutoffs)
    if candidates is None:
        candidates = sampled_candidates(dataset, rows, negatives=negatives, seed=seed)
    scores = sampled_scores(scorer, dataset, rows, candidates, batch_size=batch_size)
    return sampled_metrics(scores, rows, candidates, cutoffs)


def sampled_metrics(
    scores: NDArray[np.floating],
    rows: Rows,
    candidates: NDArray[np.int32],
    cutoffs: Sequence[int] = (5, 10, 20),
    *,
    ranks_alone: bool = False,
) -> Metrics:
    """The metrics of what `sampled_scores` gives for a scorer; see `evaluate_sampled`.

    With `ranks_alone` those of ranks; all others together take as long as a model takes to score.
    """
    ranks = ranks_of_first(scores)
    there = candidates > 0
    compared = there.sum(axis=1) > 1
    of_ranks = ranking_metrics(ranks[compared], cutoffs)
    if ranks_alone:
        return Metrics("sampled", of_ranks, rows.users, ranks)
    used = there & compared[:, None]
    labels = np.zeros(scores.shape, bool)
    labels[:, 0] = True
    users = np.broadcast_to(rows.users[:, None], scores.shape)
    flat_scores, flat_labels = scores[used], labels[used]
    values = {
        "auc": auc(flat_scores, flat_labels),
        "user_auc": user_auc(flat_scores, flat_labels, users[used]),
        "log_loss": log_loss(flat_scores, flat_labels),
    }
    return Metrics("sampled", values | of_ranks, rows.users, ranks, _areas(scores, there))


def evaluate_full(
    scorer: Scorer,
    dataset: Dataset,
    rows: Rows,
    *,
    exclude_history: bool = False,
    batch_size: int = 256,
    item_block: int = 65536,
    cutoffs: Sequence[int] = (5, 10, 20),
) -> Metrics:
    """Ranks each row's target in the whole catalogue, ties against it.

    Keys: for every cutoff `ndcg@K` and `hr@K` (one target, so also Recall@K), and `mrr`.

    Args:
        scorer: a model, see `Scorer`.
        dataset: the interactions.
        rows: the `R` rows to predict.
        exclude_history: leave the items that the user had before out of the ranking. A target that the user
            had before stays in it, its own earlier occurrences do not count.
        batch_size: sequences scored at once.
        item_block: items scored at once; memory is `batch_size x (item_block + batch_size)` scores.
        cutoffs: the `K` of the ranking metrics.

    Raises:
        ValueError: no rows, rows outside the dataset, or scores that are not finite.

    Source: docs/evaluation.md#full-ranking-protocol.
    """
    _check_cutoffs("evaluate_full", cutoffs)
    ranks = full_ranks(
        scorer, dataset, rows, exclude_history=exclude_history, batch_size=batch_size, item_block=item_block
    )
    return full_metrics(ranks, rows, cutoffs, exclude_history=exclude_history)


def full_metrics(
    ranks: NDArray[np.int64], rows: Rows, cutoffs: Sequence[int] = (5, 10, 20), *, exclude_history: bool = False
) -> Metrics:
    """The metrics of what `full_ranks` gives for a scorer; see `evaluate_full`."""
    protocol = "full, history excluded" if exclude_history else "full"
    return Metrics(protocol, ranking_metrics(ranks, cutoffs) | {"mrr": mrr(ranks)}, rows.users, ranks)


def sampled_candidates(dataset: Dataset, rows: Rows, *, negatives: int = 99, seed: int = 0) -> NDArray[np.int32]:
    """Candidates of the sampled protocol: the target, then distinct items that the user never had.

    Returns:
        `[R, 1 + n] int32`, the target in column 0; n is `negatives`, or the largest number of unseen items if that is
        smaller; 0 where a user has fewer; deterministic in `seed`.

    Raises:
        ValueError: no rows, rows outside the dataset, or rows only of users who had every item.
    """
    name = "evaluate_sampled"
    _check_rows(name, dataset, rows)
    _check_size(name, "negatives", negatives)
    unseen = check_unseen(name, dataset, rows)
    negatives = min(negatives, int(unseen.max()))
    candidates = np.empty((rows.users.size, 1 + negatives), np.int32)
    candidates[:, 0] = dataset.items[rows.positions]
    sampler, rng = NegativeSampler(dataset), np.random.default_rng(seed)
    for index in _slices(rows.users.size, _ROWS_PER_DRAW):
        candidates[index, 1:] = sampler.sample(rows.users[index], negatives, rng, distinct=True)
    return candidates


def check_unseen(name: str, dataset: Dataset, *parts: Rows) -> NDArray[np.int64]:
    """How many items each row's user never had, `[R] int64`, of the last of the parts.

    Raises:
        ValueError: a part whose users all had every item, so that the sampled protocol has nothing to rank against.
    """
    counts = dataset.num_items - distinct_counts(dataset, first_occurrence(dataset))
    for rows in parts:
        if counts[rows.users].max() < 1:
            raise ValueError(
                f"{name}: expected users with items that they never had, got every one of {dataset.num_items:,} items "
                f"in the history of each of {np.unique(rows.users).size:,} users"
            )
    return counts[parts[-1].users]


def sampled_scores(
    scorer: Scorer, dataset: Dataset, rows: Rows, candidates: NDArray[np.int32], *, batch_size: int = 1024
) -> NDArray[np.floating]:
    """Scores of the sampled protocol, the raw material of its metrics.

    Args:
        candidates: `[R, 1 + n]`, as `sampled_candidates` draws them.

    Returns:
        `[R, 1 + n]`, the target's score in column 0, -inf where there is no candidate; float64 for a scorer that
        returns float64, else float32.

    Raises:
        ValueError: no rows, rows outside the dataset, candidates of other rows, or scores that are not finite.
    """
    return sampled_scores_of_each([scorer], dataset, rows, candidates, batch_size=batch_size)[0]


def sampled_scores_of_each(
    scorers: Sequence[Scorer], dataset: Dataset, rows: Rows, candidates: NDArray[np.int32], *, batch_size: int = 1024
) -> list[NDArray[np.floating]]:
    """`sampled_scores` of each scorer; all are asked about a batch before the next one, so that they can share work."""
    name = "evaluate_sampled"
    _check_size(name, "batch_size", batch_size)
    _check_rows(name, dataset, rows)
    if candidates.ndim != 2 or not np.array_equal(candidates[:, 0], dataset.items[rows.positions]):
        raise ValueError(f"{name}: expected candidates [R, 1 + n] with the rows' targets in column 0, got others")
    # One array from the start: a tensor kept from each batch would hold the memory between the batches' large ones.
    found: list[NDArray[np.floating]] = []
    with _asked(name, scorers) as asked:
        for index in _slices(rows.users.size, batch_size, own=True):
            batch = rows.take(index)
            # Where there is none, the target is scored once more: 0 is no item.
            offered = candidates[index].astype(np.int64)
            offered = np.where(offered > 0, offered, offered[:, :1])
            for place, scorer in enumerate(asked):
                device = scorer_device(scorer)
                state = scorer.encode(_sequences(scorer, dataset, batch, device))
                scores = checked_scores(name, scorer, state, torch.from_numpy(offered).to(device), len(offered))
                part = (scores if scores.dtype == torch.float64 else scores.float()).cpu().numpy()
                if place == len(found):
                    found.append(np.empty(candidates.shape, part.dtype))
                found[place][index] = part
    # A process without a batch does not know what the scorers return; the first one has one.
    dtypes = distributed.of_writer([of_scorer.dtype.name for of_scorer in found])
    found = found or [np.empty(candidates.shape, dtype) for dtype in dtypes]
    for of_scorer in found:
        distributed.completed(of_scorer, batch_size)[candidates == 0] = -np.inf
    return found


def full_ranks(
    scorer: Scorer,
    dataset: Dataset,
    rows: Rows,
    *,
    exclude_history: bool = False,
    batch_size: int = 256,
    item_block: int = 65536,
) -> NDArray[np.int64]:
    """Rank of each row's target in the catalogue, `1 + #{v != target: s_v >= s_target}`.

    The raw material of the full-ranking metrics; arguments and errors as for `evaluate_full`.

    Returns:
        `[R] int64`, 1 is best.
    """
    return full_ranks_of_each(
        [scorer], dataset, rows, exclude_history=exclude_history, batch_size=batch_size, item_block=item_block
    )[0]


def full_ranks_of_each(
    scorers: Sequence[Scorer],
    dataset: Dataset,
    rows: Rows,
    *,
    exclude_history: bool = False,
    batch_size: int = 256,
    item_block: int = 65536,
) -> list[NDArray[np.int64]]:
    """`full_ranks` of each scorer; all are asked about a batch before the next one, so that they can share work."""
    name = "evaluate_full"
    _check_rows(name, dataset, rows)
    _check_size(name, "batch_size", batch_size)
    _check_size(name, "item_block", item_block)
    first = first_occurrence(dataset) if exclude_history else None
    found = [np.empty(rows.users.size, np.int64) for _ in scorers]
    with _asked(name, scorers) as asked:
        for index in _slices(rows.users.size, batch_size, own=True):
            batch = rows.take(index)
            pairs = None if first is None else history_pairs(dataset, batch, first)
            for of_scorer, scorer in zip(found, asked, strict=True):
                of_scorer[index] = _ranks_of_batch(name, scorer, dataset, batch, pairs, item_block)
    return [distributed.completed(of_scorer, batch_size) for of_scorer in found]


@contextmanager
def _asked(name: str, scorers: Sequence[Scorer]) -> Iterator[list[Scorer]]:
    """The scorers as they are asked, under inference mode."""
    for scorer in scorers:
        check_scorer(name, scorer)
    with ExitStack() as stack:
        yield [stack.enter_context(inference(scorer)) for scorer in scorers]


def _areas(scores: NDArray[np.floating], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Area under each row's own curve over the candidates that are there; one half for a row without a negative."""
    areas = areas_of_first(scores)
    if there.all():
        return areas
    absent = np.count_nonzero(~there, axis=1)
    left = scores.shape[1] - 1 - absent
    # What is not there counts as below the target in `areas`.
    return np.where(
        absent == 0, areas, np.where(left > 0, (areas * (left + absent) - absent) / np.maximum(left, 1), 0.5)
    )


def _ranks_of_batch(
    name: str,
    scorer: Scorer,
    dataset: Dataset,
    batch: Rows,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    item_block: int,
) -> NDArray[np.int64]:
    device = scorer_device(scorer)
    target = torch.from_numpy(dataset.items[batch.positions].astype(np.int64)).to(device)
    state = scorer.encode(_sequences(scorer, dataset, batch, device))
    ahead = torch.zeros(len(target), dtype=torch.int64, device=device)
    every_row = torch.arange(len(target), device=device)
    one_block = dataset.num_items <= item_block
    for low in range(1, dataset.num_items + 1, item_block):
        high = min(low + item_block, dataset.num_items + 1)
        offered = torch.arange(low, high, device=device)
        if one_block:
            scores = checked_scores(name, scorer, state, offered, len(target))
            own = scores[every_row, target - low, None]
        else:
            # Scores are compared only with scores of the same call: a product of another shape may round
            # otherwise, and one unit in the last place would turn every tie into a win or a loss.
            scores = checked_scores(name, scorer, state, torch.cat([offered, target]), len(target))
            own = scores[every_row, len(offered) + every_row, None]
            scores = scores[:, : len(offered)]
        ahead += (scores >= own).sum(dim=1)
        inside = ((target >= low) & (target < high)).nonzero().squeeze(1)
        ahead[inside] -= (scores[inside, target[inside] - low] >= own[inside, 0]).long()
        if pairs is not None:
            block = slice(*np.searchsorted(pairs[1], (low, high)))
            row = torch.from_numpy(pairs[0][block]).to(device)
            item = torch.from_numpy(pairs[1][block]).to(device)
            ahead -= torch.bincount(row[scores[row, item - low] >= own[row, 0]], minlength=len(target))
    return 1 + ahead.cpu().numpy()


def _sequences(scorer: Scorer, dataset: Dataset, rows: Rows, device: torch.device) -> Tensor:
    return torch.from_numpy(gather_sequences(dataset, rows, scorer.length)).to(device)


def _slices(count: int, size: int, *, own: bool = False) -> Iterator[NDArray[np.int64]]:
    """`count` rows in groups of `size`; with `own` those that are this process's."""
    mine = distributed.parts(count, size)[distributed.rank()] if own else slice(0, count)
    for start in range(mine.start, mine.stop, size):
        yield np.arange(start, min(start + size, mine.stop))


def _check_cutoffs(name: str, cutoffs: Sequence[int]) -> None:
    if isinstance(cutoffs, str) or not isinstance(cutoffs, Sequence) or not all(map(_is_integer, cutoffs)):
        raise TypeError(f"{name}: expected cutoffs as integers in a tuple, got {cutoffs!r}")
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"{name}: expected cutoffs >= 1, got {tuple(cutoffs)}")


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_size(name: str, what: str, size: int) -> None:
    if not _is_integer(size):
        raise TypeError(f"{name}: expected {what} as an integer, got {size!r}")
    if size < 1:
        raise ValueError(f"{name}: expected {what} >= 1, got {size}")


def _check_rows(name: str, dataset: Dataset, rows: Rows) -> None:
    if not isinstance(dataset, Dataset):
        raise TypeError(f"{name}: expected a Dataset, got {type(dataset).__name__}")
    if not isinstance(rows, Rows):
        raise TypeError(f"{name}: expected Rows, such as the `test` of a split, got {type(rows).__name__}")
    if rows.users.size == 0:
        raise ValueError(f"{name}: expected at least one row, got 0")
    if rows.users.min() < 0 or rows.users.max() >= dataset.num_users:
        raise ValueError(
            f"{name}: expected users in 0..{dataset.num_users - 1}, got {rows.users.min()}..{rows.users.max()}"
        )
    start, stop = dataset.offsets[rows.users], dataset.offsets[rows.users + 1]
    outside = (rows.positions < start) | (rows.positions >= stop)
    if outside.any():
        bad = int(outside.argmax())
        raise ValueError(
            f"{name}: expected positions inside the user's history, "
            f"got position {rows.positions[bad]} for user {rows.users[bad]} ({int(outside.sum())} rows)"
        )
