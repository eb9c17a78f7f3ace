"""The compression track's forecaster: a discrete world between a tokenizer's encoder and decoder."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from worldline.forecasting.ensemble import TokenEnsemble
from worldline.forecasting.forecaster import (
    Context,
    Extra,
    Forecaster,
    Seeds,
    Shown,
    States,
    Step,
    generators,
)
from worldline.metrics.tokens import TOP, Guesses, entropy, grid_costs, guesses_of
from worldline.process.categorical import GridStep, Sampling
from worldline.schema import Batch, Certainty, Forecast, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import Coded, Tokenizer

DecodeMode = Literal["tokens", "mean"]
"""How a predicted grid is decoded: from its tokens, or from the mean code of their distribution (the best answer under
squared error where a world is unsure; docs/log_first.md). The world continues from the tokens in both modes."""
LOGITS = 2**30
"""Bytes of one grid's logits that exist at once in a roll-out: four clips of the report's 32x32 of 64,000 tokens."""
Read = Callable[[slice, int, GridStep], dict[str, Tensor]]
"""Given rows, the number of a future grid and their step there: what to keep of it, by name."""


@runtime_checkable
class TokenWorld(Protocol):
    """What a forecaster needs of a world over discrete tokens, which never sees a pixel, and is given raw states."""

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
        """Roll forward on the model's own grids, never on the truth. Above temperature 0, clips need generators.

        The next grid goes on from the tokens of the step before it as they are by then (see `GridStep`).
        """
        ...

    def teacher_forced(self, tokens: Int64[Tensor, "b l h w"], states: Float[Tensor, "b t s"]) -> Iterator[GridStep]:
        """Logits of each future grid given the TRUE grids before it: an optimistic bound, not a forecast."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenForecaster(Forecaster):
    """A discrete world between a tokenizer's encoder and decoder. Several samples need a temperature above 0."""

    world: TokenWorld
    grid: TokenGrid
    tokenizer: Tokenizer[TokenGrid] | None
    """None where a world was trained on tokens as they came: then it shows no frames."""
    sampling: Sampling = field(default_factory=Sampling)
    mixture: int = 1
    """Roll-outs of each clip whose distributions are averaged: one greedy, all others drawn at temperature 1.

    The metric scores every token given the context alone, and one guess of the grids between is only one of many ways
    there; with more of them the average comes nearer to the marginal. Shown is the greedy roll-out, whose tokens fit
    each other: the average's likeliest tokens decode worse (docs/log.md)."""
    decode_mode: DecodeMode = "tokens"
    blend_last_frame: bool = False
    """Show the last context frame where its tokens are kept, because decoding would lose detail there."""

    def __post_init__(self) -> None:
        if self.mixture > 1 and (self.num_samples > 1 or self.sampling.temperature > 0):
            raise UsageError(
                "a mixture is one forecast, shown by its greedy roll-out; no --num-samples, no --temperature"
            )
        self.sampling.refuse_alike(self.num_samples)
        if self.decode_mode == "mean":
            refuse_without_codes(self._known())
        context, horizon = map(self.grid.frames_of, (self.world.context_grids, self.world.horizon_grids))
        times = tuple(range(context, context + horizon))
        vars(self).update(context_frames=context, times=times, chunk_frames=horizon)

    @property
    def rows_at_once(self) -> int:
        worlds = len(self.members) + 1 if self.members else 1  # members' logits, and their mean
        fits = LOGITS // (4 * self.grid.height * self.grid.width * self.grid.vocab_size * worlds)
        return max(1, (self.rows or fits) // self.mixture)

    @property
    def members(self) -> "tuple[TokenForecaster, ...]":
        worlds: Any = self.world.members if isinstance(self.world, TokenEnsemble) else ()
        return tuple(replace(self, world=world) for world in worlds)

    def with_members(self, others: Sequence[Any]) -> "TokenForecaster":
        return replace(self, world=TokenEnsemble([self.world, *(other.world for other in others)]))

    def one_roll_out(self) -> "TokenForecaster | None":
        return replace(self, mixture=1) if self.mixture > 1 else None

    def encoded(self, batch: Batch) -> Batch:
        if batch.tokens is not None:
            return batch
        frames = self.frames_of(batch, self.context_frames)[:, : self.times[-1] + 1]
        whole = frames.shape[1] // self.grid.block * self.grid.block
        return replace(batch, tokens=self._encode(frames[:, :whole]))

    def forecast_clips(
        self, batch: Batch, *, states: States | None = None, seeds: Seeds = None, extra: Collection[Extra] = ()
    ) -> Forecast:
        states = batch.states if states is None else states
        if not {"costs", "teacher_forced_costs"} & {*extra}:
            return self._forecast(self.begin(batch), states, seeds, extra)
        batch = self.encoded(batch)
        tokens, future = self._true(batch)
        made = self._forecast(self.begin(batch), states, seeds, extra, true=future if "costs" in extra else None)
        if "teacher_forced_costs" not in extra:
            return made
        costs = self._rolled(
            len(tokens),
            lambda rows: self.world.teacher_forced(tokens[rows].to(self.device), states[rows].to(self.device)),
            lambda rows, grid, step: grid_costs(guesses_of(step.said, future[rows, grid])),
        )
        return replace(made, teacher_forced_costs=costs)

    def reconstruct(self, batch: Batch) -> Forecast:
        tokens, future = self._true(self.encoded(batch))
        self._known()
        past = tokens[:, : self.world.context_grids]
        context = (past, *self._seen(past, batch.frames))
        return self._shown(context, {"tokens": future}, samples=1, plain=True)

    def shown(self, batch: Batch) -> Shown:
        if batch.frames is None and batch.tokens is not None:
            batch = replace(batch, frames=self._decode(batch.tokens))
        return super().shown(batch)

    def begin(self, batch: Batch) -> Context:
        tokens, grids = batch.tokens, self.world.context_grids
        if tokens is None:
            tokens = self._encode(self.frames_of(batch, self.context_frames)[:, : self.context_frames])
        context = self._enough(batch, "token grids", tokens, grids)[:, :grids].cpu()
        return tuple(
            part.repeat_interleave(self.num_samples, dim=0) for part in (context, *self._seen(context, batch.frames))
        )

    @property
    def extras(self) -> frozenset[Extra]:
        return frozenset(get_args(Extra))

    @property
    def streamed(self) -> frozenset[Extra]:
        return frozenset({"certainty"})

    def step(self, context: Context, states: States, *, seeds: Seeds, extra: Collection[Extra] = ()) -> Step:
        """Predicted token grids are what it goes on from, without a way through frames."""
        made = self._forecast(context, states, seeds, extra)

        def onward() -> Context:
            assert made.tokens is not None, "a world over tokens"
            grids = torch.cat([context[0], made.tokens.flatten(0, 1)], dim=1)[:, -self.world.context_grids :].clone()
            return grids, *self._seen(grids, None if made.frames is None else made.frames[:, :, -1:].flatten(0, 1))

        return made, onward

    def _true(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """True token grids of context and future, and those of the future alone. Raises `UsageError` for too few."""
        count = self.world.context_grids + self.world.horizon_grids
        tokens = self._enough(batch, "token grids", batch.tokens, count)[:, :count].cpu()
        return tokens, tokens[:, self.world.context_grids :]

    @property
    def _sees(self) -> bool:
        """Whether the decoder sees the last context frame."""
        return self.tokenizer is not None and self.tokenizer.sees

    def _seen(self, context: Tensor, frames: UInt8[Tensor, "n t 3 h w"] | None) -> tuple[Tensor, ...]:
        """The last context frame, or nothing where neither decoder nor blend needs it; decoded where none is held."""
        if self.tokenizer is None or not (self.blend_last_frame or self._sees):
            return ()
        if frames is None and self.blend_last_frame:
            raise UsageError("what was seen can only be kept where there are frames; leave out --blend-last-frame")
        if frames is None:
            frames = self._decode(context)
        return (frames[:, : self.context_frames][:, -1].cpu().clone(),)

    @torch.no_grad()
    def _forecast(
        self, context: Context, states: States, seeds: Seeds, extra: Collection[Extra] = (), true: Tensor | None = None
    ) -> Forecast:
        """Roll every row forward, read its grids one by one, and show them. Costs are those of the `true` tokens."""
        samples, tokens = self.num_samples, context[0]
        others = self.mixture - 1
        roll_outs = others or (samples if self.sampling.temperature > 0 else 0)  # of each clip, that are drawn
        drawn = generators(seeds, roll_outs, clips=len(states)) if roll_outs else None
        states = states.repeat_interleave(samples, dim=0)
        true = None if true is None else true.repeat_interleave(samples, dim=0)

        def steps(rows: slice) -> Iterator[GridStep]:
            given = tokens[rows].to(self.device), states[rows].to(self.device)
            if others and drawn:
                return mixed(self.world, *given, drawn[rows.start * others : rows.stop * others])
            return self.world.forecast(*given, sampling=self.sampling, generators=drawn and drawn[rows])

        def read(rows: slice, grid: int, step: GridStep) -> dict[str, Tensor]:
            found = {"tokens": step.tokens}
            if self.decode_mode == "mean":
                chances, before = step.logits.float().softmax(dim=-1), tokens[rows, -1, ..., None].to(self.device)
                found["mean_codes"] = chances @ self._known().codebook
                found["kept"] = chances.gather(-1, before).squeeze(-1)
            firsts = slice(-rows.start % samples, None, samples)  # of each clip: costs are of these samples alone
            logits = step.said[firsts]
            guesses = None if true is None else guesses_of(logits, true[rows, grid][firsts])
            if guesses is not None:
                found |= grid_costs(guesses)
            if "certainty" in extra:
                sure = _certainty(logits, guesses)
                if step.disagreement is not None:
                    sure["disagreement"] = step.disagreement[firsts]
                found |= {f"certainty/{name}": value for name, value in sure.items()}
            if "top" in extra:
                best = logits.float().log_softmax(dim=-1).topk(min(TOP, logits.shape[-1]), dim=-1)
                found |= {"top_ids": best.indices, "top_log_probs": best.values}
            return found

        found = self._rolled(len(tokens), steps, read)
        return self._shown(context, found, samples=samples, plain="plain_frames" in extra)

    def _rolled(self, count: int, steps: Callable[[slice], Iterator[GridStep]], read: Read) -> dict[str, Tensor]:
        """What is read of every grid of `count` rows, a few rows at a time: `n l ...`. Logits are dropped at once."""
        parts: list[dict[str, Tensor]] = []
        for first in range(0, count, self.rows_at_once):
            rows, grids = slice(first, first + self.rows_at_once), []
            for grid, step in enumerate(steps(rows)):
                grids.append({name: value.cpu() for name, value in read(rows, grid, step).items()})
            parts.append({name: torch.stack([grid[name] for grid in grids], dim=1) for name in grids[0]})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _shown(self, context: Context, found: dict[str, Tensor], *, samples: int, plain: bool) -> Forecast:
        """The forecast of what was read of a roll-out; what is no part of it by name are costs."""
        past, *seen = context
        tokens, codes = found.pop("tokens"), found.pop("mean_codes", None)
        kept = found.pop("kept", (tokens == past[:, -1:]).float())
        sure: dict[str, Any] = {name: found.pop(name) for name in [*found] if name.startswith("certainty/")}
        sure = {name.removeprefix("certainty/"): value for name, value in sure.items()}
        certainty = Certainty(**sure) if sure else None
        top: dict[str, Any] = {name: found.pop(name, None) for name in ("top_ids", "top_log_probs")}
        if self.lazy and self.tokenizer is not None and not seen and not plain:
            return replace(self._undecoded(tokens, codes, samples), costs=found, certainty=certainty, **top)
        before = seen if self._sees else ()
        chosen = self._decode(tokens, *before) if self.tokenizer is not None and (codes is None or plain) else None
        frames = chosen if codes is None else self._decode_codes(codes, *before)
        if frames is not None and self.blend_last_frame and seen:
            frames = blend_last_frame(frames, kept, seen=seen[0], grid=self.grid)
        plain_frames = chosen if plain and chosen is not frames else None
        rows = {"frames": frames, "plain_frames": plain_frames, "tokens": tokens}
        parts: dict[str, Any] = {name: x.unflatten(0, (-1, samples)) for name, x in rows.items() if x is not None}
        return Forecast(times=self.times, costs=found, certainty=certainty, **parts, **top)

    def _undecoded(self, tokens: Tensor, codes: Tensor | None, samples: int) -> Forecast:
        """Rows of tokens as a forecast whose frames are decoded when they are read; what is read later is kept."""
        given, tokens = tokens, tokens.clone()  # a caller may write into what it is given

        @cache
        def later() -> UInt8[Tensor, "b k t 3 h w"]:
            frames = self._decode(tokens) if codes is None else self._decode_codes(codes)
            return frames.unflatten(0, (-1, samples))

        return Forecast(times=self.times, tokens=given.unflatten(0, (-1, samples)), later=later)

    def _decode_codes(self, codes: Tensor, *seen: Tensor) -> UInt8[Tensor, "n t 3 h w"]:
        return self._known().decode_codes(codes.to(self.device), *(one.to(self.device) for one in seen)).cpu()


def refuse_without_codes(tokenizer: Any) -> None:
    """Raise `UsageError` for a tokenizer of which no mean can be decoded."""
    if not isinstance(tokenizer, Coded):
        raise UsageError("this tokenizer's tokens have no codes with a mean; use --decode-mode tokens")


def _certainty(logits: Float[Tensor, "b h w v"], guesses: Guesses | None) -> dict[str, Tensor]:
    """The parts of `Certainty` that one grid's distributions say."""
    best = logits.amax(dim=-1).float() - logits.float().logsumexp(dim=-1)
    found = {"entropy": entropy(logits), "confidence": best.exp()}
    return found if guesses is None else found | {"cost": -guesses.true.float(), "hit": guesses.rank == 0}


def mixed(
    world: TokenWorld, context: Tensor, states: Tensor, generators: Sequence[torch.Generator]
) -> Iterator[GridStep]:
    """A greedy roll-out's tokens, with the mean distribution of it and `len(generators) / b` drawn ones as logits.

    No roll-out goes on from the mixture: each follows its own tokens.
    """
    count = len(generators) // len(context)
    several = (x.repeat_interleave(count, dim=0) for x in (context, states))
    greedy = world.forecast(context, states, sampling=Sampling())
    drawn = world.forecast(*several, sampling=Sampling(temperature=1.0), generators=generators)
    for one, others in zip(greedy, drawn, strict=True):
        each = others.said.float().log_softmax(dim=-1).unflatten(0, (-1, count))
        together = torch.cat([one.said.float().log_softmax(dim=-1)[:, None], each], dim=1)
        logits = together.logsumexp(dim=1) - math.log(count + 1)
        yield GridStep(one.tokens, logits)


def blend_last_frame(
    decoded: UInt8[Tensor, "b t 3 h w"], kept: Float32[Tensor, "b l gh gw"], *, seen: Tensor, grid: TokenGrid
) -> UInt8[Tensor, "b t 3 h w"]:
    """Mix decoded frames with the last context frame: `seen + share * (1 - kept) * (decoded - seen)`.

    `kept` is interpolated between patches. The share grows evenly from 0 at the frame seen to 1 after a latent's
    frames: at first less moves than decoding errs by (docs/beyond_pictures.md).

    Args:
        decoded: the forecast of whole blocks of frames.
        kept: for each token, 0 to 1, the probability that it is still the token of the last context grid.
        seen: the last context frame, `b 3 h w`.
    """
    blocks = kept.shape[1] // grid.latents_per_block
    repeats = torch.tensor(grid.frames_per_latent * blocks, device=kept.device)
    per_frame = kept.repeat_interleave(repeats, dim=1)
    since = torch.arange(1, per_frame.shape[1] + 1, device=kept.device)
    share = (since / grid.temporal_stride).clamp(max=1)[:, None, None, None]
    mixed = []
    for frames, stays, last in zip(decoded, per_frame, seen, strict=True):  # in floats they take four times the memory
        changes = 1 - F.interpolate(stays[None], size=last.shape[-2:], mode="bilinear", align_corners=False)
        blended = torch.lerp(last.float().expand_as(frames), frames.float(), share * changes[0].unsqueeze(1))
        mixed.append(blended.round().clamp(0, 255).to(torch.uint8))
    return torch.stack(mixed)
