"""How close a predicted image is to the real one, one number per image. Pure functions of uint8 images."""

import math

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
    border = SSIM_WINDOW // 2
    return scores[..., border:-border, border:-border].mean(dim=(1, 2, 3)).reshape(prediction.shape[:-3])


@Metric("lpips", "LPIPS", "", "image", higher_is_better=False)
def lpips(*_: object) -> Tensor:
    """Learned perceptual distance."""
    raise NotComputed("needs learned weights that are not part of worldline")


@Metric("fid", "FID", "", "image", higher_is_better=False)
def fid(*_: object) -> Tensor:
    """Distance between two sets of images."""
    raise NotComputed("needs the standard Inception weights, and far more images than an evaluation has")
