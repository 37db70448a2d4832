"""Whether a difference is larger than the scatter of users, and than that of users and seeds; corrected after Holm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Difference(NamedTuple):
    """One method against another on one metric, over the users that both were measured on."""

    mean: float  # the first less the second
    low: float  # the 95 % interval of the mean, of this comparison alone
    high: float
    p: float  # two-sided, corrected for the number of comparisons


def paired_differences(one: NDArray[np.float64], others: Mapping[str, NDArray[np.float64]]) -> dict[str, Difference]:
    """Test `one` against each of `others`: a two-sided paired t-test over users, p-values corrected after Holm.

    The t-test is about the mean that the tables show, and with hundreds of users the mean of even such values as
    NDCG, mostly 0, is near enough to normal; a signed-rank test is about another quantity, and drops the many users
    on whom both methods agree. It says how far a difference holds over users, and nothing of other seeds.

    Args:
        one: `[U] float64`, a metric of each user.
        others: the same users of other methods.

    Raises:
        ValueError: other shapes, or fewer than 2 users.
    """
    from scipy import stats  # here, because every run of a grid would pay for its import

    found = {}
    for name, other in others.items():
        if one.ndim != 1 or one.shape != other.shape or one.size < 2:
            raise ValueError(
                f"paired_differences: expected [U >= 2] values, got {list(one.shape)}, {list(other.shape)}"
            )
        gap = one - other
        mean = float(gap.mean())
        if np.ptp(gap) <= 1e-9 * abs(mean):  # no scatter but rounding: the same for everybody
            found[name] = Difference(mean, mean, mean, float(mean == 0))
            continue
        test = stats.ttest_rel(one, other)
        low, high = test.confidence_interval(0.95)
        found[name] = Difference(mean, float(low), float(high), float(test.pvalue))
    return _corrected(found)


def seed_differences(one: NDArray[np.float64], others: Mapping[str, NDArray[np.float64]]) -> dict[str, Difference]:
    """Test `one` against each of `others` with seeds as random as users are; p-values corrected after Holm.

    The gaps of the same users and the same seeds are `gap[s, u] = mean + user[u] + seed[s] + rest[s, u]`, each term but
    the mean random. With the mean squares `MS` of that two-way table, the mean's variance is estimated by

        V = (E + max(MS_user - E, 0) + max(MS_seed - E, 0)) / (S U),   E = MS_rest,

    which is that of REML in a mixed model where both differences are positive, and the test is a two-sided t-test with
    Satterthwaite's degrees of freedom. Where users alone scatter it is the paired test over users, and where seeds
    do it tends to a t-test over the S differences of seeds.

    Args:
        one: `[S, U] float64`, a metric of each seed and user.
        others: the same seeds and users of other methods.

    Raises:
        ValueError: other shapes, or fewer than 2 seeds or users.

    Source: docs/evaluation.md#tests; Satterthwaite, An approximate distribution of estimates of variance components,
        1946.
    """
    from scipy import stats

    found = {}
    for name, other in others.items():
        if one.ndim != 2 or one.shape != other.shape or min(one.shape) < 2:
            raise ValueError(
                f"seed_differences: expected [S >= 2, U >= 2] values, got {list(one.shape)}, {list(other.shape)}"
            )
        gap = one - other
        mean = float(gap.mean())
        if np.ptp(gap) <= 1e-9 * abs(mean):
            found[name] = Difference(mean, mean, mean, float(mean == 0))
            continue
        variance, freedom = _mean_of_crossed(gap)
        deviation = float(np.sqrt(variance))
        reach = float(stats.t.ppf(0.975, freedom)) * deviation
        found[name] = Difference(
            mean, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / deviation, freedom))
        )
    return _corrected(found)


def _mean_of_crossed(gap: NDArray[np.float64]) -> tuple[float, float]:
    """The variance of the mean of gaps [S, U] by two-way random effects, and its degrees of freedom."""
    seeds, users = gap.shape
    of_seed, of_user = gap.mean(1), gap.mean(0)
    rest = gap - of_seed[:, None] - of_user + gap.mean()
    squares = np.array([seeds * of_user.var(ddof=1), users * of_seed.var(ddof=1), (rest**2).sum()])
    freedoms = np.array([users - 1.0, seeds - 1.0, (seeds - 1.0) * (users - 1.0)])
    squares[2] /= freedoms[2]
    more = squares[:2] > squares[2]
    parts = np.array([*np.where(more, squares[:2], 0.0), (1 - more.sum()) * squares[2]])
    total = parts.sum()
    return float(total / gap.size), float(total**2 / (parts**2 / freedoms).sum())


def _corrected(found: dict[str, Difference]) -> dict[str, Difference]:
    corrected = holm([difference.p for difference in found.values()])
    return {
        name: difference._replace(p=float(p)) for (name, difference), p in zip(found.items(), corrected, strict=True)
    }


def in_words(one: str, other: str, metric: str, difference: Difference, users: int) -> str:
    """The difference as a sentence: how large it is, or that so many users show none (p of 0.05 or more)."""
    interval = f"95 % {difference.low:+.4f} to {difference.high:+.4f}"
    if difference.p >= 0.05:
        return f"{one} over {other}, {metric}: no difference that {users:,} users show ({interval})"
    side = "over" if difference.mean > 0 else "below"
    return f"{one} {side} {other}, {metric}: {difference.mean:+.4f} ({interval} over {users:,} users)"


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down correction: `p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j))` for sorted p; `[m]`.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, values[order] * np.arange(values.size, 0, -1)))
    return corrected
