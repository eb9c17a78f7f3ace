"""Robot states (one row per video frame) to one vector per latent frame: additive conditioning as in Genie.

Alignment rule: within a block of `1 + k * stride` frames, latent 0 owns frame 0 and latent j owns frames
`(j-1) * stride + 1 .. j * stride`, exactly the frames whose pixels it encodes. The report does not say how its 64
states belong to 6 grids; this rule is our choice. `pooling` says how the states of one latent are combined.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from worldline.schema import UsageError


class Standardising(nn.Module):
    """Holds the statistics of states as buffers: a checkpoint carries them, and everything outside sees raw units."""

    mean: Tensor
    scale: Tensor

    def __init__(self, state_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(state_dim))
        self.register_buffer("scale", torch.ones(state_dim))

    def set_statistics(self, mean: Float[Tensor, " s"], std: Float[Tensor, " s"]) -> None:
        """Standardise as `(x - mean) / std` from now on; constant dimensions are only centred."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))


@dataclass(frozen=True, kw_only=True)
class StateEncoderConfig:
    state_dim: int
    num_latents: int
    """Latent frames of context and horizon together."""
    hidden: int = 256
    block: int = 17
    temporal_stride: int = 8
    pooling: Literal["all", "mean", "last"] = "all"
    """Keep all states a latent owns (side by side), their mean, or the last one."""

    @property
    def num_frames(self) -> int:
        """State rows the encoder reads; further rows are accepted and ignored (1X test files hold 64 for 34)."""
        per_block = 1 + (self.block - 1) // self.temporal_stride
        return self.num_latents // per_block * self.block


class StateEncoder(Standardising):
    """Standardise, align to latent frames, MLP, 1-D convolution (kernel 3, padding 1), + positions.

    The convolution lets a latent see the states of the next one: that is how grid t is told where the robot goes before
    it predicts grid t+1 (report, section 3.1).
    """

    def __init__(self, config: StateEncoderConfig, width: int) -> None:
        super().__init__(config.state_dim)
        self.config = config
        rows = config.temporal_stride if config.pooling == "all" else 1
        self.mlp = nn.Sequential(
            nn.Linear(rows * config.state_dim, config.hidden), nn.SiLU(), nn.Linear(config.hidden, width)
        )
        self.conv = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.position = nn.Parameter(torch.zeros(config.num_latents, width))

    def forward(self, states: Float[Tensor, "b t s"]) -> Float[Tensor, "b l d"]:
        """One vector per latent frame. Raises `UsageError` if there are fewer rows than `num_frames`."""
        needed = self.config.num_frames
        if states.shape[1] < needed:
            raise UsageError(f"{needed} state rows are needed, one per video frame, but {states.shape[1]} were given")
        x = (states[:, :needed] - self.mean) / self.scale
        x = self.mlp(align(x, block=self.config.block, stride=self.config.temporal_stride, pooling=self.config.pooling))
        return rearrange(self.conv(rearrange(x, "b l d -> b d l")), "b d l -> b l d") + self.position


def align(
    states: Float[Tensor, "b t s"], *, block: int, stride: int, pooling: Literal["all", "mean", "last"]
) -> Float[Tensor, "b l c"]:
    """Group states by the latent frame that owns them; `c` is `stride * s` for "all", else `s`.

    Frame 0 of a block is repeated to fill its latent, as causal tokenizers repeat its pixels.
    """
    blocks = rearrange(states, "b (n f) s -> b n f s", f=block)
    first = blocks[:, :, :1].expand(-1, -1, stride - 1, -1)
    owned = rearrange(torch.cat([first, blocks], dim=2), "b n (l r) s -> b (n l) r s", r=stride)
    match pooling:
        case "all":
            return rearrange(owned, "b l r s -> b l (r s)")
        case "mean":
            return reduce(owned, "b l r s -> b l s", "mean")
        case "last":
            return owned[:, :, -1]
