"""Recommendations: exact top items in blocks, raw ids in and out, sentences for what cannot be served."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import Tensor

from solid_ext import SOLID, Config, Dataset
from solid_ext.data import Catalogue, leave_one_out
from solid_ext.evaluate import evaluate_full
from solid_ext.scorers import Popularity, WithNewcomers
from solid_ext.serve import recommend, top_items

TINY = Config().replace(length=5, dim=16, heads=2, codebook_hidden=16, batch_size=512, epochs=1, eval_negatives=20)


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
    with pytest.warns(UserWarning, match="without an item that the model knows: 1 of 2; they get what a newcomer gets"):
        assert len(recommend(LastItemPlus(), CATALOGUE, [[], [10]], 3)[0]) == 3
    assert recommend(LastItemPlus(), CATALOGUE, [], 3) == []


def test_more_than_there_is_gives_what_there_is() -> None:
    assert len(recommend(LastItemPlus(), CATALOGUE, [[10]], 99)[0]) == 4


def test_an_unknown_item_gets_a_sentence_or_is_ignored_on_request() -> None:
    with pytest.raises(ValueError, match="recommend: expected items of the catalogue, got 99, which is not in it"):
        recommend(LastItemPlus(), CATALOGUE, [[10, 99]], 2)
    found = recommend(LastItemPlus(), CATALOGUE, [[10, 99]], 2, unknown="ignore")
    assert found == recommend(LastItemPlus(), CATALOGUE, [[10]], 2)


def test_missing_ids_of_every_kind_are_ignored_on_request() -> None:
    expected = recommend(LastItemPlus(), CATALOGUE, [[10]], 2)
    missing = [None, float("nan"), pd.NA, pd.NaT, Decimal("NaN"), np.datetime64("NaT")]
    for history in ([10, *missing], pd.Series([10, None], dtype="Int64"), [Decimal("10.0")], [torch.tensor(10)]):
        assert recommend(LastItemPlus(), CATALOGUE, [history], 2, unknown="ignore") == expected


def test_an_id_of_any_length_is_shown_in_short() -> None:
    for odd, start in (("x" * 400, "'xxx"), (10**400, "1000"), (10**5000, "an integer of 16,610 bits")):
        with pytest.raises(ValueError, match=f"expected items of the catalogue, got {start}") as refused:
            recommend(LastItemPlus(), CATALOGUE, [[10, odd]], 2)
        assert len(str(refused.value)) < 250
        assert recommend(LastItemPlus(), CATALOGUE, [[10, odd]], 2, unknown="ignore")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"histories": torch.ones(1, 2, device="meta")}, "a list of histories, .* got tensor.*meta"),
        (
            {"histories": [torch.ones(2, device="meta")]},
            "expected each history to be a list of item ids, got tensor.*m",
        ),
        ({"histories": [[torch.ones((), device="meta")]]}, "expected numbers, text or times, got tensor.*meta"),
        ({"k": 0}, "expected k of at least 1, got 0"),
        ({"unknown": "skip"}, "expected unknown 'error' or 'ignore', got 'skip'"),
        ({"k": 2.5}, "expected k as an integer, got 2.5"),
        ({"k": True}, "expected k as an integer, got True"),
        ({"k": "3"}, "expected k as an integer, got '3'"),
        ({"k": None}, "expected k as an integer, got None"),
        ({"histories": ["10"]}, r"expected each history to be a list of item ids, got '10' as history 0"),
        ({"histories": [10, 20]}, r"got 10 as history 0 \(one history is a list in a list: \[\[a, b\]\]\)"),
        ({"histories": [[10], None]}, "got None as history 1"),
        ({"histories": [{10, 20}]}, "got {10, 20} as history 0"),
        ({"histories": np.array([10, 20])}, "got 10 as history 0"),
        ({"histories": "abc"}, "expected a list of histories, each a list of item ids, got 'abc'"),
        ({"histories": None}, "expected a list of histories, each a list of item ids, got None"),
        ({"histories": 7}, "expected a list of histories, each a list of item ids, got 7"),
        ({"histories": {"u": [10]}}, "expected a list of histories, .* got {'u': "),
        ({"histories": pl.DataFrame({"item_id": [10]})}, "expected a list of histories, .* got DataFrame"),
        ({"histories": [[[10]]]}, r"expected item ids as numbers, text or times, got \[10\]"),
        ({"histories": [[True]]}, "expected item ids as numbers, text or times, got True"),
        ({"histories": [[b"10"]]}, "expected item ids as numbers, text or times, got b'10'"),
        ({"histories": [[None]]}, "expected items of the catalogue, got None, which is not in it"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    settings = {"k": 1, "histories": [[10]], "unknown": "error", **arguments}
    histories, k = settings.pop("histories"), settings.pop("k")
    with pytest.raises((ValueError, TypeError), match=f"^(recommend|item_index): .*{sentence}"):
        recommend(LastItemPlus(), CATALOGUE, histories, k, **settings)


@pytest.mark.parametrize(
    "histories",
    [
        ((10, 20), (30,)),
        [np.array([10, 20]), np.array([30])],
        [torch.tensor([10, 20]), torch.tensor([30])],
        [pl.Series([10, 20]), ["30"]],
        pl.Series([[10, 20], [30]]),
        [[10.0, "20"], [np.int32(30)]],
        np.array([[10, 20], [30, 30]]),
    ],
)
def test_histories_in_any_ordered_form(histories: Any) -> None:
    assert recommend(LastItemPlus(), CATALOGUE, histories, 2) == recommend(
        LastItemPlus(), CATALOGUE, [[10, 20], [30]], 2
    )


def test_equal_scores_are_in_the_order_of_the_items_whatever_k_and_blocks() -> None:
    class Coarse:
        length = 1

        def encode(self, sequences: Tensor) -> Tensor:
            return sequences

        def score(self, state: Tensor, candidates: Tensor) -> Tensor:
            return (candidates % 3).double().expand(len(state), -1).contiguous()

    histories = [torch.tensor([2, 5]), torch.tensor([1])]
    order = [item for rest in (2, 1, 0) for item in range(1, 301) if item % 3 == rest]
    for k in (1, 7, 150, 300):
        for item_block in (7, 100, 1000):
            scores, items = top_items(Coarse(), 300, histories, k, True, item_block=item_block)
            for row, history in enumerate(histories):
                expected = [item for item in order if item not in history.tolist()][:k]
                assert items[row][scores[row] > -torch.inf].tolist() == expected
    assert scores.dtype == torch.float64


def test_many_histories_are_answered_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(LastItemPlus):
        largest = 0

        def score(self, state: Tensor, candidates: Tensor) -> Tensor:
            scores = super().score(state, candidates)
            self.largest = max(self.largest, scores.numel())
            return scores

    whole, watched = Watched(), Watched()
    catalogue = Catalogue(pl.DataFrame({"item_id": np.arange(500)}))
    histories = [[i % 500, (3 * i) % 500] for i in range(300)]
    expected = recommend(whole, catalogue, histories, 3)
    assert whole.largest == 300 * 500
    monkeypatch.setattr(sys.modules["solid_ext.serve.top_items"], "SCORES", 20_000)
    assert recommend(watched, catalogue, histories, 3) == expected
    assert watched.largest == 300 * 64


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_scores_that_are_not_finite_are_refused(value: float, word: str) -> None:
    class Broken(LastItemPlus):
        def score(self, state: Tensor, candidates: Tensor) -> Tensor:
            return super().score(state, candidates).masked_fill(candidates == 3, value)

    with pytest.raises(ValueError, match=f"recommend: expected finite scores, got {word} for item 3"):
        recommend(Broken(), CATALOGUE, [[10]], 2)


def most_popular(data: Dataset, k: int) -> list[int]:
    """Counted by hand: every user's items but the last two; equal counts in the order of the items."""
    counts = np.zeros(data.num_items + 1)
    for user in range(data.num_users):
        np.add.at(counts, data.items[data.offsets[user] : data.offsets[user + 1] - 2], 1)
    order = np.argsort(-counts[1:], kind="stable")[:k]
    return [data.item_ids[int(row)] for row in order]


