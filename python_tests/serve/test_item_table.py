"""The item table: an answer never comes from items as they were, and is what scoring every item gives."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from python_tests.untrained import random_similarity
from solid_ext import SOLID
from solid_ext.data import Catalogue
from solid_ext.evaluate.scorer import in_eval_mode
from solid_ext.models import DynamicRecommender
from solid_ext.scorers import ItemKNN, Popularity, WithNeighbours
from solid_ext.scorers.finetune import fine_tuned
from solid_ext.serve import ItemTable, recommend, top_items

ITEMS, SEMANTICS = 700, 12
STATIC = {"semantic_trunk": False, "item_branch": False}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "target mlp": {"target": "mlp"},
    "without features": {"item_features": False},
    "fine-tuned": {**STATIC, "finetune_steps": 2},
    "din": {"backbone": "din"},
    "float64": {"dtype": "float64"},
}


def untrained(neighbours: bool = True, **fields: Any) -> SOLID:
    """A model of random parameters, half of whose items resemble none of the others and score exactly alike."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    solid = SOLID(dim=16, heads=2, length=5, codebook_hidden=16, dropout=0.1, **fields)
    semantics = np.concatenate([[0], np.arange(ITEMS) % SEMANTICS + 1])
    features = torch.randn(ITEMS + 1, 8, generator=generator)
    alike = torch.arange(ITEMS + 1) % 2 == 0
    features[alike] = 0
    dtype = getattr(torch, solid.config.train.dtype)
    model = DynamicRecommender(solid.config.model, ITEMS, semantics, features).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.item_embedding.weight[alike] = 0
    solid.model = model.eval()
    ids = [f"item {number}" for number in range(ITEMS)]
    solid.catalogue = Catalogue(pl.DataFrame({"item_id": ids, "title": [i.upper() for i in ids]}), np.arange(ITEMS) % 9)
    if neighbours:
        similarity = random_similarity(ITEMS + 1, 0.05, rng)
        solid.neighbours = WithNeighbours(fine_tuned(model), ItemKNN.of(similarity, model.length), 2.0, 0.8)
    return solid


def histories(count: int, seed: int = 0) -> list[list[str]]:
    """Of 0 to 30 items."""
    rng = np.random.default_rng(seed)
    return [[f"item {item}" for item in rng.integers(ITEMS, size=rng.integers(0, 31))] for _ in range(count)]


def plainly(solid: SOLID, asked: list[list[str]], k: int, exclude: bool = True) -> tuple[list[list[str]], list[Tensor]]:
    """Every item scored for each history, the history's left out, the rest sorted: raw ids and scores."""
    ids = solid.catalogue.table["item_id"].to_list()
    number = {raw: place + 1 for place, raw in enumerate(ids)}
    sequences = torch.zeros(len(asked), solid.model.length, dtype=torch.int64)
    for row, history in enumerate(asked):
        for place, raw in enumerate(history[-solid.model.length :]):
            sequences[row, place] = number[raw]
    scorer = in_eval_mode(solid.scorer)
    with torch.inference_mode():
        scores = scorer.score(scorer.encode(sequences), torch.arange(1, ITEMS + 1))
    items, values = [], []
    for row, history in enumerate(asked):
        order = scores[row].sort(descending=True, stable=True).indices.tolist()
        kept = [v for v in order if not (exclude and ids[v] in history)][:k]
        items.append([ids[v] for v in kept])
        values.append(scores[row, kept])
    return items, values


def check(solid: SOLID, asked: list[list[str]], k: int = 9, exclude: bool = True) -> None:
    items, values = plainly(solid, asked, k, exclude)
    with pytest.warns(UserWarning, match="get what a newcomer gets"):  # some of the histories are empty
        found = solid.recommend(asked, k, exclude_history=exclude)
    assert [[entry.item for entry in row] for row in found] == items
    for row, expected in zip(found, values, strict=True):
        torch.testing.assert_close(torch.tensor([entry.score for entry in row], dtype=expected.dtype), expected)


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_recommendations_are_what_scoring_every_item_and_sorting_gives(kind: str, neighbours: bool) -> None:
    solid = untrained(neighbours, **KINDS[kind])
    count = 4 if kind == "din" else 40
    asked = [[], *histories(count)]
    for k in (1, 9, 600):
        check(solid, asked, k)
    check(solid, asked, exclude=False)


def test_blocks_and_chunks_of_a_model_with_neighbours_change_nothing() -> None:
    solid = untrained()
    asked = [torch.from_numpy(np.random.default_rng(row).integers(1, ITEMS + 1, 8)) for row in range(20)]
    whole = top_items(solid.scorer, ITEMS, asked, 9, True)
    for block in (64, 100, 256, 699):
        scores, items = top_items(solid.scorer, ITEMS, asked, 9, True, item_block=block)
        assert torch.equal(items, whole[1])
        torch.testing.assert_close(scores, whole[0])


def in_place(solid: SOLID) -> None:
    with torch.no_grad():
        solid.model.item_embedding.weight[7].fill_(2.0)


def in_inference_mode(solid: SOLID) -> None:
    with torch.inference_mode():
        solid.model.item_embedding.feature_map[3, 3] = 5.0


def of_another_view(solid: SOLID) -> None:
    with torch.no_grad():
        solid.model.item_embedding.weight.flatten()[16 * 9 : 16 * 10] = 1.0


def features(solid: SOLID) -> None:
    solid.model.item_embedding.features[5] = 3.0


def optimizer_step(solid: SOLID) -> None:
    optimizer = torch.optim.Adam(solid.model.parameters(), 0.5)
    solid.model.item_embedding(torch.tensor([3])).sum().backward()
    optimizer.step()


