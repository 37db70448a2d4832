"""Metrics against scikit-learn, ranx and answers worked out by hand."""

from __future__ import annotations

import json
import math
import os
import tracemalloc

import numpy as np
import pytest
import sklearn.metrics

from solid_ext.evaluate import (
    Metrics,
    auc,
    auc_per_user,
    hr,
    hr_per_row,
    log_loss,
    mean_per_user,
    mrr,
    mrr_per_row,
    ndcg,
    ndcg_per_row,
    ranking_metrics,
    ranks_of_first,
    user_auc,
)
from solid_ext.evaluate import metrics as metrics_module


def lattice_case(seed: int, count: int, values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, labels and users, in no order."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    labels[:2] = 0, 1
    return rng.integers(0, values, count).astype(float), labels, rng.integers(0, 7, count)


@pytest.mark.parametrize("values", [1, 2, 5, 1000])
@pytest.mark.parametrize("count", [2, 3, 31, 400])
def test_auc_equals_scikit_learn_with_ties(count: int, values: int) -> None:
    scores, labels, _ = lattice_case(count + values, count, values)
    assert auc(scores, labels) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_auc_by_hand() -> None:
    assert auc([3.0, 2.0, 1.0], [1, 0, 0]) == 1.0
    assert auc([1.0, 2.0, 3.0], [1, 0, 0]) == 0.0
    assert auc([2.0, 2.0, 1.0], [1, 0, 0]) == 0.75  # one tie, one win
    assert auc([0.0, 0.0], [True, False]) == 0.5


@pytest.mark.parametrize("values", [1, 3, 50])
def test_user_auc_is_the_mean_over_users_with_both_classes(values: int) -> None:
    scores, labels, users = lattice_case(values, 200, values)
    labels[users == 3] = 1  # no negative: no curve
    expected = {
        user: sklearn.metrics.roc_auc_score(labels[users == user], scores[users == user])
        for user in np.unique(users)
        if user != 3
    }
    found, areas = auc_per_user(scores, labels, users)
    assert found.tolist() == list(expected)
    np.testing.assert_allclose(areas, list(expected.values()), atol=1e-12)
    assert user_auc(scores, labels, users) == pytest.approx(np.mean(list(expected.values())), abs=1e-12)


def test_auc_of_one_positive_is_the_share_of_negatives_below() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 100))
    labels = np.zeros((20, 100), bool)
    labels[:, 0] = True
    below = (scores[:, 1:] < scores[:, :1]).mean(axis=1)
    users = np.repeat(np.arange(20), 100)
    np.testing.assert_allclose(auc_per_user(scores.ravel(), labels.ravel(), users)[1], below, atol=1e-12)


def test_areas_do_not_depend_on_the_order_of_rows() -> None:
    scores, labels, users = lattice_case(5, 300, 20)
    order = np.random.default_rng(1).permutation(300)
    assert auc(scores[order], labels[order]) == auc(scores, labels)
    assert user_auc(scores[order], labels[order], users[order]) == user_auc(scores, labels, users)


@pytest.mark.parametrize("block", [1, 7, 50, 299])
def test_nothing_depends_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    scores, labels, users = lattice_case(5, 300, 20)
    expected = user_auc(scores, labels, users), log_loss(scores, labels)
    monkeypatch.setattr(metrics_module, "_BLOCK", block)
    assert user_auc(scores, labels, users) == expected[0]
    assert log_loss(scores, labels) == pytest.approx(expected[1], rel=1e-14)


@pytest.mark.parametrize(("metric", "limit"), [("auc", 35e6), ("user_auc", 120e6), ("log_loss", 50e6)])
def test_memory_stays_beside_the_scores(metric: str, limit: float) -> None:
    """Four million float32 scores: nothing but blocks of them is ever copied to something wider."""
    scores = np.random.default_rng(0).normal(size=(1 << 16, 64)).astype(np.float32)
    labels = np.zeros(scores.shape, bool)
    labels[:, 0] = True
    users = [np.repeat(np.arange(1 << 16), 64)] if metric == "user_auc" else []
    tracemalloc.start()
    try:
        getattr(metrics_module, metric)(scores.ravel(), labels.ravel(), *users)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


