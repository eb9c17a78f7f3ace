"""Combining samples into one picture, and their spread."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldline.forecasting.postprocess import mean, medoid
from worldline.metrics.image import psnr
from worldline.schema import Forecast, UsageError


def _grey(*levels: int) -> Tensor:
    """One clip of one frame, a flat sample per level: `1 k 1 3 2 2`."""
    return torch.tensor(levels, dtype=torch.uint8).reshape(1, -1, 1, 1, 1, 1).expand(1, len(levels), 1, 3, 2, 2)


def _clips(b: int, k: int, t: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (b, k, t, 3, 6, 5), generator=generator, dtype=torch.uint8)


def _noisy(truth: Tensor, k: int, deviation: float, seed: int = 0) -> Tensor:
    """Copies `b k t 3 h w` of a truth `b t 3 h w`, each with its own rounded normal noise."""
    b, *rest = truth.shape
    noise = deviation * torch.randn(b, k, *rest, generator=torch.Generator().manual_seed(seed))
    return (truth.unsqueeze(1) + noise).round().clamp(0, 255).to(torch.uint8)


# --- mean ---


def test_means_are_rounded_to_the_nearest_level_without_overflow() -> None:
    assert (mean(_grey(255, 255, 254)) == 255).all()  # 254.67
    assert (mean(_grey(200, 201, 200)) == 200).all()  # 200.33
    assert (mean(_grey(0, 0, 0, 7)) == 2).all()  # 1.75


def test_halves_go_to_the_even_level_so_that_nothing_brightens_on_the_whole() -> None:
    assert (mean(_grey(10, 11)) == 10).all()
    assert (mean(_grey(11, 12)) == 12).all()


def test_the_mean_is_taken_over_samples_alone() -> None:
    frames = _clips(2, 4, 3)
    expected = frames.double().mean(dim=1)
    assert (mean(frames) - expected).abs().max() <= 0.5


def test_averaging_k_noisy_copies_gains_ten_log_k() -> None:
    truth = torch.full((1, 1, 3, 64, 64), 128, dtype=torch.uint8)
    frames = _noisy(truth, 16, deviation=20.0)
    single, averaged = (psnr(one, truth).item() for one in (frames[:, 0], mean(frames)))
    assert averaged - single == pytest.approx(12.04, abs=0.3)


# --- medoid ---


def test_the_medoid_is_the_sample_nearest_the_others() -> None:
    frames = _clips(5, 4, 2)
    distances = (frames.unsqueeze(1).double() - frames.unsqueeze(2).double()).square().sum(dim=(3, 4, 5, 6, 2))
    best = distances.argmin(dim=1)
    assert len(best.unique()) > 1
    assert torch.equal(medoid(frames), torch.stack([frames[i, best[i]] for i in range(5)]))


def test_one_sample_is_chosen_for_the_whole_clip() -> None:
    first, second, third = _grey(0, 10, 50), _grey(40, 10, 0), _grey(20, 12, 0)
    frames = torch.cat([first, second, third], dim=2)
    assert medoid(frames)[0, :, 0, 0, 0].tolist() == [10, 10, 12]


def test_the_medoid_shrugs_off_an_outlier_and_the_mean_does_not() -> None:
    truth = torch.full((3, 2, 3, 8, 8), 100, dtype=torch.uint8)
    frames = _noisy(truth, 5, deviation=3.0)
    frames[:, 2] = 255
    assert psnr(medoid(frames), truth).min() > 35
    assert psnr(mean(frames), truth).max() < 20


def test_ties_go_to_the_earlier_sample() -> None:
    assert (medoid(_grey(30, 20)) == 30).all()


@pytest.mark.parametrize("how", [mean, medoid])
def test_of_one_sample_both_make_that_sample(how: Callable[[Tensor], Tensor]) -> None:
    frames = _clips(2, 1, 3)
    assert torch.equal(how(frames), frames[:, 0])


# --- spread ---


def spread(frames: Tensor) -> Tensor:
    return Forecast(times=tuple(range(frames.shape[2])), frames=frames).spread


def test_spread_is_the_unbiased_deviation_in_grey_levels() -> None:
    torch.testing.assert_close(spread(_grey(10, 20, 30)), torch.full((1, 1, 2, 2), 10.0))
    assert torch.equal(spread(_grey(70, 70)), torch.zeros(1, 1, 2, 2))


def test_spread_averages_the_variance_over_colour() -> None:
    frames = _grey(0, 0).clone()
    frames[:, 1, :, 0] = 6  # variance 18 in red alone
    torch.testing.assert_close(spread(frames), torch.full((1, 1, 2, 2), 6.0).sqrt())


def test_spread_is_of_each_pixel_of_each_frame() -> None:
    frames = _clips(2, 4, 3)
    expected = frames.double().var(dim=1).mean(dim=2).sqrt().float()
    torch.testing.assert_close(spread(frames), expected)


def test_spread_predicts_the_error_of_the_mean_where_samples_are_like_the_truth() -> None:
    level = torch.full((1, 1, 3, 64, 64), 128, dtype=torch.uint8)
    truth, samples = _noisy(level, 1, deviation=20.0, seed=1)[:, 0], _noisy(level, 4, deviation=20.0)
    error = (samples.double().mean(dim=1) - truth.double()).square().mean()
    assert error.item() == pytest.approx((1 + 1 / 4) * spread(samples).square().mean().item(), rel=0.05)


def test_one_sample_has_no_spread() -> None:
    with pytest.raises(UsageError, match="at least two"):
        spread(_grey(10))
