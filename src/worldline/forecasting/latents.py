"""The sampling track's forecaster: a continuous world between a VAE's encoder and decoder, many samples at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange, repeat
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.contract import FramePattern
from worldline.process.flow import FlowSampling
from worldline.process.noise import generators, normal
from worldline.schema import Forecast, LatentGrid, UsageError
from worldline.tokenizers.tokenizer import LatentTokenizer
from worldline.worlds.world import LatentWorld

GENERATED = 10 * 2**20
"""Bytes of latents that are generated at once: eight samples of the 5 B world at 512x512, for which it holds 4.2 GB."""


@dataclass(frozen=True, kw_only=True)
class LatentForecaster:
    """A continuous world, its VAE, and which frames of a window it was trained on.

    Noise belongs to a sample (`worldline.process.noise`), so a forecast does not depend on how clips are batched.
    """

    world: LatentWorld
    grid: LatentGrid
    tokenizer: LatentTokenizer
    pattern: FramePattern
    """Frames of a window that are encoded, for example 0, 4, ..., 72, 76, 76 of 77."""
    sampling: FlowSampling = field(default_factory=FlowSampling)
    num_samples: int = 1
    """Independent futures per clip."""
    average_repeats: bool = False
    """Where a pattern takes an instant twice, average both decoded frames (a free ensemble) instead of the last."""
    rows: int | None = None
    """Samples that are generated at once, over all clips; None takes as many as have `GENERATED` bytes of latents.

    Decoding goes by pieces of its own (`worldline.tokenizers.tokenizer.PIECE`). Neither changes more than rounding.
    """
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where world and VAE are; inputs are moved there, forecasts come back to the CPU."""

    @property
    def image_size(self) -> int | None:
        """Side of the frames it takes and gives; None where they are not square."""
        return self.grid.height * self.tokenizer.spatial_stride if self.grid.height == self.grid.width else None

    @property
    def context_taken(self) -> int:
        """Frames of the context that are encoded: 5 for two latents of stride 4."""
        return 1 + (self.world.context_latents - 1) * self.grid.temporal_stride

    @property
    def rows_at_once(self) -> int:
        length = self.world.context_latents + self.world.horizon_latents
        size = 4 * length * self.grid.channels * self.grid.height * self.grid.width
        return self.rows or max(1, GENERATED // size)

    @property
    def context_frames(self) -> int:
        return self.pattern.frames[self.context_taken - 1] + 1

    @property
    def horizon_frames(self) -> int:
        return self.pattern.window - self.context_frames

    @property
    def times(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.pattern.frames[self.context_taken :]))

    def drawing(self, num_samples: int) -> "LatentForecaster":
        return replace(self, num_samples=num_samples)

    @torch.no_grad()
    def forecast(
        self,
        frames: UInt8[Tensor, "b c 3 h w"],
        states: Float32[Tensor, "b t s"],
        *,
        seeds: Sequence[int] | None = None,
    ) -> Forecast:
        """Encode the context once, generate `num_samples` futures from noise, decode each.

        Raises:
            UsageError: another number of frames than the context.
            ValueError: no seeds, or another number of them than clips.
        """
        if frames.shape[1] != self.context_frames:
            raise UsageError(f"the context is {self.context_frames} frames, but {frames.shape[1]} were given")
        taken = frames[:, list(self.pattern.frames[: self.context_taken])]
        return self.continued(self.tokenizer.encode(taken.to(self.device)), states, seeds=seeds)

    @torch.no_grad()
    def continued(
        self,
        context: Float32[Tensor, "b l c gh gw"],
        states: Float32[Tensor, "b t s"],
        *,
        seeds: Sequence[int] | None,
    ) -> Forecast:
        """Forecast from latents of the context. Raises `ValueError` as `forecast`."""
        if seeds is None or len(seeds) != len(context):
            raise ValueError("a world over latents begins with noise: give one seed for each clip")
        context, samples = context.to(self.device), self.num_samples
        noise = normal(generators(seeds, samples), (self.world.horizon_latents, *context.shape[2:]))
        parts = zip(
            repeat(context, "b l c h w -> (b k) l c h w", k=samples).split(self.rows_at_once),
            repeat(states, "b t s -> (b k) t s", k=samples).split(self.rows_at_once),
            noise.split(self.rows_at_once),
            strict=True,
        )
        video = torch.cat([self._future(*part) for part in parts])
        return Forecast(frames=rearrange(video, "(b k) t c h w -> b k t c h w", k=samples))

    @torch.no_grad()
    def decoded(
        self, latents: Float32[Tensor, "b l c gh gw"]
    ) -> tuple[UInt8[Tensor, "b n 3 h w"], UInt8[Tensor, "b f 3 h w"]]:
        """Frames of a whole clip of latents: those of the context that are encoded, and those at `times`."""
        video = self.tokenizer.decode(latents.to(self.device)).cpu()
        return video[:, : self.context_taken], self._one_per_instant(video)

    @torch.no_grad()
    def round_trip(self, frames: UInt8[Tensor, "b t 3 h w"]) -> UInt8[Tensor, "b f 3 h w"]:
        """The true frames of the pattern, encoded with their context and decoded."""
        taken = frames[:, list(self.pattern.frames)]
        return self._one_per_instant(self.tokenizer.decode(self.tokenizer.encode(taken.to(self.device))).cpu())

    def _future(self, context: Tensor, states: Tensor, noise: Tensor) -> UInt8[Tensor, "n t 3 h w"]:
        future = self.world.forecast(context, states.to(self.device), noise.to(self.device), sampling=self.sampling)
        video = self.tokenizer.decode(torch.cat([context, future], dim=1)).cpu()
        return self._one_per_instant(video)

    def _one_per_instant(self, video: UInt8[Tensor, "n f 3 h w"]) -> UInt8[Tensor, "n t 3 h w"]:
        """Drop the context, and merge decoded frames that show the same instant."""
        frames = self.pattern.frames
        places = {time: [i for i, t in enumerate(frames) if t == time] for time in self.times}
        if self.average_repeats:
            merged = [video[:, at].float().mean(dim=1).round().byte() for at in places.values()]
        else:
            merged = [video[:, at[-1]] for at in places.values()]
        return torch.stack(merged, dim=1)
