"""A world whose rule is known: planted semantics, drifting taste, and the score that nobody can beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from solid_ext.data.dataset import Dataset
from solid_ext.forked import check_not_forked

FIRST_TIME = 1_577_836_800  # 2020-01-01, so that the times are real seconds since 1970
SECONDS_PER_DAY = 86_400
DAYS_OF_ARRIVAL = 365


@dataclass(frozen=True, eq=False)
class SyntheticTruth:
    """What generated the data, and what an oracle that knows it can reach.

    The next item depends on the last one alone. With s the semantic of the last item, n_c the size of
    semantic c, p = predictability and f = drift:
        P(v | s) = p [(1 - f) 1{sem(v) = successor(s)} / n_sem(v) + f / (C n_sem(v))] + (1 - p) / V.

    Attributes:
        semantics: `[V + 1] int64`, 0 for padding, else 1..C.
        successor: `[C + 1] int64`, one cycle through all semantics.
        names: `[C]` names of the semantics, as the categories of the items have them.
        predictability: p.
        drift: f.
        order: `[V + 1] float64` in [0, 1), all different: how the oracle orders equally likely items.
    """

    semantics: np.ndarray
    successor: np.ndarray
    names: list[str]
    predictability: float
    drift: float
    order: np.ndarray

    def probabilities(self, sequences: np.ndarray) -> np.ndarray:
        """P(next item | sequence); of a sequence of padding alone every item is as likely.

        Args:
            sequences: `[B, L]` integers, right-padded.

        Returns:
            `[B, V + 1] float64`, 0 for padding.
        """
        semantic, column = self._by_semantic(self._last_semantic(sequences))
        return semantic[column][:, self.semantics]

    def oracle_scores(self, sequences: np.ndarray) -> np.ndarray:
        """Scores of the best possible model.

        They rank by probability, and equally likely items in a fixed random order, so that no score ties.

        Args:
            sequences: `[B, L]` integers, right-padded.

        Returns:
            `[B, V + 1] float64`, -inf for padding.
        """
        semantic, column = self._by_semantic(self._last_semantic(sequences))
        scores = _dense_rank(semantic)[column][:, self.semantics] + self.order
        scores[:, 0] = -np.inf
        return scores

    def ceiling(self, sequences: np.ndarray, cutoffs: Sequence[int] = (5, 10, 20)) -> dict[str, float]:
        """Expected hr@K, ndcg@K and mrr of the oracle in full ranking, given the sequences.

        With p_1 >= p_2 >= ... the sorted probabilities of the next item, HR@K = sum_{r <= K} p_r,
        NDCG@K = sum_{r <= K} p_r / log2(r + 1), MRR = sum_r p_r / r, averaged over the sequences.

        Args:
            sequences: `[B, L]` integers, right-padded.
            cutoffs: the K.
        """
        semantic, column = self._by_semantic(self._last_semantic(sequences))
        weights = np.bincount(column, minlength=semantic.shape[0]) / column.size
        expected = np.zeros(self.semantics.size - 1)
        for row, weight in zip(semantic, weights, strict=True):
            expected += weight * np.sort(row[self.semantics[1:]])[::-1]
        rank = np.arange(1, expected.size + 1)
        result = {f"hr@{k}": float(expected[:k].sum()) for k in cutoffs}
        result |= {f"ndcg@{k}": float((expected / np.log2(rank + 1))[:k].sum()) for k in cutoffs}
        return result | {"mrr": float((expected / rank).sum())}

    def _last_semantic(self, sequences: np.ndarray) -> np.ndarray:
        sequences = np.asarray(sequences)
        if sequences.ndim != 2 or sequences.dtype.kind not in "iu" or sequences.shape[0] == 0:
            raise ValueError(
                f"SyntheticTruth: expected sequences [B, L] of integers, got {sequences.dtype} {list(sequences.shape)}"
            )
        if sequences.min(initial=0) < 0 or sequences.max(initial=0) >= self.semantics.size:
            raise ValueError(f"SyntheticTruth: expected items in 0..{self.semantics.size - 1}, got others")
        last = np.maximum((sequences != 0).sum(axis=1) - 1, 0)
        return self.semantics[np.take_along_axis(sequences, last[:, None], axis=1)[:, 0]]

    def _by_semantic(self, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P(an item | last semantic) by the item's semantic: `[S, C + 1]` for S last ones, and `[B]` which."""
        different, column = np.unique(last, return_inverse=True)
        count = self.successor.size - 1
        num_items = self.semantics.size - 1
        sizes = np.bincount(self.semantics, minlength=count + 1)
        per_item = np.zeros(count + 1)
        per_item[1:] = 1.0 / sizes[1:]
        follows = np.arange(count + 1) == self.successor[different][:, None]
        rule = (1.0 - self.drift) * follows * per_item + self.drift / count * per_item
        table = self.predictability * rule + (1.0 - self.predictability) / num_items
        table[different == 0] = 1.0 / num_items
        table[:, 0] = 0.0
        return table, column


