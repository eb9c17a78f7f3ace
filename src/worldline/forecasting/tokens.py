"""The compression track's forecaster: a discrete world between a tokenizer's encoder and decoder."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline.process.categorical import Sampling
from worldline.schema import Forecast, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import Tokenizer
from worldline.worlds.world import GridStep, TokenWorld


@dataclass(frozen=True, kw_only=True)
class TokenForecaster:
    """A discrete world between a tokenizer's encoder and decoder."""

    world: TokenWorld
    grid: TokenGrid
    tokenizer: Tokenizer | None
    """None where a world was trained on tokens as they came: it can be scored on tokens, but shows no picture."""
    sampling: Sampling = field(default_factory=Sampling)
    num_samples: int = 1
    """Independent roll-outs per clip; more than one needs a temperature above 0."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where world and tokenizer are; inputs are moved there, forecasts come back to the CPU."""

    @property
    def context_frames(self) -> int:
        return self.grid.frames_of(self.world.context_grids)

    @property
    def horizon_frames(self) -> int:
        return self.grid.frames_of(self.world.horizon_grids)

    @property
    def times(self) -> tuple[int, ...]:
        return tuple(range(self.context_frames, self.context_frames + self.horizon_frames))

    @torch.no_grad()
    def forecast(
        self,
        frames: UInt8[Tensor, "b c 3 h w"],
        states: Float32[Tensor, "b t s"],
        *,
        generator: torch.Generator | None = None,
    ) -> Forecast:
        """Encode the context, roll the world forward, decode.

        Raises:
            UsageError: another number of frames than the context, no tokenizer, or several greedy samples.
        """
        if frames.shape[1] != self.context_frames:
            raise UsageError(f"the context is {self.context_frames} frames, but {frames.shape[1]} were given")
        if self.num_samples > 1 and self.sampling.temperature == 0:
            raise UsageError("greedy samples are all alike; give a --temperature above 0 to draw several")
        context = self.encode(frames)
        rollouts = [self.rollout(context, states, generator=generator) for _ in range(self.num_samples)]
        return Forecast(frames=torch.stack([self.decode(grids) for grids in rollouts], dim=1), tokens=rollouts[0])

    def rollout(
        self,
        context: Int64[Tensor, "b c gh gw"],
        states: Float32[Tensor, "b t s"],
        *,
        generator: torch.Generator | None = None,
        watch: Callable[[int, GridStep], None] | None = None,
    ) -> Int64[Tensor, "b l gh gw"]:
        """Token grids of the horizon, from a tokenised context. `watch(i, step)` sees grid i and its logits."""
        steps = self.world.forecast(
            context.to(self.device), states.to(self.device), sampling=self.sampling, generator=generator
        )
        grids = []
        for index, step in enumerate(steps):
            grids.append(step.tokens.cpu())
            if watch is not None:
                watch(index, step)
        return torch.stack(grids, dim=1)

    def round_trip(self, frames: UInt8[Tensor, "b t 3 h w"]) -> UInt8[Tensor, "b f 3 h w"]:
        """The true horizon, encoded by itself and decoded. Raises `UsageError` without a tokenizer."""
        return self.decode(self.encode(frames[:, self.context_frames : self.context_frames + self.horizon_frames]))

    def encode(self, frames: UInt8[Tensor, "b t 3 h w"]) -> Int64[Tensor, "b l gh gw"]:
        """Tokens of whole blocks of frames. Raises `UsageError` without a tokenizer."""
        return self._tokenizer().encode(frames.to(self.device)).cpu()

    def decode(self, tokens: Int64[Tensor, "b l gh gw"]) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of whole blocks of grids. Raises `UsageError` without a tokenizer."""
        return self._tokenizer().decode(tokens.to(self.device)).cpu()

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UsageError(
                "this world was trained on tokens alone; give the tokenizer they came from (--tokenizer DIR)"
            )
        return self.tokenizer
