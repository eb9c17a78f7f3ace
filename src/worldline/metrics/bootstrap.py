"""Numbers per clip become a mean with an interval: only here.

Whole episodes are resampled, not clips. Clips of one recording share the room, the light and the task, so they give
less evidence than independent clips, and a bootstrap over clips would give too narrow intervals.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
from jaxtyping import Float, Float64, Int
from pydantic import BeforeValidator
from torch import Tensor

TAIL = 0.025
"""Share of the resamples below an interval, and above it: intervals of 95 %."""
RESAMPLES = 2000
AT_ONCE = 2**22
"""Weights of clips that exist at once, over resamples: 34 MB for each array of a statistic."""

NumberOrNull = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that JSON writes as null when it is NaN."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over clips, or another statistic of them, and its confidence interval over episodes."""

    mean: NumberOrNull
    low: NumberOrNull
    """NaN (null in JSON) with one episode only, like `high`: how episodes differ is then unknown."""
    high: NumberOrNull
    num_clips: int
    num_episodes: int

    def said(self, unit: str = "") -> str:
        """In a sentence: `1.20 [0.91, 1.52] dB`. With one episode there is no interval, and the text says so, as of a
        statistic that is not defined."""
        if math.isnan(self.mean):
            return "not defined"
        between = "one episode" if math.isnan(self.low) else f"{self.low:.2f}, {self.high:.2f}"
        return f"{self.mean:.2f} [{between}] {unit}".strip()


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
    of_episode, drawn = _drawn(episodes)
    num_episodes, means = drawn.shape[1], clips.mean(axis=0)
    low = high = np.full_like(means, math.nan)
    if num_episodes > 1:
        sums = np.zeros((num_episodes, clips.shape[1]))
        np.add.at(sums, of_episode, clips)
        sizes = np.bincount(of_episode).astype(np.float64)
        low, high = np.quantile(drawn @ sums / (drawn @ sizes)[:, None], [TAIL, 1 - TAIL], axis=0)
    return _as_intervals(means, low, high, len(clips), num_episodes)


@dataclass(frozen=True, kw_only=True)
class Simultaneous:
    """One of several means that are looked at together: all of their intervals hold at once with 95 %."""

    low: NumberOrNull
    high: NumberOrNull
    p: NumberOrNull
    """How often chance alone would give one of them a mean as far from zero, in its own standard errors."""


def simultaneous(values: Float[Tensor, "n m"], episodes: Int[Tensor, " n"]) -> list[Simultaneous]:
    """Bound m means so that all intervals hold at once, by the single-step max-T method over whole episodes.

    Each resample's largest |mean* - mean| / standard error over all m gives the width: so many standard errors that
    95 % of the resamples lie within (Westfall & Young, 1993, ch. 2; Romano & Wolf, 2005). The draws are those of
    `intervals`, so what is correlated (the same clips, the same run in several differences) costs no more than it
    must; Bonferroni and Holm know nothing of that. A mean of one episode has NaN: how episodes differ is unknown.

    Args:
        values: NaN where a clip has no number; it counts in no mean then.
    """
    clips = values.detach().double().cpu().numpy()
    known = ~np.isnan(clips)
    of_episode, drawn = _drawn(episodes)
    if drawn.shape[1] < 2:
        return [Simultaneous(low=math.nan, high=math.nan, p=math.nan)] * clips.shape[1]
    sums, sizes = np.zeros((2, drawn.shape[1], clips.shape[1]))
    np.add.at(sums, of_episode, np.where(known, clips, 0))
    np.add.at(sizes, of_episode, known)
    with np.errstate(invalid="ignore", divide="ignore"):
        means, resampled = sums.sum(axis=0) / sizes.sum(axis=0), drawn @ sums / (drawn @ sizes)
        errors = np.nanstd(resampled, axis=0, ddof=1)
        exact = errors <= 1e-12 * np.abs(means)
        away = np.abs(resampled - means)[:, ~exact] / errors[~exact]
        furthest = np.where(np.isnan(away), 0.0, away).max(axis=1, initial=0.0)
        width, away = (
            np.quantile(furthest, 1 - 2 * TAIL),
            np.where(exact, np.inf * np.abs(means), np.abs(means) / errors),
        )
    unknown = Simultaneous(low=math.nan, high=math.nan, p=math.nan)
    return [
        Simultaneous(low=float(m - width * e), high=float(m + width * e), p=_chance(furthest, float(t), float(m)))
        if count > 1
        else unknown
        for m, e, t, count in zip(means, np.where(exact, 0.0, errors), away, (sizes > 0).sum(axis=0), strict=True)
    ]


def _chance(furthest: Float64[np.ndarray, " r"], away: float, mean: float) -> float:
    """The adjusted p-value: the share of resamples that reach as far, with one imagined one that does."""
    return 1.0 if mean == 0 else (1 + int((furthest >= away).sum())) / (1 + len(furthest))


Weights = Float64[np.ndarray, "r n"]
"""How often each of n clips counts in each of r resamples; a row of ones is the clips as they are."""


def statistics(
    of: Callable[[Weights], Float64[np.ndarray, "r m"]], episodes: Int[Tensor, " n"] | Int[np.ndarray, " n"]
) -> list[Interval]:
    """Bound m statistics that are no means (a rank correlation, a ratio, an area), by the same draws as `intervals`.

    A clip of an episode that a resample draws twice has weight 2 there: so one vectorised function gives all of them.
    Resamples in which a statistic is NaN (nothing to measure was drawn) are left out of its interval.

    Args:
        of: from weights of the clips to the statistics, each row by itself.

    Raises:
        ValueError: no clips.
    """
    if len(episodes) == 0:
        raise ValueError("no clips to measure")
    of_episode, drawn = _drawn(episodes)
    count, num_episodes = len(of_episode), drawn.shape[1]
    found = of(np.ones((1, count)))[0]
    low = high = np.full_like(found, math.nan)
    if num_episodes > 1:
        step = max(1, AT_ONCE // count)
        parts = [of(drawn[first : first + step, of_episode]) for first in range(0, RESAMPLES, step)]
        known = ~np.isnan(values := np.concatenate(parts)).all(axis=0)
        bounds = np.full((2, len(found)), math.nan)
        bounds[:, known] = np.nanquantile(values[:, known], [TAIL, 1 - TAIL], axis=0)
        low, high = bounds
    return _as_intervals(found, low, high, count, num_episodes)


def _drawn(
    episodes: Int[Tensor, " n"] | Int[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, " n"], Float64[np.ndarray, "r e"]]:
    """The episode of each clip, counted from 0, and how often each resample draws each episode."""
    of_episode = np.unique(np.asarray(episodes), return_inverse=True)[1]
    return of_episode, _resamples(int(of_episode.max()) + 1)


@lru_cache(maxsize=2)
def _resamples(count: int) -> Weights:
    """The same for every number of an evaluation, which has hundreds: drawing costs more than what is made of it."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
    drawn.flags.writeable = False
    return drawn


def _as_intervals(means: np.ndarray, low: np.ndarray, high: np.ndarray, clips: int, episodes: int) -> list[Interval]:
    return [
        Interval(mean=float(m), low=float(a), high=float(b), num_clips=clips, num_episodes=episodes)
        for m, a, b in zip(means, low, high, strict=True)
    ]