def synthetic_dataset(
    num_users: int,
    num_items: int,
    num_semantics: int,
    *,
    predictability: float = 0.9,
    drift: float = 0.1,
    seed: int = 0,
    min_length: int = 5,
    max_length: int = 20,
    name: str = "synthetic",
) -> tuple[Dataset, SyntheticTruth]:
    """Make a dataset in which the last item's semantic decides the next one, and the truth about it.

    Items are spread evenly over C planted semantics, which one hidden cycle puts in order. At every step a
    user follows the rule with probability `predictability`: the next item is a random one of the successor of
    the last item's semantic or, with probability `drift`, of a random semantic, a new taste from which the
    rule goes on. Otherwise it is any item of the catalogue: at 0 nothing can be learned, at 1 without drift
    the next semantic is certain. Item ids tell nothing about semantics; titles and categories do. Times are
    seconds since 1970.

    Args:
        num_users: U, at least 1.
        num_items: V, at least C.
        num_semantics: C, at least 2.
        predictability: p in [0, 1].
        drift: f in [0, 1].
        seed: of everything.
        min_length: shortest history, at least 1.
        max_length: longest history; lengths are uniform between both.
        name: of the dataset.

    Returns:
        The dataset, and what generated it.

    Raises:
        ValueError: values out of range.

    Source: docs/data.md#a-synthetic-world.
    """
    check_not_forked("synthetic_dataset")
    _check(num_users, num_items, num_semantics, predictability, drift, min_length, max_length)
    rng = np.random.default_rng(seed)
    semantics = np.zeros(num_items + 1, dtype=np.int64)
    semantics[1:] = rng.permutation(np.arange(num_items) % num_semantics) + 1
    cycle = rng.permutation(num_semantics) + 1
    successor = np.zeros(num_semantics + 1, dtype=np.int64)
    successor[cycle] = np.roll(cycle, -1)
    width = len(str(num_semantics))
    names = [f"semantic-{semantic:0{width}d}" for semantic in range(1, num_semantics + 1)]
    order = np.concatenate(([0.0], rng.permutation(num_items) / num_items))
    truth = SyntheticTruth(semantics, successor, names, predictability, drift, order)

    lengths = rng.integers(min_length, max_length + 1, size=num_users)
    kept = np.arange(max_length) < lengths[:, None]
    items = _histories(truth, num_users, max_length, rng)[kept]
    timestamps = _times(num_users, max_length, rng)[kept]
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    table = _item_table(truth)
    dataset = Dataset(
        name=name,
        offsets=offsets,
        items=items,
        timestamps=timestamps,
        user_ids=pl.Series("user_id", np.arange(1, num_users + 1, dtype=np.int64)),
        item_ids=table["item_id"],
        item_table=table,
        report={
            "source": f"synthetic, {num_semantics} semantics, seed {seed}",
            "predictability": str(predictability),
            "drift": str(drift),
            "rows_read": items.size,
            "timestamp_unit": "seconds",
        },
    )
    return dataset, truth


def _check(
    num_users: int,
    num_items: int,
    num_semantics: int,
    predictability: float,
    drift: float,
    min_length: int,
    max_length: int,
) -> None:
    if num_users < 1 or not 2 <= num_semantics <= num_items:
        raise ValueError(
            "synthetic_dataset: expected num_users >= 1 and num_items >= num_semantics >= 2, got "
            f"{num_users}, {num_items} and {num_semantics}"
        )
    for name, value in (("predictability", predictability), ("drift", drift)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"synthetic_dataset: expected {name} in [0, 1], got {value}")
    if not 1 <= min_length <= max_length:
        raise ValueError(f"synthetic_dataset: expected 1 <= min_length <= max_length, got {min_length}, {max_length}")


def _histories(truth: SyntheticTruth, num_users: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return [U, length] int32, all users one step further at a time."""
    num_items, count = truth.semantics.size - 1, truth.successor.size - 1
    members = np.argsort(truth.semantics[1:], kind="stable") + 1
    sizes = np.bincount(truth.semantics, minlength=count + 1)
    sizes[0] = 0
    first = np.cumsum(sizes) - sizes
    items = np.empty((num_users, length), dtype=np.int32)
    items[:, 0] = rng.integers(1, num_items + 1, size=num_users)
    for step in range(1, length):
        jumps = rng.random(num_users) < truth.drift
        taste = truth.successor[truth.semantics[items[:, step - 1]]]
        taste = np.where(jumps, rng.integers(1, count + 1, size=num_users), taste)
        by_rule = members[first[taste] + rng.integers(0, sizes[taste])]
        follows = rng.random(num_users) < truth.predictability
        items[:, step] = np.where(follows, by_rule, rng.integers(1, num_items + 1, size=num_users))
    return items


def _times(num_users: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return [U, length] int64 seconds: arrivals over a year, then gaps of a day on average, never zero."""
    arrival = FIRST_TIME + rng.integers(0, DAYS_OF_ARRIVAL * SECONDS_PER_DAY, size=num_users)
    gaps = 1 + rng.exponential(SECONDS_PER_DAY, size=(num_users, length)).astype(np.int64)
    return arrival[:, None] + np.cumsum(gaps, axis=1)


def _item_table(truth: SyntheticTruth) -> pl.DataFrame:
    number = np.arange(1, truth.semantics.size)
    width = len(str(number.size))
    names = pl.Series(truth.names).gather(truth.semantics[1:] - 1)
    table = pl.DataFrame({"number": number, "categories": names})
    padded = pl.col("number").cast(pl.String).str.zfill(width)
    return table.select(
        item_id=pl.lit("item-") + padded,
        title=pl.col("categories").str.to_titlecase() + " No. " + padded,
        categories="categories",
    )


def _dense_rank(table: np.ndarray) -> np.ndarray:
    """Rank every row's values from 0, equal values alike: ranks tie exactly where probabilities do."""
    order = np.argsort(table, axis=1)
    ordered = np.take_along_axis(table, order, axis=1)
    steps = np.concatenate([np.zeros((table.shape[0], 1), dtype=bool), np.diff(ordered, axis=1) > 0], axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.cumsum(steps, axis=1), axis=1)
    return ranks
