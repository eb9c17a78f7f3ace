"""Inverse dynamics: a small network that reads the robot's states from frames, to judge what a forecast shows.

Trained on real clips, it reads the state at a frame from that frame, the frame before it and the time between. What it
reads from a forecast, beside the states that the forecast was given, says whether the forecast shows what was
commanded. (Baker et al. 2022, "Video PreTraining", label video with such a model; here it judges.) It errs by itself,
so its error on true frames is the floor of every comparison.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor, nn

from worldline.checks import Limit, Share, refuse
from worldline.contract import FramePattern, ModelConfig
from worldline.nn.pictures import blurred, coordinates, places_in, scaled
from worldline.nn.states import Standardising
from worldline.schema import Batch, UsageError

READABLE = 0.5
"""A dimension is readable if at least this share of its variance is read from true held-out frames (R^2)."""
PATCH = 4
"""Side in px of the patches of the first layer."""
AT_ONCE = 256
"""Frames that are read at once, so that memory does not grow with the clips."""


@dataclass(frozen=True, kw_only=True)
class InverseDynamicsConfig(ModelConfig):
    """Sizes of the network, and how it is trained."""

    kind: Literal["inverse-dynamics"] = "inverse-dynamics"
    widths: tuple[int, ...] = (48, 96)
    """Channels at each scale; every further scale halves height and width."""
    blocks: tuple[int, ...] = (1, 3)
    """Residual blocks at each scale."""
    places: int = 64
    """Maps whose place in the picture is measured."""
    hidden: int = 256
    longest_gap: Annotated[int, Limit(least=1, most=1000)] = 8
    """Frames between the two that are read are drawn from 1 to this: one model then reads forecasts of every pace."""
    pairs: int = 4
    """Pairs of frames drawn from every training clip."""
    dropout: Annotated[float, Limit(below=1)] = 0.0
    """Share of what the MLP reads that is left out at random in training: for few episodes."""
    blur: Share = 0.5
    """Probability that a training frame is blurred by a random amount. Forecasts are blurred, and the question is where
    a joint is, not how sharp."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or len(self.blocks) != len(self.widths):
            refuse(self, "blocks", f"one number for each of the {len(self.widths)} widths")

    @property
    def pattern(self) -> FramePattern:
        """Frames of a clip."""
        return FramePattern(window=self.longest_gap + 1)

    @property
    def stride(self) -> int:
        """Pixels to one place of the last maps: the least picture."""
        return PATCH * 2 ** (len(self.widths) - 1)

    def build(self, state_dim: int) -> "InverseDynamics":
        return InverseDynamics(self, state_dim)


