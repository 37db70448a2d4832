"""Both evaluation protocols against brute force, known answers and each other."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn

from solid_ext import SOLID, Config
from solid_ext.data import Dataset, Rows, leave_one_out, load_dataset
from solid_ext.evaluate import (
    evaluate_full,
    evaluate_sampled,
    full_ranks,
    sampled_candidates,
    sampled_scores,
)
from solid_ext.evaluate.scorer import in_eval_mode
from solid_ext.models import DynamicRecommender


class LatticeScorer:
    """Small integer dot products: exact in any order of summation, and full of ties."""

    length = 4

    def __init__(self, num_items: int, seed: int = 0, values: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.table = torch.from_numpy(rng.integers(-values, values + 1, (num_items + 1, 3))).float()

    def encode(self, sequences: Tensor) -> Tensor:
        return self.table[sequences].sum(dim=1)

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        items = self.table[candidates]
        return state @ items.T if candidates.dim() == 1 else (items @ state[:, :, None]).squeeze(2)


class TableScorer:
    """Scores from a fixed `[B, V + 1]` table, row after row in the order of the calls to `encode`."""

    length = 3

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.seen = 0

    def encode(self, sequences: Tensor) -> Tensor:
        self.seen += len(sequences)
        return self.table[self.seen - len(sequences) : self.seen]

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        return state[:, candidates] if candidates.dim() == 1 else state.gather(1, candidates)


def world(num_users: int = 40, num_items: int = 150, longest: int = 30, seed: int = 0) -> Dataset:
    """Ragged histories with repeated items."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest + 1, num_users)
    users = np.repeat(np.arange(num_users), lengths)
    items = np.minimum(rng.geometric(6 / num_items, users.size), num_items)
    items[rng.permutation(users.size)[:num_items]] = np.arange(1, num_items + 1)  # each item exists
    times = np.arange(users.size)
    return load_dataset((users, items, times))


def every_row(dataset: Dataset) -> Rows:
    """A row for every interaction with a history, so several per user."""
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    positions = np.arange(dataset.num_interactions)
    inside = positions > dataset.offsets[users]
    return Rows(users[inside], positions[inside])


def brute_force_rank(dataset: Dataset, rows: Rows, row: int, scores: Tensor, exclude_history: bool) -> int:
    target = int(dataset.items[rows.positions[row]])
    before = set(dataset.items[dataset.offsets[rows.users[row]] : rows.positions[row]].tolist())
    rank = 1
    for item in range(1, dataset.num_items + 1):
        if item == target or (exclude_history and item in before):
            continue
        rank += bool(scores[item] >= scores[target])
    return rank


@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("item_block", [1, 31, 32, 10_000])
def test_full_ranks_equal_brute_force(exclude_history: bool, batch_size: int, item_block: int) -> None:
    dataset = world(num_users=12, num_items=60, longest=20)
    rows = every_row(dataset)
    table = torch.randint(0, 9, (len(rows.users), dataset.num_items + 1)).float()
    found = full_ranks(
        TableScorer(table),
        dataset,
        rows,
        exclude_history=exclude_history,
        batch_size=batch_size,
        item_block=item_block,
    )
    expected = [brute_force_rank(dataset, rows, row, table[row], exclude_history) for row in range(len(rows.users))]
    assert found.tolist() == expected


def test_a_repeated_target_stays_in_the_ranking_and_is_counted_once() -> None:
    dataset = load_dataset(([1, 1, 1, 1, 2], [1, 2, 1, 1, 3], [1, 2, 3, 4, 5]))
    rows = Rows(np.array([0]), np.array([3]))  # history 1, 2, 1; target 1
    table = torch.tensor([[9.0, 5.0, 6.0, 5.0]])
    assert full_ranks(TableScorer(table), dataset, rows).tolist() == [3]
    assert full_ranks(TableScorer(table), dataset, rows, exclude_history=True).tolist() == [2]


