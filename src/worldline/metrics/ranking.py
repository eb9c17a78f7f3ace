"""Does one list of success rates order policies as another does? Pure functions; one list is the truth.

Few policies say little: a correlation of three of them can be anything. So every number (`Agreement`) carries the
number of policies k, its range when any one of them is left out, an interval, and a permutation test with the smallest
p that so few policies can reach at all. The unit is the policy: checkpoints of one training are not several.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts are loaded when they are first used: `scipy.stats` takes a second
from jaxtyping import Float, Float64, Int

from worldline.metrics.bootstrap import TAIL, Interval, NumberOrNull, statistics

Statistic = Literal["pearson", "spearman", "mmrv"]
Rates = Float[np.ndarray, "... k"] | Sequence[float]
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
LABELS: dict[Statistic, str] = {"pearson": "Pearson r", "spearman": "Spearman rho", "mmrv": "MMRV"}
EXACT = 8
"""Up to so many policies all orders are tried (40,320); beyond, `DRAWN` of them are drawn."""
DRAWN = 9_999
FEW = 3
"""With so few policies no order is rare enough: the smallest p that all orders can give is 1/6."""
_SAME = 1e-9
"""Success rates, and differences of them, that are nearer than this are the same."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a success rate (Wilson, 1927), which is sound for 0 and for all successes, too.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    found = scipy.stats.binomtest(successes, trials).proportion_ci(confidence_level=1 - 2 * TAIL, method="wilson")
    return float(found.low), float(found.high)


# --- statistics: the last axis is the policies, all others are broadcast; NaN where there is nothing to measure ---


def pearson(true: Rates, found: Rates) -> Float64[np.ndarray, "..."]:
    """Pearson's correlation; NaN where one list is constant, or has fewer than two numbers."""
    x, y = (np.asarray(one, np.float64) for one in (true, found))
    # By the rates themselves: the mean of equal ones may differ from them in its last bit.
    differ = (np.ptp(x, axis=-1) > _SAME) & (np.ptp(y, axis=-1) > _SAME)
    x, y = (one - one.mean(axis=-1, keepdims=True) for one in (x, y))
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(differ, np.clip((x * y).sum(axis=-1) / scale, -1, 1), math.nan)


def spearman(true: Rates, found: Rates) -> Float64[np.ndarray, "..."]:
    """Pearson's correlation of the ranks, where equal rates share their mean rank (Spearman, 1904)."""
    ranks = [scipy.stats.rankdata(np.round(np.asarray(one, np.float64), 9), axis=-1) for one in (true, found)]
    return pearson(*ranks)


def mmrv(true: Rates, found: Rates) -> Float64[np.ndarray, "..."]:
    """Mean maximum rank violation (Li et al., 2024, SIMPLER, arXiv 2405.05941, section 4): 0 is best, 1 the worst.

    Of two policies that `found` orders otherwise than `true`, the violation is the difference of their true rates. For
    each policy the largest violation with any other counts; this is their mean. Both orders are "less than": policies
    that tie in one list and not in the other violate it, too, where the tie hides that the first is worse.
    """
    x, y = (np.asarray(one, np.float64) for one in (true, found))
    gap = x[..., :, None] - x[..., None, :]
    wrong = (gap < -_SAME) != (y[..., :, None] - y[..., None, :] < -_SAME)
    return np.asarray(np.where(wrong, np.abs(gap), 0).max(axis=-1).mean(axis=-1))


MEASURES: dict[Statistic, Measure] = {"pearson": pearson, "spearman": spearman, "mmrv": mmrv}


# --- what is said of one ---


