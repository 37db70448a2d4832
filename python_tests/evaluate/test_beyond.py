"""Beyond accuracy: RecTools' answers, values by hand, and what no list or no category does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from torch import Tensor

from solid_ext import SOLID, Dataset
from solid_ext.data import Rows
from solid_ext.evaluate import beyond_accuracy
from solid_ext.scorers import Popularity
from solid_ext.serve.lists import evaluate_beyond, recommended_lists

KNOWN = json.loads(Path(__file__).with_name("beyond_rectools.json").read_text(encoding="utf-8"))


def dataset(interactions: list[list[int]], num_items: int, categories: dict[int, str | None] | None) -> Dataset:
    """Users 0 .. U - 1 with items 1 .. V, in this order."""
    users = np.array([user for user, _ in interactions])
    ids = pl.Series("item_id", range(1, num_items + 1))
    table = ids.to_frame()
    if categories is not None:
        table = table.with_columns(pl.Series("categories", [categories.get(item) for item in ids], dtype=pl.String))
    return Dataset(
        "known",
        np.concatenate(([0], np.cumsum(np.bincount(users)))).astype(np.int64),
        np.array([item for _, item in interactions], np.int32),
        None,
        pl.Series("user_id", range(int(users.max()) + 1)),
        ids,
        table,
    )


def padded(lists: list[list[int]], k: int) -> np.ndarray:
    return np.array([own + [0] * (k - len(own)) for own in lists])


def test_the_four_are_those_of_rectools(user_blocks: int) -> None:
    categories = {int(item): "|".join(names) for item, names in KNOWN["categories"].items()}
    data = dataset(KNOWN["interactions"], 25, categories)
    found = beyond_accuracy(padded(KNOWN["lists"], 10), data, data.offsets[1:])
    assert found == pytest.approx(KNOWN["answers"], rel=1e-6)


@pytest.fixture
def small() -> Dataset:
    """User 0 had 1, 2, 1 and (held out) 3; user 1 had 1; user 2 had 2 and 4; items 5 and 6 nobody."""
    interactions = [[0, 1], [0, 2], [0, 1], [0, 3], [1, 1], [2, 2], [2, 4]]
    return dataset(interactions, 6, {1: "a|b", 2: "b | a", 3: "a", 4: " c ", 5: None, 6: ""})


def test_values_by_hand(small: Dataset) -> None:
    end = small.offsets[1:].copy()
    end[0] -= 1
    found = beyond_accuracy(np.array([[1, 2, 3], [4, 5, 0]]), small, end)
    # Training part: 6 interactions of 3 users; item 1 thrice by 2 users, item 2 twice by 2, item 4 once.
    two, one = np.log2(3 / 2), np.log2(3)
    assert found == pytest.approx(
        {
            "coverage@3": 5 / 6,
            "novelty@3": ((two + two + one) / 3 + (one + one) / 2) / 2,
            "popularity@3": ((3 + 2 + 0) / 6 / 3 + (1 + 0) / 6 / 2) / 2,
            "diversity@3": (0 + 1 / 2 + 1 / 2) / 3,  # the second list has no pair with categories
        }
    )


def test_blocks_of_lists_change_nothing(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = np.array([[1, 2, 3], [4, 3, 0], [4, 1, 2], [5, 6, 1], [1, 0, 0]])
    expected = beyond_accuracy(lists, small, small.offsets[1:])
    monkeypatch.setattr("solid_ext.evaluate.beyond._PAIRS", 4)
    assert beyond_accuracy(lists, small, small.offsets[1:]) == pytest.approx(expected, rel=1e-12)
    assert expected["diversity@3"] == pytest.approx(((0 + 1 / 2 + 1 / 2) / 3 + 1 + (1 + 1 + 0) / 3) / 3)


def test_without_categories_there_is_no_diversity(small: Dataset) -> None:
    plain = dataset([[0, 1], [1, 2]], 3, None)
    assert set(beyond_accuracy(np.array([[1, 2]]), plain, plain.offsets[1:])) == {
        "coverage@2",
        "novelty@2",
        "popularity@2",
    }
    assert "diversity@2" not in beyond_accuracy(np.array([[5, 6], [1, 0]]), small, small.offsets[1:])


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        ([[1, 2]], r"expected lists \[R, k\] of integers, got list"),
        (np.array([1, 2]), r"expected lists \[R, k\] of integers, got int64 \[2\]"),
        (np.array([[1.0]]), r"expected lists \[R, k\] of integers, got float64 \[1, 1\]"),
        (np.array([[0, 0]]), r"expected lists of items 1..6, 0 where there are no more, got 0..0"),
        (np.array([[7, 1]]), r"got 1..7"),
        (np.array([[-1, 1]]), r"got -1..1"),
        (np.zeros((0, 3), int), r"got none"),
    ],
)
def test_other_lists_get_a_sentence(small: Dataset, lists: Any, sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^beyond_accuracy: .*{sentence}"):
        beyond_accuracy(lists, small, small.offsets[1:])


class HighestFirst:
    length = 2

    def encode(self, sequences: Tensor) -> int:
        return len(sequences)

    def score(self, state: int, candidates: Tensor) -> Tensor:
        return candidates.expand(state, -1).float()


def test_the_lists_are_the_best_items_outside_the_history_before_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset([[0, 6], [0, 5], [0, 1], [1, 4], [1, 4], [1, 6], [2, 1], [2, 2], [2, 3]], 6, None)
    rows = Rows(np.arange(3), data.offsets[1:] - 1)
    expected = [[4, 3, 2, 1, 0], [6, 5, 3, 2, 1], [6, 5, 4, 3, 0]]
    assert recommended_lists(HighestFirst(), data, rows, 5).tolist() == expected
    monkeypatch.setattr("solid_ext.serve.lists.ROWS", 2)
    assert recommended_lists(HighestFirst(), data, rows, 5).tolist() == expected


def test_popularity_is_least_novel_and_a_model_s_numbers_stand_beside_its_accuracy(world: Any) -> None:
    data, _ = world
    tiny = {"length": 5, "dim": 16, "heads": 2, "codebook_hidden": 16, "eval_negatives": 20}
    solid = SOLID(**tiny, epochs=1).fit(data)
    found = solid.evaluate()
    assert list(found) == ["sampled", "full", "beyond"]
    split = solid.training.split
    assert found["beyond"] == evaluate_beyond(solid.scorer, data, split)
    popular = solid.evaluate_scorer(Popularity.of_split(data, split))["beyond"]
    assert popular["novelty@10"] < found["beyond"]["novelty@10"]
    assert popular["popularity@10"] > found["beyond"]["popularity@10"]
    assert 10 / data.num_items <= popular["coverage@10"] <= 1
