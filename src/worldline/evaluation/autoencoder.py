"""A tokenizer alone, as a forecaster, so that the same engine evaluates it."""

from dataclasses import dataclass, replace

from worldline.forecasting.forecaster import CopyLast
from worldline.schema import Batch, Forecast


@dataclass(frozen=True, kw_only=True)
class Autoencoder(CopyLast):
    """It only reconstructs frames of any size; it has no context and forecasts nothing. Of latents it needs no grid."""

    @property
    def image_size(self) -> None:
        return None

    def encoded(self, batch: Batch) -> Batch:
        made = self._encode(self.frames_of(batch, len(self.times)))
        return replace(batch, latents=made) if self.token_grid is None else replace(batch, tokens=made)

    def reconstruct(self, batch: Batch) -> Forecast:
        encoded = batch.latents if self.token_grid is None else batch.tokens
        assert encoded is not None, "encoded before"
        return Forecast(times=self.times, frames=self._decode(encoded)[:, None])