def test_newcomers_get_the_most_popular_items_and_are_told(skewed: tuple[Dataset, SOLID]) -> None:
    data, solid = skewed
    known = [data.item_ids.head(3).to_list()]
    with pytest.warns(
        UserWarning, match=r"knows: 2 of 3; they get what a newcomer gets, the most popular items"
    ) as told:
        none, strange, usual = solid.recommend([[], ["no such item"], *known], 10, unknown="ignore")
    assert len(told) == 1
    assert [entry.item for entry in none] == [entry.item for entry in strange] == most_popular(data, 10)
    assert [entry.item for entry in usual] == [entry.item for entry in solid.recommend(known, 10)[0]]
    assert [entry.score for entry in none] == sorted((entry.score for entry in none), reverse=True)


def test_a_saved_model_knows_what_is_popular(skewed: tuple[Dataset, SOLID], tmp_path: Any) -> None:
    data, solid = skewed
    loaded = SOLID.load(solid.save(tmp_path / "model"))
    with pytest.warns(UserWarning, match="the most popular items"):
        assert [entry.item for entry in loaded.recommend([[]], 10)[0]] == most_popular(data, 10)


def test_evaluation_measures_what_newcomers_are_served(skewed: tuple[Dataset, SOLID]) -> None:
    data, solid = skewed
    rows = leave_one_out(data).test.take(slice(0, 1))
    scorer = solid.scorer
    empty = torch.zeros(1, scorer.length, dtype=torch.int64)
    popular = Popularity.of_split(data, leave_one_out(data), length=scorer.length)
    shown = torch.arange(1, data.num_items + 1)
    expected = popular.score(popular.encode(empty), shown).float()
    assert torch.equal(scorer.score(scorer.encode(empty), shown), expected)
    assert evaluate_full(scorer, data, rows).values == evaluate_full(scorer.model, data, rows).values


