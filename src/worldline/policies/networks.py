"""The networks of cloned policies: what was seen, the state and the time since the start, to the next commands.

They differ in how they look (`eye`), so that policies of one task differ in more than their data. All are small enough
to be trained in a quarter of a minute on one core.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32
from torch import Tensor, nn

from worldline.checks import Checked, Limit, refuse
from worldline.nn.attention import Attention
from worldline.nn.pictures import coordinates, places_in
from worldline.nn.states import Standardising

PATCH = 8
"""Side in px of the patches of the transformer."""
WAVES = 4
"""Sines and cosines of the time, each of half the period of the one before."""
Eye = Literal["convolution", "patches", "difference", "blind"]
"""How a policy looks: by convolutions at the frame; by a transformer over its patches; by convolutions at the frame and
how it differs from the first one; or not at all, by state and time only."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Checked):
    """Sizes of the network."""

    eye: Eye = "convolution"
    side: Annotated[int, Limit(least=16, most=512)] = 64
    """Frames are looked at with this many pixels a side, whatever their size."""
    width: int = 32
    """Channels of the eye."""
    hidden: int = 192
    chunk: int = 6
    """Commands that are predicted at once, one for each of the next frames (action chunking, Zhao et al. 2023)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side % PATCH:
            refuse(self, "side", f"a multiple of {PATCH}")


class Places(nn.Module):
    """Convolutions, then where each of their maps is: the mean coordinate under a softmax over the picture.

    After Levine et al. 2016: what an arm must do is about where things are. Means of the maps come with them.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels + 2, width, kernel_size=6, stride=4, padding=1), nn.SiLU()),
            *(nn.GroupNorm(1, width), nn.Conv2d(width, width, kernel_size=3, padding=1), nn.SiLU()),
            *(nn.GroupNorm(1, width), nn.Conv2d(width, width, kernel_size=3, padding=1), nn.SiLU()),
            nn.Conv2d(width, width, kernel_size=1),
        )
        self.features = 3 * width

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        where = coordinates(x.shape[-2], x.shape[-1], x.device)
        maps = self.layers(torch.cat([x, where.expand(len(x), -1, -1, -1)], dim=1))
        return torch.cat([places_in(maps).flatten(1), maps.mean(dim=(2, 3))], dim=1)


class Patches(nn.Module):
    """A transformer over the patches of a frame, with a token more that gathers what matters."""

    def __init__(self, side: int, width: int, layers: int = 2) -> None:
        super().__init__()
        count = (side // PATCH) ** 2
        self.into = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH)
        self.position = nn.Parameter(0.1 * torch.randn(1 + count, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * layers)])
        self.attentions = nn.ModuleList([Attention(width, heads=4, dropout=0.0) for _ in range(layers)])
        self.mlps = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(layers)]
        )
        self.features = width

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
        tokens = rearrange(self.into(x), "n d h w -> n (h w) d")
        tokens = F.pad(tokens, (0, 0, 1, 0)) + self.position
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            tokens = tokens + attention(self.norms[2 * i](tokens), causal=False)
            tokens = tokens + mlp(self.norms[2 * i + 1](tokens))
        return tokens[:, 0]


class PolicyNetwork(Standardising):
    """Frames, states and times to a chunk of commands, in the data's own units."""

    command_mean: Tensor
    command_scale: Tensor

    def __init__(self, config: NetworkConfig, state_dim: int) -> None:
        super().__init__(state_dim)
        self.config = config
        self.register_buffer("command_mean", torch.zeros(state_dim))
        self.register_buffer("command_scale", torch.ones(state_dim))
        match config.eye:
            case "blind":
                self.eye = None
            case "patches":
                self.eye = Patches(config.side, 2 * config.width)
            case _:
                self.eye = Places(6 if config.eye == "difference" else 3, config.width)
        features = (self.eye.features if self.eye else 0) + state_dim + 2 * WAVES + 1
        self.head = nn.Sequential(
            *(nn.Linear(features, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.hidden), nn.SiLU()),
            nn.Linear(config.hidden, config.chunk * state_dim),
        )

    def forward(
        self,
        frames: Float32[Tensor, "n 3 h w"] | None,
        first: Float32[Tensor, "n 3 h w"] | None,
        states: Float32[Tensor, "n s"],
        times: Float32[Tensor, " n"],
    ) -> Float32[Tensor, "n chunk s"]:
        """Standardised commands of the next frames; frames in -1..1, `times` the share of the episode that is over.

        `frames` is read unless it is blind, `first` only by `difference`.
        """
        waves = torch.pi * times[:, None] * 2.0 ** torch.arange(WAVES, device=times.device)
        parts = [(states - self.mean) / self.scale, times[:, None], waves.sin(), waves.cos()]
        if self.eye is not None:
            assert frames is not None, "it looks at frames"
            if self.config.eye == "difference":
                assert first is not None, "it compares with the first frame"
                frames = torch.cat([frames, frames - first], dim=1)
            parts.append(self.eye(frames))
        return self.head(torch.cat(parts, dim=1)).unflatten(1, (self.config.chunk, -1))

    def set_command_statistics(self, mean: Float[Tensor, " s"], std: Float[Tensor, " s"]) -> None:
        """Commands are `mean + scale * what forward gives`; constant entries stay at their mean."""
        self.command_mean.copy_(mean)
        self.command_scale.copy_(torch.where(std > 1e-6, std, torch.zeros_like(std)))

    def commands(self, standardised: Float32[Tensor, "n chunk s"]) -> Float32[Tensor, "n chunk s"]:
        """In the data's own units; constant entries are at their mean."""
        return standardised * self.command_scale + self.command_mean

    def standardised(self, commands: Float32[Tensor, "n chunk s"]) -> Float32[Tensor, "n chunk s"]:
        """Commands of the data as `forward` should give them; 0 for constant entries."""
        scale, moves = self.command_scale, self.command_scale > 0
        return torch.where(moves, (commands - self.command_mean) / torch.where(moves, scale, 1.0), 0.0)
