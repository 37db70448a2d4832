"""Whether a difference is larger than the users' own scatter: a paired t-test over users, corrected after Holm."""

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
