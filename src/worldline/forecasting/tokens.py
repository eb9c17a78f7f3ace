"""The compression track's forecaster: a discrete world between a tokenizer's encoder and decoder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline.process.categorical import Sampling
from worldline.schema import Forecast, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import CodeTokenizer, Tokenizer
from worldline.worlds.world import GridStep, TokenWorld

Pictures = Literal["words", "mean"]
"""What a predicted grid is shown as: the words chosen, or the mean code of the words' distribution.

Words are what the world goes on from either way. The mean is what squared error asks for where a world is unsure; a
sure one is shown no better by it (docs/log.md).
"""


@dataclass(frozen=True)
class Rollout:
    """A predicted horizon."""

    tokens: Int64[Tensor, "b l gh gw"]
    """The words chosen."""
    mean_codes: Float32[Tensor, "b l gh gw d"] | None = None
    """Mean of the codes under the distributions they were chosen from, where these are to be shown."""


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
    pictures: Pictures = "words"
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
        return Forecast(frames=torch.stack([self.show(one) for one in rollouts], dim=1), tokens=rollouts[0].tokens)

    def rollout(
        self,
        context: Int64[Tensor, "b c gh gw"],
        states: Float32[Tensor, "b t s"],
        *,
        generator: torch.Generator | None = None,
        watch: Callable[[int, GridStep], None] | None = None,
    ) -> Rollout:
        """The horizon of a tokenised context. `watch(i, step)` sees grid i and its logits.

        Raises:
            UsageError: mean codes are to be shown, but words of this tokenizer have none.
        """
        steps = self.world.forecast(
            context.to(self.device), states.to(self.device), sampling=self.sampling, generator=generator
        )
        codebook = self._codes().codebook if self.pictures == "mean" else None
        grids, means = [], []
        for index, step in enumerate(steps):
            grids.append(step.tokens.cpu())
            if codebook is not None:
                means.append((step.logits.float().softmax(dim=-1) @ codebook).cpu())
            if watch is not None:
                watch(index, step)
        return Rollout(torch.stack(grids, dim=1), torch.stack(means, dim=1) if means else None)

    def show(self, rollout: Rollout) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of a predicted horizon. Raises `UsageError` without a tokenizer."""
        if rollout.mean_codes is None:
            return self.decode(rollout.tokens)
        return self._codes().decode_codes(rollout.mean_codes.to(self.device)).cpu()

    def round_trip(self, frames: UInt8[Tensor, "b t 3 h w"]) -> UInt8[Tensor, "b f 3 h w"]:
        """The true horizon, encoded by itself and decoded. Raises `UsageError` without a tokenizer."""
        return self.decode(self.encode(frames[:, self.context_frames : self.context_frames + self.horizon_frames]))

    def encode(self, frames: UInt8[Tensor, "b t 3 h w"]) -> Int64[Tensor, "b l gh gw"]:
        """Tokens of whole blocks of frames. Raises `UsageError` without a tokenizer."""
        return self._tokenizer().encode(frames.to(self.device)).cpu()

    def decode(self, tokens: Int64[Tensor, "b l gh gw"]) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of whole blocks of grids. Raises `UsageError` without a tokenizer."""
        return self._tokenizer().decode(tokens.to(self.device)).cpu()

    def _codes(self) -> CodeTokenizer:
        tokenizer = self._tokenizer()
        if not isinstance(tokenizer, CodeTokenizer):
            raise UsageError("words of this tokenizer have no codes whose mean could be decoded; use --pictures words")
        return tokenizer

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UsageError(
                "this world was trained on tokens alone; give the tokenizer they came from (--tokenizer DIR)"
            )
        return self.tokenizer
