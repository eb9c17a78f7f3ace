"""Detail beyond the words: what the last frame seen shows and its words do not say, kept where the words are kept.

A tokenizer loses detail even where nothing moves, so a forecast of a still scene is worse than the frame before it.
But that frame is known, and so is what its words made of it. The difference is detail, and it belongs to whatever a
patch shows: it stays for as long as the patch keeps its word. Knows pixels and shares, no words and no world.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.schema import TokenGrid


def keep_detail(
    decoded: UInt8[Tensor, "b t 3 h w"],
    kept: Float32[Tensor, "b l gh gw"],
    *,
    seen: UInt8[Tensor, "b 3 h w"],
    decoded_seen: UInt8[Tensor, "b 3 h w"],
    grid: TokenGrid,
) -> UInt8[Tensor, "b t 3 h w"]:
    """Add `seen - decoded_seen` to decoded frames, weighted by the share in which each patch keeps its word.

    Where a word is kept for certain and the decoder gives the same pixels again, the result is `seen` itself; where
    none is kept it is `decoded`. In between, and between patches (bilinear), it is the expectation of the two.

    Args:
        decoded: the forecast of whole blocks of frames.
        kept: for each token, 0 to 1, the probability that it is still the word of the last context grid.
        seen: the last context frame.
        decoded_seen: the same, decoded from its words.
    """
    height, width = decoded.shape[-2:]
    per_frame = kept.repeat_interleave(grid.frames_of_latents(kept.shape[1]).to(kept.device), dim=1)
    weights = F.interpolate(per_frame, size=(height, width), mode="bilinear", align_corners=False)
    detail = rearrange(seen.float() - decoded_seen.float(), "b c h w -> b 1 c h w")
    frames = decoded.float() + rearrange(weights, "b t h w -> b t 1 h w") * detail
    return frames.round().clamp(0, 255).to(torch.uint8)
