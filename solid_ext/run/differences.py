"""Which of the differences between a run's models are larger than the users' scatter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solid_ext.evaluate import Metrics, in_words, mean_per_user, ndcg_per_row, paired_differences

TESTED = ("full", "sampled")  # ndcg@10 of these protocols


def differences(found: Mapping[str, Mapping[str, Metrics]], ours: str) -> list[dict[str, Any]]:
    """The model `ours` less each other one, in ndcg@10: mean over users, its 95 % interval, and the same in words.

    Args:
        found: model -> protocol -> metrics of the same rows.

    Returns:
        An entry a protocol and other model; p is corrected after Holm over the models of a protocol. None of fewer
        than two users.
    """
    entries = []
    for protocol in TESTED:
        users = {
            model: mean_per_user(ndcg_per_row(metrics[protocol].ranks, 10), metrics[protocol].users)[1]
            for model, metrics in found.items()
        }
        own = users.pop(ours)
        if own.size < 2:
            continue
        for other, difference in paired_differences(own, users).items():
            entries.append(
                {
                    "model": ours,
                    "other": other,
                    "protocol": protocol,
                    "metric": "ndcg@10",
                    **difference._asdict(),
                    "users": own.size,
                    "in_words": in_words(ours, other, f"{protocol} ndcg@10", difference, own.size),
                }
            )
    return entries