def state_dict(solid: SOLID) -> None:
    other = untrained().model
    with torch.no_grad():
        other.item_embedding.weight.neg_()
    solid.model.load_state_dict(other.state_dict())


def new_parameter(solid: SOLID) -> None:
    solid.model.item_embedding.weight = nn.Parameter(-solid.model.item_embedding.weight.detach())


def new_data(solid: SOLID) -> None:
    solid.model.item_embedding.weight.data = -solid.model.item_embedding.weight.data


def written_through_data(solid: SOLID) -> None:
    solid.model.item_embedding.weight.data.neg_()


def column_through_numpy(solid: SOLID) -> None:
    solid.model.item_embedding.weight.detach().numpy()[:, 3] += 1


def another_model(solid: SOLID) -> None:
    other = copy.deepcopy(solid.model)
    with torch.no_grad():
        other.item_embedding.weight.neg_()
    solid.model, solid.neighbours = other, None


def another_precision(solid: SOLID) -> None:
    solid.model.double()


def another_target(solid: SOLID) -> None:
    solid.model.target = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))


EDITS = [in_place, in_inference_mode, of_another_view, features, optimizer_step, state_dict, new_parameter, new_data,
         written_through_data, column_through_numpy, another_model, another_precision, another_target]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_model_answers_as_it_now_is(edit: Callable[[SOLID], None]) -> None:
    solid = untrained()
    asked = [[], *histories(10)]
    before = plainly(solid, asked, ITEMS)[1]
    check(solid, asked)
    edit(solid)
    after = plainly(solid, asked, ITEMS)[1]
    assert any(not torch.equal(old, new.to(old)) for old, new in zip(before, after, strict=True)), "an edit that shows"
    check(solid, asked)


def test_an_edit_of_the_target_tower_is_seen() -> None:
    solid = untrained(target="mlp")
    check(solid, [[], *histories(10)])
    with torch.no_grad():
        solid.model.target[0].bias.add_(1.0)
    check(solid, [[], *histories(10)])
    solid.model.target[1] = nn.ReLU()
    check(solid, [[], *histories(10)])


def test_a_model_made_in_inference_mode_whose_edits_nothing_counts_is_read_each_time() -> None:
    solid = untrained()
    with torch.inference_mode():
        solid.model = copy.deepcopy(solid.model)
        solid.neighbours = None
    check(solid, [[], *histories(10)])
    with torch.inference_mode():
        solid.model.item_embedding.weight[7].fill_(2.0)
    check(solid, [[], *histories(10)])


def test_the_keys_are_computed_once_and_forgotten_on_request() -> None:
    model, table = untrained().model, ItemTable()
    keys = table.of(model)
    assert keys.shape == (ITEMS, 16)
    assert table.of(model) is keys
    assert table.of(in_eval_mode(model.train())) is keys
    table.forget()
    again = table.of(model)
    assert again is not keys
    assert torch.equal(again, keys)


def test_without_features_and_target_tower_the_table_is_the_embedding_itself() -> None:
    model = untrained(item_features=False).model
    assert ItemTable().of(model).data_ptr() == model.item_embedding.weight[1:].data_ptr()


def test_a_default_of_autocast_is_not_kept() -> None:
    model, table = untrained().model, ItemTable()
    with torch.autocast("cpu", torch.bfloat16):
        keys = table.of(model)
    assert torch.equal(keys, ItemTable().of(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda solid: pickle.loads(pickle.dumps(solid))])
def test_a_copy_of_a_model_that_was_asked_answers_alike(copied: Callable[[SOLID], SOLID]) -> None:
    solid = untrained()
    asked = [history for history in histories(10) if history]
    expected = solid.recommend(asked, 5)
    other = copied(solid)
    assert other.recommend(asked, 5) == expected
    assert isinstance(other._table, ItemTable)


def test_a_scorer_of_ones_own_keeps_its_scores() -> None:
    scores = torch.arange(ITEMS, dtype=torch.float32)
    kept = scores.clone()

    class Own:
        length = 3

        def encode(self, sequences: Tensor) -> int:
            return len(sequences)

        def score(self, state: int, candidates: Tensor) -> Tensor:
            return scores[int(candidates[0]) - 1 : int(candidates[-1])].expand(state, -1)

    assert top_items(Own(), ITEMS, [torch.tensor([ITEMS]), torch.tensor([1])], 2, True)[1].tolist() == [
        [ITEMS - 1, ITEMS - 2],
        [ITEMS, ITEMS - 1],
    ]
    assert torch.equal(scores, kept)


def test_a_model_with_a_score_of_its_own_is_asked_for_it() -> None:
    solid = untrained(neighbours=False)

    class Backwards(DynamicRecommender):
        def score(self, state: Any, candidates: Tensor) -> Tensor:
            return -super().score(state, candidates)

    usual = plainly(solid, [["item 1"]], 1)
    solid.model.__class__ = Backwards
    check(solid, [[], ["item 1"]])
    assert plainly(solid, [["item 1"]], 1) != usual


def test_threads_that_begin_together_compute_one_table_and_get_the_same_bits() -> None:
    solid, alone = untrained(), untrained()
    asked = [history for history in histories(30) if history]
    expected = alone.recommend(asked, 9)
    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(lambda _: solid.recommend(asked, 9), range(24)))


def test_popularity_alone_is_recommended_beside_what_was_seen() -> None:
    popular = Popularity.__new__(Popularity)
    popular.length, popular._scores = 3, torch.arange(ITEMS + 1).double()
    solid = untrained()
    assert [entry.item for entry in recommend(popular, solid.catalogue, [["item 699"]], 2)[0]] == [
        "item 698",
        "item 697",
    ]
