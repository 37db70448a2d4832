"""A model with its neighbours: the formula by hand, the choice of the weight, and SOLID around it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from solid_ext import SOLID, load_dataset
from solid_ext.data import Dataset, SyntheticTruth
from solid_ext.models import ItemKNN, WithNeighbours, choose_neighbours

TINY = {"length": 5, "dim": 16, "heads": 2, "codebook_hidden": 16, "epochs": 2, "batch_size": 256, "candidates": 20}


class ByItem:
    """A scorer whose logit of an item is a tenth of its number."""

    length = 4

    def encode(self, sequences: Tensor) -> Tensor:
        return sequences

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        return candidates.expand(len(state), -1).double() / 10


@pytest.fixture
def knn() -> ItemKNN:
    """Users 1 2 | 1 2 | 2 3 | 4: S[1, 2] = 2 / sqrt(2 * 3), S[2, 3] = 1 / sqrt(3 * 1), all others 0."""
    dataset = load_dataset(([1, 1, 2, 2, 3, 3, 4], [1, 2, 1, 2, 2, 3, 4], np.arange(7)))
    return ItemKNN(dataset, dataset.offsets[1:], 4)


def test_the_logits_are_the_formula_by_hand(knn: ItemKNN) -> None:
    scorer = WithNeighbours(ByItem(), knn, 2.0, 0.1)
    state = scorer.encode(torch.tensor([[2, 0, 0, 0], [1, 3, 1, 0], [0, 0, 0, 0]]))
    one_two, two_three = 2 / math.sqrt(6), 1 / math.sqrt(3)
    similar = np.array(
        [[one_two, 0, two_three, 0], [0, (one_two + two_three) / math.sqrt(3), 0, 0], [0, 0, 0, 0]]
    )  # the second history has three items, of which one is counted once
    expected = np.arange(1, 5) / 10 + 2 * np.log1p(similar / 0.1)
    np.testing.assert_allclose(scorer.score(state, torch.arange(1, 5)), expected, rtol=1e-6)
    own = torch.tensor([[3, 1], [2, 2], [4, 1]])
    np.testing.assert_allclose(
        scorer.score(state, own), np.take_along_axis(expected, own.numpy() - 1, axis=1), rtol=1e-6
    )


def test_the_weight_and_the_floor_are_those_of_the_best_validation(knn: ItemKNN) -> None:
    asked = []

    def validate(scorer: WithNeighbours) -> float:
        asked.append((scorer.weight, scorer.floor))
        return -abs(scorer.weight - 1.6) - abs(scorer.floor - 0.02)

    chosen = choose_neighbours(ByItem(), knn, validate)
    assert (chosen.weight, chosen.floor) == (1.5, 0.01)
    assert len(asked) == 9
    assert choose_neighbours(ByItem(), knn, lambda scorer: 0.5).weight == 0


def test_weights_and_floors_out_of_range_are_refused(knn: ItemKNN) -> None:
    with pytest.raises(ValueError, match="expected weight >= 0, got -1"):
        WithNeighbours(ByItem(), knn, -1.0, 0.1)
    with pytest.raises(ValueError, match="expected floor > 0, got 0"):
        WithNeighbours(ByItem(), knn, 1.0, 0.0)


def test_solid_with_neighbours_is_saved_whole(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    dataset, _ = world
    plain = SOLID(**TINY, neighbours=False).fit(dataset)
    solid = SOLID(**TINY).fit(dataset)
    assert solid.neighbours is not None
    assert solid.neighbours.weight > 0, "two epochs know less than the neighbourhood does"
    for name, tensor in plain.scorer.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(tensor, solid.neighbours.model.state_dict()[name]), "the network itself is the same"
    measured = solid.evaluate()
    assert measured["sampled"]["ndcg@10"] > plain.evaluate()["sampled"]["ndcg@10"]
    solid.save(tmp_path / "model")
    loaded = SOLID.load(tmp_path / "model")
    assert loaded.evaluate(dataset) == measured
    history = dataset.item_ids.head(4).to_list()
    assert loaded.recommend([history], 5) == solid.recommend([history], 5)
    (tmp_path / "model" / "neighbours.safetensors").write_bytes(b"no neighbours")
    with pytest.raises(ValueError, match="load: expected neighbours in"):
        SOLID.load(tmp_path / "model")
