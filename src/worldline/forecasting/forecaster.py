"""`Forecaster` = tokenizer + world + sampling choice: pixels and states in, pixels out.

Everything after it (evaluation, report, environments) knows only forecasters, so tracks and baselines share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.schema import Forecast


@runtime_checkable
class Forecaster(Protocol):
    """Forecast what will be seen from what was seen and the states that were and will be."""

    @property
    def context_frames(self) -> int: ...

    @property
    def horizon_frames(self) -> int:
        """Video frames between the last of the context and the last that is predicted."""
        ...

    @property
    def times(self) -> tuple[int, ...]:
        """Positions of the predicted frames, counted from the first frame of the context.

        The last is `context_frames + horizon_frames - 1`; not every frame before it need be predicted.
        """
        ...

    @property
    def num_samples(self) -> int:
        """Futures per clip."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def drawing(self, num_samples: int) -> "Forecaster":
        """The same forecaster with so many futures per clip."""
        ...

    def forecast(
        self,
        frames: UInt8[Tensor, "b c 3 h w"],
        states: Float32[Tensor, "b t s"],
        *,
        seeds: Sequence[int] | None = None,
    ) -> Forecast:
        """Predict the frames at `times` after `frames`, which are the context and nothing else.

        Args:
            frames: exactly `context_frames` of them, uint8 RGB.
            states: one row per frame of context and horizon, raw units.
            seeds: one per clip (`worldline.process.noise.clip_seeds`). Sample k of a clip depends on its frames, its
                states, its seed and k alone. None is enough where nothing is drawn.
        """
        ...

    def round_trip(self, frames: UInt8[Tensor, "b t 3 h w"]) -> UInt8[Tensor, "b f 3 h w"]:
        """The true frames at `times` as the tokenizer gives them back: the best such a forecaster could do.

        Args:
            frames: all frames of context and horizon.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CopyLast:
    """The baseline every forecast must beat: nothing moves after the last context frame."""

    context_frames: int
    times: tuple[int, ...]
    num_samples: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @staticmethod
    def beside(forecaster: Forecaster) -> "CopyLast":
        """The baseline of a forecaster: the same context and the same predicted times."""
        return CopyLast(context_frames=forecaster.context_frames, times=forecaster.times)

    @property
    def horizon_frames(self) -> int:
        return self.times[-1] + 1 - self.context_frames

    def drawing(self, num_samples: int) -> "CopyLast":
        return replace(self, num_samples=num_samples)

    def forecast(
        self,
        frames: UInt8[Tensor, "b c 3 h w"],
        states: Float32[Tensor, "b t s"],
        *,
        seeds: Sequence[int] | None = None,
    ) -> Forecast:
        del states, seeds
        still = frames[:, -1:].expand(-1, len(self.times), -1, -1, -1)
        return Forecast(frames=still.unsqueeze(1).expand(-1, self.num_samples, -1, -1, -1, -1))

    def round_trip(self, frames: UInt8[Tensor, "b t 3 h w"]) -> UInt8[Tensor, "b f 3 h w"]:
        return frames[:, list(self.times)]


def shown_context(forecaster: Forecaster) -> list[int]:
    """Context frames to show before a forecast: at the pace of the predicted ones, ending with the last."""
    pace = shown_pace(forecaster)
    return list(range((forecaster.context_frames - 1) % pace, forecaster.context_frames, pace))


def shown_pace(forecaster: Forecaster) -> int:
    """Video frames from one predicted frame to the next."""
    times = forecaster.times
    return times[1] - times[0] if len(times) > 1 else 1