def test_areas_do_not_depend_on_a_rising_transformation() -> None:
    scores, labels, users = lattice_case(6, 300, 20)
    assert user_auc(np.exp(scores), labels, users) == user_auc(scores, labels, users)
    assert auc(scores * 1e30 - 1e31, labels) == auc(scores, labels)


def test_random_scores_are_at_chance() -> None:
    rng = np.random.default_rng(2)
    labels = rng.random(40_000) < 0.1
    assert auc(rng.normal(size=40_000), labels) == pytest.approx(0.5, abs=0.02)


def test_log_loss_equals_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=500) * 4, rng.integers(0, 2, 500)
    expected = sklearn.metrics.log_loss(labels, 1 / (1 + np.exp(-logits)))
    assert log_loss(logits, labels) == pytest.approx(expected, rel=1e-12)


def test_log_loss_is_stable_at_both_ends() -> None:
    assert log_loss([0.0], [1]) == pytest.approx(math.log(2))
    assert log_loss([1e4, -1e4], [1, 0]) == 0.0
    assert log_loss([-1e4, 1e4], [1, 0]) == 1e4
    assert log_loss(np.array([-500.0], np.float32), [1]) == 500.0


def test_ranks_count_ties_against_the_target() -> None:
    scores = [[5.0, 1.0, 2.0], [1.0, 1.0, 2.0], [0.0, 1.0, 2.0], [7.0, 7.0, 7.0]]
    assert ranks_of_first(scores).tolist() == [1, 3, 3, 3]
    assert ranks_of_first([[4.0]]).tolist() == [1]


@pytest.mark.parametrize("cutoff", [1, 5, 10, 40])
def test_ndcg_equals_scikit_learn(cutoff: int) -> None:
    scores = np.random.default_rng(4).normal(size=(60, 30))
    relevance = np.zeros((60, 30))
    relevance[:, 0] = 1
    expected = sklearn.metrics.ndcg_score(relevance, scores, k=cutoff)
    assert ndcg(ranks_of_first(scores), cutoff) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("cutoff", [1, 5, 10, 40])
def test_ranking_metrics_equal_ranx(cutoff: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Interpreted: compiling ranx takes far longer than these few rows, and warns about its own casts.
    monkeypatch.setitem(os.environ, "NUMBA_DISABLE_JIT", "1")
    import ranx

    scores = np.random.default_rng(5).normal(size=(60, 30))
    judged = ranx.Qrels({f"row{row:02}": {"item0": 1} for row in range(60)})
    ranked = ranx.Run(
        {
            f"row{row:02}": {f"item{item}": float(score) for item, score in enumerate(line)}
            for row, line in enumerate(scores)
        }
    )
    names = [f"ndcg@{cutoff}", f"hit_rate@{cutoff}", "mrr"]
    expected = ranx.evaluate(judged, ranked, names, return_mean=False)
    ranks = ranks_of_first(scores)
    np.testing.assert_allclose(ndcg_per_row(ranks, cutoff), expected[names[0]], atol=1e-12)
    np.testing.assert_allclose(hr_per_row(ranks, cutoff), expected[names[1]], atol=1e-12)
    np.testing.assert_allclose(mrr_per_row(ranks), expected[names[2]], atol=1e-12)


def test_ranking_metrics_by_hand() -> None:
    ranks = np.array([1, 2, 3, 11])
    assert ndcg(ranks, 2) == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert ndcg(ranks, 3) == pytest.approx((1 + 1 / math.log2(3) + 0.5) / 4)
    assert hr(ranks, 1) == 0.25
    assert hr(ranks, 10) == 0.75
    assert hr(ranks, 11) == 1.0
    assert mrr(ranks) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 11) / 4)
    assert ranking_metrics([1], (5, 10)) == {"ndcg@5": 1.0, "ndcg@10": 1.0, "hr@5": 1.0, "hr@10": 1.0}
    assert mrr([1]) == 1.0


