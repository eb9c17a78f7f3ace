"""How many nats true tokens cost where each is expected to be the one that stood at its place before.

The distribution of the `keep_last_tokens` baseline: 1 - `changed` on the token that stood there, `changed` spread over
all others in proportion to a prior. It sums to 1. Costs come from the order of the prior, without a row of the whole
vocabulary for every token. Knows nothing of clips, grids or models.
"""

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from worldline.metrics.codes import MISS_PROBABILITY, CodeLengths


@torch.no_grad()
def kept_code_lengths(
    prior: Float64[Tensor, " v"],
    kept: Int64[Tensor, " n"],
    target: Int64[Tensor, " n"],
    *,
    changed: float,
    k: int = 500,
    miss_probability: float = MISS_PROBABILITY,
) -> CodeLengths:
    """Measure what each true token costs, as `top_k_code_lengths` does. Of equals, the kept token comes first.

    Args:
        prior: probability of each token where nothing was seen; all above 0, sum 1.
        kept: the token that stood at the place of each true one.
        changed: probability that it does not stay, between 0 and 1, neither of them.

    Raises:
        ValueError: `changed`, `k` or the prior is out of range.
    """
    if not 0 < changed < 1 or k < 1 or not (prior > 0).all():
        raise ValueError(f"needs 0 < changed < 1, k >= 1 and a positive prior, found {changed}, {k}, {prior.min()}")
    vocab_size = len(prior)
    ordered, order = prior.sort(descending=True, stable=True)  # stable: of equals, lower ids come first
    place = torch.empty_like(order).scatter_(0, order, torch.arange(vocab_size))
    mass = torch.cat([prior.new_zeros(1), ordered.cumsum(0)])
    scale = changed / (1 - prior[kept])  # of the others' prior, so that they share `changed`
    stays = target == kept
    truth = torch.where(stays, 1 - changed, scale * prior[target])
    # Where the kept token comes among the others: behind those that are likelier than it.
    threshold = (1 - changed) / scale
    before = torch.searchsorted(-ordered, -threshold) - (prior[kept] > threshold).long()
    rank = place[target] - (place[kept] < place[target]).long()
    rank = torch.where(stays, before, rank + (before <= rank).long())
    k = min(k, vocab_size)
    inside = torch.where(
        before < k,
        1 - changed + scale * _without(mass, k - 1, place[kept], prior[kept]),
        scale * _without(mass, k, place[kept], prior[kept]),
    )
    covered = rank < k
    outside = (1 - inside).clamp_min(torch.finfo(torch.float64).tiny) / max(1, vocab_size - k)
    hit = inside.log() - truth.log()
    return CodeLengths(
        residual=torch.where(covered, -truth.log(), -outside.log()).float(),
        floor=hit.masked_fill(~covered, -math.log(miss_probability)).float(),
        hits_only=hit.masked_fill(~covered, math.nan).float(),
        full_ce=-truth.log().float(),
        covered=covered,
        correct=rank == 0,
    )


def _without(
    mass: Float64[Tensor, " m"], best: int, place: Int64[Tensor, " n"], own: Float64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Prior mass of the `best` tokens when the kept one, which has that place and mass, is not counted."""
    return torch.where(place < best, mass[min(best + 1, len(mass) - 1)] - own, mass[best])
