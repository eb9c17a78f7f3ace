"""How many nats the true tokens cost under predicted distributions, also when only the k best guesses may count.

The challenge scores "only the top-500 logits per token" and its scorer is not public. Three readings of that are
computed here, always beside the coverage and the full cross-entropy; the residual is the primary one (docs/metrics.md).
A distribution is first reduced to `Guesses`; every cost is a function of these. Knows nothing of grids or models.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

TOP = 500
"""How many of the best guesses count."""
MISS_PROBABILITY = 1e-6
"""The probability `top_k_floor` grants a token outside the k best: a miss costs 13.8 nats."""


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """Log-probabilities (in nats) of n true tokens and of the best guesses under predicted distributions."""

    rank: Int64[Tensor, " n"]
    """Tokens that come before the true one: likelier ones, and equals with a lower id."""
    true: Float[Tensor, " n"]
    """Of the true token."""
    inside: Float[Tensor, "*n"]
    """Of the k best together."""
    outside: Float[Tensor, "*n"]
    """Of all others together; meaningless where the true token is among the k best."""
    k: int
    vocab_size: int

    @property
    def covered(self) -> Bool[Tensor, " n"]:
        """The true token is among the k best."""
        return self.rank < self.k


# --- costs of each true token ---


def cross_entropy(guesses: Guesses) -> Float32[Tensor, " n"]:
    """Over the whole vocabulary."""
    return -guesses.true.float()


def top_k_residual(guesses: Guesses) -> Float32[Tensor, " n"]:
    """The k best keep their probability, the others share what is left evenly: sums to 1, a real code length."""
    others = math.log(max(1, guesses.vocab_size - guesses.k)) - guesses.outside
    return torch.where(guesses.covered, -guesses.true, others).float()


def top_k_floor(guesses: Guesses) -> Float32[Tensor, " n"]:
    """Softmax over the k best alone; a miss costs -ln `MISS_PROBABILITY`. Not a code length."""
    hit = guesses.inside - guesses.true
    return hit.masked_fill(~guesses.covered, -math.log(MISS_PROBABILITY)).float()


def top_k_hits_only(guesses: Guesses) -> Float32[Tensor, " n"]:
    """`top_k_floor` of hits, NaN of misses. A diagnostic: it rewards missing."""
    return top_k_floor(guesses).masked_fill(~guesses.covered, math.nan)


def top_k_coverage(guesses: Guesses) -> Float32[Tensor, " n"]:
    """1 where the true token is among the k best, else 0."""
    return guesses.covered.float()


def accuracy(guesses: Guesses) -> Float32[Tensor, " n"]:
    """1 where the true token is the best one (of equals, the one with the lowest id), else 0."""
    return (guesses.rank == 0).float()


def per_clip(costs: Float32[Tensor, " n"], num_clips: int) -> Float32[Tensor, " b"]:
    """Average over the tokens of a clip, for tokens laid out clip after clip in equal numbers.

    NaN (a miss of `top_k_hits_only`) is left out; a clip of nothing else is NaN, which `bootstrap` refuses.
    """
    return costs.reshape(num_clips, -1).nanmean(dim=1)


# --- from distributions to guesses ---


@torch.no_grad()
def guesses_of(
    logits: Float[Tensor, "n v"], target: Int64[Tensor, " n"], *, k: int = TOP, chunk_tokens: int = 64
) -> Guesses:
    """Find what each row of logits says of its true token. Log-probabilities serve as logits.

    Exactly k tokens are "the k best": where logits tie at rank k, lower token ids come first. Computed in float32 in
    chunks of `chunk_tokens` rows: for v = 64,000 about 130 MB beyond its input, however large n is.

    Raises:
        ValueError: `k` or `chunk_tokens` below 1, or a target outside 0..v-1.
    """
    vocab_size = logits.shape[1]
    if k < 1 or chunk_tokens < 1:
        raise ValueError(f"k and chunk_tokens must be at least 1, found {k} and {chunk_tokens}")
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < vocab_size:
        raise ValueError(f"targets must be in 0..{vocab_size - 1}, found {int(target.min())}..{int(target.max())}")
    k = min(k, vocab_size)
    rank = torch.empty_like(target)
    # Made beforehand: results of each chunk left lying between its large temporaries would fragment the heap.
    true, total, inside, outside = torch.full((4, len(target)), math.nan, device=logits.device)
    for start in range(0, len(target), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        part = logits[rows].float()
        best = part.topk(k, dim=1).values
        rank[rows] = _rank(part, target[rows])
        true[rows] = part.gather(1, target[rows, None])[:, 0]
        total[rows] = part.logsumexp(dim=1)
        inside[rows] = best.logsumexp(dim=1)
        missed = rank[rows] >= k
        outside[rows][missed] = _log_outside(part[missed], best[missed])
    return Guesses(
        rank=rank, true=true - total, inside=inside - total, outside=outside - total, k=k, vocab_size=vocab_size
    )


@torch.no_grad()
def shared_guesses(log_probs: Float[Tensor, " v"], target: Int64[Tensor, " n"], *, k: int = TOP) -> Guesses:
    """The same where one distribution is predicted everywhere: it is ranked once, and each token looked up."""
    k = min(k, len(log_probs))
    ordered, order = log_probs.sort(descending=True, stable=True)  # stable: of equals, lower ids come first
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    inside, outside = ordered[:k].logsumexp(dim=0), ordered[k:].logsumexp(dim=0)
    return Guesses(
        rank=rank[target], true=log_probs[target], inside=inside, outside=outside, k=k, vocab_size=len(log_probs)
    )


@torch.no_grad()
def kept_guesses(
    prior: Float64[Tensor, " v"],
    kept: Int64[Tensor, " n"],
    target: Int64[Tensor, " n"],
    *,
    changed: float,
    k: int = TOP,
) -> Guesses:
    """The same where each token is expected to be the one that stood at its place before.

    The distribution has 1 - `changed` on the token that stood there and spreads `changed` over all others in proportion
    to the prior; it sums to 1. Of equals, the kept token comes first. No row of the vocabulary for every token is made.

    Args:
        prior: probability of each token where nothing was seen; all above 0, sum 1.
        kept: the token that stood at the place of each true one.
        changed: probability that it does not stay, between 0 and 1, neither of them.

    Raises:
        ValueError: `changed`, `k` or the prior is out of range.
    """
    if not 0 < changed < 1 or k < 1 or not (prior > 0).all():
        raise ValueError(f"needs 0 < changed < 1, k >= 1 and a positive prior, found {changed}, {k}, {prior.min()}")
    k = min(k, len(prior))
    ordered, order = prior.sort(descending=True, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(prior)))
    mass = torch.cat([prior.new_zeros(1), ordered.cumsum(0)])
    scale = changed / (1 - prior[kept])  # of the others' prior, so that they share `changed`
    stays = target == kept
    # Where the kept token comes among the others: behind those that are likelier than it.
    threshold = (1 - changed) / scale
    before = torch.searchsorted(-ordered, -threshold) - (prior[kept] > threshold).long()
    rank = place[target] - (place[kept] < place[target]).long()
    # Prior mass of the best tokens when the kept one is not counted: all k of them, or k - 1 beside the kept one.
    some, all_others = (_without(mass, best, place[kept], prior[kept]) for best in (k - 1, k))
    inside = torch.where(before < k, 1 - changed + scale * some, scale * all_others)
    return Guesses(
        rank=torch.where(stays, before, rank + (before <= rank).long()),
        true=torch.where(stays, 1 - changed, scale * prior[target]).log(),
        inside=inside.log(),
        outside=(1 - inside).clamp_min(torch.finfo(torch.float64).tiny).log(),
        k=k,
        vocab_size=len(prior),
    )


def _without(
    mass: Float64[Tensor, " m"], best: int, place: Int64[Tensor, " n"], own: Float64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    return torch.where(place < best, mass[min(best + 1, len(mass) - 1)] - own, mass[best])


def _rank(logits: Float32[Tensor, "n v"], target: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """How many tokens come before the true one: those with a larger logit, and its equals with a lower id.

    `topk` and `argmax` settle ties as they like, so their indices are never used, only the values.
    """
    true = logits.gather(1, target[:, None])
    rank = (logits > true).sum(dim=1)
    tied = (logits >= true).sum(dim=1) > rank + 1
    if tied.any():
        lower = torch.arange(logits.shape[1], device=logits.device) < target[tied, None]
        rank[tied] += ((logits[tied] == true[tied]) & lower).sum(dim=1)
    return rank


def _log_outside(logits: Float32[Tensor, "n v"], best: Float32[Tensor, "n k"]) -> Float32[Tensor, " n"]:
    """Log of the unnormalised mass outside the k best.

    Summed over the tail itself: 1 minus the mass inside would lose every digit where the model is confident.
    """
    last = best[:, -1:]
    tail = logits.masked_fill(logits >= last, -math.inf).logsumexp(dim=1)
    ties_outside = (logits == last).sum(dim=1) - (best == last).sum(dim=1)
    return torch.logaddexp(tail, ties_outside.float().log() + last[:, 0])
