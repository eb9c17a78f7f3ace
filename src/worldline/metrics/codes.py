"""How many nats the true tokens cost under a world's predictions, when only its k best guesses may count.

The challenge scores "only the top-500 logits per token" and its scorer is not public. Three readings of that
are computed here, always beside the coverage and the full cross-entropy; `residual` is the primary one (see
docs/metrics.md). Knows nothing of clips beyond splitting a row of tokens evenly (`per_clip`).
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

MISS_PROBABILITY = 1e-6
"""The probability `floor` grants a token outside the k best: a miss costs 13.8 nats."""


@dataclass(frozen=True, kw_only=True)
class CodeLengths:
    """Cost of each true token. All costs in nats; lower is better."""

    residual: Float32[Tensor, " n"]
    """The k best tokens keep their full-softmax probability, the others share what is left evenly. The
    probabilities sum to 1, so this is a real code length."""
    floor: Float32[Tensor, " n"]
    """Softmax over the k best alone; a miss costs -ln `miss_probability`. Not a code length."""
    hits_only: Float32[Tensor, " n"]
    """`floor` where the true token is among the k best, else NaN. A diagnostic: it rewards missing."""
    full_ce: Float32[Tensor, " n"]
    """Plain cross-entropy over the whole vocabulary."""
    covered: Bool[Tensor, " n"]
    """The true token is among the k best."""
    correct: Bool[Tensor, " n"]
    """The true token is the best one (of equals, the one with the lowest id)."""


@torch.no_grad()
def top_k_code_lengths(
    logits: Float[Tensor, "n v"],
    target: Int64[Tensor, " n"],
    *,
    k: int = 500,
    miss_probability: float = MISS_PROBABILITY,
    chunk_tokens: int = 64,
) -> CodeLengths:
    """Measure what each true token costs when the k best guesses count. Log-probabilities serve as logits.

    Exactly k tokens are "the k best": where logits tie at rank k, lower token ids come first. With v <= k
    every token is inside and `residual` is the full cross-entropy. Computed in float32 in chunks of
    `chunk_tokens` rows, so for v = 64,000 it needs about 130 MB beyond its input, however large n is.

    Raises:
        ValueError: `k` or `chunk_tokens` below 1, or a target outside 0..v-1.
    """
    if k < 1 or chunk_tokens < 1:
        raise ValueError(f"k and chunk_tokens must be at least 1, found {k} and {chunk_tokens}")
    vocab_size = logits.shape[1]
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < vocab_size:
        raise ValueError(f"targets must be in 0..{vocab_size - 1}, found {int(target.min())}..{int(target.max())}")
    k = min(k, vocab_size)
    rank = torch.empty_like(target)
    # Made beforehand: results of each chunk left lying between its large temporaries would fragment the heap.
    truth, total, inside, outside = torch.full((4, len(target)), math.nan, device=logits.device)
    for start in range(0, len(target), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        part = logits[rows].float()
        best = part.topk(k, dim=1).values
        rank[rows] = _rank(part, target[rows])
        truth[rows] = part.gather(1, target[rows, None])[:, 0]
        total[rows] = part.logsumexp(dim=1)
        inside[rows] = best.logsumexp(dim=1)
        missed = rank[rows] >= k
        outside[rows][missed] = _log_outside(part[missed], best[missed])
    return _lengths(rank, truth, total, inside, outside, k, vocab_size, miss_probability)


@torch.no_grad()
def shared_code_lengths(
    logits: Float[Tensor, " v"],
    target: Int64[Tensor, " n"],
    *,
    k: int = 500,
    miss_probability: float = MISS_PROBABILITY,
) -> CodeLengths:
    """The same where one distribution is predicted everywhere: it is ranked once, and each token's cost looked up."""
    k = min(k, len(logits))
    ordered, order = logits.float().sort(descending=True, stable=True)  # stable: of equals, lower ids come first
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))[target]
    total, inside, outside = (part.logsumexp(dim=0) for part in (ordered, ordered[:k], ordered[k:]))
    return _lengths(rank, logits.float()[target], total, inside, outside, k, len(logits), miss_probability)


def _lengths(
    rank: Int64[Tensor, " n"],
    truth: Float32[Tensor, " n"],
    total: Float32[Tensor, "*m"],
    inside: Float32[Tensor, "*m"],
    outside: Float32[Tensor, "*m"],
    k: int,
    vocab_size: int,
    miss_probability: float,
) -> CodeLengths:
    """From each true token's rank and logit and the log of the mass of all tokens, the k best and the others."""
    covered, hit = rank < k, inside - truth
    return CodeLengths(
        residual=torch.where(covered, total - truth, total - outside + math.log(max(1, vocab_size - k))),
        floor=hit.masked_fill(~covered, -math.log(miss_probability)),
        hits_only=hit.masked_fill(~covered, math.nan),
        full_ce=total - truth,
        covered=covered,
        correct=rank == 0,
    )


def per_clip(lengths: CodeLengths, num_clips: int) -> dict[str, Float32[Tensor, " b"]]:
    """Average each field over the tokens of a clip, for tokens laid out clip after clip in equal numbers.

    `hits_only` is averaged over its hits; a clip without any is NaN, which `bootstrap` refuses.
    """
    values = {field.name: getattr(lengths, field.name).float() for field in fields(CodeLengths)}
    return {name: value.reshape(num_clips, -1).nanmean(dim=1) for name, value in values.items()}


METRIC_IDS = {
    "residual": "top500_ce_residual",
    "floor": "top500_ce_floor",
    "hits_only": "top500_ce_hits_only",
    "covered": "top500_coverage",
    "full_ce": "full_ce",
    "correct": "token_accuracy",
}
"""Fields of `CodeLengths` -> ids of metrics."""


def grid_costs(logits: Float[Tensor, "h w v"], true: Int64[Tensor, "h w"]) -> dict[str, Float32[Tensor, ""]]:
    """By metric id, the mean cost of the true tokens of one grid under its logits."""
    lengths = top_k_code_lengths(logits.flatten(0, 1), true.flatten().to(logits.device))
    return {METRIC_IDS[name]: value[0] for name, value in per_clip(lengths, 1).items()}


def _rank(logits: Float32[Tensor, "n v"], target: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """How many tokens come before the true one: those with a larger logit, and its equals with a lower id.

    `topk` and `argmax` settle ties as they like, so their indices are never used, only the values.
    """
    truth = logits.gather(1, target[:, None])
    rank = (logits > truth).sum(dim=1)
    tied = (logits >= truth).sum(dim=1) > rank + 1
    if tied.any():
        lower = torch.arange(logits.shape[1], device=logits.device) < target[tied, None]
        rank[tied] += ((logits[tied] == truth[tied]) & lower).sum(dim=1)
    return rank


def _log_outside(logits: Float32[Tensor, "n v"], best: Float32[Tensor, "n k"]) -> Float32[Tensor, " n"]:
    """Log of the unnormalised mass outside the k best.

    Summed over the tail itself: 1 minus the mass inside would lose every digit where the model is confident.
    """
    last = best[:, -1:]
    tail = logits.masked_fill(logits >= last, -math.inf).logsumexp(dim=1)
    ties_outside = (logits == last).sum(dim=1) - (best == last).sum(dim=1)
    return torch.logaddexp(tail, ties_outside.float().log() + last[:, 0])
