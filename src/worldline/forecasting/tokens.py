"""The compression track's forecaster: a discrete world between a tokenizer's encoder and decoder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline.forecasting.blend import blend_last_frame
from worldline.process.categorical import Sampling
from worldline.process.noise import generators
from worldline.schema import Forecast, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import CodeTokenizer, Tokenizer
from worldline.worlds.world import GridStep, TokenWorld

DecodeMode = Literal["tokens", "mean"]
"""What a predicted grid is shown as: the tokens chosen, or the mean code of the tokens' distribution.

Tokens are what the world goes on from either way. The mean is what squared error asks for where a world is unsure; a
sure one is shown no better by it (docs/log.md).
"""

LOGITS = 2**30
"""Bytes of one grid's logits that exist at once in a roll-out: four clips of the report's 32x32 of 64,000 tokens."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A predicted horizon."""

    tokens: Int64[Tensor, "b l gh gw"]
    """The tokens chosen."""
    kept: Float32[Tensor, "b l gh gw"]
    """Share in which a patch shows its token of the last context grid: 0 or 1 of chosen tokens, else a probability."""
    mean_codes: Float32[Tensor, "b l gh gw d"] | None = None
    """Mean of the codes under the distributions they were chosen from, where these are to be shown."""

    @staticmethod
    def joined(parts: "Sequence[Rollout]") -> "Rollout":
        """Roll-outs of successive clips as one."""
        means = [part.mean_codes for part in parts if part.mean_codes is not None]
        return Rollout(
            tokens=torch.cat([part.tokens for part in parts]),
            kept=torch.cat([part.kept for part in parts]),
            mean_codes=torch.cat(means) if means else None,
        )

    @staticmethod
    def certain(context: Int64[Tensor, "b c gh gw"], tokens: Int64[Tensor, "b l gh gw"]) -> "Rollout":
        """The horizon of which every token is certain: the tokens chosen, or the true ones for a round trip."""
        return Rollout(tokens=tokens, kept=(tokens == context[:, -1:]).float())


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
    decode_mode: DecodeMode = "tokens"
    blend_last_frame: bool = False
    """Show the last context frame where its tokens are kept (worldline.forecasting.blend)."""
    rows: int | None = None
    """Roll-outs at once, over all clips; None takes as many as have `LOGITS` bytes of logits for one grid.

    Changes rounding at most.
    """
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where world and tokenizer are; inputs are moved there, forecasts come back to the CPU."""

    @property
    def image_size(self) -> int | None:
        """Side of the frames it takes and gives; None where they are not square, or without a tokenizer."""
        if self.tokenizer is None or self.grid.height != self.grid.width:
            return None
        return self.grid.height * self.tokenizer.spatial_stride

    @property
    def rows_at_once(self) -> int:
        return self.rows or max(1, LOGITS // (4 * self.grid.height * self.grid.width * self.grid.vocab_size))

    @property
    def context_frames(self) -> int:
        return self.grid.frames_of(self.world.context_grids)

    @property
    def horizon_frames(self) -> int:
        return self.grid.frames_of(self.world.horizon_grids)

    @property
    def times(self) -> tuple[int, ...]:
        return tuple(range(self.context_frames, self.context_frames + self.horizon_frames))

    def drawing(self, num_samples: int) -> "TokenForecaster":
        return replace(self, num_samples=num_samples)

    @torch.no_grad()
    def forecast(
        self,
        frames: UInt8[Tensor, "b c 3 h w"],
        states: Float32[Tensor, "b t s"],
        *,
        seeds: Sequence[int] | None = None,
    ) -> Forecast:
        """Encode the context, roll the world forward, decode.

        Raises:
            UsageError: another number of frames than the context, no tokenizer, or several greedy samples.
        """
        if frames.shape[1] != self.context_frames:
            raise UsageError(f"the context is {self.context_frames} frames, but {frames.shape[1]} were given")
        if self.num_samples > 1 and self.sampling.temperature == 0:
            raise UsageError("greedy samples are all alike; give a --temperature above 0 to draw several")
        samples = self.num_samples
        made = self.rollout(self.encode(frames), states, seeds=seeds, num_samples=samples)
        shown = self.show(made, frames.repeat_interleave(samples, dim=0))
        return Forecast(
            frames=rearrange(shown, "(b k) t c h w -> b k t c h w", k=samples), tokens=made.tokens[::samples]
        )

    @torch.no_grad()
    def rollout(
        self,
        context: Int64[Tensor, "b c gh gw"],
        states: Float32[Tensor, "b t s"],
        *,
        seeds: Sequence[int] | None = None,
        num_samples: int = 1,
        watch: Callable[[int, GridStep], None] | None = None,
    ) -> Rollout:
        """Horizons of tokenized contexts, `num_samples` of each, in the order `(b k)`, a few rows at a time.

        Args:
            seeds: one per clip; needed at a temperature above 0.
            watch: `watch(i, step)` sees grid i of a few rows and its logits: all grids of the first rows, then all of
                the next.

        Raises:
            UsageError: mean codes are to be shown, but tokens of this tokenizer have none.
        """
        context, states = context.repeat_interleave(num_samples, dim=0), states.repeat_interleave(num_samples, dim=0)
        streams = None if seeds is None else generators(seeds, num_samples)
        parts = []
        for rows in self._pieces(len(context)):
            steps = self.world.forecast(
                context[rows].to(self.device),
                states[rows].to(self.device),
                sampling=self.sampling,
                generators=None if streams is None else streams[rows],
            )
            parts.append(self._followed(steps, context[rows], watch))
        return Rollout.joined(parts)

    @torch.no_grad()
    def teacher_forced(
        self,
        tokens: Int64[Tensor, "b l gh gw"],
        states: Float32[Tensor, "b t s"],
        *,
        watch: Callable[[int, GridStep], None],
    ) -> None:
        """Let `watch(i, step)` see future grid i of a few rows, given the true grids before it, as in `rollout`."""
        for rows in self._pieces(len(tokens)):
            steps = self.world.teacher_forced(tokens[rows].to(self.device), states[rows].to(self.device))
            for index, step in enumerate(steps):
                watch(index, step)

    def _pieces(self, count: int) -> list[slice]:
        return [slice(first, first + self.rows_at_once) for first in range(0, count, self.rows_at_once)]

    def _followed(
        self,
        steps: Iterator[GridStep],
        context: Int64[Tensor, "b c gh gw"],
        watch: Callable[[int, GridStep], None] | None,
    ) -> Rollout:
        codebook = self._codes().codebook if self.decode_mode == "mean" else None
        grids, means, kept = [], [], []
        for index, step in enumerate(steps):
            grids.append(step.tokens.cpu())
            if codebook is not None:
                probabilities = step.logits.float().softmax(dim=-1)
                means.append((probabilities @ codebook).cpu())
                before = context[:, -1, ..., None].to(self.device)
                kept.append(probabilities.gather(-1, before).squeeze(-1).cpu())
            if watch is not None:
                watch(index, step)
        chosen = Rollout.certain(context, torch.stack(grids, dim=1))
        if codebook is None:
            return chosen
        return replace(chosen, kept=torch.stack(kept, dim=1), mean_codes=torch.stack(means, dim=1))

    def show(self, rollout: Rollout, frames: UInt8[Tensor, "b c 3 h w"] | None) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of a predicted horizon, after the context `frames`, which only `blend_last_frame` needs.

        Raises:
            UsageError: there is no tokenizer, or no frame that could stay in view.
        """
        if rollout.mean_codes is None:
            decoded = self.decode(rollout.tokens)
        else:
            decoded = self._codes().decode_codes(rollout.mean_codes.to(self.device)).cpu()
        if not self.blend_last_frame:
            return decoded
        if frames is None:
            raise UsageError("what was seen can only be kept where there are frames; leave out --blend-last-frame")
        return blend_last_frame(decoded, rollout.kept, seen=frames[:, -1], grid=self.grid)

    def round_trip(self, frames: UInt8[Tensor, "b t 3 h w"]) -> UInt8[Tensor, "b f 3 h w"]:
        """The true horizon, encoded and shown. Raises `UsageError` without a tokenizer."""
        split = self.context_frames
        tokens = self.encode(frames[:, : split + self.horizon_frames])
        past, future = tokens[:, : self.world.context_grids], tokens[:, self.world.context_grids :]
        return self.show(Rollout.certain(past, future), frames[:, :split])

    def encode(self, frames: UInt8[Tensor, "b t 3 h w"]) -> Int64[Tensor, "b l gh gw"]:
        """Tokens of whole blocks of frames. Raises `UsageError` without a tokenizer."""
        return self._tokenizer().encode(frames.to(self.device)).cpu()

    def decode(self, tokens: Int64[Tensor, "b l gh gw"]) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of whole blocks of grids. Raises `UsageError` without a tokenizer."""
        return self._tokenizer().decode(tokens.to(self.device)).cpu()

    def _codes(self) -> CodeTokenizer:
        tokenizer = self._tokenizer()
        if not isinstance(tokenizer, CodeTokenizer):
            raise UsageError(
                "tokens of this tokenizer have no codes whose mean could be decoded; use --decode-mode tokens"
            )
        return tokenizer

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UsageError(
                "this world was trained on tokens alone; give the tokenizer they came from (--tokenizer DIR)"
            )
        return self.tokenizer
