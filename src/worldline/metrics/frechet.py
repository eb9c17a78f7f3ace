"""The Frechet distance of two sets of features, and how far it would vary with other episodes.

Dowson & Landau (1982); Heusel et al. (2017): between Gaussians of the same means and covariances,
`|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))`. The last term is the sum of the singular values of `A B^T`
where `C1 = A^T A` and `C2 = B^T B`. That needs no root of a matrix, and is exact also where there are fewer images than
features, so that the covariances are singular. Everything in float64.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from worldline.metrics.bootstrap import TAIL, Interval
from worldline.metrics.table import NotComputed

RESAMPLES, FEW_RESAMPLES, MANY = 200, 40, 256
"""How often episodes are drawn, and how often where there are more than `MANY` images: one takes the cube of their
number."""


def frechet_distance(ours: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> float:
    """Distance between two sets of features, at least 0. Raises `NotComputed` for fewer than two of either."""
    if min(len(ours), len(real)) < 2:
        raise NotComputed("a distance between two sets needs two images at least")
    a, b = _rooted(ours), _rooted(real)
    apart = (ours.double().mean(dim=0) - real.double().mean(dim=0)).square().sum()
    shared = torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(apart + a.square().sum() + b.square().sum() - 2 * shared))


def _rooted(features: Float[Tensor, "n d"]) -> Float64[Tensor, "_ d"]:
    """A matrix `A` with `A^T A` their covariance, of as few rows as possible."""
    x = features.double()
    x = (x - x.mean(dim=0)) / math.sqrt(len(x) - 1)
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x


def distance_interval(ours: Float[Tensor, "n d"], real: Float[Tensor, "n d"], episodes: Int[Tensor, " n"]) -> Interval:
    """The distance of two sets that belong to the same clips, with a 95 % interval over episodes.

    Whole episodes are drawn, those of both sets together, and the distance computed again. A resample holds some images
    twice and so has a larger distance by itself; that is taken out by moving the mean of all resamples onto the value.
    The bias of the value itself is not taken out: of few images a distance is too large (Binkowski et al., 2018).

    Raises:
        NotComputed: fewer than two clips.
    """
    value = frechet_distance(ours, real)
    of_episode, num_episodes = torch.unique(episodes, return_inverse=True)[1], len(episodes.unique())
    low = high = math.nan
    if num_episodes > 1:
        draws = RESAMPLES if min(ours.shape) <= MANY else FEW_RESAMPLES
        drawn = np.random.default_rng(0).multinomial(num_episodes, np.full(num_episodes, 1 / num_episodes), draws)
        found = _resampled(ours.double(), real.double(), torch.from_numpy(drawn)[:, of_episode])
        spread = found - found.mean()
        low, high = (max(0.0, value + float(end)) for end in np.quantile(spread, [TAIL, 1 - TAIL]))
    return Interval(mean=value, low=low, high=high, num_clips=len(ours), num_episodes=num_episodes)


def _resampled(
    ours: Float64[Tensor, "n d"], real: Float64[Tensor, "n d"], times: Int64[Tensor, "r n"]
) -> Float64[np.ndarray, " _"]:
    """Distances where each clip is taken so many times; without draws of a single clip, which has no spread."""
    ours, real = ours - real.mean(dim=0), real - real.mean(dim=0)  # so that no digits cancel below
    found = []
    for weights in times.double():
        taken = weights > 0
        w, a, b = weights[taken], ours[taken], real[taken]
        if (total := w.sum()) < 2:
            continue
        mean_a, mean_b = w @ a / total, w @ b / total
        root = (w / (total - 1)).sqrt()[:, None]
        a, b = root * (a - mean_a), root * (b - mean_b)
        if len(a) > a.shape[1]:
            shared = torch.linalg.svdvals(torch.linalg.qr(a, mode="r").R @ torch.linalg.qr(b, mode="r").R.T)
        else:
            shared = torch.linalg.svdvals(a @ b.T)
        traces = a.square().sum() + b.square().sum()
        found.append(float((mean_a - mean_b).square().sum() + traces - 2 * shared.sum()))
    return np.array(found)


def halves_distance(real: Float[Tensor, "n d"], episodes: Int[Tensor, " n"]) -> float | None:
    """The distance between the true images of every other episode and those of the rest: what perfect forecasts of
    half as many images, of other recordings, would have. None with fewer than two images in either half.
    """
    even = torch.unique(episodes, return_inverse=True)[1] % 2 == 0
    if min(int(even.sum()), int((~even).sum())) < 2:
        return None
    return frechet_distance(real[even], real[~even])
