"""Popularity: counts, the choice of what is counted, and the published row it has to reproduce."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from solid_ext.data import Dataset, leave_one_out, load_dataset
from solid_ext.evaluate import evaluate_full, evaluate_sampled
from solid_ext.scorers.popularity import Popularity


@pytest.fixture
def tiny() -> Dataset:
    return load_dataset(([1, 1, 1, 1, 2, 2, 2, 3], [1, 2, 2, 3, 2, 1, 4, 4], np.arange(8)))


def test_counts_stop_at_the_end_of_the_part(tiny: Dataset, user_blocks: int) -> None:
    assert Popularity.of_split(tiny, leave_one_out(tiny)).counts.tolist() == [0, 1, 2, 0, 1]
    assert Popularity(tiny, tiny.offsets[1:] - 1).counts.tolist() == [0, 2, 3, 0, 0]
    assert Popularity(tiny, tiny.offsets[1:]).counts.tolist() == [0, 2, 3, 1, 2]
    assert Popularity(tiny, tiny.offsets[:-1]).counts.tolist() == [0] * 5


def test_scores_are_the_smoothed_log_odds(tiny: Dataset) -> None:
    scorer = Popularity(tiny, tiny.offsets[1:], length=3)
    state = scorer.encode(torch.zeros(2, scorer.length, dtype=torch.int64))
    shared = scorer.score(state, torch.tensor([1, 2, 4]))
    expected = np.log([2.5 / 6.5, 3.5 / 5.5, 2.5 / 6.5])
    np.testing.assert_allclose(shared.numpy(), [expected, expected], rtol=1e-12)
    own = scorer.score(state, torch.tensor([[1, 2, 4], [2, 2, 1]]))
    assert own[0].tolist() == shared[0].tolist()
    assert own[1].tolist() == shared[0, [1, 1, 0]].tolist()
    assert shared[0, 0] == shared[0, 2]  # equal counts are an exact tie


def test_an_empty_part_makes_every_item_equal(tiny: Dataset) -> None:
    scorer = Popularity(tiny, tiny.offsets[:-1])
    ranks = evaluate_full(scorer, tiny, leave_one_out(tiny).test).ranks
    assert (ranks == tiny.num_items).all()


@pytest.mark.parametrize(
    ("end", "length", "message"),
    [
        ([4, 7], 1, r"Popularity: expected train_end \[U=3\], got \[2\]"),
        ([4, 8, 8], 1, r"Popularity: expected train_end of user 1 in 4\.\.7, got 8"),
        ([4, 3, 8], 1, r"Popularity: expected train_end of user 1 in 4\.\.7, got 3"),
        ([4, 7, 8], 0, "Popularity: expected length >= 1, got 0"),
    ],
)
def test_bad_input_gets_a_sentence(tiny: Dataset, end: list[int], length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Popularity(tiny, np.array(end), length)


def test_reproduces_the_row_measured_elsewhere_on_amazon_scientific(shared_data: Path) -> None:
    """Counting the training part gives the known figures; counting the validation items too does not."""
    dataset = load_dataset(shared_data / "amazon_scientific")
    split = leave_one_out(dataset)
    scorer = Popularity.of_split(dataset, split, length=10)

    full = evaluate_full(scorer, dataset, split.test)
    assert (round(full["ndcg@10"], 4), round(full["hr@10"], 4)) == (0.0171, 0.0309)
    unseen = evaluate_full(scorer, dataset, split.test, exclude_history=True)
    assert (round(unseen["ndcg@10"], 4), round(unseen["hr@10"], 4)) == (0.0180, 0.0316)

    # Sampling noise of 8442 rows: half a point in HR@10, a third of that in the areas.
    sampled = evaluate_sampled(scorer, dataset, split.test)
    assert sampled["user_auc"] == pytest.approx(0.628, abs=0.003)
    assert sampled["ndcg@10"] == pytest.approx(0.174, abs=0.004)
    assert sampled["hr@10"] == pytest.approx(0.300, abs=0.006)

    later = Popularity(dataset, dataset.offsets[1:] - 1, length=10)
    assert round(evaluate_full(later, dataset, split.test)["ndcg@10"], 4) == 0.0172
    assert evaluate_sampled(later, dataset, split.test)["user_auc"] == pytest.approx(0.640, abs=0.003)
