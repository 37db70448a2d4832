"""Metrics as functions of scores, labels and ranks; numpy, vectorised, no loop over rows or users.

Ties: the areas under a curve count a tied pair as one half (the usual definition, the probability that a
positive is ranked above a negative). Everything computed from a rank is pessimistic: a candidate whose score
equals the target's is ranked above it, so that a model without an opinion is not rewarded for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Scores worked on at once where float64 or index arrays are made of them: millions of rows must not become gigabytes.
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Metrics:
    """The result of one evaluation: the metrics, and the ranks behind them for tests over users.

    Attributes:
        protocol: `"sampled"`, `"full"` or `"full, history excluded"`.
        values: metric name to value.
        users: `[R] int64`, the user of each row.
        ranks: `[R] int64`, the 1-based rank of each row's target, ties against it.
        areas: `[R] float64`, sampled protocol: the area under the curve of each row alone; else None.
    """

    protocol: str
    values: dict[str, float]
    users: IntArray
    ranks: IntArray
    areas: FloatArray | None = None

    def __getitem__(self, name: str) -> float:
        """`values[name]`."""
        if name not in self.values:
            raise KeyError(f"metrics: expected one of {', '.join(self.values)}, got {name!r}")
        return self.values[name]

    def to_dict(self) -> dict[str, float]:
        """The metric values as a new plain dictionary of Python floats, ready for JSON."""
        return {name: float(value) for name, value in self.values.items()}


def ranks_of_first(scores: ArrayLike) -> IntArray:
    """Rank of the first column among all columns, ties against it: `1 + sum_{t > 0} [s_t >= s_0]`.

    Args:
        scores: `[R, T]`, the target's score in column 0.

    Returns:
        `[R] int64`, 1 is best.
    """
    table = np.asarray(scores)
    if table.ndim != 2 or table.shape[1] == 0:
        raise ValueError(f"ranks_of_first: expected scores [R, T >= 1], got {list(table.shape)}")
    _check_no_nan("ranks_of_first", table)  # a NaN compares as below everything, and would help the model
    return 1 + np.count_nonzero(table[:, 1:] >= table[:, :1], axis=1).astype(np.int64)


def areas_of_first(scores: ArrayLike) -> FloatArray:
    """Area under each row's own curve, `mean_{t > 0} ([s_t < s_0] + [s_t = s_0] / 2)`, the positive in column 0.

    Args:
        scores: `[R, T >= 2]`.

    Returns:
        `[R] float64`.
    """
    table = np.asarray(scores)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ValueError(f"areas_of_first: expected scores [R, T >= 2], got {list(table.shape)}")
    _check_no_nan("areas_of_first", table)
    own, others = table[:, :1], table[:, 1:]
    return (np.count_nonzero(others < own, axis=1) + np.count_nonzero(others == own, axis=1) / 2) / others.shape[1]


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve over all rows together, `P(s+ > s-) + P(s+ = s-) / 2`.

    Args:
        scores: `[N]` floats.
        labels: `[N]`, 1 (or True) for a positive and 0 for a negative.

    Raises:
        ValueError: lengths differ, a label that is neither 0 nor 1, NaN, or only one class present.
    """
    score, label = _scores_and_labels("auc", scores, labels)
    negative, positive = score[~label], score[label]
    negative.sort()
    _check_both_classes("auc", len(negative) * len(positive), label)
    below = np.searchsorted(negative, positive, "left")
    not_above = np.searchsorted(negative, positive, "right")
    return float((below + not_above).sum() / (2 * len(negative) * len(positive)))


def user_auc(scores: ArrayLike, labels: ArrayLike, users: ArrayLike) -> float:
    """Mean over users of the area under each user's own ROC curve (GAUC with equal weights).

    Users with only positives or only negatives have no curve and are left out. Arguments and errors as for
    `auc_per_user`.
    """
    return float(auc_per_user(scores, labels, users)[1].mean())


