"""The paired test over users and its correction, against known answers and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from solid_ext.evaluate import Difference, holm, in_words, paired_differences


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