def test_newcomers_beside_others_change_nothing_for_them() -> None:
    scorer = WithNewcomers(LastItemPlus(), torch.tensor([5, 1, 9, 0, 3]))
    sequences = torch.tensor([[1, 2, 0], [0, 0, 0]])
    items = torch.tensor([[1, 3, 5], [1, 3, 5]])
    plain = LastItemPlus()
    both = scorer.score(scorer.encode(sequences), items[0])
    assert torch.equal(both[0], plain.score(plain.encode(sequences), items[0])[0])
    assert both[1].argsort(descending=True).tolist() == [1, 0, 2]
    assert both[1, 0] == pytest.approx(np.log(5.5 / 13.5))


def test_threads_that_ask_get_the_same_bits_and_write_nothing(skewed: tuple[Dataset, SOLID]) -> None:
    """Also of a model that was left in training mode, with dropout and a codebook that counts what it sees."""
    data, _ = skewed
    solid = SOLID(TINY).fit(data)
    network = solid.model
    assert network is not None
    network.train()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ids = data.item_ids.to_list()
    histories = [[ids[(i + 3 * j) % len(ids)] for j in range(1 + i % 7)] for i in range(64)]
    expected = solid.recommend(histories, 5), solid.evaluate(), solid.code_usage().tolist()

    def ask(place: int) -> bool:
        if place % 4 == 0:
            return solid.evaluate() == expected[1] and solid.code_usage().tolist() == expected[2]
        return all(solid.recommend(histories, 5) == expected[0] for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(16)))
    assert [module.training for module in network.modules()] == modes
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    network.eval()
    assert solid.recommend(histories, 5) == expected[0]


FORKED = """
import os, torch
from solid_ext import SOLID
solid = SOLID.load({folder!r})
torch.set_num_threads(2)
torch.randn(600, 600) @ torch.randn(600, 600)  # starts the threads that a fork leaves behind
histories = [[{item!r}]] * 500
{before}
child = os.fork()
if child == 0:
    os._exit(len(solid.recommend(histories, 3)) != 500)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize("before", ["", "expected = solid.recommend(histories, 3)"])
def test_a_forked_process_answers(skewed: tuple[Dataset, SOLID], tmp_path: Any, before: str) -> None:
    data, solid = skewed
    code = FORKED.format(folder=str(solid.save(tmp_path / "model")), item=data.item_ids[0], before=before)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.communicate(timeout=60)[0] == b"0\n"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_scores_are_those_of_the_whole_history_read() -> None:
    index = CATALOGUE.item_index([10, 20, 30, 40])
    assert np.array_equal(index, [1, 2, 3, 4])
    assert recommend(LastItemPlus(), CATALOGUE, [[10, 20, 30, 40]], 1)[0][0].item == 50


def test_a_default_device_of_the_caller_does_not_matter() -> None:
    expected = recommend(LastItemPlus(), CATALOGUE, [[10], [20, 30]], 2)
    with torch.device("meta"):
        assert recommend(LastItemPlus(), CATALOGUE, [[10], [20, 30]], 2) == expected


def test_a_model_is_loaded_and_asked_without_torch_s_compiler(skewed: tuple[Dataset, SOLID], tmp_path: Any) -> None:
    """Importing it takes longer than all the rest of an answer on the command line."""
    data, solid = skewed
    code = f"""
import sys
import torch
own = set(sys.modules)  # torch 2.6 imports sympy by itself
from solid_ext.cli import main
main(["recommend", "--run", {str(solid.save(tmp_path / "model"))!r}, "--history", "{data.item_ids[0]}", "--json"])
print(*(name for name in ("torch._dynamo", "sympy", "matplotlib", "sklearn") if name in sys.modules.keys() - own))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
