"""Recommendations: exact top items in blocks, raw ids in and out, sentences for what cannot be served."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from solid_ext.data import Catalogue
from solid_ext.serve import recommend, top_items


class LastItemPlus:
    """Scores item v by -|v - (last item + 1)|: the item after the last one is best."""

    length = 3

    def encode(self, sequences: Tensor) -> Tensor:
        last = (sequences > 0).sum(1) - 1
        return sequences.gather(1, last.clamp(min=0).unsqueeze(1)).float()

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        return -(candidates.float() - state - 1.01).abs()


CATALOGUE = Catalogue(
    pl.DataFrame({"item_id": [10, 20, 30, 40, 50], "title": ["ten", "twenty", None, "forty", "fifty"]})
)


def test_the_best_items_by_raw_id_and_title() -> None:
    found = recommend(LastItemPlus(), CATALOGUE, [[10, 20], ["30"]], 2)
    assert [[(entry.item, entry.title) for entry in row] for row in found] == [
        [(30, "30"), (40, "forty")],
        [(40, "forty"), (50, "fifty")],
    ]
    assert found[0][0].score == pytest.approx(-0.01, abs=1e-4)


def test_history_is_left_out_whole_even_beyond_the_length_that_is_read() -> None:
    found = recommend(LastItemPlus(), CATALOGUE, [[50, 40, 30, 20, 10]], 5)
    assert found == [[]]
    kept = recommend(LastItemPlus(), CATALOGUE, [[50, 40, 30, 20, 10]], 5, exclude_history=False)
    assert [entry.item for entry in kept[0]] == [20, 30, 10, 40, 50]


def test_blocks_never_change_the_answer() -> None:
    torch.manual_seed(0)
    table = torch.randn(4, 501)

    class Table:
        length = 2

        def encode(self, sequences: Tensor) -> Tensor:
            return table[: len(sequences)]

        def score(self, state: Tensor, candidates: Tensor) -> Tensor:
            return state[:, candidates]

    histories = [
        torch.tensor([1, 2]),
        torch.tensor([500]),
        torch.arange(1, 400),
        torch.zeros(0, dtype=torch.int64),
    ]
    expected = top_items(Table(), 500, histories, 7, True)
    scores = table.clone()
    scores[:, 0] = -torch.inf
    for row, history in enumerate(histories):
        scores[row, history] = -torch.inf
    assert torch.equal(expected[1], scores.topk(7, dim=1).indices)
    blocks = top_items(Table(), 500, histories, 7, True, item_block=13)
    assert torch.equal(blocks[1], expected[1])
    assert torch.equal(blocks[0], expected[0])


def test_an_empty_history_and_no_history_at_all() -> None:
    assert len(recommend(LastItemPlus(), CATALOGUE, [[]], 3)[0]) == 3
    assert recommend(LastItemPlus(), CATALOGUE, [], 3) == []


def test_more_than_there_is_gives_what_there_is() -> None:
    assert len(recommend(LastItemPlus(), CATALOGUE, [[10]], 99)[0]) == 4


def test_an_unknown_item_gets_a_sentence_or_is_ignored_on_request() -> None:
    with pytest.raises(ValueError, match="recommend: expected items of the catalogue, got 99, which is not in it"):
        recommend(LastItemPlus(), CATALOGUE, [[10, 99]], 2)
    found = recommend(LastItemPlus(), CATALOGUE, [[10, 99]], 2, unknown="ignore")
    assert found == recommend(LastItemPlus(), CATALOGUE, [[10]], 2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"k": 0}, "expected k of at least 1, got 0"),
        ({"histories": ["10"]}, "expected each history to be a list of item ids, got '10'"),
        ({"unknown": "skip"}, "expected unknown 'error' or 'ignore', got 'skip'"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    settings = {"k": 1, "histories": [[10]], "unknown": "error", **arguments}
    histories, k = settings.pop("histories"), settings.pop("k")
    with pytest.raises(ValueError, match=sentence):
        recommend(LastItemPlus(), CATALOGUE, histories, k, **settings)


def test_scores_are_those_of_the_whole_history_read() -> None:
    index = CATALOGUE.item_index([10, 20, 30, 40])
    assert np.array_equal(index, [1, 2, 3, 4])
    assert recommend(LastItemPlus(), CATALOGUE, [[10, 20, 30, 40]], 1)[0][0].item == 50