def test_an_item_that_comes_later_is_not_history() -> None:
    dataset = load_dataset(([1, 1, 1, 2], [1, 2, 3, 4], [1, 2, 3, 4]))
    rows = Rows(np.array([0]), np.array([1]))  # history 1; target 2; item 3 comes later
    table = torch.tensor([[0.0, 9.0, 1.0, 5.0, 0.0]])
    assert full_ranks(TableScorer(table), dataset, rows, exclude_history=True).tolist() == [2]


def test_padding_is_never_a_competitor() -> None:
    dataset = world()
    rows = leave_one_out(dataset).test
    table = torch.zeros(len(rows.users), dataset.num_items + 1)
    table[:, 0] = 100.0
    table[torch.arange(len(rows.users)), torch.from_numpy(dataset.items[rows.positions]).long()] = 1.0
    assert (full_ranks(TableScorer(table), dataset, rows) == 1).all()


def test_a_model_without_an_opinion_comes_last() -> None:
    dataset = world()
    rows = leave_one_out(dataset).test
    constant = torch.zeros(len(rows.users), dataset.num_items + 1)
    assert (full_ranks(TableScorer(constant), dataset, rows) == dataset.num_items).all()
    sampled = evaluate_sampled(TableScorer(constant), dataset, rows)
    assert (sampled.ranks == 100).all()
    assert sampled["auc"] == sampled["user_auc"] == 0.5
    assert sampled["hr@20"] == 0.0


@pytest.mark.parametrize("item_block", [10, 64, 10_000])
def test_a_collapsed_model_comes_last_in_floating_point_too(item_block: int) -> None:
    class Collapsed:
        """All items share one embedding, so all scores are one number up to rounding."""

        length = 2

        def encode(self, sequences: Tensor) -> Tensor:
            return torch.randn(len(sequences), 64, generator=torch.Generator().manual_seed(0))

        def score(self, state: Tensor, candidates: Tensor) -> Tensor:
            return state @ torch.linspace(-1.3, 2.1, 64).expand(*candidates.shape, 64).contiguous().T

    dataset = world()
    rows = leave_one_out(dataset).test
    ranks = full_ranks(Collapsed(), dataset, rows, item_block=item_block, batch_size=16)
    assert (ranks == dataset.num_items).all()


@pytest.mark.parametrize("exclude_history", [False, True])
def test_metrics_do_not_depend_on_batch_size_or_item_block(exclude_history: bool) -> None:
    dataset = world()
    rows, scorer = every_row(dataset), LatticeScorer(150)
    reference = evaluate_full(scorer, dataset, rows, exclude_history=exclude_history)
    for batch_size, item_block in [(1, 1000), (3, 32), (33, 31), (5000, 149)]:
        other = evaluate_full(
            scorer,
            dataset,
            rows,
            exclude_history=exclude_history,
            batch_size=batch_size,
            item_block=item_block,
        )
        assert other.to_dict() == reference.to_dict()
        assert (other.ranks == reference.ranks).all()
    sampled = evaluate_sampled(scorer, dataset, rows)
    for batch_size in (1, 37, 5000):
        assert evaluate_sampled(scorer, dataset, rows, batch_size=batch_size).to_dict() == sampled.to_dict()


@pytest.mark.parametrize("exclude_history", [False, True])
def test_full_ranking_does_not_depend_on_the_order_of_rows(exclude_history: bool) -> None:
    dataset = world()
    rows, scorer = every_row(dataset), LatticeScorer(150)
    order = np.random.default_rng(0).permutation(len(rows.users))
    ranks = full_ranks(scorer, dataset, rows, exclude_history=exclude_history)
    again = full_ranks(scorer, dataset, rows.take(order), exclude_history=exclude_history)
    assert (again == ranks[order]).all()


