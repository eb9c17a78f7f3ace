"""The complete categorical process: corruption, target and sampler of discrete token grids.

Training corrupts the input grids (scheduled sampling) and scores the true tokens by cross-entropy; sampling draws
a grid from logits, greedily or not. Knows logits and token ids, no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from worldline.checks import Checked, Limit, refuse
from worldline.schema import UsageError


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked):
    """How a token is chosen from its logits. Temperature 0 is greedy decoding, the report's choice."""

    temperature: float = 0.0
    top_k: int | None = None
    """Keep the k most likely tokens only."""
    top_p: Annotated[float, Limit(above=0, most=1)] | None = None
    """Keep the fewest most likely tokens whose probability reaches p (nucleus sampling)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_k", "top_p"):
            if self.temperature == 0 and getattr(self, name) is not None:
                refuse(self, name, "None at temperature 0, where the likeliest token is taken")

    def refuse_alike(self, num_samples: int) -> None:
        """Raise `UsageError` where so many samples would all be the same."""
        if num_samples > 1 and self.temperature == 0:
            raise UsageError("greedy samples are all the same; give a --temperature above 0 to draw several")


@dataclass(frozen=True)
class GridStep:
    """One predicted token grid and the logits it was chosen from.

    A world goes on from `tokens` as they are when it is asked for the next grid: an ensemble writes its own choice into
    those of its members.
    """

    tokens: Int64[Tensor, "b h w"]
    logits: Float[Tensor, "b h w v"]
    disagreement: Float[Tensor, "b h w"] | None = None
    """Of an ensemble: mutual information of token and member, in nats."""
    sharpness: float = 1.0
    """Of a calibrated world: its distribution is that of the logits times this. Tokens, mean codes and what is kept are
    of the logits as they are, so that calibration changes no picture."""

    @property
    def said(self) -> Float[Tensor, "b h w v"]:
        """Logits of the distribution that is scored."""
        return self.logits if self.sharpness == 1 else self.logits * self.sharpness


def draw(
    logits: Float[Tensor, "b *n v"], sampling: Sampling, generators: Sequence[torch.Generator] | None = None
) -> Int64[Tensor, "b *n"]:
    """Choose a token per position: greedy (ties: the lower id), or with a generator for each row, else `ValueError`."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    if generators is None:
        raise ValueError("sampling at a temperature above 0 needs explicit generators, one for each row")
    return torch.stack([_drawn(row, sampling, one) for row, one in zip(logits, generators, strict=True)])


def _drawn(logits: Float[Tensor, "*n v"], sampling: Sampling, generator: torch.Generator) -> Int64[Tensor, "*n"]:
    """Gumbel's trick: with Exponential(1) noise e, the largest of `logits - log e` is a sample of their softmax.

    With it, logits that differ in the last digits (as in another batch) still choose the same token; in the inverse of
    the cumulative probabilities, errors of all earlier tokens add up. Drawn on the CPU: all devices choose the same.
    """
    # The largest is taken off first: divided by a temperature near 0, logits would be infinite.
    above = (logits.float() - logits.float().amax(dim=-1, keepdim=True)) / sampling.temperature
    noise = torch.empty(logits.shape).exponential_(generator=generator).to(logits.device)
    return (_truncate(above, sampling) - noise.log_()).argmax(dim=-1)


def _truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        best = logits.topk(sampling.top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(dim=-1)
        # A token stays while the mass before it is below p, so the token that crosses p is kept.
        dropped = probability.cumsum(dim=-1) - probability >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits


def cross_entropy(
    hidden: Float[Tensor, "n d"], weight: Float[Tensor, "v d"], target: Int64[Tensor, " n"], *, chunk: int
) -> Float32[Tensor, ""]:
    """Mean of -log softmax(hidden @ weight.T)[target], in nats, with at most `chunk x v` logits in memory at once.

    PyTorch's own loss in chunks, which keeps no logits for the backward pass: at the report's shape (160 x 3072 tokens,
    vocabulary 64,000) they would take 126 GB in fp32. It ignores autocast, so types are chosen here. In float32 the
    gradients are made in the forward pass, the fastest way. In bfloat16 the mean would have only eight bits: there it
    is of every token's cost, in float32, and the backward pass computes the logits again.
    """
    kind = hidden.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        hidden, weight = (x.to(torch.get_autocast_dtype(kind)) for x in (hidden, weight))
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=chunk, acc_dtype=torch.float32)
    if hidden.dtype == torch.float32:
        return F.linear_cross_entropy(hidden, weight, target, options=options)
    return F.linear_cross_entropy(hidden, weight, target, reduction="none", options=options).float().mean()


@torch.no_grad()
def sharpened_costs(
    logits: Float[Tensor, "*n v"], target: Int64[Tensor, "*n"], factors: Float[Tensor, " k"], *, rows: int = 64
) -> Float32[Tensor, " k"]:
    """Cross-entropy in nats, summed over all tokens, with the logits multiplied by each of the factors."""
    total = torch.zeros(len(factors), device=logits.device)
    for part, true in zip(logits.flatten(0, -2).split(rows), target.flatten().split(rows), strict=True):
        part = part.float()
        own = part.gather(1, true[:, None].to(part.device)).sum()
        total += torch.stack([(part * factor).logsumexp(dim=1).sum() - own * factor for factor in factors.tolist()])
    return total


def scheduled(
    truth: Int64[Tensor, "*n"], predicted: Int64[Tensor, "*n"], probability: float, generator: torch.Generator
) -> Int64[Tensor, "*n"]:
    """Replace each true token by the model's own with this probability (two passes: Mihaylova & Martins 2019)."""
    swap = torch.rand(truth.shape, generator=generator).to(truth.device) < probability
    return torch.where(swap, predicted, truth)