@dataclass(frozen=True, kw_only=True)
class Permuted:
    """How often chance alone, which gives each policy the rate of any other, agrees as well; one-sided."""

    p: NumberOrNull
    exact: bool
    """Whether all orders of the policies were tried; else so many were drawn, with a fixed seed."""
    orders: int
    least: NumberOrNull
    """The smallest p that these rates could give: where it is above 0.05, no agreement is evidence."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well one list of success rates agrees with the true one, by one statistic."""

    statistic: Statistic
    k: int
    """Policies."""
    value: NumberOrNull
    low: NumberOrNull
    """Of correlations, the 95 % interval over policies by Fisher's z (`fisher`); NaN for MMRV."""
    high: NumberOrNull
    starts_low: NumberOrNull = math.nan
    """The 95 % interval over starts, with these policies (`over_starts`), like `starts_high`."""
    starts_high: NumberOrNull = math.nan
    dropped_low: NumberOrNull
    """The smallest and the largest value with one of the policies left out, and which one. Where the statistic is not
    defined without one of them, that one is `without_low`, and the smallest value NaN: all depends on it."""
    dropped_high: NumberOrNull
    without_low: int | None
    without_high: int | None
    test: Permuted

    @property
    def label(self) -> str:
        return LABELS[self.statistic]

    @property
    def warning(self) -> str:
        """What so few policies cannot say; empty where there is nothing to warn of."""
        if math.isnan(self.value):
            return "not defined: all policies have the same rate, or there are fewer than two"
        if self.test.least > 0.05:
            return f"{self.k} policies: a permutation test cannot reach 0.05 (its smallest p is {self.test.least:.2g})"
        return ""


def agree(statistic: Statistic, true: Rates, found: Rates) -> Agreement:
    """Everything that is said of one statistic of two lists of rates, but its interval over starts.

    Raises:
        ValueError: the lists are of different lengths, or hold what is no number.
    """
    x, y = (np.asarray(one, np.float64) for one in (true, found))
    if x.shape != y.shape or x.ndim != 1 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"expected two lists of as many finite rates, not of shapes {x.shape} and {y.shape}")
    value = float(MEASURES[statistic](x, y)) if len(x) > 1 else math.nan
    low, high = fisher(value, len(x), ranks=statistic == "spearman") if statistic != "mmrv" else (math.nan, math.nan)
    without = drop_one(statistic, x, y)
    known = np.flatnonzero(~np.isnan(without))
    least, most = (int(known[end(without[known])]) if len(known) else None for end in (np.argmin, np.argmax))
    if len(known) and len(known) < len(x):
        least = int(np.isnan(without).argmax())
    return Agreement(
        statistic=statistic,
        k=len(x),
        value=value,
        low=low,
        high=high,
        dropped_low=math.nan if least is None else float(without[least]),
        dropped_high=math.nan if most is None else float(without[most]),
        without_low=least,
        without_high=most,
        test=permute(statistic, x, y),
    )


def fisher(r: float, k: int, *, ranks: bool = False) -> tuple[float, float]:
    """The 95 % interval of a correlation of k pairs by Fisher's z (1921); NaN for 3 pairs or fewer, and for 1 and -1.

    Args:
        ranks: Spearman's, whose z has the variance 1.06 / (k - 3) (Fieller, Hartley & Pearson, 1957).
    """
    if k <= FEW or math.isnan(r) or abs(r) > 1 - _SAME:  # z of 1 is infinite: an interval without width says nothing
        return math.nan, math.nan
    width = scipy.stats.norm.ppf(1 - TAIL) * math.sqrt((1.06 if ranks else 1.0) / (k - 3))
    return float(np.tanh(np.arctanh(r) - width)), float(np.tanh(np.arctanh(r) + width))


def drop_one(statistic: Statistic, true: Rates, found: Rates) -> Float64[np.ndarray, " k"]:
    """The statistic without each of the policies; NaN where fewer than two are left."""
    x, y = (np.asarray(one, np.float64) for one in (true, found))
    if len(x) < 3:
        return np.full(len(x), math.nan)
    return np.array([MEASURES[statistic](np.delete(x, i), np.delete(y, i)) for i in range(len(x))])