def test_no_call_is_larger_than_a_batch_and_a_block() -> None:
    class Watched(LatticeScorer):
        largest = 0

        def score(self, state: Tensor, candidates: Tensor) -> Tensor:
            scores = super().score(state, candidates)
            self.largest = max(self.largest, scores.numel())
            return scores

    scorer = Watched(150)
    dataset = world()
    full_ranks(scorer, dataset, every_row(dataset), batch_size=8, item_block=20)
    assert scorer.largest <= 8 * (20 + 8)


def test_an_oracle_reaches_one_and_its_opposite_zero() -> None:
    dataset = world()
    rows = leave_one_out(dataset).test
    table = torch.zeros(len(rows.users), dataset.num_items + 1)
    table[torch.arange(len(rows.users)), torch.from_numpy(dataset.items[rows.positions]).long()] = 50.0
    for metrics in (
        evaluate_sampled(TableScorer(table), dataset, rows),
        evaluate_full(TableScorer(table), dataset, rows),
        evaluate_full(TableScorer(table), dataset, rows, exclude_history=True),
    ):
        assert {name for name, value in metrics.values.items() if value != 1.0} <= {"log_loss"}
    opposite = evaluate_sampled(TableScorer(-table), dataset, rows)
    assert opposite["user_auc"] == opposite["auc"] == opposite["ndcg@20"] == 0.0


def test_a_random_model_is_at_chance() -> None:
    dataset = world(num_users=3000, longest=6)
    rows = leave_one_out(dataset).test
    table = torch.randn(len(rows.users), dataset.num_items + 1, generator=torch.Generator().manual_seed(1))
    sampled = evaluate_sampled(TableScorer(table), dataset, rows)
    # 3000 rows: a mean of uniform ranks has a standard error of .29 / sqrt(3000) = .005
    assert sampled["user_auc"] == pytest.approx(0.5, abs=0.025)
    assert sampled["hr@10"] == pytest.approx(0.1, abs=0.025)
    full = evaluate_full(TableScorer(table), dataset, rows)
    assert full["hr@10"] == pytest.approx(10 / dataset.num_items, abs=0.025)
    assert full["mrr"] == pytest.approx((1 / np.arange(1, dataset.num_items + 1)).mean(), abs=0.015)


def test_sampled_metrics_equal_scikit_learn_on_the_raw_scores() -> None:
    dataset = world()
    rows, scorer = every_row(dataset), LatticeScorer(150, values=1)
    scores = sampled_scores(scorer, dataset, rows, sampled_candidates(dataset, rows, seed=3))
    labels = np.zeros(scores.shape)
    labels[:, 0] = 1
    metrics = evaluate_sampled(scorer, dataset, rows, seed=3)
    assert scores.dtype == np.float32
    assert metrics["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels.ravel(), scores.ravel()), abs=1e-12)
    per_user = [
        sklearn.metrics.roc_auc_score(labels[rows.users == user].ravel(), scores[rows.users == user].ravel())
        for user in np.unique(rows.users)
    ]
    assert metrics["user_auc"] == pytest.approx(np.mean(per_user), abs=1e-12)


def test_candidates_are_the_target_and_distinct_items_the_user_never_had() -> None:
    dataset = world()
    rows = every_row(dataset)
    candidates = sampled_candidates(dataset, rows, negatives=99, seed=1)
    assert candidates.shape == (len(rows.users), 100)
    assert (candidates[:, 0] == dataset.items[rows.positions]).all()
    for user, line in zip(rows.users, candidates, strict=True):
        own = dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]]
        assert len(set(line.tolist())) == 100
        assert not np.isin(line[1:], own).any()
    assert candidates.min() >= 1
    assert candidates.max() <= dataset.num_items
    assert (sampled_candidates(dataset, rows, negatives=99, seed=1) == candidates).all()
    assert (sampled_candidates(dataset, rows, negatives=99, seed=2) != candidates).any()


