"""A clip of the data, from where a session begins: what the robot saw and did there, until its episode ends."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.data.clips import Clips
from worldline.forecasting.forecaster import Forecaster
from worldline.formats.video import resize
from worldline.schema import Batch, stack

_PIECE = 32  # frames that are read at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """One clip, by the number of its window."""

    clips: Clips
    number: int
    forecaster: Forecaster

    @property
    def episode(self) -> int:
        return int(self.clips.windows[self.number, 0])

    @property
    def start(self) -> int:
        """Its first frame, within its episode."""
        return int(self.clips.windows[self.number, 1])

    @property
    def label(self) -> str:
        """What a person reads."""
        name = self.clips.source.episodes[self.episode].name
        return f"{name}, from {self.start / self.clips.source.fps:.1f} s" if self.start else name

    @cached_property
    def batch(self) -> Batch:
        """The clip as a forecaster takes it: context, and as much as one step looks ahead."""
        return stack([self.clips[self.number]])

    @cached_property
    def states(self) -> Float32[np.ndarray, "t s"]:
        """Of every video frame, from the first of the clip to the end of its episode."""
        return self.clips.source.read_states(self.episode, self.start)

    @property
    def length(self) -> int:
        """Video frames that are known: of a test sample those of its context, of tokens or latents its window's."""
        source = self.clips.source
        if source.context_only:
            return self.forecaster.context_frames
        return source.episodes[self.episode].length - self.start if source.image_size else self.clips.pattern.window

    @cached_property
    def context(self) -> UInt8[Tensor, "n 3 h w"]:
        """The context frames to show, at the pace of the forecaster (`Forecaster.shown_context`)."""
        return self.forecaster.shown(self.batch)[0][0]

    def frame(self, time: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """What the robot saw at a video frame of the clip; None where that is not known."""
        if not 0 <= time < self.length:
            return None
        if self.clips.source.image_size is None:
            return self._decoded.get(time)
        piece = self._piece(time // _PIECE)
        return np.ascontiguousarray(piece[time % _PIECE].permute(1, 2, 0).numpy())

    @cached_property
    def _decoded(self) -> dict[int, UInt8[np.ndarray, "h w 3"]]:
        """Of tokens or latents: the frames of the clip's own window, by time."""
        seen, future = self.forecaster.shown(self.batch)
        shown = [*zip(self.forecaster.shown_context, seen[0], strict=True)]
        if future is not None:
            shown += zip(self.forecaster.times, future[0], strict=True)
        return {time: np.ascontiguousarray(frame.permute(1, 2, 0).numpy()) for time, frame in shown}

    @cached_property
    def _piece(self):
        @lru_cache(maxsize=8)
        def piece(number: int) -> Tensor:
            begin = self.start + number * _PIECE
            end = min(begin + _PIECE, self.start + self.length)
            frames = torch.cat(list(self.clips.source.frames(self.episode, begin, end)))
            return frames if self.clips.image_size is None else resize(frames, self.clips.image_size)

        return piece