def auc_per_user(scores: ArrayLike, labels: ArrayLike, users: ArrayLike) -> tuple[IntArray, FloatArray]:
    """Area under the ROC curve of each user: `(sum of positive mid-ranks - P (P + 1) / 2) / (P N)`.

    Args:
        scores: `[N]` floats.
        labels: `[N]`, 1 (or True) for a positive and 0 for a negative.
        users: `[N]` integers, in any order.

    Returns:
        `(user [G] int64, ascending; area [G] float64)` over the users that have both classes.

    Raises:
        ValueError: lengths differ, a label that is neither 0 nor 1, NaN, or no user with both classes.
    """
    score, label = _scores_and_labels("user_auc", scores, labels)
    user = np.asarray(users)
    if user.dtype.kind not in "iu":
        raise TypeError(f"user_auc: expected users [N] of integers, got {user.dtype}")
    if user.shape != score.shape:
        raise ValueError(f"user_auc: expected users [N={score.size}], got {list(user.shape)}")
    if (user[1:] < user[:-1]).any():
        grouped = np.argsort(user, kind="stable")
        user, score, label = user[grouped], score[grouped], label[grouped]
    starts = np.append(0, 1 + np.flatnonzero(user[1:] != user[:-1]))
    cuts = np.append(starts[np.searchsorted(starts, np.arange(0, starts[-1] + 1, _BLOCK))], user.size)
    parts = [_areas(user[start:stop], score[start:stop], label[start:stop]) for start, stop in pairwise(cuts)]
    found, area = (np.concatenate(column) for column in zip(*parts, strict=True))
    _check_both_classes("user_auc", found.size, label)
    return found.astype(np.int64), area


def _areas(user: NDArray[Any], score: FloatArray, label: NDArray[np.bool_]) -> tuple[NDArray[Any], FloatArray]:
    """The users that have both classes and their areas; the rows of a user side by side."""
    new_user = np.ones(user.size, bool)
    new_user[1:] = user[1:] != user[:-1]
    user_of_row = np.cumsum(new_user) - 1

    # Within each user by score. Sorting packed (user, place) integers takes half the time of np.lexsort.
    by_score = np.argsort(score)
    place = np.empty_like(by_score)
    place[by_score] = np.arange(by_score.size)
    order = by_score[np.sort(user_of_row * by_score.size + place) % by_score.size]
    score, label = score[order], label[order]
    new_score = new_user.copy()
    new_score[1:] |= score[1:] != score[:-1]

    # Tied scores of one user share the mean of the places they take within that user.
    user_start = np.flatnonzero(new_user)
    score_start = np.flatnonzero(new_score)
    score_stop = np.append(score_start[1:], user.size)
    tie_of_row = np.cumsum(new_score) - 1
    mid_rank = ((score_start + score_stop + 1) / 2)[tie_of_row] - user_start[user_of_row]

    total = np.diff(np.append(user_start, user.size))
    positive = np.bincount(user_of_row, weights=label, minlength=total.size)
    rank_sum = np.bincount(user_of_row, weights=mid_rank * label, minlength=total.size)
    pairs = positive * (total - positive)
    both = pairs > 0
    area = (rank_sum - positive * (positive + 1) / 2)[both] / pairs[both]
    return user[user_start[both]], area


