"""Writes the known answers of `test_beyond.py` with RecTools, in an environment of its own:

pip install rectools==0.19.0 && python python_tests/evaluate/beyond_rectools.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import rectools
from rectools.metrics import AvgRecPopularity, CatalogCoverage, IntraListDiversity, MeanInvUserFreq
from rectools.metrics.distances import PairwiseDistanceCalculator

USERS, ITEMS, LISTS, K = 30, 25, 20, 10


class Jaccard(PairwiseDistanceCalculator):
    """The distance of two items' sets of categories."""

    def __init__(self, categories: dict[int, list[str]]) -> None:
        self.categories = {item: set(names) for item, names in categories.items()}

    def _get_distances_for_item_pairs(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        sets = [(self.categories[a], self.categories[b]) for a, b in zip(left, right, strict=True)]
        return np.array([1 - len(a & b) / len(a | b) for a, b in sets])


def main() -> None:
    rng = np.random.default_rng(0)
    # Item 25 and others of the tail are in no interaction, and some users have an item twice.
    counts = rng.integers(1, 9, USERS)
    interactions = [[user, int(min(rng.zipf(1.5), 22))] for user in range(USERS) for _ in range(counts[user])]
    categories = {
        item: sorted({f"c{c}" for c in rng.integers(0, 6, rng.integers(1, 4))}) for item in range(1, ITEMS + 1)
    }
    lists = [(rng.permutation(ITEMS)[: rng.integers(4, K + 1)] + 1).tolist() for _ in range(LISTS)]
    lists = [[item for item in own if item != 13] for own in lists]
    reco = pd.DataFrame(
        [(row, item, rank) for row, own in enumerate(lists) for rank, item in enumerate(own, 1)],
        columns=["user_id", "item_id", "rank"],
    )
    before = pd.DataFrame(interactions, columns=["user_id", "item_id"])
    answers = {
        "coverage@10": CatalogCoverage(K, normalize=True).calc(reco, catalog=np.arange(1, ITEMS + 1)),
        "novelty@10": MeanInvUserFreq(K).calc(reco, before),
        "popularity@10": AvgRecPopularity(K, normalize=True).calc(reco, before),
        "diversity@10": IntraListDiversity(K, Jaccard(categories)).calc(reco),
    }
    found = {
        "rectools": rectools.__version__,
        "interactions": interactions,
        "categories": {str(item): names for item, names in categories.items()},
        "lists": lists,
        "answers": {name: float(value) for name, value in answers.items()},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
