"""The sampling track's forecaster: a continuous world between a VAE's encoder and decoder, many samples at a time."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from worldline.checks import Natural
from worldline.contract import FramePattern
from worldline.forecasting.forecaster import Context, Forecaster, Frames, Seeds, Shown, States, Step, generators
from worldline.process.flow import FlowSampling
from worldline.schema import Batch, Forecast, LatentGrid, UsageError
from worldline.tokenizers.tokenizer import Tokenizer

GENERATED = 10 * 2**20
"""Bytes of latents that are generated at once: eight samples of the 5 B world at 512x512, for which it holds 4.2 GB."""


@runtime_checkable
class LatentWorld(Protocol):
    """What a forecaster needs of a world over continuous latents, which is given raw states."""

    context_latents: int
    horizon_latents: int
    knows_mean: bool
    """Whether its estimates at pure noise were trained: then they are the conditional mean."""

    def forecast(
        self,
        context: Float[Tensor, "b c ch h w"],
        states: Float[Tensor, "b t s"],
        noise: Float[Tensor, "b f ch h w"],
        *,
        sampling: FlowSampling,
    ) -> Float[Tensor, "b f ch h w"]:
        """Turn noise into one possible horizon; a pure function of its arguments."""
        ...


@dataclass(frozen=True, kw_only=True)
class LatentForecaster(Forecaster):
    """A continuous world, its VAE, and which frames of a window it was trained on."""

    world: LatentWorld
    grid: LatentGrid
    tokenizer: Tokenizer[LatentGrid]
    pattern: FramePattern
    """Frames of a window that are encoded, for example 0, 4, ..., 72, 76, 76 of 77."""
    sampling: FlowSampling = field(default_factory=FlowSampling)
    mean_draws: Natural = 0
    """0: samples. Else the conditional mean in so many network calls and one decode: the world's estimates of x0 at
    pure noise, averaged over as many draws of it in latents (`conditional_mean`)."""
    others: tuple[LatentWorld, ...] = ()
    """Further worlds of an ensemble: future k of a clip is drawn by world k mod n, and a mean is that of all n, each
    asked at the same `mean_draws` draws of the noise."""
    average_repeats: bool = False
    """If a pattern takes an instant twice, average both decoded frames (a free ensemble) instead of taking the last."""

    def __post_init__(self) -> None:
        """The chunk is the longest step after which frames of the window lie as a context does, to be the next one."""
        frames, taken = self.pattern.frames, self.context_taken
        context, predicted = taken[-1] + 1, tuple(dict.fromkeys(frames[len(taken) :]))
        steps = (n for n in range(self.pattern.window - context, 0, -1) if {n + t for t in taken} <= {*frames})
        vars(self).update(context_frames=context, times=predicted, chunk_frames=next(steps, 0))

    def conditional_mean(self, draws: int) -> "LatentForecaster":
        """The forecaster of E[x0 | context, states]: best under squared error, blurred where the future is open.

        At pure noise (sigma = 1) the input says nothing of x0, so the estimate of x0 there, one Euler step, is that
        mean. Draws of the noise differ by the error of the network alone, and a mean over four takes most of it away
        (docs/beyond.md). Warns for a world to which pure noise had no weight in training.
        """
        if not all(world.knows_mean for world in (self.world, *self.others)):
            warnings.warn(
                "this world gave pure noise no weight in training, so its estimate there is no conditional mean; train "
                "with --model.flow.weighting uniform or --model.flow.pure-noise above 0",
                stacklevel=2,
            )
        one_step = replace(self.sampling, sampler="euler", steps=1, shortcuts=False)
        return replace(self, mean_draws=draws, num_samples=1, sampling=one_step)

    @property
    def members(self) -> "tuple[LatentForecaster, ...]":
        return tuple(replace(self, world=world, others=()) for world in (self.world, *self.others) if self.others)

    def with_members(self, others: Sequence[Any]) -> "LatentForecaster":
        count = 1 + len(others)
        if not self.mean_draws and self.num_samples < count:
            raise UsageError(f"each of {count} worlds draws a future in turn: give --num-samples {count} or more")
        worlds = tuple(other.world for other in others)
        shapes = {(world.context_latents, world.horizon_latents) for world in (self.world, *worlds)}
        if len(shapes) > 1:
            raise UsageError(f"worlds of one ensemble read and predict as many latents, but these {sorted(shapes)}")
        return replace(self, others=worlds)

    @property
    def context_taken(self) -> tuple[int, ...]:
        """Frames of the context that are encoded: 0, 4, ..., 16 for two latents of stride 4."""
        return self.pattern.frames[: 1 + (self.world.context_latents - 1) * self.grid.temporal_stride]

    @property
    def rows_at_once(self) -> int:
        latents = self.world.context_latents + self.world.horizon_latents
        return self.rows or max(1, GENERATED // (4 * latents * self.grid.channels * self.grid.height * self.grid.width))

    def encoded(self, batch: Batch) -> Batch:
        """With the latents of its context; those of the future depend on the frames between, and no row reads them."""
        return batch if batch.latents is not None else replace(batch, latents=self._context_of(batch))

    def reconstruct(self, batch: Batch) -> Forecast:
        """The true frames of the pattern, encoded with their context and decoded."""
        frames = self.frames_of(batch, self.pattern.window)
        latents = self._encode(frames[:, list(self.pattern.frames)])
        return self._forecast(self._decode(latents, *self._seen(batch, latents)), 1)

    def round_trip(self, batch: Batch) -> tuple[Frames, Frames] | None:
        if batch.frames is None:
            return None
        latents = self._context_of(batch) if batch.latents is None else batch.latents
        kept = self._decode(latents[:, : self.world.context_latents])
        return batch.frames[:, list(self.context_taken)], kept

    def shown(self, batch: Batch) -> Shown:
        if batch.frames is not None or batch.latents is None:
            return super().shown(batch)
        context, future = self._decode(batch.latents).tensor_split([len(self.context_taken)], dim=1)
        return context, future if future.shape[1] == len(self.times) else None

    def begin(self, batch: Batch) -> Context:
        latents, count = batch.latents, self.world.context_latents
        if latents is None:
            latents = self._context_of(batch)
        context = self._enough(batch, "latents", latents, count)[:, :count].cpu()
        return tuple(part.repeat_interleave(self.num_samples, dim=0) for part in (context, *self._seen(batch, context)))

    def _seen(self, batch: Batch, context: Tensor) -> tuple[Tensor, ...]:
        """The last context frame, where the decoder sees it; decoded where clips hold latents alone."""
        if self.tokenizer is None or not self.tokenizer.sees:
            return ()
        if batch.frames is None:
            return (self._decode(context)[:, -1],)
        return (self.frames_of(batch, self.context_frames)[:, self.context_frames - 1].cpu().clone(),)

    def _context_of(self, batch: Batch) -> Tensor:
        return self._encode(self.frames_of(batch, self.context_frames)[:, list(self.context_taken)])

    @torch.no_grad()
    def step(self, context: Context, states: States, *, seeds: Seeds) -> Step:
        """Predicted frames are encoded again for the next step, because a latent depends on the frames before it."""
        (past, *seen), draws = context, self.mean_draws or 1
        streams = generators(seeds, self.num_samples * draws, clips=len(states))
        shape = (self.world.horizon_latents, *past.shape[2:])
        noise = torch.stack([torch.randn(shape, generator=stream) for stream in streams])
        states = states.repeat_interleave(self.num_samples, dim=0)
        given = past.repeat_interleave(draws, dim=0), states.repeat_interleave(draws, dim=0), noise
        latents = torch.cat([past, self._generated(*given).unflatten(0, (-1, draws)).mean(dim=1)], dim=1)
        pieces = zip(*(part.split(self.rows_at_once) for part in (latents, *seen)), strict=True)
        video = torch.cat([self._decode(*some) for some in pieces])

        def onward() -> Context:
            instants = list(dict.fromkeys(self.pattern.frames))
            following = video[:, [instants.index(self.chunk_frames + time) for time in self.context_taken]]
            return self._encode(following), *(following[:, -1].clone() for _ in seen)

        return self._forecast(video, self.num_samples), onward

    def _generated(self, past: Tensor, states: Tensor, noise: Tensor) -> Float32[Tensor, "n f ch h w"]:
        """Latents of the horizon: each row by the world whose turn it is, or the mean over all worlds."""
        worlds, mean = (self.world, *self.others), self.mean_draws > 0
        number, future = torch.arange(len(noise)) % self.num_samples, torch.zeros_like(noise)
        for turn, world in enumerate(worlds):
            own = torch.arange(len(noise))[mean | (number % len(worlds) == turn)]
            parts = zip(*(x[own].to(self.device).split(self.rows_at_once) for x in (past, states, noise)), strict=True)
            made = [world.forecast(*rows, sampling=self.sampling).cpu() for rows in parts]
            if made:
                future[own] += torch.cat(made) / (len(worlds) if mean else 1)
        return future

    def _forecast(self, video: UInt8[Tensor, "n f 3 h w"], samples: int) -> Forecast:
        """The predicted frames of whole windows in the order `(b k)`, which have one frame for each instant."""
        return Forecast(times=self.times, frames=video[:, len(self.context_taken) :].unflatten(0, (-1, samples)))

    def _decode(self, encoded: Float32[Tensor, "b l c gh gw"], *seen: Tensor) -> UInt8[Tensor, "b f 3 h w"]:
        """One frame for each instant: frames of the same instant are merged."""
        video = super()._decode(encoded, *seen)
        frames = self.pattern.frames[: video.shape[1]]
        places = [[i for i, t in enumerate(frames) if t == time] for time in dict.fromkeys(frames)]
        if self.average_repeats:
            return torch.stack([video[:, at].float().mean(dim=1).round().byte() for at in places], dim=1)
        return video[:, [at[-1] for at in places]]
