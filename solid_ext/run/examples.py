"""A few users of the test part: what they did, what came next, what the model recommends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from solid_ext.data import Dataset
from solid_ext.serve.recommend import Recommendation
from solid_ext.solid import SOLID


@dataclass(frozen=True)
class Example:
    """A user's recent titles, what came next in truth, and what the model recommends."""

    user: Any
    watched: list[str]
    actual: str
    recommended: list[Recommendation]


def example_users(solid: SOLID, dataset: Dataset, *, count: int, k: int, seed: int = 0) -> list[Example]:
    """Recommendations for a few random test users, from what they did before their test item."""
    rows = solid.training.split.test
    chosen = np.random.default_rng(seed).choice(len(rows.users), min(count, len(rows.users)), replace=False)
    examples = []
    for row in np.sort(chosen):
        user, position = rows.users[row], rows.positions[row]
        history = dataset.items[dataset.offsets[user] : position]
        raw = dataset.catalogue.raw_items(history)
        examples.append(
            Example(
                dataset.user_ids[int(user)],
                dataset.titles(history[-5:]),
                dataset.titles(dataset.items[position : position + 1])[0],
                solid.recommend([raw], k)[0],
            )
        )
    return examples
