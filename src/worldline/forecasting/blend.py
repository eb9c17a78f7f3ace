"""Where a forecast keeps a token, what was seen there stays in view.

A tokenizer loses detail even where nothing moves, so every forecast of a still scene is worse than the frame before
it; but that frame is known. Knows pixels and probabilities, no tokens and no world.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.schema import TokenGrid


def blend_last_frame(
    decoded: UInt8[Tensor, "b t 3 h w"],
    kept: Float32[Tensor, "b l gh gw"],
    *,
    seen: UInt8[Tensor, "b 3 h w"],
    grid: TokenGrid,
) -> UInt8[Tensor, "b t 3 h w"]:
    """Mix decoded frames with the last one seen: `kept * seen + (1 - kept) * decoded`, `kept` bilinear between patches.

    Clip by clip, since in floating point frames take four times the memory.

    Args:
        decoded: the forecast of whole blocks of frames.
        kept: for each token, 0 to 1, the probability that it is still the token of the last context grid.
        seen: the last context frame.
    """
    clips = zip(decoded.split(1), kept.split(1), seen.split(1), strict=True)
    return torch.cat([_mixed(*clip, grid) for clip in clips])


def _mixed(
    decoded: UInt8[Tensor, "b t 3 h w"],
    kept: Float32[Tensor, "b l gh gw"],
    seen: UInt8[Tensor, "b 3 h w"],
    grid: TokenGrid,
) -> UInt8[Tensor, "b t 3 h w"]:
    height, width = decoded.shape[-2:]
    per_frame = kept.repeat_interleave(grid.frames_of_latents(kept.shape[1]).to(kept.device), dim=1)
    weights = F.interpolate(per_frame, size=(height, width), mode="bilinear", align_corners=False)
    mixed = torch.lerp(decoded.float(), seen.float().unsqueeze(1), rearrange(weights, "b t h w -> b t 1 h w"))
    return mixed.round().clamp(0, 255).to(torch.uint8)
