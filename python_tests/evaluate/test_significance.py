"""The paired test over users, the one over users and seeds, and their correction, against scipy and statsmodels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from python_tests.evaluate import seeds_statsmodels
from solid_ext.evaluate import Difference, holm, in_words, paired_differences, seed_differences
from solid_ext.evaluate.significance import _mean_of_crossed


def test_holm_on_a_worked_example() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.6]), [1.0, 1.0])


def test_paired_differences_know_noise_from_a_gain() -> None:
    rng = np.random.default_rng(0)
    ours = rng.random(2000)
    others = {
        "better": ours + 0.01 + 0.05 * rng.standard_normal(2000),
        "other": ours + 0.05 * rng.standard_normal(2000),
    }
    found = paired_differences(ours, {**others, "same": ours})
    assert found["better"].high < 0
    assert found["better"].p == pytest.approx(3 * stats.ttest_1samp(ours - others["better"], 0).pvalue)
    assert found["other"].p > 0.05
    assert found["same"] == (0, 0, 0, 1)
    # An unpaired test would see nothing of the gain in such scattered users.
    assert stats.ttest_ind(ours, others["better"]).pvalue > 0.05
    # Under the null a corrected p below .05 is rare in all of three comparisons together.
    null = [
        min(gap.p for gap in paired_differences(row[0], dict(zip("abc", row[1:], strict=True))).values())
        for row in rng.random((300, 4, 50))
    ]
    assert np.mean(np.array(null) < 0.05) < 0.08
    with pytest.raises(ValueError, match=r"paired_differences: expected \[U >= 2\]"):
        paired_differences(ours, {"short": ours[1:]})


def test_a_difference_in_words_says_which_way_it_goes_or_that_there_is_none() -> None:
    gain, loss = Difference(0.004, 0.0011, 0.0069, 0.01), Difference(-0.004, -0.0069, -0.0011, 0.01)
    noise = Difference(0.001, -0.001, 0.003, 0.05)
    say = ("SOLID", "static", "full ndcg@10")
    assert (
        in_words(*say, gain, 690) == "SOLID over static, full ndcg@10: +0.0040 (95 % +0.0011 to +0.0069 over 690 users)"
    )
    assert in_words(*say, loss, 9924) == (
        "SOLID below static, full ndcg@10: -0.0040 (95 % -0.0069 to -0.0011 over 9,924 users)"
    )
    assert in_words(*say, noise, 943) == (
        "SOLID over static, full ndcg@10: no difference that 943 users show (95 % -0.0010 to +0.0030)"
    )


@pytest.mark.parametrize("name", seeds_statsmodels.CASES)
def test_a_mean_over_seeds_and_users_scatters_as_in_a_mixed_model(name: str) -> None:
    gap = seeds_statsmodels.gaps(*seeds_statsmodels.CASES[name])
    known = json.loads(Path(seeds_statsmodels.__file__).with_suffix(".json").read_text(encoding="utf-8"))[name]
    found = seed_differences(gap, {"other": np.zeros_like(gap)})["other"]
    assert found.mean == pytest.approx(known["mean"])
    # A t of at least the fewest degrees of freedom and at most infinitely many around the mixed model's deviation.
    reach = found.high - found.mean
    freest, tightest = (stats.t.ppf(0.975, freedom) * known["deviation"] for freedom in (len(gap) - 1, np.inf))
    assert tightest * (1 - 1e-3) < reach < freest * (1 + 1e-3)
    variance, freedom = _mean_of_crossed(gap)
    assert variance**0.5 == pytest.approx(known["deviation"], rel=1e-3)
    assert len(gap) - 1 <= freedom <= gap.size - 1


def test_without_scatter_of_seeds_it_is_the_test_over_users_and_without_users_that_over_seeds() -> None:
    rng = np.random.default_rng(1)
    of_user, of_seed = 0.1 + rng.standard_normal((1, 40)), 0.4 + rng.standard_normal((6, 1))
    for gap, over in ((of_user.repeat(6, 0), of_user[0]), (of_seed.repeat(40, 1), of_seed[:, 0])):
        found = seed_differences(gap, {"other": np.zeros_like(gap)})["other"]
        test = stats.ttest_1samp(over, 0)
        assert found.p == pytest.approx(test.pvalue)
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_a_gain_of_some_seeds_is_none_though_every_user_has_it() -> None:
    rng = np.random.default_rng(2)
    of_seed = np.array([[0.02], [-0.015], [0.01]])
    gap = of_seed + 0.05 * rng.standard_normal((3, 5000))
    assert paired_differences(gap.mean(0), {"other": np.zeros(5000)})["other"].p < 1e-6
    assert seed_differences(gap, {"other": np.zeros_like(gap)})["other"].p > 0.3
    # Under the null, with seeds that scatter, a p below .05 is about as rare as it says.
    drawn = rng.standard_normal((400, 4, 1)) * 0.1 + rng.standard_normal((400, 4, 50)) * 0.5
    p = [seed_differences(one, {"other": np.zeros_like(one)})["other"].p for one in drawn]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09
    assert seed_differences(gap, {"same": gap})["same"] == (0, 0, 0, 1)
    with pytest.raises(ValueError, match=r"seed_differences: expected \[S >= 2, U >= 2\] values, got \[1, 5000\]"):
        seed_differences(gap[:1], {"one": gap[:1]})
