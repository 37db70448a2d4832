"""What may be recommended: blacklists and whitelists for all histories or for each, against a mask over all scores."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from solid_ext import SOLID, Dataset
from solid_ext.data import Catalogue
from solid_ext.evaluate.scorer import inference
from solid_ext.serve import recommend, top_items
from solid_ext.serve.top_items import Rules

V = 501


class Table:
    """Scores from a table with ties, a row a history: the first item of the history is its row."""

    length = 40

    def __init__(self) -> None:
        self.scores = (torch.randn(V, V, generator=torch.Generator().manual_seed(0)) * 4).round()
        self.widest = 0

    def encode(self, sequences: Tensor) -> Tensor:
        return self.scores[sequences[:, 0] - 1]

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        self.widest = max(self.widest, candidates.shape[-1])
        return state[:, candidates - 1]


def lists(rng: np.random.Generator, rows: int, most: int) -> list[Tensor]:
    return [torch.from_numpy(rng.integers(1, V + 1, rng.integers(0, most))) for _ in range(rows)]


def by_masking(scores: Tensor, histories: list[Tensor], k: int, exclude_history: bool, rules: Rules) -> list[list[int]]:
    """The rules by their definition, over all scores at once."""
    found = []
    for row, history in enumerate(histories):
        allowed = torch.ones(V + 1, dtype=torch.bool)
        allowed[0] = False
        if rules.include is not None:
            own = rules.include if isinstance(rules.include, Tensor) else rules.include[row]
            allowed[:] = False
            allowed[own] = True
        if rules.exclude is not None:
            allowed[rules.exclude if isinstance(rules.exclude, Tensor) else rules.exclude[row]] = False
        if exclude_history:
            allowed[history] = False
        value = torch.where(allowed[1:], scores[history[0] - 1], -torch.inf)
        order = value.sort(descending=True, stable=True).indices[:k]
        found.append([int(item) + 1 for item in order if allowed[item + 1]])
    return found


@pytest.mark.parametrize("exclude_history", [True, False])
@pytest.mark.parametrize("include", ["none", "all", "each", "few", "nothing"])
@pytest.mark.parametrize("exclude", ["none", "all", "each"])
def test_rules_are_those_of_a_mask_over_all_scores(exclude: str, include: str, exclude_history: bool) -> None:
    rng = np.random.default_rng(7)
    histories = [torch.cat([torch.from_numpy(rng.integers(1, V + 1, 1)), more]) for more in lists(rng, 23, 30)]
    nothing = torch.zeros(0, dtype=torch.int64)
    rules = Rules(
        {"none": None, "all": lists(rng, 1, 300)[0], "each": lists(rng, 23, 200)}[exclude],
        {"none": None, "all": torch.arange(3, 400, 2), "each": lists(rng, 23, 90), "few": torch.tensor([7, 4, 4])}.get(
            include, nothing
        ),
    )
    for item_block in (None, 13, 64):
        for k in (1, 7, 600):
            table = Table()
            scores, items = top_items(table, V, histories, k, exclude_history, item_block=item_block, rules=rules)
            assert scores.shape == items.shape == (23, k)
            expected = by_masking(table.scores, histories, k, exclude_history, rules)
            assert [row[kept].tolist() for row, kept in zip(items, scores > -torch.inf, strict=True)] == expected


def test_rules_of_each_history_follow_it_from_block_to_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["solid_ext.serve.top_items"], "ROWS", 4)
    rng = np.random.default_rng(1)
    histories = [torch.tensor([row + 1]) for row in range(23)]
    rules = Rules(lists(rng, 23, 100), lists(rng, 23, 100))
    table = Table()
    scores, items = top_items(table, V, histories, 9, True, rules=rules)
    expected = by_masking(table.scores, histories, 9, True, rules)
    assert [row[kept].tolist() for row, kept in zip(items, scores > -torch.inf, strict=True)] == expected


def test_of_a_whitelist_no_other_item_is_scored() -> None:
    table = Table()
    top_items(table, V, [torch.tensor([1])] * 5, 3, True, rules=Rules(include=torch.tensor([5, 9, 200])))
    assert table.widest == 3


CATALOGUE = Catalogue(pl.DataFrame({"item_id": np.arange(10, 10 + V)}))


@pytest.mark.parametrize(
    "form", [lambda ids: ids, tuple, np.array, pl.Series, lambda ids: [str(each) for each in ids], torch.tensor]
)
def test_rules_are_given_in_raw_ids_of_any_form(form: Any) -> None:
    plain = [entry.item for entry in recommend(Table(), CATALOGUE, [[11], [12]], 5)[0]]
    left = [entry.item for entry in recommend(Table(), CATALOGUE, [[11], [12]], 5, exclude=form(plain[:2]))[0]]
    assert left[:3] == plain[2:]
    kept = [entry.item for entry in recommend(Table(), CATALOGUE, [[11], [12]], 5, include=form(plain[:2]))[0]]
    assert kept == plain[:2]
    each = recommend(Table(), CATALOGUE, [[11], [12]], 5, include=[form(plain[:2]), form([20])])
    assert [[entry.item for entry in row] for row in each] == [plain[:2], [20]]


def test_unknown_ids_of_a_rule_are_refused_or_read_over() -> None:
    for what in ("exclude", "include"):
        with pytest.raises(
            ValueError, match=rf"recommend: expected items of the catalogue in {what}, got 'x', .*reads {what} without"
        ):
            recommend(Table(), CATALOGUE, [[11]], 3, **{what: [12, "x"]})
        ignored = recommend(Table(), CATALOGUE, [[11]], 3, unknown="ignore", **{what: [12, "x"]})
        assert ignored == recommend(Table(), CATALOGUE, [[11]], 3, **{what: [12]})
    assert recommend(Table(), CATALOGUE, [[11]], 3, include=["x"], unknown="ignore") == [[]]
    assert recommend(Table(), CATALOGUE, [[11]], 3, include=[]) == [[]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"exclude": "11"}, "expected exclude as a list of item ids for all .* or as a list of lists.*, got '11'"),
        ({"include": 11}, "expected include as a list of item ids for all .*, got 11"),
        ({"include": {11, 12}}, "expected include as a list of item ids for all .*, got {1"),
        ({"exclude": [11, [12]]}, "got a list in which 1 of 2 entries are lists"),
        ({"exclude": [[11], [12], [13]]}, "expected exclude for all histories or for each of 2, got 3 lists"),
        ({"include": [[11]]}, "expected include for all histories or for each of 2, got 1 lists"),
        ({"include": [True]}, "expected item ids as numbers, text or times, got True"),
        ({"exclude": [None]}, "expected items of the catalogue in exclude, got None"),
        ({"exclude_history": "no"}, "expected exclude_history True or False, got 'no'"),
    ],
)
def test_bad_rules_get_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^(recommend|item_index): .*{sentence}"):
        recommend(Table(), CATALOGUE, [[11], [12]], 3, **arguments)


def test_a_trained_model_with_neighbours_and_newcomers_obeys(skewed: tuple[Dataset, SOLID]) -> None:
    """The kept item table, sparse neighbours and popularity are read by place, not by item."""
    data, solid = skewed
    scorer, ids = solid.scorer, data.item_ids.to_list()
    histories = [[ids[row], ids[row + 3]] for row in range(12)] + [[]]
    sequences = torch.zeros(13, scorer.length, dtype=torch.int64)
    for row in range(12):
        sequences[row, 0], sequences[row, 1] = row + 1, row + 4
    with inference(scorer) as asked:
        scores = asked.score(asked.encode(sequences), torch.arange(1, data.num_items + 1))
    include = list(range(2, data.num_items, 3))
    with pytest.warns(UserWarning, match="1 of 13"):
        found = solid.recommend(histories, 8, include=[ids[row] for row in include], exclude_history=False)
    for row, entries in enumerate(found):
        best = scores[row, include].sort(descending=True, stable=True)
        assert [entry.score for entry in entries] == pytest.approx(best.values[:8].tolist(), rel=1e-4, abs=1e-5)
