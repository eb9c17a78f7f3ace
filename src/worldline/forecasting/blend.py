"""Where a forecast keeps a token, the pixels of the last context frame stay: decoding would lose detail there."""

import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.schema import TokenGrid


def blend_last_frame(
    decoded: UInt8[Tensor, "b t 3 h w"], kept: Float32[Tensor, "b l gh gw"], *, seen: Tensor, grid: TokenGrid
) -> UInt8[Tensor, "b t 3 h w"]:
    """Mix decoded frames with the last context frame, `kept * seen + (1 - kept) * decoded`; `kept` is interpolated.

    Args:
        decoded: the forecast of whole blocks of frames.
        kept: for each token, 0 to 1, the probability that it is still the token of the last context grid.
        seen: the last context frame, `b 3 h w`.
    """
    per_frame = kept.repeat_interleave(grid.frames_of_latents(kept.shape[1]).to(kept.device), dim=1)
    mixed = []
    for frames, shares, last in zip(decoded, per_frame, seen, strict=True):  # in floats they take four times the memory
        weights = F.interpolate(shares[None], size=last.shape[-2:], mode="bilinear", align_corners=False)
        blended = torch.lerp(frames.float(), last.float(), weights[0].unsqueeze(1))
        mixed.append(blended.round().clamp(0, 255).to(torch.uint8))
    return torch.stack(mixed)