class Block(nn.Module):
    """A convolution between what it adds to, which sees a little further."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.into = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.out = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x + self.out(F.silu(self.into(self.norm(x))))


class InverseDynamics(Standardising):
    """Two frames and the seconds between them to the state at the second one, in the data's own units.

    Convolutions over both frames and the coordinates of every pixel. Of the last maps: the place of each, the mean
    coordinate under a softmax over the picture (Levine et al. 2016: joint angles are about where things are), and the
    mean of each. An MLP reads these and the time. The picture may have any size that its patches divide.
    """

    r2: Tensor

    def __init__(self, config: InverseDynamicsConfig, state_dim: int) -> None:
        super().__init__(state_dim)
        self.config = config
        layers: list[nn.Module] = [nn.Conv2d(8, config.widths[0], kernel_size=PATCH, stride=PATCH)]
        for scale, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            if scale:
                layers.append(nn.Conv2d(config.widths[scale - 1], width, kernel_size=2, stride=2))
            layers.extend(Block(width) for _ in range(count))
        self.layers = nn.Sequential(*layers, nn.GroupNorm(1, config.widths[-1]), nn.SiLU())
        self.maps = nn.Conv2d(config.widths[-1], config.places, kernel_size=1)
        features = 2 * config.places + config.widths[-1] + 2
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Sequential(
            *(nn.Linear(features, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.hidden), nn.SiLU()),
            nn.Linear(config.hidden, state_dim),
        )
        self.register_buffer("r2", torch.zeros(state_dim))

    @property
    def readable(self) -> Bool[Tensor, " s"]:
        """The dimensions that pictures show at all: those of which validation read enough, when training ended."""
        return self.r2 >= READABLE

    def forward(
        self, before: Float32[Tensor, "n 3 h w"], now: Float32[Tensor, "n 3 h w"], seconds: Float32[Tensor, " n"]
    ) -> Float32[Tensor, "n s"]:
        """Standardised states at `now`; frames in -1..1.

        Raises:
            UsageError: patches do not divide the pictures.
        """
        height, width = now.shape[-2:]
        if height % self.config.stride or width % self.config.stride:
            side = self.config.stride
            raise UsageError(
                f"frames of {height}x{width} do not divide into squares of {side} px, which are read whole"
            )
        places = coordinates(height, width, now.device).expand(len(now), -1, -1, -1)
        x = torch.cat([before, now, places], dim=1).contiguous(memory_format=torch.channels_last)
        x = self.layers(x)
        where = places_in(self.maps(x)).flatten(1)
        time = torch.stack([(10 * seconds).log(), 0.1 / seconds], dim=1)
        found = self.dropout(torch.cat([where, x.mean(dim=(2, 3))], dim=1))
        return self.head(torch.cat([found, time], dim=1)).float()

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Huber loss in deviations, over pairs at random paces. `state_error` is the mean absolute error of them."""
        before, now, seconds, states = self.drawn(batch, generator)
        if self.training:
            before, now = (blurred(x, self.config.blur, generator) for x in (before, now))
        error = self(before, now, seconds) - (states - self.mean) / self.scale
        loss = F.smooth_l1_loss(error, torch.zeros_like(error))
        return loss, {"state_error": error.detach().abs().mean().item()}

    def drawn(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pairs of frames of a batch at random paces: before, now, the seconds between, the states at `now`."""
        assert batch.frames is not None, "states are read from frames"
        clips, length = batch.frames.shape[:2]
        count, longest = clips * self.config.pairs, min(self.config.longest_gap, length - 1)
        gap = torch.randint(1, longest + 1, (count,), generator=generator)
        end = gap + (torch.rand(count, generator=generator) * (length - gap)).long()
        clip = torch.arange(clips).repeat_interleave(self.config.pairs)
        clip, end, gap = (x.to(batch.frames.device) for x in (clip, end, gap))
        before, now = (scaled(batch.frames[clip, place]) for place in (end - gap, end))
        return before, now, gap / batch.fps, batch.states[clip, end]

    @torch.no_grad()
    def read(
        self,
        frames: UInt8[Tensor, "b f 3 h w"],
        before: UInt8[Tensor, "b 3 h w"],
        *,
        times: Sequence[float],
        began: float,
    ) -> Float32[Tensor, "b f s"]:
        """The states that frames show, in the data's own units.

        Args:
            before: the frame before the first.
            times: of each frame, in seconds, never falling; `began` of the frame before the first. Frames of one time
                are read beside the same frame of an earlier one.

        Raises:
            UsageError: pictures that patches do not divide.
        """
        moments = (began, *times)
        earlier = [max(j for j in range(i + 1) if moments[j] < moments[i + 1] - 1e-6) for i in range(len(times))]
        seen = torch.cat([before[:, None], frames], dim=1)
        gaps = torch.tensor([moments[i + 1] - moments[j] for i, j in enumerate(earlier)]).repeat(len(frames))
        pairs = (rearrange(x, "b f c h w -> (b f) c h w") for x in (seen[:, earlier], frames))
        parts = zip(*(x.split(AT_ONCE) for x in (*pairs, gaps)), strict=True)
        device = self.mean.device
        read = torch.cat([self(scaled(a.to(device)), scaled(b.to(device)), gap.to(device)) for a, b, gap in parts])
        return (read * self.scale + self.mean).unflatten(0, frames.shape[:2]).to(frames.device)


def explained(read: Float[Tensor, "n s"], true: Float[Tensor, "n s"]) -> Float[Tensor, " s"]:
    """R^2 of every dimension, the share of its variance that is read; 0 of what never moves."""
    left, spread = (read - true).double().square().sum(dim=0), (true - true.mean(dim=0)).double().square().sum(dim=0)
    moves = spread > 1e-9 * len(true)
    return torch.where(moves, 1 - left / spread.clamp_min(1e-12), torch.zeros_like(left)).to(read.dtype)
