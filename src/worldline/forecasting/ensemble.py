"""One clip of frames from several samples. Uses pixels only."""

import torch
from jaxtyping import UInt8
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
