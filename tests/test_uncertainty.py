"""Scores of uncertainty with known answers: a calibrated ensemble scores so, an overconfident one does not."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from worldline.metrics.bootstrap import interval, statistics
from worldline.metrics.uncertainty import (
    auroc,
    binned,
    calibration_error,
    crps,
    energy_score,
    gain_share,
    partial_rank_correlation,
    per_bin,
    projected,
    rank_correlation,
    selective,
    spread_skill,
)

ONE = np.ones((1, 6))


def grey(*levels: int) -> Tensor:
    """One clip of one frame, a flat sample per level."""
    return torch.tensor(levels, dtype=torch.uint8).reshape(1, -1, 1, 1, 1, 1).expand(1, len(levels), 1, 3, 8, 8)


def drawn(clips: int, k: int, deviation: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A truth of one frame, normal with deviation 20 about 128, and k samples with another deviation about the same."""
    noise = torch.Generator().manual_seed(seed)
    truth = 128 + 20 * torch.randn(clips, 1, 3, 16, 16, generator=noise)
    samples = 128 + deviation * torch.randn(clips, k, 1, 3, 16, 16, generator=noise)
    return samples.round().clamp(0, 255).byte(), truth.round().clamp(0, 255).byte()


# --- samples ---


def test_crps_of_two_samples_by_hand() -> None:
    # mean |x - y| = (10 + 20) / 2, and half of |x - x'| averaged over pairs of two: 10 / 2.
    assert crps(grey(110, 120), grey(100)[:, 0]).item() == pytest.approx(15 - 5)
    assert crps(grey(70, 70), grey(100)[:, 0]).item() == 30, "of a certain forecast it is the absolute error"