def permute(statistic: Statistic, true: Rates, found: Rates) -> Permuted:
    """Test whether the agreement is better than that of the rates in another order: all orders of up to 8 policies."""
    x, y = (np.asarray(one, np.float64) for one in (true, found))
    exact = len(x) <= EXACT
    orders = math.factorial(len(x)) if exact else DRAWN
    if len(x) < 2 or math.isnan(MEASURES[statistic](x, y)):
        return Permuted(p=math.nan, exact=exact, orders=orders, least=math.nan)
    sign = -1.0 if statistic == "mmrv" else 1.0
    done = scipy.stats.permutation_test(
        (y,),
        # rounded, so that orders of one value do not differ in their last bits
        lambda drawn, axis: np.round(sign * MEASURES[statistic](x, np.moveaxis(drawn, axis, -1)), 9),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=orders if exact else DRAWN,
        batch=2048,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    null, spared = done.null_distribution, 0 if exact else 1  # of drawn orders one is the observed one
    best = float(null.max()) if exact else _best(statistic, x, y, sign)
    least = (int((null >= best - _SAME).sum()) + spared) / (len(null) + spared)
    return Permuted(p=float(done.pvalue), exact=exact, orders=len(null), least=least)


def _best(statistic: Statistic, x: np.ndarray, y: np.ndarray, sign: float) -> float:
    """The best value of any order: that in which both lists rise together."""
    return sign * float(MEASURES[statistic](np.sort(x), np.sort(y)))


# --- over starts ---

Outcomes = Float64[np.ndarray, "k n"]
"""Whether (1, 0, or a chance) each of k policies succeeded from each of n starts."""


def over_starts(true: Outcomes, found: Outcomes) -> dict[str, tuple[float, float]]:
    """The 95 % intervals of all statistics, of `bias` and of `mae` over starts, with these policies.

    Both lists are of the same starts, and every policy began at all of them: whole starts are resampled, so a start
    that is hard for all policies in both places costs no width. NaN with one start.
    """

    def of(weights: Float64[np.ndarray, "r n"]) -> Float64[np.ndarray, "r m"]:
        share = weights / weights.sum(axis=-1, keepdims=True)
        return _all(share @ true.T, share @ found.T)

    return _named(statistics(of, np.arange(true.shape[1])))


def over_counts(
    successes: Int[np.ndarray, "k t"], trials: Int[np.ndarray, "k t"], found: Outcomes
) -> dict[str, tuple[float, float]]:
    """The same where the truth is counts of other trials: these are drawn again, too, from their binomials.

    The truth is the mean rate of t tasks, which weigh the same.
    """
    rng = np.random.default_rng(0)

    def of(weights: Float64[np.ndarray, "r n"]) -> Float64[np.ndarray, "r m"]:
        share = weights / weights.sum(axis=-1, keepdims=True)
        drawn = rng.binomial(trials, successes / trials, size=(len(weights), *trials.shape))
        return _all((drawn / trials).mean(axis=-1), share @ found.T)

    return _named(statistics(of, np.arange(found.shape[1])))


def _all(true: Float64[np.ndarray, "r k"], found: Float64[np.ndarray, "r k"]) -> Float64[np.ndarray, "r m"]:
    made = [measure(true, found) for measure in MEASURES.values()]
    return np.stack([*made, bias(true, found), mae(true, found)], axis=-1)


def _named(bounds: Sequence[Interval]) -> dict[str, tuple[float, float]]:
    return {name: (one.low, one.high) for name, one in zip((*MEASURES, "bias", "mae"), bounds, strict=True)}


def bias(true: Rates, found: Rates) -> Float64[np.ndarray, "..."]:
    """By how much success is found too often, on average over policies: above 0 the found rates are optimistic."""
    return np.asarray((np.asarray(found, np.float64) - np.asarray(true, np.float64)).mean(axis=-1))


def mae(true: Rates, found: Rates) -> Float64[np.ndarray, "..."]:
    """The mean absolute error of the rates."""
    return np.asarray(np.abs(np.asarray(found, np.float64) - np.asarray(true, np.float64)).mean(axis=-1))
