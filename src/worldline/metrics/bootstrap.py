"""Numbers per clip become a mean with an interval: only here.

Whole episodes are resampled, not clips. Clips of one recording share the room, the light and the task, so they give
less evidence than independent clips, and a bootstrap over clips would give too narrow intervals.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float, Float64, Int
from pydantic import BeforeValidator
from torch import Tensor

MAX_WEIGHTS = 1 << 23
"""Resampling weights held at once (64 MB); beyond that, resamples are drawn in turns."""

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


def interval(
    values: Float[Tensor, " n"],
    episodes: Int[Tensor, " n"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Average one number per clip and bound the mean by a percentile bootstrap over episodes.

    The mean is the plain mean over clips, in float64. Each resample draws as many episodes as there are, with
    replacement, and averages all their clips (percentile method: Efron & Tibshirani, 1993, ch. 13; clusters:
    Cameron, Gelbach & Miller, 2008). With fewer than about ten episodes such intervals are too narrow.
    Deterministic for a given `seed`.

    Args:
        episodes: which recording each clip is of; any integers, equal where the recording is the same.

    Raises:
        ValueError: no values, a value that is not finite, or `confidence` outside (0, 1).
    """
    return intervals(values[:, None], episodes, confidence=confidence, resamples=resamples, seed=seed)[0]


def intervals(
    values: Float[Tensor, "n m"],
    episodes: Int[Tensor, " n"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """Do as `interval` for each of m columns (say, future frames); one draw of episodes serves all."""
    clips, of_episode = _checked(values, episodes, confidence)
    num_episodes = int(of_episode.max()) + 1
    means = clips.mean(axis=0)
    low = high = np.full_like(means, math.nan)
    if num_episodes > 1:
        sums = np.zeros((num_episodes, clips.shape[1]))
        np.add.at(sums, of_episode, clips)
        sizes = np.bincount(of_episode).astype(np.float64)
        draws = np.concatenate([w @ sums / (w @ sizes)[:, None] for w in _weights(num_episodes, resamples, seed)])
        tail = (1 - confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return [
        Interval(mean=float(m), low=float(a), high=float(b), num_clips=len(clips), num_episodes=num_episodes)
        for m, a, b in zip(means, low, high, strict=True)
    ]


def paired_difference(
    a: Float[Tensor, " n"],
    b: Float[Tensor, " n"],
    episodes: Int[Tensor, " n"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bound the mean of a - b, measured on the same clips.

    Much sharper than comparing two intervals: a difficult clip is difficult for both, and this cancels.
    """
    return interval(a.double() - b.double(), episodes, confidence=confidence, resamples=resamples, seed=seed)


def _weights(num_episodes: int, resamples: int, seed: int) -> Iterator[Float64[np.ndarray, "r e"]]:
    """How often each resample drew each episode."""
    generator = np.random.default_rng(seed)
    at_once = max(1, MAX_WEIGHTS // num_episodes)
    chances = np.full(num_episodes, 1 / num_episodes)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        yield generator.multinomial(num_episodes, chances, size=size).astype(np.float64)


def _checked(
    values: Float[Tensor, "n m"], episodes: Int[Tensor, " n"], confidence: float
) -> tuple[Float64[np.ndarray, "n m"], Int[np.ndarray, " n"]]:
    clips = values.detach().double().cpu().numpy()
    if len(clips) == 0:
        raise ValueError("no clips to average")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, found {confidence}")
    bad = np.flatnonzero(~np.isfinite(clips).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(clips)} clips have a value that is not finite, the first is clip {bad[0]}"
        )
    return clips, np.unique(episodes.cpu().numpy(), return_inverse=True)[1]
