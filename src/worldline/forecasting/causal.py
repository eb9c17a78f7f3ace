"""The forecaster of a driven world: one frame a step, from the states up to that frame alone.

Its context is the last token grid and the keys and values of those before it (`worlds/causal.py`): nothing is encoded
or computed twice, however long a session is. A snapshot of it holds as much, about two megabytes of the built-in one.
It stays where the world computes, because moving it would take longer than a step where many clips are one batch.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline.forecasting.forecaster import Context, Extra, Forecaster, Seeds, States, Step, generators
from worldline.forecasting.tokens import DecodeMode, refuse_without_codes
from worldline.process.categorical import Sampling
from worldline.schema import Batch, Certainty, Forecast, TokenGrid
from worldline.tokenizers.tokenizer import Tokenizer

ROWS = 64
"""Futures that are computed at once, if not chosen: more are no faster on a CPU."""


@runtime_checkable
class GridWorld(Protocol):
    """What a forecaster needs of a world that goes on grid by grid; `told` is its own form of states."""

    context_grids: int

    def conditions(self, states: Float32[Tensor, "b t s"], /) -> Any:
        """What it is told of the way from each grid to the next."""
        ...

    def __call__(
        self, tokens: Int64[Tensor, "b t h w"], told: Any, past: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Logits of the digits of the grid after each, and the past that the next call needs."""
        ...

    def chosen(
        self, logits: Tensor, sampling: Sampling, generators: list[torch.Generator] | None, /
    ) -> Int64[Tensor, "b h w"]:
        """Tokens of one grid."""
        ...

    def mean_codes(self, logits: Tensor, /) -> Float32[Tensor, "b h w n"]:
        """The mean codes of their distributions."""
        ...


@dataclass(frozen=True, kw_only=True)
class CausalForecaster(Forecaster):
    """A causal world behind a tokenizer of single frames. Several samples need a temperature above 0."""

    world: GridWorld
    grid: TokenGrid
    tokenizer: Tokenizer[TokenGrid] | None
    """None where a world was trained on tokens as they came: then it shows no frames."""
    sampling: Sampling = field(default_factory=Sampling)
    """How each digit of a token's code is chosen."""
    decode_mode: DecodeMode = "tokens"

    def __post_init__(self) -> None:
        self.sampling.refuse_alike(self.num_samples)
        if self.decode_mode == "mean":
            refuse_without_codes(self._known())
        context = self.grid.frames_of(self.world.context_grids)
        vars(self).update(context_frames=context, times=(context,), chunk_frames=1)

    @property
    def rows_at_once(self) -> int:
        return self.rows or ROWS

    def encoded(self, batch: Batch) -> Batch:
        if batch.tokens is not None:
            return batch
        return replace(batch, tokens=self._encode(self.frames_of(batch, self.context_frames)[:, : self.context_frames]))

    def reconstruct(self, batch: Batch) -> Forecast:
        """The true next frame, encoded and decoded by itself, as this tokenizer does with every frame."""
        if batch.tokens is not None:
            true = self._enough(batch, "token grids", batch.tokens, self.context_frames + 1)[:, self.context_frames :]
        else:
            true = self._encode(self.frames_of(batch, self.context_frames + 1)[:, self.context_frames :])
        return Forecast(times=self.times, frames=self._decode(true[:, :1])[:, None], tokens=true[:, None, :1])

    @torch.no_grad()
    def begin(self, batch: Batch) -> Context:
        """The last grid of the context, and the past of those before it, led by the states of the context."""
        count = self.context_frames
        tokens = self._enough(batch, "token grids", self.encoded(batch).tokens, count)[:, :count].to(self.device)
        pasts = []
        for rows in range(0, len(tokens), self.rows_at_once):
            own = slice(rows, rows + self.rows_at_once)
            told = self.world.conditions(batch.states[own, :count].to(self.device))
            pasts.append(self.world(tokens[own, :-1], told)[1])
        parts = tokens[:, -1], torch.cat(pasts)
        return tuple(part.repeat_interleave(self.num_samples, dim=0) for part in parts)

    def joined(self, contexts: Sequence[Context]) -> Context:
        """Snapshots that were pickled, or are of another device, are moved here first."""
        return super().joined([tuple(part.to(self.device) for part in context) for context in contexts])

    @property
    def streamed(self) -> frozenset[Extra]:
        return frozenset({"certainty"})

    @torch.no_grad()
    def step(self, context: Context, states: States, *, seeds: Seeds, extra: Collection[Extra] = ()) -> Step:
        samples, now = self.num_samples, self.context_frames
        drawn = generators(seeds, samples, clips=len(states)) if self.sampling.temperature > 0 else None
        way = states[:, now - 1 : now + 1].repeat_interleave(samples, dim=0)
        parts: list[dict[str, Tensor]] = []
        for rows in range(0, len(way), self.rows_at_once):
            own = slice(rows, rows + self.rows_at_once)
            grid, past = (part[own].to(self.device) for part in context)
            logits, grown = self.world(grid[:, None], self.world.conditions(way[own].to(self.device)), past)
            made = {"tokens": self.world.chosen(logits[:, 0], self.sampling, drawn and drawn[own]), "past": grown}
            made |= _certainty(logits) if "certainty" in extra else {}
            made |= {"codes": self.world.mean_codes(logits[:, 0])} if self.decode_mode == "mean" else {}
            parts.append(made)
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        tokens, past = found["tokens"], found["past"]
        first = {name: found[name][::samples].cpu() for name in ("entropy", "confidence") if name in found}
        shown = {"times": self.times, "certainty": Certainty(**first) if first else None}
        grids = tokens.cpu().unflatten(0, (-1, samples))[:, :, None].clone()
        later = None if self.tokenizer is None else cache(partial(self._frames, tokens, found.get("codes")))
        frames = None if self.lazy or later is None else later()
        forecast = Forecast(**shown, frames=frames, tokens=grids, later=later if self.lazy else None)
        return forecast, lambda: (tokens, past)

    def _frames(self, tokens: Tensor, codes: Tensor | None) -> UInt8[Tensor, "b k one 3 h w"]:
        """The frames of one grid of each row, of its tokens or of the mean codes of their distributions."""
        if codes is None:
            made = self._decode(tokens[:, None])
        else:
            made = self._known().decode_codes(codes[:, None].to(self.device)).cpu()
        return made.unflatten(0, (-1, self.num_samples))


def _certainty(logits: Tensor) -> dict[str, Tensor]:
    """Entropy and confidence of the tokens of a grid: sum and product over digits, which are chosen each by itself."""
    logs = logits.log_softmax(dim=-1)
    entropy = -(logs.exp() * logs.clamp_min(-1e4)).sum(dim=(-1, -2))
    return {"entropy": entropy, "confidence": logs.amax(dim=-1).sum(dim=-1).exp()}
