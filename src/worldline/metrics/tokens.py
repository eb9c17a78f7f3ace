"""Costs of true tokens in nats under predicted distributions, also with only the k best guesses.

The challenge scores "only the top-500 logits per token" and its scorer is not public. Three readings of that are
computed here, always beside the coverage and the full cross-entropy; the residual is the primary one (docs/metrics.md).
A distribution is first reduced to `Guesses`; every cost is a function of these. Knows nothing of grids or models.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from worldline.metrics.table import METRICS, Metric

TOP = 500
"""Number of best guesses that count."""
MISS_PROBABILITY = 1e-6
"""The probability that the floor grants a token outside the k best: a miss costs 13.8 nats."""
CHUNK = 64
"""Rows of logits that are ranked at once: of 64,000 tokens 130 MB beyond the input, however many rows there are."""


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """Log-probabilities (in nats) of true tokens and of the best guesses under predicted distributions."""

    rank: Int64[Tensor, "*n"]
    """Tokens that come before the true one: likelier ones, and equals with a lower id."""
    true: Float[Tensor, "*n"]
    """Of the true token."""
    inside: Float[Tensor, "..."]
    """Of the k best together."""
    outside: Float[Tensor, "..."]
    """Of all others together; meaningless where the true token is among the k best."""
    k: int
    vocab_size: int

    @property
    def covered(self) -> Bool[Tensor, "*n"]:
        """The true token is among the k best."""
        return self.rank < self.k


# --- costs of each true token ---


_cost = partial(Metric, unit="nats", group="token", higher_is_better=False)


@_cost("top500_ce_residual", "Top-500 CE (residual)", bound="teacher_forced_top500_ce")
def residual(guesses: Guesses) -> Float32[Tensor, "*n"]:
    """Cost of a true token when the 500 best keep their probability and the others share the rest evenly. A real code
    length, by our definition: the challenge's scorer is not public, so it is no leaderboard number.
    """
    others = math.log(max(1, guesses.vocab_size - guesses.k)) - guesses.outside
    return torch.where(guesses.covered, -guesses.true, others).float()


@_cost("top500_ce_floor", "Top-500 CE (floor)")
def floor(guesses: Guesses) -> Float32[Tensor, "*n"]:
    """Cost when the 500 best are renormalised and a miss costs a fixed 13.8 nats (probability 1e-6)."""
    hit = guesses.inside - guesses.true
    return hit.masked_fill(~guesses.covered, -math.log(MISS_PROBABILITY)).float()


@_cost("top500_ce_hits_only", "Top-500 CE (hits only)", sparse=True)
def hits_only(guesses: Guesses) -> Float32[Tensor, "*n"]:
    """The same over hits alone. A diagnostic: missing the hard tokens lowers it."""
    return floor(guesses).masked_fill(~guesses.covered, math.nan)


@Metric("top500_coverage", "Top-500 coverage", "share", "token")
def coverage(guesses: Guesses) -> Float32[Tensor, "*n"]:
    """Share of true tokens that are among the 500 best."""
    return guesses.covered.float()


@_cost("full_ce", "Cross-entropy", bound="teacher_forced_ce")
def cross_entropy(guesses: Guesses) -> Float32[Tensor, "*n"]:
    """Cost of a true token over the whole vocabulary."""
    return -guesses.true.float()


@Metric("token_accuracy", "Accuracy", "share", "token", bound="teacher_forced_accuracy")
def accuracy(guesses: Guesses) -> Float32[Tensor, "*n"]:
    """Share of tokens whose best guess is the true one (of equals, the one with the lowest id)."""
    return (guesses.rank == 0).float()


def token_costs(guesses: Guesses) -> dict[str, Float32[Tensor, "*n"]]:
    """Every metric of tokens, by id: one number per true token."""
    return {one.id: one.measure(guesses) for one in METRICS.values() if one.group == "token" and one.measure}


def grid_costs(guesses: Guesses) -> dict[str, Float32[Tensor, "*b"]]:
    """Every metric of tokens, by id: the mean over each grid of true tokens `*b h w`, without what is NaN."""
    return {id: cost.flatten(-2).nanmean(dim=-1) for id, cost in token_costs(guesses).items()}


@torch.no_grad()
def entropy(logits: Float[Tensor, "*n v"]) -> Float32[Tensor, "*n"]:
    """Expected cost of a token that is drawn from this distribution, in nats: how unsure the distribution is."""
    rows = logits.flatten(0, -2)
    found = torch.empty(len(rows), device=rows.device)
    for start in range(0, len(rows), CHUNK):
        logs = rows[start : start + CHUNK].float().log_softmax(dim=-1)
        # Probabilities of 0 have no part in it, and the product of 0 and -inf would be no number.
        found[start : start + CHUNK] = -(logs.exp() * logs.clamp_min(torch.finfo(torch.float32).min)).sum(dim=-1)
    return found.view(logits.shape[:-1])


# --- from distributions to guesses ---


@torch.no_grad()
def guesses_of(logits: Float[Tensor, "*n v"], target: Int64[Tensor, "*n"], *, k: int = TOP) -> Guesses:
    """Find what each row of logits says of its true token, in float32. Log-probabilities serve as logits.

    Exactly k tokens are "the k best": where logits tie at rank k, lower token ids come first.
    """
    shape, vocab_size = target.shape, logits.shape[-1]
    logits, target, k = logits.flatten(0, -2), target.flatten().to(logits.device), min(k, vocab_size)
    rank = torch.empty_like(target)
    # Made beforehand: results of each chunk left lying between its large temporaries would fragment the heap.
    true, total, inside, outside = torch.full((4, len(target)), math.nan, device=logits.device)
    for start in range(0, len(target), CHUNK):
        rows = slice(start, start + CHUNK)
        part = logits[rows].float()
        best = part.topk(k, dim=1).values
        rank[rows] = _rank(part, target[rows])
        true[rows] = part.gather(1, target[rows, None])[:, 0]
        total[rows] = part.logsumexp(dim=1)
        inside[rows] = best.logsumexp(dim=1)
        missed = rank[rows] >= k
        outside[rows][missed] = _log_outside(part[missed], best[missed])
    found = {"rank": rank, "true": true - total, "inside": inside - total, "outside": outside - total}
    return Guesses(**{name: x.view(shape) for name, x in found.items()}, k=k, vocab_size=vocab_size)


@torch.no_grad()
def shared_guesses(log_probs: Float[Tensor, " v"], target: Int64[Tensor, "*n"], *, k: int = TOP) -> Guesses:
    """The same where one distribution is predicted everywhere: it is ranked once, and each token looked up."""
    k = min(k, len(log_probs))
    ordered, order = log_probs.sort(descending=True, stable=True)  # stable: of equals, lower ids come first
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    inside, outside = ordered[:k].logsumexp(dim=0), ordered[k:].logsumexp(dim=0)
    own = {"rank": rank[target], "true": log_probs[target]}
    return Guesses(**own, inside=inside, outside=outside, k=k, vocab_size=len(log_probs))


@torch.no_grad()
def kept_guesses(
    prior: Float64[Tensor, " v"],
    kept: Int64[Tensor, "*n"],
    target: Int64[Tensor, "*n"],
    *,
    changed: float | Float64[Tensor, "*n"],
    k: int = TOP,
) -> Guesses:
    """The same where each token is expected to be the one that stood at its place before.

    The token that stood there has probability 1 - `changed`; all others share `changed` in proportion to the prior. Of
    equals, the kept token comes first. No row of the vocabulary is made for each token.

    Args:
        prior: probability of each token where nothing was seen; all above 0, sum 1.
        kept: the token that stood at the place of each true one.
        changed: probability that it does not stay, between 0 and 1, neither of them; one for all tokens or for each.
    """
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
    some, all_others = (
        torch.where(place[kept] < best, mass[min(best + 1, len(prior))] - prior[kept], mass[best])
        for best in (k - 1, k)
    )
    inside = torch.where(before < k, 1 - changed + scale * some, scale * all_others)
    return Guesses(
        rank=torch.where(stays, before, rank + (before <= rank).long()),
        true=torch.where(stays, 1 - changed, scale * prior[target]).log(),
        inside=inside.log(),
        outside=(1 - inside).clamp_min(torch.finfo(torch.float64).tiny).log(),
        k=k,
        vocab_size=len(prior),
    )


def _rank(logits: Float32[Tensor, "n v"], target: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Number of tokens before the true one. `topk` and `argmax` settle ties as they like, so only values are used."""
    true = logits.gather(1, target[:, None])
    rank = (logits > true).sum(dim=1)
    tied = (logits >= true).sum(dim=1) > rank + 1
    if tied.any():
        lower = torch.arange(logits.shape[1], device=logits.device) < target[tied, None]
        rank[tied] += ((logits[tied] == true[tied]) & lower).sum(dim=1)
    return rank


def _log_outside(logits: Float32[Tensor, "n v"], best: Float32[Tensor, "n k"]) -> Float32[Tensor, " n"]:
    """Log of the unnormalised mass outside the k best: 1 minus that inside has no digits where a model is confident."""
    last = best[:, -1:]
    tail = logits.masked_fill(logits >= last, -math.inf).logsumexp(dim=1)
    ties_outside = (logits == last).sum(dim=1) - (best == last).sum(dim=1)
    return torch.logaddexp(tail, ties_outside.float().log() + last[:, 0])
