"""Forecasts of single samples: what a world predicts after a context, with or without a true future beside it.

The context is frames, token grids or latents, the states are those of context and horizon; nothing else is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline.forecasting.forecaster import shown_context
from worldline.forecasting.latents import LatentForecaster
from worldline.forecasting.tokens import TokenForecaster
from worldline.process.noise import clip_seeds
from worldline.schema import Clip, UsageError
from worldline.worlds.world import GridStep

TOP = 500
"""Tokens whose log-probabilities are kept: what the challenge scores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What was predicted for one sample, `k` times."""

    frames: UInt8[Tensor, "k t 3 h w"] | None = None
    """Predicted frames; None of a world over tokens without a tokenizer."""
    tokens: Int64[Tensor, "k l gh gw"] | None = None
    top_ids: Int64[Tensor, "l gh gw n"] | None = None
    """The likeliest tokens of each place, likeliest first, given the grids predicted before in future 0."""
    top_log_probs: Float32[Tensor, "l gh gw n"] | None = None
    """Their log-probabilities, in nats, at temperature 1 over the whole vocabulary."""


def predict(forecaster: TokenForecaster | LatentForecaster, clips: Sequence[Clip], *, seed: int) -> list[Prediction]:
    """Forecast each clip from its context and states. Its future, if there is one, is not looked at.

    Raises:
        UsageError: a clip has neither frames nor tokens nor latents of the whole context, or no tokenizer makes the
            one of the other.
    """
    seeds = clip_seeds(seed, [clip.origin for clip in clips])
    states = torch.stack([clip.states for clip in clips])
    if isinstance(forecaster, LatentForecaster):
        if clips[0].latents is None:
            made = forecaster.forecast(_seen(forecaster, clips), states, seeds=seeds)
        else:
            count = forecaster.world.context_latents
            context = torch.stack([clip.latents[:count] for clip in clips if clip.latents is not None])
            made = forecaster.continued(context, states, seeds=seeds)
        return [Prediction(frames=frames) for frames in made.frames]
    samples, top = forecaster.num_samples, _Top(forecaster.num_samples)
    made = forecaster.rollout(_context(forecaster, clips), states, seeds=seeds, num_samples=samples, watch=top.add)
    frames = None
    if forecaster.tokenizer is not None:
        seen = _seen(forecaster, clips).repeat_interleave(samples, dim=0) if forecaster.blend_last_frame else None
        frames = forecaster.show(made, seen).unflatten(0, (len(clips), samples))
    tokens = made.tokens.unflatten(0, (len(clips), samples))
    return [
        Prediction(
            frames=None if frames is None else frames[i],
            tokens=tokens[i],
            top_ids=torch.stack([grid[i] for grid in top.ids]),
            top_log_probs=torch.stack([grid[i] for grid in top.log_probs]),
        )
        for i in range(len(clips))
    ]


def beside(
    forecaster: TokenForecaster | LatentForecaster, clip: Clip
) -> tuple[UInt8[Tensor, "c 3 h w"], UInt8[Tensor, "f 3 h w"] | None]:
    """What to show a prediction with: frames of the context at its pace, and the real ones at its times, if known.

    Of a clip of tokens or latents these are what the tokenizer makes of them.
    """
    if clip.latents is not None:
        assert isinstance(forecaster, LatentForecaster), "predicted from latents"
        seen, real = forecaster.decoded(clip.latents[None])
        return seen[0], real[0]
    frames = clip.frames
    if frames is None:
        assert isinstance(forecaster, TokenForecaster), "predicted from tokens"
        assert clip.tokens is not None, "predicted from tokens"
        frames = forecaster.decode(clip.tokens[None])[0]
    real = frames[list(forecaster.times)] if len(frames) > forecaster.times[-1] else None
    return frames[shown_context(forecaster)], real


class _Top:
    """The likeliest tokens of every grid of every clip's first roll-out, taken from logits that are dropped at once."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.rows: list[int] = []
        self.ids: list[list[Tensor]] = []
        self.log_probs: list[list[Tensor]] = []

    def add(self, index: int, step: GridStep) -> None:
        """Take grid `index` of the next few rows; rows are in the order `(b k)`."""
        if index == len(self.rows):
            self.rows.append(0)
            self.ids.append([])
            self.log_probs.append([])
        for logits in step.logits:
            if self.rows[index] % self.num_samples == 0:
                best = logits.float().log_softmax(dim=-1).topk(min(TOP, logits.shape[-1]), dim=-1)
                self.ids[index].append(best.indices.cpu())
                self.log_probs[index].append(best.values.cpu())
            self.rows[index] += 1


def _seen(forecaster: TokenForecaster | LatentForecaster, clips: Sequence[Clip]) -> UInt8[Tensor, "b c 3 h w"]:
    count = forecaster.context_frames
    for clip in clips:
        if clip.frames is None or len(clip.frames) < count:
            found = "no frames" if clip.frames is None else f"{len(clip.frames)} frames"
            raise UsageError(f"{clip.origin.source} holds {found}, but this forecast begins with {count} of them")
    return torch.stack([clip.frames[:count] for clip in clips if clip.frames is not None])


def _context(forecaster: TokenForecaster, clips: Sequence[Clip]) -> Int64[Tensor, "b c gh gw"]:
    if clips[0].tokens is None:
        return forecaster.encode(_seen(forecaster, clips))
    grids = forecaster.world.context_grids
    if len(clips[0].tokens) < grids:
        found = len(clips[0].tokens)
        raise UsageError(f"{clips[0].origin.source} holds {found} token grids, but this world begins with {grids}")
    return torch.stack([clip.tokens[:grids] for clip in clips if clip.tokens is not None])
