"""How close a predicted image is to the real one, one number per image. Pure functions of uint8 images."""

import math

import torch
from einops import rearrange
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.metrics.table import Metric, NotComputed

DATA_RANGE = 255.0
SMALLEST_MSE = 1 / 12
"""Mean squared error below which uint8 images count as equal: the variance of rounding to whole numbers."""
MAX_PSNR_DB = 10 * math.log10(DATA_RANGE**2 / SMALLEST_MSE)
"""PSNR of identical images, 58.92 dB. Finite, so one still scene cannot turn a mean into infinity."""
SSIM_WINDOW = 11
SSIM_BORDER = SSIM_WINDOW // 2
STILL = 0.1
"""Grey levels by which the pixels of a clip change from frame to frame, on average, below which it stands still."""


@Metric("psnr_db", "PSNR", "dB", "image")
def psnr(prediction: UInt8[Tensor, "*b 3 h w"], target: UInt8[Tensor, "*b 3 h w"]) -> Float32[Tensor, "*b"]:
    """Peak signal-to-noise ratio of each image in dB, in float32 over channels, height and width.

    The data range is 255 on uint8, which is the challenge's range of 2 on [-1, 1]: both divide by the same
    fraction of the range. At most `MAX_PSNR_DB`, which identical images have.
    """
    error = (prediction.float() - target.float()).square().mean(dim=(-3, -2, -1))
    return 10 * (DATA_RANGE**2 / error.clamp_min(SMALLEST_MSE)).log10()


@Metric("ssim", "SSIM", "", "image")
def ssim(prediction: UInt8[Tensor, "*b 3 h w"], target: UInt8[Tensor, "*b 3 h w"]) -> Float32[Tensor, "*b"]:
    """Structural similarity of each image, in [-1, 1]; 1 for identical images.

    Wang et al. (2004): per channel, Gaussian window of 11 pixels with sigma 1.5, k1 = 0.01, k2 = 0.03, averaged where
    the window lies inside the image, as scikit-image does; torchmetrics by itself counts the border, too. Raises
    `NotComputed` without torchmetrics, and for an image smaller than the window.
    """
    return ssim_map(prediction, target).mean(dim=(-3, -2, -1))


def ssim_map(
    prediction: UInt8[Tensor, "*b 3 h w"], target: UInt8[Tensor, "*b 3 h w"]
) -> Float32[Tensor, "*b 3 inner_h inner_w"]:
    """The same of each pixel, without the border of 5 pixels in which the window leaves the image."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise NotComputed("SSIM needs torchmetrics, which is not installed: pip install worldline[metrics]") from error
    height, width = prediction.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise NotComputed(f"SSIM needs images of at least 11x11 pixels, these are {height}x{width}")
    ours, real = (rearrange(x, "... c h w -> (...) c h w").float() for x in (prediction, target))
    _, scores = structural_similarity_index_measure(
        ours, real, data_range=DATA_RANGE, reduction="none", return_full_image=True
    )
    inner = scores[..., SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER]
    return inner.reshape(*prediction.shape[:-2], *inner.shape[-2:])


@Metric("motion", "Motion against the truth's", "", "video", target=1.0, sparse=True)
def motion(
    prediction: UInt8[Tensor, "b f 3 h w"], target: UInt8[Tensor, "b f 3 h w"], before: UInt8[Tensor, "b 3 h w"] | None
) -> Float32[Tensor, " b"]:
    """How much a predicted clip changes from frame to frame, divided by how much the true one does: 1 moves as much as
    the truth, 0 is frozen.

    NaN of a clip whose truth stands still (`STILL`). Raises `NotComputed` for one frame with nothing before it.
    """
    ours, real = (changes(frames, before) for frames in (prediction, target))
    if ours.shape[1] == 0:
        raise NotComputed("one frame with no context before it shows no motion")
    ours, real = ours.mean(dim=1), real.mean(dim=1)
    return (ours / real).masked_fill(real < STILL, math.nan)


def changes(frames: UInt8[Tensor, "b f 3 h w"], before: UInt8[Tensor, "b 3 h w"] | None) -> Float32[Tensor, "b change"]:
    """Mean absolute difference of each frame to the one before it, in grey levels; of the first to `before`, if given.

    Of a mean over several samples it is small: their movements do not agree. Noise of a camera or a codec counts, too.
    """
    places = range(len(frames[0])) if before is not None else range(1, len(frames[0]))
    pairs = ((frames[:, i], frames[:, i - 1] if i else before) for i in places)
    found = [(now.float() - past.float()).abs().mean(dim=(1, 2, 3)) for now, past in pairs if past is not None]
    return torch.stack(found, dim=1) if found else frames.new_zeros((len(frames), 0), dtype=torch.float32)