def test_a_user_with_few_unseen_items_is_ranked_among_them() -> None:
    dataset = load_dataset(([1, 1, 1, 1, 2, 2, 2], [1, 2, 2, 3, 4, 5, 6], np.arange(7)))
    rows = leave_one_out(dataset).test
    assert {tuple(sorted(line[1:])) for line in sampled_candidates(dataset, rows, negatives=3).tolist()} == {
        (4, 5, 6),
        (1, 2, 3),
    }
    more = sampled_candidates(dataset, rows, negatives=99)
    assert more.shape == (2, 4)
    assert {tuple(sorted(line[1:])) for line in more.tolist()} == {(4, 5, 6), (1, 2, 3)}


def crowded() -> tuple[Dataset, Rows]:
    """30 users of 12 items: user 0 had all of them, user 1 all but one, the others 3 to 9."""
    rng = np.random.default_rng(0)
    counts = [12, 11, *rng.integers(3, 10, 28)]
    items = [rng.permutation(12)[:count] for count in counts]
    dataset = load_dataset((np.repeat(np.arange(30), counts), np.concatenate(items), np.arange(sum(counts))))
    return dataset, leave_one_out(dataset).test


def test_metrics_of_ragged_candidates_are_those_of_a_loop_over_the_rows() -> None:
    dataset, rows = crowded()
    table = torch.tensor(np.random.default_rng(1).integers(0, 4, (30, 13)).astype(np.float64))
    candidates = sampled_candidates(dataset, rows, negatives=6)
    unseen = [12 - len(set(dataset.items[a:b].tolist())) for a, b in pairwise(dataset.offsets)]
    assert [int((line > 0).sum()) - 1 for line in candidates] == [min(count, 6) for count in unseen]
    assert unseen[:2] == [0, 1]
    metrics = evaluate_sampled(TableScorer(table), dataset, rows, candidates=candidates, cutoffs=(2,))
    scores, labels, areas, ranks = [], [], [], []
    # TableScorer scores a row by its place.
    for row, line in enumerate(candidates.tolist()):
        own, others = table[row, line[0]].item(), table[row, [item for item in line[1:] if item]].numpy()
        ranks.append(1 + int((others >= own).sum()))
        areas.append(((others < own).mean() + (others == own).mean() / 2) if len(others) else 0.5)
        if len(others):
            scores += [own, *others]
            labels += [1] + [0] * len(others)
    np.testing.assert_allclose(metrics.areas, areas, rtol=1e-12)
    assert metrics.ranks.tolist() == ranks
    assert metrics["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), rel=1e-12)
    assert metrics["user_auc"] == pytest.approx(np.mean(areas[1:]), rel=1e-12)
    assert metrics["hr@2"] == pytest.approx(np.mean([rank <= 2 for rank in ranks[1:]]), rel=1e-12)
    losses = [np.log1p(np.exp(-score if label else score)) for score, label in zip(scores, labels, strict=True)]
    assert metrics["log_loss"] == pytest.approx(np.mean(losses), rel=1e-12)


def test_users_who_all_had_everything_are_refused_by_name() -> None:
    dataset = load_dataset(([1] * 4 + [2] * 4, [1, 2, 3, 1, 3, 2, 1, 1], np.arange(8)))
    with pytest.raises(ValueError, match="expected users with items that they never had, got every one of 3 items"):
        sampled_candidates(dataset, leave_one_out(dataset).test)


def test_a_single_row_and_a_cutoff_beyond_the_candidates() -> None:
    dataset = world()
    rows = leave_one_out(dataset).test.take(np.array([4]))
    scorer = LatticeScorer(150)
    for metrics in (
        evaluate_sampled(scorer, dataset, rows, negatives=3, cutoffs=(1, 1000)),
        evaluate_full(scorer, dataset, rows, cutoffs=(1, 1000)),
    ):
        assert metrics["hr@1000"] == 1.0
        assert metrics.ranks.shape == metrics.users.shape == (1,)
        assert metrics["ndcg@1000"] == pytest.approx(1 / np.log2(metrics.ranks[0] + 1))


def test_history_exclusion_of_thousands_of_items() -> None:
    rng = np.random.default_rng(0)
    dataset = load_dataset(
        (np.repeat([1, 2], [3000, 5]), np.append(rng.permutation(3000), np.arange(5)), np.arange(3005))
    )
    rows = leave_one_out(dataset).test
    constant = torch.zeros(2, dataset.num_items + 1)
    ranks = full_ranks(TableScorer(constant), dataset, rows, exclude_history=True, item_block=700)
    assert ranks.tolist() == [1, 3000 - 4]


class Module(nn.Module):
    """Notes the mode and the autograd state it is called in."""

    length = 5

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Dropout(0.5).eval()
        self.live = nn.Dropout(0.5)
        self.embedding = nn.Embedding(151, 4)
        self.calls: list[tuple[bool, bool]] = []

    def encode(self, sequences: Tensor) -> Tensor:
        self.calls.append((self.live.training, torch.is_inference_mode_enabled()))
        assert sequences.shape[1] == self.length
        return self.embedding(sequences).sum(1)

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        return torch.einsum(
            "bd,b...d->b..." if candidates.dim() == 2 else "bd,td->bt", state, self.embedding(candidates)
        )


@pytest.mark.parametrize("evaluate", [evaluate_full, evaluate_sampled])
def test_a_model_is_evaluated_in_eval_mode_and_keeps_its_modes(evaluate) -> None:
    dataset, model = world(), Module()
    evaluate(model, dataset, leave_one_out(dataset).test)
    assert model.calls == [(False, True)] * len(model.calls)
    assert model.calls
    assert model.training
    assert model.live.training
    assert not model.frozen.training


def test_a_model_never_leaves_its_mode_while_it_is_asked() -> None:
    """Not for a moment: another thread that trains, or asks, would see it."""
    dataset, model = world(), Module()
    modes = [module.training for module in model.modules()]
    seen = []

    class Watching(Module):
        def encode(self, sequences: Tensor) -> Tensor:
            seen.append([module.training for module in model.modules()] == modes)
            assert self.embedding.weight is model.embedding.weight
            assert not any(module.training for module in self.modules())
            return super().encode(sequences)

    model.__class__ = Watching
    evaluate_full(model, dataset, leave_one_out(dataset).test)
    assert seen
    assert all(seen)


def test_a_model_in_eval_mode_is_asked_itself_and_shared_parts_stay_one() -> None:
    model = Module()
    model.again = model.live
    view = in_eval_mode(model)
    assert view is not model
    assert view.again is view.live is not model.live
    assert view.frozen.p == 0.5
    model.eval()
    assert in_eval_mode(model) is model


def test_modes_stay_after_an_error_too() -> None:
    dataset, model = world(), Module()
    nn.init.constant_(model.embedding.weight, float("nan"))
    with pytest.raises(ValueError, match="got NaN"):
        evaluate_full(model, dataset, leave_one_out(dataset).test)
    assert model.training
    assert not model.frozen.training


def test_a_plain_object_with_modes_is_asked_in_eval_mode_and_keeps_its_own() -> None:
    class Wrapper(LatticeScorer):
        training = True

        def eval(self) -> None:
            self.training = False

        def train(self, mode: bool) -> None:
            self.training = mode

        def encode(self, sequences: Tensor) -> Tensor:
            assert not self.training
            return super().encode(sequences)

    dataset, scorer = world(), Wrapper(150)
    evaluate_full(scorer, dataset, leave_one_out(dataset).test)
    assert scorer.training


def test_tensors_go_to_the_device_of_the_scorer() -> None:
    class OnMeta(LatticeScorer):
        device = "meta"

        def encode(self, sequences: Tensor) -> Tensor:
            assert sequences.device.type == "meta"
            raise InterruptedError

    dataset = world()
    for evaluate in (evaluate_full, evaluate_sampled):
        with pytest.raises(InterruptedError):
            evaluate(OnMeta(150), dataset, leave_one_out(dataset).test)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_gives_the_same_ranks_for_exact_scores(dtype: torch.dtype) -> None:
    dataset = world()
    rows = leave_one_out(dataset).test
    table = torch.randint(0, 50, (len(rows.users), dataset.num_items + 1))
    assert (
        full_ranks(TableScorer(table.to(dtype)), dataset, rows) == full_ranks(TableScorer(table.float()), dataset, rows)
    ).all()
    candidates = sampled_candidates(dataset, rows)
    scores = sampled_scores(TableScorer(table.to(dtype)), dataset, rows, candidates)
    assert scores.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    assert (scores == sampled_scores(TableScorer(table.float()), dataset, rows, candidates)).all()


@pytest.mark.parametrize("name", ["evaluate_full", "evaluate_sampled"])
@pytest.mark.parametrize(
    ("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")]
)
def test_scores_that_are_not_finite_are_refused(name: str, value: float, word: str) -> None:
    dataset = world()
    rows = leave_one_out(dataset).test.take(np.arange(3))
    evaluate = {"evaluate_full": evaluate_full, "evaluate_sampled": evaluate_sampled}[name]
    table = torch.zeros(3, dataset.num_items + 1)
    target = int(dataset.items[rows.positions[1]])
    table[1, target] = value
    with pytest.raises(ValueError, match=f"{name}: expected finite scores, got {word} for item {target} "):
        evaluate(TableScorer(table), dataset, rows)


