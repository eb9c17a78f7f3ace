"""A tokenizer alone, as a forecaster, so that the same engine evaluates it."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from worldline.forecasting.forecaster import CopyLast, frames_of
from worldline.schema import Batch, Forecast, TokenGrid
from worldline.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Autoencoder(CopyLast):
    """It only reconstructs; it has no context and forecasts nothing."""

    tokenizer: Tokenizer[Any]
    grid: TokenGrid | None
    """Of its tokens; None where it makes latents."""

    @property
    def token_grid(self) -> TokenGrid | None:
        return self.grid

    @torch.no_grad()
    def encoded(self, batch: Batch) -> Batch:
        made = self.tokenizer.encode(frames_of(self, batch, len(self.times)).to(self.device)).cpu()
        return replace(batch, latents=made) if self.grid is None else replace(batch, tokens=made)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Forecast:
        encoded = batch.latents if self.grid is None else batch.tokens
        assert encoded is not None, "encoded before"
        frames = self.tokenizer.decode(encoded.to(self.device)).cpu()
        return Forecast(times=self.times, frames=frames[:, None])