def log_loss(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean binary cross-entropy of logits, `max(x, 0) - x y + log(1 + exp(-|x|))`, finite for finite logits.

    An infinite logit costs 0 on the right side and infinity on the wrong one.

    Args:
        logits: `[N]` floats, the log odds of a positive.
        labels: `[N]`, 1 (or True) for a positive and 0 for a negative.

    Raises:
        ValueError: lengths differ, a label that is neither 0 nor 1, NaN, or no rows.
    """
    logit, label = _scores_and_labels("log_loss", logits, labels)
    total = 0.0
    for start in range(0, logit.size, _BLOCK):
        x, y = logit[start : start + _BLOCK].astype(np.float64), label[start : start + _BLOCK]
        wrong = np.where(y, -x, x)  # x - x y without a product, which is NaN for an infinite logit
        total += float(np.sum(np.maximum(wrong, 0) + np.log1p(np.exp(-np.abs(wrong)))))
    return total / logit.size


def ndcg_per_row(ranks: ArrayLike, cutoff: int) -> FloatArray:
    """Gain of each row with its one relevant item at rank `r`: `1 / log2(r + 1)` if `r <= K`, else 0; `[R]`.

    With a single relevant item the ideal gain is 1, so this is the normalised gain already.
    """
    rank = _ranks("ndcg", ranks, cutoff)
    return np.where(rank <= cutoff, 1 / np.log2(rank + 1.0), 0.0)


def hr_per_row(ranks: ArrayLike, cutoff: int) -> FloatArray:
    """1 for each row whose target is among the first `K`, else 0; `[R]`. With one target also Recall@K."""
    return (_ranks("hr", ranks, cutoff) <= cutoff).astype(np.float64)


def mrr_per_row(ranks: ArrayLike) -> FloatArray:
    """Reciprocal rank of each row, `1 / r`; `[R]`."""
    return 1.0 / _ranks("mrr", ranks, 1)


def ndcg(ranks: ArrayLike, cutoff: int) -> float:
    """Mean of `ndcg_per_row` over the rows."""
    return float(ndcg_per_row(ranks, cutoff).mean())


def hr(ranks: ArrayLike, cutoff: int) -> float:
    """Mean of `hr_per_row` over the rows."""
    return float(hr_per_row(ranks, cutoff).mean())


def mrr(ranks: ArrayLike) -> float:
    """Mean of `mrr_per_row` over the rows, without a cutoff."""
    return float(mrr_per_row(ranks).mean())


def mean_per_user(values: ArrayLike, users: ArrayLike) -> tuple[IntArray, FloatArray]:
    """Mean of each user's rows, the unit of a significance test when users have several rows.

    Args:
        values: `[R]` floats, e.g. of `ndcg_per_row`.
        users: `[R]` integers.

    Returns:
        `(user [G] int64, ascending; mean [G] float64)`.
    """
    value, user = np.asarray(values, np.float64), np.asarray(users)
    if value.ndim != 1 or value.shape != user.shape:
        raise ValueError(f"mean_per_user: expected values and users [R], got {list(value.shape)}, {list(user.shape)}")
    unique, group = np.unique(user, return_inverse=True)
    return unique.astype(np.int64), np.bincount(group, weights=value) / np.bincount(group)


def ranking_metrics(ranks: ArrayLike, cutoffs: Iterable[int]) -> dict[str, float]:
    """`ndcg@K` for every cutoff, then `hr@K` for every cutoff."""
    cuts = list(cutoffs)
    return {f"ndcg@{k}": ndcg(ranks, k) for k in cuts} | {f"hr@{k}": hr(ranks, k) for k in cuts}


def _scores_and_labels(name: str, scores: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    score, label = np.asarray(scores), np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape or score.size == 0:
        raise ValueError(f"{name}: expected scores and labels [N >= 1], got {list(score.shape)}, {list(label.shape)}")
    if label.dtype != bool and not np.isin(label, (0, 1)).all():
        raise ValueError(f"{name}: expected labels 0 or 1, got {label[~np.isin(label, (0, 1))][0]}")
    if score.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected scores [N] of numbers, got {score.dtype}")
    score = score if score.dtype.kind == "f" else score.astype(np.float64)
    _check_no_nan(name, score)
    return score, label.astype(bool, copy=False)


def _check_both_classes(name: str, found: int, labels: NDArray[np.bool_]) -> None:
    if not found:
        positives = int(labels.sum())
        raise ValueError(f"{name}: expected positives and negatives, got {positives} positives of {labels.size}")


def _check_no_nan(name: str, scores: NDArray[Any]) -> None:
    missing = int(np.isnan(scores).sum())
    if missing:
        raise ValueError(f"{name}: expected scores without NaN, got {missing} of {scores.size}")


def _ranks(name: str, ranks: ArrayLike, cutoff: int) -> IntArray:
    rank = np.asarray(ranks)
    if isinstance(cutoff, bool) or not isinstance(cutoff, (int, np.integer)):
        raise TypeError(f"{name}: expected cutoff as an integer, got {cutoff!r}")
    if cutoff < 1:
        raise ValueError(f"{name}: expected cutoff >= 1, got {cutoff}")
    if rank.ndim != 1 or rank.size == 0 or not np.issubdtype(rank.dtype, np.integer):
        raise ValueError(f"{name}: expected integer ranks [R >= 1], got {rank.dtype} {list(rank.shape)}")
    if rank.min() < 1:
        raise ValueError(f"{name}: expected ranks >= 1, got {rank.min()}")
    return rank.astype(np.int64)