@pytest.mark.parametrize("evaluate", [evaluate_full, evaluate_sampled])
def test_scores_of_a_wrong_shape_or_type_are_refused(evaluate) -> None:
    class Short(LatticeScorer):
        def score(self, state: Tensor, candidates: Tensor) -> Tensor:
            return super().score(state, candidates)[:, :-1]

    class Whole(LatticeScorer):
        def score(self, state: Tensor, candidates: Tensor) -> Tensor:
            return super().score(state, candidates).long()

    dataset = world()
    rows = leave_one_out(dataset).test
    with pytest.raises(ValueError, match=r"expected scores \[B=40, T=1[05]0\], got \[40, \d+\]"):
        evaluate(Short(150), dataset, rows)
    with pytest.raises(TypeError, match=r"expected floating point scores, got torch\.int64"):
        evaluate(Whole(150), dataset, rows)


@pytest.mark.parametrize("name", ["evaluate_full", "evaluate_sampled"])
@pytest.mark.parametrize(
    ("users", "positions", "options", "message"),
    [
        ([], [], {}, "expected at least one row, got 0"),
        ([40], [3], {}, r"expected users in 0\.\.39, got 40\.\.40"),
        ([1], [0], {}, r"expected positions inside the user's history, got position 0 for user 1 \(1 rows\)"),
        ([0], [1], {"batch_size": 0}, "expected batch_size >= 1, got 0"),
        ([0], [1], {"cutoffs": (5, 0)}, r"expected cutoffs >= 1, got \(5, 0\)"),
        ([0], [1], {"cutoffs": ()}, r"expected cutoffs >= 1, got \(\)"),
        ([0], [1], {"cutoffs": 10}, "expected cutoffs as integers in a tuple, got 10"),
        ([0], [1], {"cutoffs": (2.5,)}, r"expected cutoffs as integers in a tuple, got \(2.5,\)"),
        ([0], [1], {"batch_size": 2.5}, "expected batch_size as an integer, got 2.5"),
        ([0], [1], {"batch_size": True}, "expected batch_size as an integer, got True"),
    ],
)
def test_bad_input_gets_a_sentence(name: str, users, positions, options, message: str) -> None:
    evaluate = {"evaluate_full": evaluate_full, "evaluate_sampled": evaluate_sampled}[name]
    rows = Rows(np.array(users, np.int64), np.array(positions, np.int64))
    with pytest.raises((ValueError, TypeError), match=f"{name}: {message}"):
        evaluate(LatticeScorer(150), world(), rows, **options)


