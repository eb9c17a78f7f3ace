"""Blur and histogram matching, with scikit-image as the second opinion."""

import numpy as np
import pytest
import torch
from skimage.exposure import match_histograms
from skimage.filters import gaussian
from torch import Tensor

from worldline.forecasting.postprocess import blur, match_histogram


def _noise(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def _scene(b: int, t: int, height: int = 24, width: int = 20, seed: int = 0) -> Tensor:
    """Smooth random images `b t 3 h w` that leave some grey levels out."""
    coarse = torch.rand(b * t, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (20 + 200 * fine).round().to(torch.uint8).reshape(b, t, 3, height, width)


# --- blur ---


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.3, 20.0])
def test_blur_agrees_with_scikit_image(sigma: float) -> None:
    """Within the rounding to whole levels; the widest kernel is mirrored several times over."""
    frames = _noise(1, 2, 3, 17, 12)
    found = blur(frames, sigma)
    for ours, image in zip(found[0], frames[0], strict=True):
        wanted = gaussian(image.numpy().astype(np.float64), sigma, mode="reflect", channel_axis=0)
        assert np.abs(ours.numpy() - wanted).max() < 0.5 + 1e-3


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_flat_image_stays(level: int) -> None:
    frames = torch.full((1, 1, 3, 9, 7), level, dtype=torch.uint8)
    assert torch.equal(blur(frames, 2.5), frames)


def test_blur_keeps_the_total_even_at_the_border() -> None:
    """A lit corner; what is left over is the rounding of each pixel."""
    frames = torch.zeros(1, 1, 3, 12, 12, dtype=torch.uint8)
    frames[..., :4, :4] = 240
    before, after = frames.double().sum(), blur(frames, 1.5).double().sum()
    assert after.item() == pytest.approx(before.item(), rel=0.005)


# --- histogram matching ---


def test_matching_agrees_with_scikit_image() -> None:
    """Within the rounding to whole levels. The reference begins at 30 and leaves levels out, so interpolation shows."""
    frames, reference = _scene(2, 3), _noise(2, 3, 24, 20, low=5, high=40, seed=1) * 6
    found = match_histogram(frames, reference)
    for b in range(2):
        for t in range(3):
            wanted = match_histograms(frames[b, t].numpy().astype(float), reference[b].numpy(), channel_axis=0)
            assert np.abs(found[b, t].numpy() - wanted).max() < 0.5 + 1e-3


def test_an_image_matched_to_itself_is_itself() -> None:
    frames = _scene(2, 1)
    assert torch.equal(match_histogram(frames, frames[:, 0]), frames)


def test_a_brightness_shifted_copy_is_restored() -> None:
    frames = _scene(2, 1)
    assert torch.equal(match_histogram(frames + 30, frames[:, 0]), frames)
    halved = (frames // 4) * 2
    assert torch.equal(match_histogram(halved, frames[:, 0] // 4), frames // 4)


def test_a_shuffled_image_takes_on_the_histogram_exactly() -> None:
    reference = _scene(1, 1)[:, 0]
    pixels = reference.flatten(-2)[..., torch.randperm(480, generator=torch.Generator().manual_seed(0))]
    darker = (pixels - 20).reshape(1, 1, 3, 24, 20)
    found = match_histogram(darker, reference)
    assert torch.equal(found.flatten(-2)[:, 0].sort(dim=-1).values, reference.flatten(-2).sort(dim=-1).values)


def test_colours_and_clips_are_matched_each_to_its_own() -> None:
    frames = _noise(2, 1, 3, 16, 16, high=100)
    reference = frames[:, 0] + torch.arange(6, dtype=torch.uint8).reshape(2, 3, 1, 1) * 20
    assert torch.equal(match_histogram(frames, reference)[:, 0], reference)


# --- both ---


def test_blur_comes_first_and_costs_no_contrast() -> None:
    truth = _noise(1, 3, 64, 64)
    frames = truth.unsqueeze(1)
    both = match_histogram(blur(frames, 2.0), truth)
    assert blur(frames, 2.0).double().std() < 15
    assert both.double().std().item() == pytest.approx(truth.double().std().item(), rel=0.05)
