"""Pictures as small networks look at them (judges, policies): how large, in which range, how sharp; what is where."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor


def seen_small(frames: UInt8[Tensor, "n 3 h w"], side: int) -> UInt8[Tensor, "n 3 side side"]:
    """Frames of any size as a policy or a judge looks at them: means over areas."""
    if frames.shape[-2:] == (side, side):
        return frames
    return F.adaptive_avg_pool2d(frames.float(), (side, side)).round().byte()


def scaled(frames: UInt8[Tensor, "*n h w"]) -> Float32[Tensor, "*n h w"]:
    """To -1..1."""
    return frames.float() / 127.5 - 1


def blurred(frames: Float32[Tensor, "n c h w"], share: float, generator: torch.Generator) -> Float32[Tensor, "n c h w"]:
    """A random share of the frames blurred, each by its own amount (of two passes of a 3x3 mean)."""
    draw = torch.rand(2, len(frames), 1, 1, 1, generator=generator)
    amount = torch.where(draw[0] < share, draw[1], torch.zeros_like(draw[1])).to(frames.device)
    # A mean takes longer than all else that is varied. A plan is made without values: there it is of all frames.
    chosen = torch.arange(len(frames), device="meta") if amount.is_meta else amount.flatten().nonzero()[:, 0]
    sharp = soft = frames[chosen]
    for _ in range(2):
        soft = F.avg_pool2d(soft, 3, stride=1, padding=1, count_include_pad=False)
    return frames.index_copy(0, chosen, sharp.lerp(soft, amount[chosen]))


def coordinates(height: int, width: int, device: torch.device) -> Float32[Tensor, "1 2 h w"]:
    """Row and column of the centre of every pixel, -1..1."""
    down, right = ((2 * torch.arange(n, device=device, dtype=torch.float32) + 1) / n - 1 for n in (height, width))
    return torch.stack(torch.meshgrid(down, right, indexing="ij"))[None]


def places_in(maps: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k 2"]:
    """Where each map is: the mean coordinate under a softmax over the picture (spatial softmax, Levine et al. 2016)."""
    where = coordinates(maps.shape[-2], maps.shape[-1], maps.device)[0].flatten(1)
    return torch.einsum("nkp,cp->nkc", maps.flatten(2).softmax(dim=-1), where)