@pytest.mark.parametrize("name", ["evaluate_full", "evaluate_sampled"])
def test_what_is_no_scorer_dataset_or_rows_gets_a_sentence(name: str) -> None:
    evaluate = {"evaluate_full": evaluate_full, "evaluate_sampled": evaluate_sampled}[name]
    dataset, scorer = world(), LatticeScorer(150)
    split = leave_one_out(dataset)
    with pytest.raises(TypeError, match=rf"{name}: expected a scorer \(with length, .*\), got NoneType"):
        evaluate(None, dataset, split.test)
    with pytest.raises(TypeError, match=f"{name}: expected a Dataset, got LatticeScorer"):
        evaluate(scorer, scorer, split.test)
    with pytest.raises(TypeError, match=f"{name}: expected Rows, such as the `test` of a split, got Split"):
        evaluate(scorer, dataset, split)


def test_rows_without_a_history_and_worlds_of_one_have_known_ranks() -> None:
    dataset = world()
    empty = Rows(np.arange(40), dataset.offsets[:-1].copy())
    scorer = LatticeScorer(150)
    scorer.table[0] = 0  # an empty history then has the state 0, and every item ties with the target
    assert (full_ranks(scorer, dataset, empty) == dataset.num_items).all()
    assert evaluate_sampled(scorer, dataset, empty)["user_auc"] == 0.5
    one = load_dataset(([1, 1, 1], [7, 7, 7], [1, 2, 3]))
    rows = Rows(np.array([0]), np.array([one.num_interactions - 1]))
    assert full_ranks(LatticeScorer(1), one, rows).tolist() == [1]
    assert full_ranks(LatticeScorer(1), one, rows, exclude_history=True).tolist() == [1]