def test_crps_equals_the_double_sum_of_its_definition() -> None:
    samples = torch.randint(256, (2, 5, 3, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    truth = torch.randint(256, (2, 3, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    x, y = samples.double(), truth.double().unsqueeze(1)
    pairs = (x.unsqueeze(1) - x.unsqueeze(2)).abs().sum(dim=(1, 2)) / (2 * 5 * 4)
    expected = ((x - y).abs().mean(dim=1) - pairs).mean(dim=(-1, -2, -3))
    torch.testing.assert_close(crps(samples, truth).double(), expected)


def test_crps_is_fair_and_lowest_for_the_true_spread() -> None:
    truth_like = [crps(*drawn(40, k, deviation=20.0, seed=k)).mean().item() for k in (2, 16)]
    # Of a normal distribution that is forecast as it is: deviation / sqrt(pi) (Gneiting & Raftery 2007).
    assert truth_like == pytest.approx([20 / math.sqrt(math.pi)] * 2, rel=0.02)
    for wrong in (8.0, 40.0):
        assert crps(*drawn(40, 16, deviation=wrong)).mean() > truth_like[1] * 1.05


def test_energy_score_by_hand_and_of_one_dimension() -> None:
    assert energy_score(grey(110, 120), grey(100)[:, 0]).item() == pytest.approx(10, abs=1e-3), "flat: as CRPS"
    frames = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    frames[0, :, :2, :2] = 200
    assert projected(frames)[0].tolist() == pytest.approx([200.0, *[0.0] * 63])


def test_energy_score_sees_what_moves_together() -> None:
    """The truth is light or dark as a whole; so are some samples, and others have the same marginals place by place."""
    coin = torch.Generator().manual_seed(3)

    def flat(*shape: int) -> Tensor:
        return (100 + 100 * torch.randint(2, shape, generator=coin)).byte()

    truth = flat(200, 1, 1, 1, 1).expand(200, 1, 3, 8, 8)
    together = flat(200, 8, 1, 1, 1, 1).expand(200, 8, 1, 3, 8, 8)
    apart = flat(200, 8, 1, 1, 8, 8).expand(200, 8, 1, 3, 8, 8)
    assert crps(together, truth).mean().item() == pytest.approx(crps(apart, truth).mean().item(), abs=2)
    assert energy_score(apart, truth).mean() > energy_score(together, truth).mean() + 5


def test_one_sample_is_no_ensemble() -> None:
    for score in (crps, energy_score):
        with pytest.raises(ValueError, match="no ensemble"):
            score(grey(100), grey(100)[:, 0])


@pytest.mark.parametrize(("deviation", "expected"), [(20.0, 1.0), (10.0, 0.55), (40.0, 1.63)])
def test_spread_equals_error_where_an_ensemble_is_calibrated(deviation: float, expected: float) -> None:
    samples, truth = drawn(60, 4, deviation)
    variance = samples.double().var(dim=1).mean(dim=(1, 2, 3, 4)).numpy()
    error = (samples.double().mean(dim=1) - truth.double()).square().mean(dim=(1, 2, 3, 4)).numpy()
    # Overconfident: sqrt(1.25 * 10^2 / (20^2 + 10^2 / 4)); the last likewise with 40, which clipping narrows a little.
    assert spread_skill(np.ones((1, 60)), variance, error, 4)[0] == pytest.approx(expected, rel=0.03)


# --- calibration ---


def test_bins_by_hand() -> None:
    by, hit = torch.tensor([[0.05, 0.1, 0.95, 1.0]]), torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    sums = binned(by, by, hit, [n / 10 for n in range(10)])
    assert sums[0, :, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2], "a bin begins with its edge"
    predicted, came = (x[0] for x in per_bin(np.ones((1, 1)), sums.double().numpy()))
    assert (predicted[9], came[9]) == (pytest.approx(0.975), 0.5)
    assert np.isnan(came[5])
    # (|0 - 0.05| + |1 - 0.1| + 2 |0.5 - 0.975|) / 4
    assert calibration_error(np.ones((1, 1)), sums.double().numpy())[0] == pytest.approx((0.05 + 0.9 + 0.95) / 4)


def test_chances_that_hold_are_calibrated_and_boasted_ones_are_not() -> None:
    noise = torch.Generator().manual_seed(0)
    chance = torch.rand(50, 400, generator=noise)
    hit = (torch.rand(50, 400, generator=noise) < chance).float()
    errors = [
        calibration_error(np.ones((1, 50)), binned(said, said, hit, [n / 10 for n in range(10)]).double().numpy())[0]
        for said in (chance, chance.sqrt())
    ]
    assert errors[0] < 0.01
    assert errors[1] == pytest.approx(2 / 3 - 1 / 2, abs=0.01)  # the mean of sqrt(u) less that of u


# --- signals ---


def test_auroc_counts_pairs_and_halves_of_equals() -> None:
    signal, bad = np.array([1.0, 2.0, 3.0, 3.0, 4.0, 5.0]), np.array([0, 0, 0, 1, 0, 1], bool)
    # Of 8 pairs: 3 is above 1 and 2, equals 3, is below 4; 5 is above all four.
    assert auroc(ONE, signal, bad)[0] == pytest.approx((2.5 + 4) / 8)
    assert auroc(ONE, -signal, bad)[0] == pytest.approx(1 - 6.5 / 8)
    assert auroc(ONE, np.zeros(6), bad)[0] == 0.5
    assert np.isnan(auroc(ONE, signal, np.zeros(6, bool))[0]), "all good: there is nothing to tell apart"


def test_rank_correlation_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, 40).astype(float), rng.normal(size=40)
    found = rank_correlation(np.ones((1, 40)), one, other)[0]
    assert found == pytest.approx(stats.spearmanr(one, other).statistic)
    assert rank_correlation(np.ones((1, 40)), other, other**3)[0] == pytest.approx(1)
    assert np.isnan(rank_correlation(np.ones((1, 40)), np.zeros(40), other)[0])


def test_a_partial_correlation_forgets_what_a_third_explains() -> None:
    rng, every = np.random.default_rng(0), np.ones((1, 2000))
    motion = rng.normal(size=2000)
    signal, error = motion + rng.normal(size=2000), motion + rng.normal(size=2000)
    assert rank_correlation(every, signal, error)[0] > 0.4
    assert partial_rank_correlation(every, signal, error, motion)[0] == pytest.approx(0, abs=0.06)
    assert partial_rank_correlation(every, signal - error, -error, motion)[0] > 0.4
    assert np.isnan(partial_rank_correlation(every, motion, error, motion)[0]), "nothing is left of motion itself"


def test_selective_takes_the_surest_and_equals_in_equal_parts() -> None:
    signal, quality = np.array([3.0, 1.0, 2.0, 9.0, 9.0, 9.0]), np.array([10.0, 40.0, 30.0, 1.0, 2.0, 3.0])
    found = selective(ONE, signal, quality, (1 / 6, 1 / 2, 4 / 6, 1.0))[0]
    assert found == pytest.approx([40, 80 / 3, (80 + 2) / 4, 86 / 6])
    assert selective(ONE, np.zeros(6), quality, (0.25,))[0, 0] == pytest.approx(86 / 6)


def test_gain_share_is_1_by_the_quality_itself_0_by_nothing_and_below_0_by_its_opposite() -> None:
    quality = np.random.default_rng(0).normal(size=200)
    every = np.ones((1, 200))
    assert gain_share(every, -quality, quality)[0] == pytest.approx(1)
    assert gain_share(every, np.zeros(200), quality)[0] == pytest.approx(0)
    assert gain_share(every, quality, quality)[0] < -0.9


def test_a_weight_of_two_is_the_same_clip_twice() -> None:
    rng = np.random.default_rng(1)
    signal, quality = rng.integers(0, 4, 12).astype(float), rng.normal(size=12)
    bad, counts = quality < -0.3, rng.integers(0, 3, 12)
    twice = [np.repeat(x, counts) for x in (signal, quality, bad)]
    weights, plain = counts[None].astype(float), np.ones((1, counts.sum()))
    assert auroc(weights, signal, bad) == pytest.approx(auroc(plain, twice[0], twice[2]))
    assert rank_correlation(weights, signal, quality) == pytest.approx(rank_correlation(plain, twice[0], twice[1]))
    assert selective(weights, signal, quality, (0.4, 0.8)) == pytest.approx(
        selective(plain, twice[0], twice[1], (0.4, 0.8))
    )
    assert gain_share(weights, signal, quality) == pytest.approx(gain_share(plain, twice[0], twice[1]))


# --- intervals of statistics ---


def test_the_interval_of_a_mean_is_the_same_as_a_statistic() -> None:
    values, episodes = torch.randn(60, generator=torch.Generator().manual_seed(0)), torch.arange(60) // 4
    (found,) = statistics(lambda w: w @ values.double().numpy()[:, None] / w.sum(axis=1, keepdims=True), episodes)
    expected = interval(values, episodes)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (found.num_clips, found.num_episodes) == (60, 15)


def test_the_interval_of_an_auroc_covers_what_is_true() -> None:
    """Signals of bad clips are normal about 1, others about 0: the AUROC is Phi(1 / sqrt(2)) = 0.76."""
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        bad = rng.random(120) < 0.25
        signal = rng.normal(size=120) + bad
        (one,) = statistics(lambda w, s=signal, b=bad: auroc(w, s, b)[:, None], torch.arange(120))
        covered.append(one.low <= 0.7602 <= one.high)
    assert sum(covered) >= 35


def test_a_statistic_of_one_episode_has_no_interval_and_one_without_a_value_has_none() -> None:
    (found,) = statistics(lambda w: w.sum(axis=1, keepdims=True), np.zeros(3, int))
    assert (found.mean, math.isnan(found.low)) == (3.0, True)
    (never,) = statistics(lambda w: np.full((len(w), 1), math.nan), np.arange(3))
    assert math.isnan(never.mean)
    assert math.isnan(never.high)
    with pytest.raises(ValueError, match="no clips"):
        statistics(lambda w: w, np.zeros(0, int))
