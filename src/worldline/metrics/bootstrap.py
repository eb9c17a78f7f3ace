"""Numbers per clip become a mean with an interval: only here.

Whole episodes are resampled, not clips. Clips of one recording share the room, the light and the task, so they give
less evidence than independent clips, and a bootstrap over clips would give too narrow intervals.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from pydantic import BeforeValidator
from torch import Tensor

TAIL = 0.025
"""Share of the resamples below an interval, and above it: intervals of 95 %."""
RESAMPLES = 2000

NumberOrNull = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that JSON writes as null when it is NaN."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over clips and its confidence interval over episodes, in the unit of the values."""

    mean: NumberOrNull
    low: NumberOrNull
    """NaN (null in JSON) with one episode only, like `high`: how episodes differ is then unknown."""
    high: NumberOrNull
    num_clips: int
    num_episodes: int


def interval(values: Float[Tensor, " n"], episodes: Int[Tensor, " n"]) -> Interval:
    """Average one number per clip, in float64, and bound the mean by a percentile bootstrap over episodes.

    Each resample draws as many episodes as there are and averages all their clips (Efron & Tibshirani, 1993, ch. 13;
    Cameron, Gelbach & Miller, 2008). With fewer than about ten episodes intervals are too narrow. Deterministic.

    Args:
        episodes: which recording each clip is of; any integers, equal where the recording is the same.

    Raises:
        ValueError: no values, or a value that is not finite.
    """
    return intervals(values[:, None], episodes)[0]


def intervals(values: Float[Tensor, "n m"], episodes: Int[Tensor, " n"]) -> list[Interval]:
    """Do as `interval` for each of m columns (say, future frames); one draw of episodes serves all."""
    clips = values.detach().double().cpu().numpy()
    if len(clips) == 0:
        raise ValueError("no clips to average")
    if len(bad := np.flatnonzero(~np.isfinite(clips).all(axis=1))):
        raise ValueError(
            f"{len(bad)} of {len(clips)} clips have a value that is not finite, the first is clip {bad[0]}"
        )
    of_episode = np.unique(episodes.cpu().numpy(), return_inverse=True)[1]
    num_episodes, means = int(of_episode.max()) + 1, clips.mean(axis=0)
    low = high = np.full_like(means, math.nan)
    if num_episodes > 1:
        sums = np.zeros((num_episodes, clips.shape[1]))
        np.add.at(sums, of_episode, clips)
        sizes = np.bincount(of_episode).astype(np.float64)
        # How often each resample draws each episode.
        drawn = np.random.default_rng(0).multinomial(num_episodes, np.full(num_episodes, 1 / num_episodes), RESAMPLES)
        drawn = drawn.astype(np.float64)
        low, high = np.quantile(drawn @ sums / (drawn @ sizes)[:, None], [TAIL, 1 - TAIL], axis=0)
    return [
        Interval(mean=float(m), low=float(a), high=float(b), num_clips=len(clips), num_episodes=num_episodes)
        for m, a, b in zip(means, low, high, strict=True)
    ]
