"""The compression track's forecaster: a discrete world between a tokenizer's encoder and decoder."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline.forecasting.blend import blend_last_frame
from worldline.forecasting.forecaster import TOP, Extra, Seeds, Shown, States, WorldForecaster, check_seeds, frames_of
from worldline.forecasting.session import Context, Step
from worldline.metrics.tokens import grid_costs
from worldline.process.categorical import Sampling
from worldline.process.noise import generators
from worldline.schema import Batch, Forecast, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import Tokenizer
from worldline.worlds.world import GridStep, TokenWorld

DecodeMode = Literal["tokens", "mean"]
"""How a predicted grid is decoded: from its tokens, or from the mean code of their distribution (the best answer under
squared error where a world is unsure; docs/log.md). The world continues from the tokens in both modes."""
LOGITS = 2**30
"""Bytes of one grid's logits that exist at once in a roll-out: four clips of the report's 32x32 of 64,000 tokens."""
Read = Callable[[range, int, GridStep], dict[str, Tensor]]
"""Given rows, the number of a future grid and their step there: what to keep of it, one entry a row or a clip."""


@dataclass(frozen=True, kw_only=True)
class TokenForecaster(WorldForecaster):
    """A discrete world between a tokenizer's encoder and decoder. Several samples need a temperature above 0."""

    world: TokenWorld
    grid: TokenGrid
    tokenizer: Tokenizer[TokenGrid] | None
    """None where a world was trained on tokens as they came: then it shows no frames."""
    sampling: Sampling = field(default_factory=Sampling)
    decode_mode: DecodeMode = "tokens"
    blend_last_frame: bool = False
    """Show the last context frame where its tokens are kept (worldline.forecasting.blend)."""

    @property
    def token_grid(self) -> TokenGrid:
        return self.grid

    @property
    def rows_at_once(self) -> int:
        return self.rows or max(1, LOGITS // (4 * self.grid.height * self.grid.width * self.grid.vocab_size))

    @property
    def context_frames(self) -> int:
        return self.grid.frames_of(self.world.context_grids)

    @property
    def times(self) -> tuple[int, ...]:
        return tuple(range(self.context_frames, self.context_frames + self.grid.frames_of(self.world.horizon_grids)))

    @property
    def chunk_frames(self) -> int:
        return self.horizon_frames

    def encoded(self, batch: Batch) -> Batch:
        if batch.tokens is not None:
            return batch
        frames = frames_of(self, batch, self.context_frames)[:, : self.context_frames + self.horizon_frames]
        whole = frames.shape[1] // self.grid.block * self.grid.block
        return replace(batch, tokens=self._encode(frames[:, :whole]))

    def forecast_clips(
        self, batch: Batch, *, states: States | None = None, seeds: Seeds = None, extra: Collection[Extra] = ()
    ) -> Forecast:
        states, scored = batch.states if states is None else states, "costs" in extra or "teacher_forced_costs" in extra
        past, future = self._grids(batch) if scored else (batch.tokens, None)
        context = self.begin(replace(batch, tokens=past))
        made = self._forecast(context, states, seeds, extra, true=future if "costs" in extra else None)
        if past is None or future is None or "teacher_forced_costs" not in extra:
            return made
        tokens = torch.cat([past, future], dim=1)
        costs = self._rolled(
            len(tokens),
            lambda rows: self.world.teacher_forced(tokens[rows].to(self.device), states[rows].to(self.device)),
            lambda rows, grid, step: _each(rows, step, 1, lambda clip, logits: grid_costs(logits, future[clip, grid])),
        )
        return replace(made, teacher_forced_costs=costs)

    def reconstruct(self, batch: Batch) -> Forecast:
        past, future = self._grids(batch)
        self._known()
        return self._shown((past, *self._seen(batch.frames)), {"tokens": future}, samples=1, plain=True)

    def shown(self, batch: Batch) -> Shown:
        if batch.frames is None and batch.tokens is not None:
            batch = replace(batch, frames=self._decode(batch.tokens))
        return super().shown(batch)

    def begin(self, batch: Batch) -> Context:
        tokens, seen = batch.tokens, self._seen(batch.frames)
        if tokens is None:
            tokens = self._encode(frames_of(self, batch, self.context_frames)[:, : self.context_frames])
        parts = (self._enough(batch, tokens, self.world.context_grids), *seen)
        return tuple(part.repeat_interleave(self.num_samples, dim=0) for part in parts)

    def step(self, context: Context, states: States, *, seeds: Seeds) -> Step:
        """Predicted token grids are what it goes on from, without a way through frames."""
        made = self._forecast(context, states, seeds)

        def onward() -> Context:
            assert made.tokens is not None, "a world over tokens"
            grids = torch.cat([context[0], made.tokens.flatten(0, 1)], dim=1)[:, -self.world.context_grids :].clone()
            return grids, *self._seen(None if made.frames is None else made.frames[:, :, -1:].flatten(0, 1))

        return made, onward

    def _grids(self, batch: Batch) -> tuple[Int64[Tensor, "b c gh gw"], Int64[Tensor, "b l gh gw"]]:
        """True token grids of context and future. Raises `UsageError` where there is no whole future."""
        split = self.world.context_grids
        tokens = self._enough(batch, self.encoded(batch).tokens, split + self.world.horizon_grids)
        return tokens[:, :split], tokens[:, split:]

    def _seen(self, frames: UInt8[Tensor, "n t 3 h w"] | None) -> tuple[Tensor, ...]:
        """The frame that stays in view where tokens are kept, or nothing where none shall: the last of a context."""
        if not self.blend_last_frame or self.tokenizer is None:
            return ()
        if frames is None:
            raise UsageError("what was seen can only be kept where there are frames; leave out --blend-last-frame")
        return (frames[:, : self.context_frames][:, -1].cpu().clone(),)

    @torch.no_grad()
    def _forecast(
        self, context: Context, states: States, seeds: Seeds, extra: Collection[Extra] = (), true: Tensor | None = None
    ) -> Forecast:
        """Roll every row forward, read its grids one by one, and show them. Costs are those of the `true` tokens."""
        samples, tokens = self.num_samples, context[0]
        if samples > 1 and self.sampling.temperature == 0:
            raise UsageError("greedy samples are all the same; give a --temperature above 0 to draw several")
        drawn = generators(check_seeds(seeds, len(states)), samples) if self.sampling.temperature > 0 else None
        states = states.repeat_interleave(samples, dim=0)

        def steps(rows: slice) -> Iterator[GridStep]:
            past, own = tokens[rows].to(self.device), states[rows].to(self.device)
            return self.world.forecast(past, own, sampling=self.sampling, generators=drawn and drawn[rows])

        def read(rows: range, grid: int, step: GridStep) -> dict[str, Tensor]:
            found = {"tokens": step.tokens}
            if self.decode_mode == "mean":
                chances, before = step.logits.float().softmax(dim=-1), tokens[rows.start : rows.stop, -1, ..., None]
                found["mean_codes"] = chances @ self._codes().codebook
                found["kept"] = chances.gather(-1, before.to(self.device)).squeeze(-1)

            def measure(clip: int, logits: Float32[Tensor, "gh gw v"]) -> dict[str, Tensor]:
                costs = {} if true is None else grid_costs(logits, true[clip, grid])
                if "top" not in extra:
                    return costs
                best = logits.float().log_softmax(dim=-1).topk(min(TOP, logits.shape[-1]), dim=-1)
                return costs | {"top_ids": best.indices, "top_log_probs": best.values}

            return found | _each(rows, step, samples, measure)

        found = self._rolled(len(tokens), steps, read)
        return self._shown(context, found, samples=samples, plain="plain_frames" in extra)

    def _rolled(self, count: int, steps: Callable[[slice], Iterator[GridStep]], read: Read) -> dict[str, Tensor]:
        """What is read of every grid of `count` rows, a few rows at a time: `n l ...`. Logits are dropped at once."""
        parts: list[dict[str, Tensor]] = []
        for first in range(0, count, self.rows_at_once):
            rows, grids = range(first, min(first + self.rows_at_once, count)), []
            for grid, step in enumerate(steps(slice(rows.start, rows.stop))):
                grids.append({name: value.cpu() for name, value in read(rows, grid, step).items()})
            parts.append({name: torch.stack([grid[name] for grid in grids], dim=1) for name in grids[0]})
        names = dict.fromkeys(name for part in parts for name in part)  # rows may hold no clip's first sample
        return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}

    def _shown(self, context: Context, found: dict[str, Tensor], *, samples: int, plain: bool) -> Forecast:
        """The forecast of what was read of a roll-out; what is no part of it by name are costs."""
        past, *seen = context
        tokens, codes = found.pop("tokens"), found.pop("mean_codes", None)
        kept = found.pop("kept", (tokens == past[:, -1:]).float())
        top: dict[str, Any] = {name: found.pop(name, None) for name in ("top_ids", "top_log_probs")}
        chosen = self._decode(tokens) if self.tokenizer is not None and (codes is None or plain) else None
        frames = chosen if codes is None else self._codes().decode_codes(codes.to(self.device)).cpu()
        if frames is not None and seen:
            frames = blend_last_frame(frames, kept, seen=seen[0], grid=self.grid)
        plain_frames = chosen if plain and chosen is not frames else None
        rows = {"frames": frames, "plain_frames": plain_frames, "tokens": tokens}
        parts: dict[str, Any] = {name: x.unflatten(0, (-1, samples)) for name, x in rows.items() if x is not None}
        return Forecast(times=self.times, costs=found, **parts, **top)

    def _codes(self) -> Any:
        if not hasattr(tokenizer := self._known(), "codebook"):
            raise UsageError("this tokenizer's tokens have no codes with a mean; use --decode-mode tokens")
        return tokenizer


def _each(
    rows: range, step: GridStep, samples: int, measure: Callable[[int, Tensor], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What is measured on the logits of each clip's first sample among the rows, one clip after the other."""
    found = [measure(row // samples, step.logits[row - rows.start]) for row in rows if row % samples == 0]
    return {name: torch.stack([one[name] for one in found]) for name in (found[0] if found else ())}