def test_sizes_of_one_protocol_alone_are_checked() -> None:
    dataset = world()
    rows = leave_one_out(dataset).test
    with pytest.raises(ValueError, match="evaluate_full: expected item_block >= 1, got 0"):
        evaluate_full(LatticeScorer(150), dataset, rows, item_block=0)
    with pytest.raises(ValueError, match="evaluate_sampled: expected negatives >= 1, got 0"):
        evaluate_sampled(LatticeScorer(150), dataset, rows, negatives=0)


def test_candidates_drawn_once_serve_again_and_only_their_own_rows() -> None:
    dataset = world()
    rows, scorer = every_row(dataset), LatticeScorer(150, values=50)
    candidates = sampled_candidates(dataset, rows, seed=3)
    again = evaluate_sampled(scorer, dataset, rows, candidates=candidates)
    assert again.values == evaluate_sampled(scorer, dataset, rows, seed=3).values
    with pytest.raises(ValueError, match="targets in column 0, got others"):
        evaluate_sampled(scorer, dataset, rows.take(np.arange(3)), candidates=candidates)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from /proc")
def test_scoring_many_batches_holds_one_batch() -> None:
    """Each batch's temporaries give their memory back: each once left 12 MB behind."""
    dataset = world(num_users=24, num_items=200)
    rows = leave_one_out(dataset).test
    rows = Rows(np.repeat(rows.users, 1024), np.repeat(rows.positions, 1024))
    candidates = np.repeat(sampled_candidates(dataset, leave_one_out(dataset).test), 1024, axis=0)
    model = DynamicRecommender(Config().model, dataset.num_items, np.minimum(np.arange(dataset.num_items + 1), 1))
    sampled_scores(model, dataset, rows.take(slice(0, 2048)), candidates[:2048])
    before = resident_bytes()
    sampled_scores(model, dataset, rows, candidates)
    assert resident_bytes() - before < 100e6


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def test_data_in_which_everybody_had_everything_is_refused_before_a_training(tmp_path: Path) -> None:
    items = np.concatenate([np.random.default_rng(user).permutation(5) for user in range(8)])
    data = load_dataset((np.repeat(np.arange(8), 5), items))
    with pytest.raises(ValueError, match="expected users with items that they never had, got every one of 5 items"):
        SOLID(dim=8, epochs=1, semantics="id", num_semantics=2).fit(data, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
