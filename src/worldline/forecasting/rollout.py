"""`RollOut`: a forecaster of any horizon, made of another one that goes on from its own frames, chunk by chunk.

To an evaluation it is a forecaster like any other, so rows, conditions and metrics per frame reach as far as it does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worldline.forecasting.forecaster import Context, Forecaster, Frames, Seeds, States, Step, chunk_seeds
from worldline.schema import Batch, Forecast, LatentGrid, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class RollOut(Forecaster):
    """What a session of `inner` shows of the first `ahead` frames after its context; every sample continues its own.

    The first chunk is a plain forecast with the same seeds. Tokens beyond the window have no costs: which tokens would
    have been scored there depends on what the world itself chose before, so it gives frames only.
    """

    grid: TokenGrid | LatentGrid | None = None
    tokenizer: Tokenizer[Any] | None = None
    inner: Forecaster
    ahead: int
    """Video frames, not all of which need be predicted: every one of the inner forecaster's pace is."""

    @classmethod
    def of(cls, inner: Forecaster, ahead: int) -> "RollOut":
        """Raises `UsageError` for a forecaster that cannot go on, or a horizon before its first frame."""
        same = {name: getattr(inner, name) for name in ("num_samples", "rows", "device")}
        return cls(inner=inner, ahead=ahead, **same)

    def __post_init__(self) -> None:
        """Every number of samples is the inner forecaster's, too."""
        inner = self.inner
        if inner.num_samples != self.num_samples:
            inner = replace(inner, num_samples=self.num_samples)
        inner.refuse_standing()
        end = inner.context_frames + self.ahead
        times = tuple(time for begin, inside in self._windows(inner) if (time := begin + inside) < end)
        if not times:
            first = inner.times[0] + 1 - inner.context_frames
            raise UsageError(f"the first predicted frame is frame {first} after the context; give a horizon of as many")
        # As a session it goes on by whole chunks.
        chunk = self.ahead // inner.chunk_frames * inner.chunk_frames
        vars(self).update(inner=inner, context_frames=inner.context_frames, times=times, chunk_frames=chunk)

    def _windows(self, inner: Forecaster) -> Iterator[tuple[int, int]]:
        """Where the window of each chunk begins, with each time of it that the next chunk does not predict."""
        end = inner.context_frames + inner.chunk_frames
        for begin in range(0, self.ahead, inner.chunk_frames):
            yield from ((begin, time) for time in inner.times if time < end)

    @property
    def chunks(self) -> range:
        """Where the window of each chunk begins."""
        return range(0, self.times[-1] + 1 - self.context_frames, self.inner.chunk_frames)

    @property
    def lookahead_frames(self) -> int:
        """States are read as far as the last chunk looks ahead."""
        return self.chunks[-1] + self.inner.lookahead_frames

    @property
    def pace(self) -> int:
        return self.inner.pace

    @property
    def image_size(self) -> int | None:
        return self.inner.image_size

    @property
    def rows_at_once(self) -> int:
        return self.inner.rows_at_once

    def conditional_mean(self, draws: int) -> "RollOut | None":
        """Each chunk goes on from the mean before it, which grows blurred where the future is open."""
        mean = self.inner.conditional_mean(draws)
        return None if mean is None else RollOut.of(mean, self.ahead)

    @property
    def members(self) -> "tuple[RollOut, ...]":
        return tuple(RollOut.of(one, self.ahead) for one in self.inner.members)

    def round_trip(self, batch: Batch) -> tuple[Frames, Frames] | None:
        return self.inner.round_trip(batch)

    def one_roll_out(self) -> "RollOut | None":
        one = self.inner.one_roll_out()
        return None if one is None else RollOut.of(one, self.ahead)

    def encoded(self, batch: Batch) -> Batch:
        """With the tokens or latents of the context, which all roll-outs of the clips begin with."""
        return self.inner.encoded(batch)

    def begin(self, batch: Batch) -> Context:
        return self.inner.begin(batch)

    def joined(self, contexts: Sequence[Context]) -> Context:
        return self.inner.joined(contexts)

    def parted(self, context: Context, clips: Sequence[int]) -> list[Context]:
        return self.inner.parted(context, clips)

    def step(self, context: Context, states: States, *, seeds: Seeds) -> Step:
        reach, kept, shown = self.context_frames + self.inner.lookahead_frames, context, list[Tensor]()
        onward: Callable[[], Context] | None = None
        for number, begin in enumerate(self.chunks):
            context = context if onward is None else onward()
            if begin == self.chunk_frames:  # the horizon is no whole number of chunks, and a session goes on from here
                kept = context
            seen = states[:, begin : begin + reach]
            made, onward = self.inner.step(context, seen, seeds=chunk_seeds(seeds, number))
            shown.append(made.video[:, :, : self._count(begin)].clone())
        assert onward is not None, "at least one chunk"
        forecast = Forecast(times=self.times, frames=torch.cat(shown, dim=2))
        return forecast, (lambda: kept) if self.chunk_frames in self.chunks else onward

    def reconstruct(self, batch: Batch) -> Forecast:
        """The true frames of each window, encoded and decoded by themselves, as the tokenizer does."""
        frames, reach = self.frames_of(batch, self.context_frames + self.lookahead_frames), self.inner.times[-1] + 1
        tokens, parts = self._tokens(frames), dict[str, list[Tensor]](frames=[], plain_frames=[])
        for begin in self.chunks:
            made = self.inner.reconstruct(self._window(batch, frames, tokens, slice(begin, begin + reach)))
            for name, found in parts.items():
                if (shown := getattr(made, name)) is not None:
                    found.append(shown[:, :, : self._count(begin)])
        joined: dict[str, Any] = {name: torch.cat(found, dim=2) for name, found in parts.items() if found}
        return Forecast(times=self.times, **joined)

    def from_true_contexts(self, batch: Batch, *, seeds: Seeds) -> Forecast:
        """The same chunks, each forecast from the true frames before it, with the seeds that it has in a roll-out."""
        frames, reach = self.frames_of(batch, self.context_frames + self.chunks[-1]), self.inner.lookahead_frames
        tokens, shown = self._tokens(frames), list[Tensor]()
        for number, begin in enumerate(self.chunks):
            end = begin + self.context_frames
            clips = self._window(batch, frames, tokens, slice(begin, end), states=slice(begin, end + reach))
            made = self.inner.forecast_clips(clips, seeds=chunk_seeds(seeds, number))
            shown.append(made.video[:, :, : self._count(begin)].clone())
        return Forecast(times=self.times, frames=torch.cat(shown, dim=2))

    def _tokens(self, frames: Frames) -> Tensor | None:
        """The tokens of all frames, where each window is whole blocks of them: windows overlap, and blocks are encoded
        by themselves. None where every window has to be encoded by itself."""
        grid = self.inner.token_grid
        if grid is None or self.inner.chunk_frames % grid.block:
            return None
        return self.inner._encode(frames[:, : frames.shape[1] // grid.block * grid.block])

    def _window(
        self, batch: Batch, frames: Frames, tokens: Tensor | None, shown: slice, *, states: slice | None = None
    ) -> Batch:
        """Clips of some of the frames, with their tokens if these are known."""
        grid = self.inner.token_grid
        if tokens is not None and grid is not None:
            tokens = tokens[:, grid.grids_of(shown.start) : grid.grids_of(shown.stop)]
        now = {"frames": frames[:, shown], "tokens": tokens, "states": batch.states[:, states or shown]}
        return replace(batch, latents=None, **now)

    def _count(self, begin: int) -> int:
        """How many frames of a chunk are shown."""
        end = min(self.context_frames + self.ahead - begin, self.context_frames + self.inner.chunk_frames)
        return sum(time < end for time in self.inner.times)
