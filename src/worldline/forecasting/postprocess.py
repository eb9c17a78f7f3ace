"""What is made of forecast frames: one clip of several samples, and the report's older baseline for PSNR.

The baseline blurs a forecast and matches its histogram to the last context frame (section 2.3, after Liu et al. 2025):
a blurred image has a smaller error than a sharp one in the wrong place, and light hardly changes in seconds.
"""

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor


def mean(frames: UInt8[Tensor, "b k t 3 h w"]) -> UInt8[Tensor, "b t 3 h w"]:
    """Average the pixels of the samples, rounded to the nearest grey level (halves to even).

    The best guess under squared error, so under PSNR: it blurs what is uncertain, mostly moving arms, and nothing else
    (report, section 2.3, table 2).
    """
    means = [frames[:, :, i].float().mean(dim=1) for i in range(frames.shape[2])]
    return torch.stack([mean.round().to(torch.uint8) for mean in means], dim=1)


def medoid(frames: UInt8[Tensor, "b k t 3 h w"]) -> UInt8[Tensor, "b t 3 h w"]:
    """Choose the sample with the least summed squared distance to the others over the whole clip.

    Its movement is one that the world predicted. Ties go to the earlier sample.
    """
    # With m the mean of the samples, sum_j |x_i - x_j|^2 = k |x_i - m|^2 + (the same for every i): no pairs needed.
    # k x_i and the sum are whole numbers, exact in float32, so samples that are alike tie.
    total = frames.sum(dim=1, dtype=torch.float32)
    apart = [(sample.float() * frames.shape[1] - total).square().flatten(1).sum(dim=1) for sample in frames.unbind(1)]
    return frames[torch.arange(len(frames), device=frames.device), torch.stack(apart, dim=1).argmin(dim=1)]


def blur(frames: UInt8[Tensor, "b t 3 h w"], sigma_px: float) -> UInt8[Tensor, "b t 3 h w"]:
    """Blur by a Gaussian of deviation `sigma_px` in pixels, above 0, rounded to grey levels once at the end.

    Mirrored at the border, its pixels repeated (scipy's "reflect"), so that brightness stays.
    """
    rows, columns = (_smoothing(size, sigma_px).to(frames.device) for size in frames.shape[-2:])
    return (rows @ frames.float() @ columns.mT).round().clamp(0, 255).to(torch.uint8)


def _smoothing(size: int, sigma: float) -> Float32[Tensor, "n n"]:
    """The blur of a line of pixels as a matrix, folded back at its ends: rows and columns sum to 1."""
    radius = int(4 * sigma + 0.5)  # where scipy and scikit-image cut, too
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    mirrored = np.pad(np.eye(size), ((radius, radius), (0, 0)), mode="symmetric")
    matrix = sliding_window_view(mirrored, len(weights), axis=0) @ (weights / weights.sum())
    return torch.from_numpy(matrix).float()


def match_histogram(
    frames: UInt8[Tensor, "b t 3 h w"], reference: UInt8[Tensor, "b 3 h w"]
) -> UInt8[Tensor, "b t 3 h w"]:
    """Map the grey levels of each frame and colour so that their distribution becomes that of the reference.

    Level v becomes F_ref^-1(F(v)), rounded, with F the share of pixels at or below a level and F_ref interpolated
    linearly between levels that the reference has (as scikit-image does). A frame matched to itself is itself.
    """
    matched = torch.empty_like(frames)
    for clip, time, colour in np.ndindex(*frames.shape[:3]):
        plane = frames[clip, time, colour].cpu().numpy()
        levels, counts = np.unique(reference[clip, colour].cpu().numpy(), return_counts=True)
        below = np.bincount(plane.flatten(), minlength=256).cumsum()
        table = np.interp(below, counts.cumsum(), levels).round().astype(np.uint8)
        matched[clip, time, colour] = torch.from_numpy(table[plane])
    return matched
