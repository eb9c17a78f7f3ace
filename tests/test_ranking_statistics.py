"""Statistics of rankings: answers that are known, and what few policies cannot say."""

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from worldline.metrics.ranking import (
    agree,
    bias,
    drop_one,
    fisher,
    mae,
    mmrv,
    over_starts,
    pearson,
    permute,
    spearman,
    wilson,
)

TRUE = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
FOUND = [0.1, 0.3, 0.2, 0.5, 0.9, 0.7]


def test_correlations_are_scipy_s_also_with_ties_and_for_many_lists_at_once() -> None:
    rng = np.random.default_rng(0)
    true, found = np.round(rng.random((2, 7, 9)), 1)
    for own, theirs in ((pearson, pearsonr), (spearman, spearmanr)):
        expected = [theirs(a, b).statistic for a, b in zip(true, found, strict=True)]
        np.testing.assert_allclose(own(true, found), expected, atol=1e-12)
    assert np.isnan(pearson([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]))


def test_equal_rates_have_no_correlation_whatever_their_last_bits_are() -> None:
    rates = np.array([[rate] * 7 for rate in (0.1, 0.7, 5 / 12, 11 / 12)])  # their means are another number by 1e-17
    for own in (pearson, spearman):
        assert np.isnan(own(rates, [*FOUND, 0.4])).all()
        assert np.isnan(own([*FOUND, 0.4], rates)).all()


def test_mmrv_is_the_mean_of_each_policy_s_worst_wrong_order() -> None:
    assert mmrv(TRUE, FOUND) == pytest.approx((0.2 + 0.2 + 0.2 + 0.2) / 6)  # two swapped pairs, each 0.2 apart
    assert mmrv(TRUE, [10 * rate for rate in TRUE]) == 0, "only the order counts"
    assert mmrv(TRUE, TRUE[::-1]) == pytest.approx((1.0 + 0.8 + 0.6 + 0.6 + 0.8 + 1.0) / 6)
    assert mmrv([0.1, 0.9], [0.5, 0.5]) == pytest.approx(0.8 / 2), "a tie hides that the first is worse"
    assert mmrv([0.4, 0.4], [0.1, 0.9]) == 0, "there is no wrong order of equals"


def test_intervals_of_rates_and_correlations_are_the_textbooks() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    expected = pearsonr(TRUE, FOUND).confidence_interval(0.95)
    assert fisher(float(pearson(TRUE, FOUND)), 6) == pytest.approx((expected.low, expected.high))
    wide, narrow = fisher(0.8, 10, ranks=True), fisher(0.8, 10)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]
    assert all(map(math.isnan, (*fisher(0.9, 3), *fisher(1.0, 20))))


@pytest.mark.parametrize("statistic", ["pearson", "spearman", "mmrv"])
def test_the_permutation_test_tries_every_order_of_few_policies(statistic: str) -> None:
    of = {"pearson": pearson, "spearman": spearman, "mmrv": lambda x, y: -mmrv(x, y)}[statistic]
    null = [float(of(TRUE, list(order))) for order in permutations(FOUND)]
    found = permute(statistic, TRUE, FOUND)  # pyright: ignore[reportArgumentType]
    assert found.exact
    assert found.orders == 720
    assert found.p == pytest.approx(np.mean(np.array(null) >= float(of(TRUE, FOUND)) - 1e-9))
    assert found.least == pytest.approx(np.mean(np.array(null) >= max(null) - 1e-9))


def test_many_policies_are_tested_by_drawn_orders_always_the_same() -> None:
    rng = np.random.default_rng(3)
    true = np.linspace(0, 1, 13)
    close, unrelated = true + 0.05 * rng.random(13), rng.random(13)
    found = permute("spearman", true, close)
    assert found == permute("spearman", true, close)
    assert not found.exact
    assert found.p == pytest.approx(1 / (found.orders + 1))
    assert permute("spearman", true, unrelated).p > 0.05


def test_three_policies_cannot_reach_005_and_it_is_said() -> None:
    three = agree("spearman", [0.0, 0.5, 1.0], [0.1, 0.4, 0.8])
    assert (three.value, three.k, three.test.p) == (1.0, 3, pytest.approx(1 / 6))
    assert "3 policies: a permutation test cannot reach 0.05" in three.warning
    assert math.isnan(three.low)
    assert agree("pearson", TRUE, FOUND).warning == ""
    same = agree("pearson", [0.5] * 5, TRUE[:5])
    assert math.isnan(same.value)
    assert "not defined" in same.warning
    ties = agree("spearman", [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0])
    assert ties.test.least == pytest.approx(1 / 4), "equal rates are as good in any order"
    assert "cannot reach 0.05" in ties.warning
    assert math.isnan(agree("mmrv", [0.3], [0.4]).value)


def test_the_drop_one_range_names_the_policy_on_which_all_depends() -> None:
    true, found = [0.1, 0.12, 0.11, 0.13, 0.9], [0.3, 0.2, 0.25, 0.1, 0.95]
    one = agree("pearson", true, found)
    assert one.value > 0.9
    assert one.without_low == 4, "one policy carries the correlation"
    assert one.dropped_low == pytest.approx(float(pearson(true[:4], found[:4])))
    assert one.dropped_low < 0
    assert one.dropped_high == max(drop_one("pearson", true, found))


@pytest.mark.parametrize("statistic", ["pearson", "spearman"])
def test_a_correlation_that_is_none_without_one_policy_names_it(statistic: Any) -> None:
    one = agree(statistic, [0.7, 0.7, 0.1, 0.7], [0.9, 0.8, 0.2, 0.9])
    assert one.value > 0.7
    assert math.isnan(one.dropped_low)
    assert one.without_low == 2
    assert one.dropped_high > 0.7, "without another one it is as large"
    with pytest.raises(ValueError, match="finite rates"):
        agree("pearson", [0.1, math.nan], [0.1, 0.2])


def test_starts_that_are_hard_everywhere_cost_no_width() -> None:
    """Policies share starts and both places do: equal outcomes are equal whichever starts are drawn."""
    rng = np.random.default_rng(1)
    true = (rng.random(40) < np.array([0.1, 0.4, 0.6, 0.95])[:, None]).astype(float)
    assert over_starts(true, true)["bias"] == (0, 0)
    assert over_starts(true, true)["pearson"] == (pytest.approx(1), pytest.approx(1))
    optimistic = np.maximum(true, rng.random(true.shape) < 0.5)
    low, high = over_starts(true, optimistic)["bias"]
    rates = true.mean(axis=1), optimistic.mean(axis=1)
    assert 0 < low < bias(*rates) < high < 1
    assert mae(*rates) == pytest.approx(bias(*rates)), "never too low"
    assert math.isnan(over_starts(true[:, :1], true[:, :1])["bias"][0])
