"""How well a forecast knows its own errors: spread, calibration, and what sorting clips by sureness is worth.

Two kinds of functions. Those of tensors give numbers or sums of each clip. Those of `Weights` are statistics over clips
that are no means; `metrics.bootstrap.statistics` bounds them. A *signal* is one number per clip, low where sure.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch import Tensor

from worldline.metrics.bootstrap import Weights

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
Values = Float64[np.ndarray, " n"]
Results = Float64[np.ndarray, "..."]
"""One number for each row of weights."""

# --- of samples: each clip and frame by itself ---


@torch.no_grad()
def crps(samples: UInt8[Tensor, "b k t 3 h w"], truth: UInt8[Tensor, "b t 3 h w"]) -> Float32[Tensor, "b t"]:
    """Continuous ranked probability score of each colour value, mean over a frame, in grey levels; lower is better.

    The fair estimate from k samples, `mean |x_i - y| - sum_ij |x_i - x_j| / (2 k (k - 1))`, whose expectation does not
    depend on k (Gneiting & Raftery 2007, eq. 21; Ferro 2014). The absolute error of one certain forecast is its CRPS.
    Raises `ValueError` for fewer than two samples.
    """
    count = _at_least_two(samples)
    found = torch.empty(truth.shape[:2])
    # Sorted, sum_ij |x_i - x_j| = 2 sum_i (2 i - k - 1) x_(i), i = 1..k.
    rank = (2 * torch.arange(1, count + 1, dtype=torch.float32) - count - 1).view(-1, 1, 1, 1)
    for clip, frame in np.ndindex(*truth.shape[:2]):  # in floats all of them take four times the memory
        x, y = samples[clip, :, frame].float().sort(dim=0).values, truth[clip, frame].float()
        found[clip, frame] = ((x - y).abs().mean(dim=0) - (rank * x).sum(dim=0) / (count * (count - 1))).mean()
    return found


@torch.no_grad()
def energy_score(samples: UInt8[Tensor, "b k t 3 h w"], truth: UInt8[Tensor, "b t 3 h w"]) -> Float32[Tensor, "b t"]:
    """Energy score of each frame's 8x8 grey picture (`projected`), in grey levels; lower is better.

    CRPS for vectors: `mean |x_i - y| - sum_ij |x_i - x_j| / (2 k (k - 1))` with the root mean square as norm, again in
    its fair form (Gneiting & Raftery 2007, eq. 22). It sees whether what moves together is forecast together, which no
    score of single pixels does; so few dimensions, because in many it hardly tells dependences apart (Pinson & Tastu
    2013). Raises `ValueError` for fewer than two samples.
    """
    count = _at_least_two(samples)
    x, y = projected(samples).transpose(1, 2), projected(truth)[:, :, None]  # b t k d, b t 1 d
    apart = (x[:, :, :, None] - x[:, :, None]).square().mean(dim=-1).sqrt().sum(dim=(2, 3))
    return (x - y).square().mean(dim=-1).sqrt().mean(dim=2) - apart / (2 * count * (count - 1))


def projected(frames: UInt8[Tensor, "*b 3 h w"], size: int = 8) -> Float32[Tensor, "*b d"]:
    """The grey levels of `size x size` areas of each frame."""
    weights = torch.tensor(GREY, device=frames.device).view(3, 1, 1)
    grey = torch.stack([(part.float() * weights).sum(dim=-3) for part in frames.flatten(0, -4)])
    return F.adaptive_avg_pool2d(grey, size).flatten(1).view(*frames.shape[:-3], -1)


def _at_least_two(samples: Tensor) -> int:
    if samples.shape[1] < 2:
        raise ValueError("one sample is no ensemble")
    return samples.shape[1]


# --- calibration: what was predicted against what came, by bins ---


def binned(
    by: Float[Tensor, "b *n"], predicted: Float[Tensor, "b *n"], realised: Float[Tensor, "b *n"], edges: Sequence[float]
) -> Float32[Tensor, "b bins 3"]:
    """Sums for each clip and bin of `by`: how many, of `predicted`, of `realised`. They add up over clips.

    Args:
        edges: of the bins, rising; a bin begins with its lower edge, and the last has no upper one.
    """
    by = by.flatten(1)
    bins = torch.bucketize(by, torch.tensor(edges[1:], dtype=by.dtype), right=True)
    sums = torch.zeros(3, len(by), len(edges), dtype=torch.float64)
    for place, values in enumerate((torch.ones_like(by), predicted.flatten(1), realised.flatten(1))):
        sums[place].scatter_add_(1, bins, values.double())
    return sums.permute(1, 2, 0).float()


def calibration_error(weights: Weights, sums: Float64[np.ndarray, "n bins 3"]) -> Results:
    """Mean distance of prediction and outcome over bins, each counted as often as it was used.

    Of probabilities that a guess is right: the expected calibration error (Naeini et al. 2015; Guo et al. 2017, eq. 3).
    """
    total = np.einsum("rn,nbs->rbs", weights, sums)
    return np.abs(total[..., 1] - total[..., 2]).sum(axis=-1) / total[..., 0].sum(axis=-1)


def per_bin(weights: Weights, sums: Float64[np.ndarray, "n bins 3"]) -> tuple[Results, Results]:
    """Means of prediction and outcome in each bin; NaN of a bin without values."""
    total = np.einsum("rn,nbs->rbs", weights, sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total[..., 1] / total[..., 0], total[..., 2] / total[..., 0]


def spread_skill(weights: Weights, variance: Values, squared_error: Values, samples: int) -> Results:
    """Ratio of spread and error, `sqrt((1 + 1/k) mean(spread^2) / mean((mean - truth)^2))`.

    1: samples differ from each other as much as the truth differs from them; below 1: too sure (Fortin et al. 2014,
    eq. 15). Of what a perfect ensemble gives, only the root of each mean may be compared, not the mean of roots.

    Args:
        variance: unbiased variance of the samples (divisor k - 1), mean over a clip's pixels.
        squared_error: of the mean of the samples, likewise.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt((1 + 1 / samples) * (weights @ variance) / (weights @ squared_error))


