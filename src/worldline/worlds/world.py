"""What every world model offers to forecast with. A world never sees a pixel, and is given raw robot states.

Discrete worlds roll token grids forward, continuous ones generate all latents of the horizon at once. A world that
trains also has `loss(batch, generator)`: the loss and figures to log.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from worldline.process.categorical import Sampling
from worldline.process.flow import FlowSampling


@dataclass(frozen=True)
class GridStep:
    """One predicted token grid and the logits it was chosen from."""

    tokens: Int64[Tensor, "b h w"]
    logits: Float[Tensor, "b h w v"]


@runtime_checkable
class TokenWorld(Protocol):
    """A world over discrete tokens."""

    context_grids: int
    horizon_grids: int

    def forecast(
        self,
        context: Int64[Tensor, "b c h w"],
        states: Float[Tensor, "b t s"],
        *,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Iterator[GridStep]:
        """Roll forward on the model's own grids, never on the truth. Above temperature 0, clips need generators."""
        ...

    def teacher_forced(self, tokens: Int64[Tensor, "b l h w"], states: Float[Tensor, "b t s"]) -> Iterator[GridStep]:
        """Logits of each future grid given the TRUE grids before it: an optimistic bound, not a forecast."""
        ...


@runtime_checkable
class LatentWorld(Protocol):
    """A world over continuous latents."""

    context_latents: int
    horizon_latents: int

    def forecast(
        self,
        context: Float[Tensor, "b c ch h w"],
        states: Float[Tensor, "b t s"],
        noise: Float[Tensor, "b f ch h w"],
        *,
        sampling: FlowSampling,
    ) -> Float[Tensor, "b f ch h w"]:
        """Turn noise into one possible horizon; a pure function of its arguments."""
        ...
