"""An ensemble of worlds over tokens is a world: members read the same grids, and their distributions are averaged.

Deep ensembles (Lakshminarayanan et al. 2017): differently seeded trainings of one recipe. Over latents nothing is
averaged but means, so there the forecaster draws each future from one of the members (`LatentForecaster.others`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from worldline.metrics.tokens import entropy
from worldline.process.categorical import GridStep, Sampling, draw
from worldline.schema import UsageError


class TokenEnsemble(nn.Module):
    """A `TokenWorld` of several. It predicts `mean_m p_m(token | grids so far)`, and all go on from one choice.

    One common past, so that an ensemble is a world like any other: its grids fit each other, a session goes on from
    them, and members are compared on equal terms. There `H(mean_m p_m) - mean_m H(p_m)` is what members disagree by,
    the mutual information of token and member (`GridStep.disagreement`): it falls with more training, and the other
    part, `mean_m H(p_m)`, does not (Depeweg et al. 2018; Malinin & Gales 2021).

    Raises:
        UsageError: members read or predict different numbers of grids.
    """

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        shapes = [(member.context_grids, member.horizon_grids) for member in members]
        if len(set(shapes)) > 1:
            raise UsageError(f"worlds of one ensemble read and predict as many grids, but these {shapes}")
        self.context_grids, self.horizon_grids = shapes[0]

    @torch.no_grad()
    def forecast(
        self,
        context: Int64[Tensor, "b c h w"],
        states: Float[Tensor, "b t s"],
        *,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Iterator[GridStep]:
        """Roll forward together. Tokens are chosen from the mean distribution, greedily or by temperature."""
        each: list[Iterator[GridStep]] = [
            member.forecast(context, states, sampling=Sampling()) for member in self._worlds
        ]
        for steps in zip(*each, strict=True):
            logits, disagreement = _averaged(steps)
            step = GridStep(draw(logits, sampling, generators), logits, disagreement)
            yield step
            for own in steps:  # a world goes on from the tokens of its step as they are by then
                own.tokens.copy_(step.tokens)

    @torch.no_grad()
    def teacher_forced(self, tokens: Int64[Tensor, "b l h w"], states: Float[Tensor, "b t s"]) -> Iterator[GridStep]:
        """The mean distribution of each future grid given the true grids before it, and its arg max."""
        for steps in zip(*(member.teacher_forced(tokens, states) for member in self._worlds), strict=True):
            logits, disagreement = _averaged(steps)
            yield GridStep(logits.argmax(dim=-1), logits, disagreement)

    @property
    def _worlds(self) -> Any:
        return self.members


def _averaged(steps: Sequence[GridStep]) -> tuple[Float[Tensor, "b h w v"], Float[Tensor, "b h w"]]:
    """The log of the mean distribution, and by how many nats its entropy exceeds the mean of theirs."""
    total, within = torch.tensor(-math.inf), torch.tensor(0.0)
    for step in steps:
        own = step.said.float().log_softmax(dim=-1)
        total, within = torch.logaddexp(total.to(own.device), own), within.to(own.device) + entropy(own) / len(steps)
    logits = total - math.log(len(steps))
    return logits, (entropy(logits) - within).clamp_min(0)
