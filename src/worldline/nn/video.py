"""Blocks over video: causal in time, channels last."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from jaxtyping import Float
from torch import Tensor, nn

# Tensors are `b t h w c`, channels last: pointwise layers and norms then need no transposition. Space is padded with
# zeros on both sides, time on the left only; norms are over the channels of a position, never over time. Hence output t
# depends on inputs 0..t, to the bit.


class CausalBlock(nn.Module):
    """ConvNeXt block with a temporal mix: depthwise convolution, mix, norm, MLP; on a residual branch.

    The mix adds, per channel, a weighted sum of the `past` positions before; its weights start at zero.
    """

    def __init__(self, channels: int, kernel: int, past: int, mlp_ratio: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.mix = nn.ParameterDict({"weight": torch.zeros(past, channels)})
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, mlp_ratio * channels)
        self.contract = nn.Linear(mlp_ratio * channels, channels)
        nn.init.zeros_(self.contract.weight)  # a new block is the identity
        nn.init.zeros_(self.contract.bias)

    def forward(self, x: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w c"]:
        y = self.depthwise(rearrange(x, "b t h w c -> (b t) c h w"))
        y = mixed = rearrange(y, "(b t) c h w -> b t h w c", b=x.shape[0])
        for lag, weight in enumerate(self.mix["weight"], start=1):
            mixed = mixed + weight * F.pad(y, (0, 0, 0, 0, 0, 0, lag, 0))[:, : y.shape[1]]
        return x + self.contract(F.gelu(self.expand(self.norm(mixed))))


def merge(in_channels: int, out_channels: int, stride: tuple[int, int]) -> nn.Sequential:
    """Fold the neighbours of a stride in (time, space) into channels, then mix them linearly."""
    t, p = stride
    fold = Rearrange("b (u t) (i p) (j q) c -> b u i j (t p q c)", t=t, p=p, q=p)
    return nn.Sequential(OrderedDict(fold=fold, linear=nn.Linear(in_channels * t * p**2, out_channels)))


def unmerge(in_channels: int, out_channels: int, stride: tuple[int, int]) -> nn.Sequential:
    """The opposite of `merge`: mix linearly, then unfold channels into neighbours."""
    t, p = stride
    unfold = Rearrange("b u i j (t p q c) -> b (u t) (i p) (j q) c", t=t, p=p, q=p)
    return nn.Sequential(OrderedDict(linear=nn.Linear(in_channels, out_channels * t * p**2), unfold=unfold))
