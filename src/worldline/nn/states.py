"""Robot states (one row per video frame) to one vector per latent frame: additive conditioning as in Genie.

Alignment rule (our choice; the report does not say how its 64 states belong to 6 grids): within a block of
`1 + k * stride` frames, latent 0 owns frame 0 and latent j owns frames `(j-1) * stride + 1 .. j * stride`, exactly
those whose pixels it encodes.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from worldline.schema import TokenGrid, UsageError


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


Pooling = Literal["all", "mean", "last"]
"""Keep all states that a latent owns (side by side), their mean, or the last one."""


class StateEncoder(Standardising):
    """Standardise, align to `num_latents` latent frames, MLP, 1-D convolution (kernel 3, padding 1), + positions.

    The convolution lets a latent see the states of the next one: that is how grid t is told where the robot goes before
    it predicts grid t+1 (report, section 3.1).
    """

    def __init__(
        self, grid: TokenGrid, *, num_latents: int, state_dim: int, hidden: int, width: int, pooling: Pooling
    ) -> None:
        super().__init__(state_dim)
        self.grid, self.num_frames = grid, grid.frames_of(num_latents)
        self.pooling: Pooling = pooling
        rows = grid.temporal_stride if pooling == "all" else 1
        self.mlp = nn.Sequential(nn.Linear(rows * state_dim, hidden), nn.SiLU(), nn.Linear(hidden, width))
        self.conv = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.position = nn.Parameter(torch.zeros(num_latents, width))

    def forward(self, states: Float[Tensor, "b t s"]) -> Float[Tensor, "b l d"]:
        """One vector per latent frame of the first `num_frames` rows. Raises `UsageError` where there are fewer."""
        if states.shape[1] < self.num_frames:
            needed = f"{self.num_frames} state rows are needed, one per video frame"
            raise UsageError(f"{needed}, but {states.shape[1]} were given")
        x = (states[:, : self.num_frames] - self.mean) / self.scale
        x = self.mlp(align(x, self.grid, self.pooling))
        return rearrange(self.conv(rearrange(x, "b l d -> b d l")), "b d l -> b l d") + self.position


def align(states: Float[Tensor, "b t s"], grid: TokenGrid, pooling: Pooling) -> Float[Tensor, "b l c"]:
    """Group states by the latent frame that owns them, frame 0 repeated; `c` is `stride * s` for "all", else `s`."""
    blocks = rearrange(states, "b (n f) s -> b n f s", f=grid.block)
    first = blocks[:, :, :1].expand(-1, -1, grid.temporal_stride - 1, -1)
    owned = rearrange(torch.cat([first, blocks], dim=2), "b n (l r) s -> b (n l) r s", r=grid.temporal_stride)
    if pooling == "all":
        return owned.flatten(2)
    return owned.mean(dim=2) if pooling == "mean" else owned[:, :, -1]