def test_mean_per_user_weighs_rows_within_and_not_across_users() -> None:
    users, means = mean_per_user([1.0, 0.0, 0.5, 0.0], [9, 2, 9, 2])
    assert users.tolist() == [2, 9]
    assert means.tolist() == [0.0, 0.75]


def test_metrics_go_into_json() -> None:
    ranks = np.array([1, 2])
    metrics = Metrics("full", {"mrr": np.float32(0.75)}, np.array([0, 1]), ranks)  # type: ignore[dict-item]
    assert json.loads(json.dumps(metrics.to_dict())) == {"mrr": 0.75}
    assert metrics["mrr"] == 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auc([1.0, 2.0], [1, 1]), "auc: expected positives and negatives, got 2 positives of 2"),
        (lambda: user_auc([1.0, 2.0], [1, 0], [0, 1]), "user_auc: expected positives and negatives"),
        (lambda: user_auc([1.0, 2.0], [1, 0], [0]), r"user_auc: expected users \[N=2\], got \[1\]"),
        (lambda: auc([1.0], [1, 0]), r"auc: expected scores and labels \[N >= 1\], got \[1\], \[2\]"),
        (lambda: auc([], []), r"auc: expected scores and labels \[N >= 1\], got \[0\], \[0\]"),
        (lambda: auc([1.0, 2.0], [1, 2]), "auc: expected labels 0 or 1, got 2"),
        (lambda: auc([math.nan, 2.0], [1, 0]), "auc: expected scores without NaN, got 1 of 2"),
        (lambda: log_loss([math.nan], [1]), "log_loss: expected scores without NaN, got 1 of 1"),
        (lambda: ranks_of_first([1.0]), r"ranks_of_first: expected scores \[R, T >= 1\], got \[1\]"),
        (
            lambda: ranks_of_first([[math.nan, 1.0]]),
            "ranks_of_first: expected scores without NaN, got 1 of 2",
        ),
        (lambda: ndcg([1], 0), "ndcg: expected cutoff >= 1, got 0"),
        (lambda: hr([0], 5), "hr: expected ranks >= 1, got 0"),
        (lambda: mrr([]), r"mrr: expected integer ranks \[R >= 1\], got float64 \[0\]"),
        (lambda: mean_per_user([1.0], [1, 2]), r"mean_per_user: expected values and users \[R\], got \[1\]"),
    ],
)
def test_bad_input_gets_a_sentence(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_infinite_logit_costs_nothing_or_everything() -> None:
    assert log_loss([np.inf, -np.inf], [1, 0]) == 0.0
    assert log_loss([np.inf, 0.0], [0, 0]) == np.inf
    assert auc([np.inf, -np.inf, 0.0], [1, 0, 0]) == 1.0


def test_metrics_of_another_type_get_a_sentence() -> None:
    with pytest.raises(TypeError, match=r"auc: expected scores \[N\] of numbers, got <U1"):
        auc(["a", "b"], [1, 0])
    with pytest.raises(TypeError, match=r"user_auc: expected users \[N\] of integers, got <U1"):
        user_auc([1.0, 2.0], [1, 0], ["a", "a"])
    for cutoff in (2.5, True, "10", None):
        with pytest.raises(TypeError, match="ndcg: expected cutoff as an integer, got"):
            ndcg([1, 2], cutoff)
    with pytest.raises(KeyError, match="expected one of ndcg@10, got 'ndcg@7'"):
        Metrics("full", {"ndcg@10": 0.5}, np.array([0]), np.array([2]))["ndcg@7"]
