"""One picture out of several samples.

The report's answer to PSNR: the mean of many samples blurs what is uncertain, mostly moving arms, and nothing else
(section 2.3, table 2). Knows pixels only: neither the world the samples came from nor the truth.
"""

from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

Combination = Literal["mean", "medoid", "single"]


def combine(frames: UInt8[Tensor, "b k t 3 h w"], how: Combination) -> UInt8[Tensor, "b t 3 h w"]:
    """Make one clip of the `k` samples of each.

    `mean`: of pixels, in float32, rounded to the nearest grey level (halves to even); the best guess under squared
    error, so under PSNR. `medoid`: the sample with the least summed squared distance to the others over the whole
    clip, so that its movement is one the world produced; ties go to the earlier sample. For the medoid of one frame
    alone, give that frame alone. `single`: the first sample.
    """
    match how:
        case "mean":
            means = [frames[:, :, i].float().mean(dim=1) for i in range(frames.shape[2])]
            return torch.stack([mean.round().to(torch.uint8) for mean in means], dim=1)
        case "medoid":
            clips = torch.arange(len(frames), device=frames.device)
            return frames[clips, _to_the_mean(frames).argmin(dim=1)]
        case "single":
            return frames[:, 0]


def _to_the_mean(frames: Tensor) -> Tensor:
    # With m the mean of the samples, sum_j |x_i - x_j|^2 = k |x_i - m|^2 + (the same for every i): no pairs needed.
    # k x_i and the sum are whole numbers, exact in float32, so samples that are alike tie.
    num_samples = frames.shape[1]
    total = frames.sum(dim=1, dtype=torch.float32)
    distances = [(sample.float() * num_samples - total).square().flatten(1).sum(dim=1) for sample in frames.unbind(1)]
    return torch.stack(distances, dim=1)