# --- what a signal is worth: does it sort good forecasts from bad ones? ---


def auroc(weights: Weights, signal: Values, bad: Bool[np.ndarray, " n"]) -> Results:
    """Probability that a bad clip has a higher signal than a good one; equals count half (Mann & Whitney 1947).

    0.5: the signal says nothing; 1: it tells all apart; NaN where all clips are good, or all bad.
    """
    good = np.where(bad, 0.0, weights)
    wrong = np.where(bad, weights, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (wrong * _below(good, signal)).sum(axis=-1) / (wrong.sum(axis=-1) * good.sum(axis=-1))


def rank_correlation(weights: Weights, one: Values, other: Values) -> Results:
    """Spearman's: the correlation of ranks, equals sharing theirs. NaN where all values of one are equal."""
    total = weights.sum(axis=-1, keepdims=True)
    a, b = (_below(weights, values) for values in (one, other))
    a, b = (x - (weights * x).sum(axis=-1, keepdims=True) / total for x in (a, b))
    scale = np.sqrt((weights * a * a).sum(axis=-1) * (weights * b * b).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (weights * a * b).sum(axis=-1) / scale, math.nan)


def partial_rank_correlation(weights: Weights, one: Values, other: Values, given: Values) -> Results:
    """Spearman's at equal `given`: of what its ranks leave of both along a straight line (Kim 2015). NaN as above."""
    direct, a, b = (rank_correlation(weights, *pair) for pair in ((one, other), (one, given), (other, given)))
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt((1 - a * a).clip(0) * (1 - b * b).clip(0))
        return np.where(scale > 1e-6, (direct - a * b) / scale, math.nan)


def selective(
    weights: Weights, signal: Values, quality: Values, coverages: Sequence[float]
) -> Float64[np.ndarray, "r c"]:
    """Mean quality of the surest share of the clips, for several shares: `selective PSNR` where quality is PSNR.

    With minus the quality as risk this is the risk-coverage curve (El-Yaniv & Wiener 2010). Clips of equal signal are
    taken in equal parts, so their order never matters.

    Args:
        coverages: shares of the clips, above 0 and at most 1.
    """
    first, last = _cumulated(weights, signal)
    total, width, found = weights.sum(axis=-1, keepdims=True), last - first, []
    width[width == 0] = 1.0  # of clips that were not drawn, whose weight is 0
    for coverage in coverages:
        taken = weights * np.clip((coverage * total - first) / width, 0, 1)
        found.append((taken @ quality) / taken.sum(axis=-1))
    return np.stack(found, axis=-1)


COVERAGES = tuple(n / 10 for n in range(1, 11))


def gain_share(weights: Weights, signal: Values, quality: Values) -> Results:
    """How much of what could be won by choosing is won by this signal: 0 by chance, 1 by the quality itself.

    The area under the risk-coverage curve (Geifman & El-Yaniv 2017) less that of all clips, as a share of what the best
    possible order leaves (Geifman et al. 2019 take the difference). At ten coverages.
    """
    ours, best = (selective(weights, by, quality, COVERAGES) for by in (signal, -quality))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ours - ours[:, -1:]).mean(axis=-1) / (best - best[:, -1:]).mean(axis=-1)


def _cumulated(weights: Weights, values: Values) -> tuple[Weights, Weights]:
    """For each clip the weight of all clips with a lower value, and of all with no higher one."""
    order = np.argsort(values, kind="stable")
    sums = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights[:, order], axis=1)], axis=1)
    ordered = values[order]
    first, last = np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")
    return sums[:, first], sums[:, last]


def _below(weights: Weights, values: Values) -> Weights:
    """The weight of lower values, and half that of equal ones: mid-ranks."""
    first, last = _cumulated(weights, values)
    return (first + last) / 2
