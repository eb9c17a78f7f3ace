"""`Source`: where clips come from. Every file format derives from it."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from worldline.contract import FramePattern, Reading
from worldline.formats.checks import LeavingOut, Report
from worldline.schema import Clip, DataError, Episode, LatentGrid, Origin, StateLayout, TokenGrid, UsageError

_LOOKED_AT = 8  # episodes, for the size of frames


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Episodes and their lengths, and any window of one. Opening is cheap: nothing is decoded before `read`.

    A format of video says how states and frames are read (`read_states`, `frames`) and which file shows an episode
    (`footage`); one of tokens or latents reads its windows itself (`read`). All else follows.
    """

    kind: str
    """`1x-tokens`, `1x-test`, `1x-raw`, `lerobot-v2.0`, `lerobot-v2.1`, `lerobot-v3.0`, `latents`."""
    path: Path
    fps: float
    layout: StateLayout
    """Names and kinds of the dimensions of `Clip.states`."""
    episodes: tuple[Episode, ...]
    places: tuple[Any, ...] = ()
    """Place of each episode; its type depends on the format."""
    image_size: tuple[int, int] | None = None
    """Height and width of stored frames in pixels; None where the source holds none."""
    grid: TokenGrid | None = None
    """How tokens lie over frames; None where the source holds none."""
    latent_grid: LatentGrid | None = None
    """How latents lie over the frames of a window; None where the source holds none."""
    pattern: FramePattern | None = None
    """Which frames of a window the latents show."""
    stride: int = 1
    """Windows begin at multiples of this frame: those of latents, where they were encoded."""
    tokenizer: str | None = None
    """Fingerprint of what made the tokens or latents, where that is known."""
    reading: Reading = field(default_factory=Reading)
    """How the data were read, or those that they were made from."""
    context_only: bool = False
    """Whether episodes are test samples: frames or tokens of a context alone, and states beyond it."""
    left_out: tuple[str, ...] = ()
    """Listed episodes that the source does not give, one line each: missing or damaged (only with `allow_missing`),
    without frames, or listed twice."""

    def read(self, episode: int, start: int, stop: int) -> Clip:
        """Frames `start .. stop-1` of an episode. Token sources need both ends on the block grid of their file.

        Raises:
            DataError: the bytes are missing, damaged or of another shape than the metadata say.
            IndexError: the window leaves the episode.
            UsageError: a window of tokens that is off the block grid.
        """
        states = torch.from_numpy(self.read_states(episode, start, stop))
        frames = torch.cat(list(self.frames(episode, start, stop)))
        return Clip(states=states, fps=self.fps, origin=self.origin(episode, start), frames=frames)

    def read_states(self, episode: int, start: int, stop: int) -> Float32[np.ndarray, "t s"]:
        """States of frames `start .. stop-1` alone, a copy. Never touches video or tokens.

        Raises what `read` raises, and `DataError` for a value that is not a finite number.
        """
        raise NotImplementedError

    def frames(self, episode: int, start: int, stop: int, *, threads: int = 1) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
        """Decode frames `start .. stop-1` in pieces of bounded size; 0 threads are as many as there are cores."""
        raise UsageError(f"{self.path}: no video in this data set, it is {self.kind}")

    def video_size(self, size: int | None = None) -> tuple[int, int]:
        """Height and width of frames, as stored or scaled to `size`. Raises `UsageError` where there are none."""
        if self.image_size is None:
            raise UsageError(f"{self.path}: only video will do here, this is {self.kind}")
        return (size, size) if size else self.image_size

    def footage(self, episode: int) -> tuple[Path, int]:
        """The video, token or latent file that shows an episode, and the episode's first frame in it."""
        raise NotImplementedError

    def check(self, episode: int) -> tuple[int, int] | None:
        """Check all of an episode but its pixels, as cheaply as can be; give the size of its frames, if it has any."""
        self.read_states(episode, 0, self.episodes[episode].length)

    def frame_size(self, episode: int) -> tuple[int, int] | None:
        """Height and width of an episode's frames as they are stored; None where it has none."""
        _, _, height, width = next(iter(self.frames(episode, 0, 1))).shape
        return height, width

    def shown(self, episode: int) -> Int64[np.ndarray, "n"]:
        """Which frame of its video shows each row of an episode. Raises `DataError` where they do not fit together."""
        return self.footage(episode)[1] + np.arange(self.episodes[episode].length)

    def states_file(self, episode: int) -> Path:
        """The file of an episode's states, for messages."""
        return self.path

    def check_footage(self, episodes: Sequence[int], report: Report) -> None:
        """Report faults of a whole file that shows some episodes, in addition to those of each episode."""

    def claims(self, report: Report, extremes: Float64[np.ndarray, "2 s"] | None = None) -> None:
        """Report where the files do not hold what the metadata claim; states lie between `extremes`."""

    def notes(self) -> Iterator[str]:
        """Facts worth knowing that are no faults."""
        return iter(())

    def sound(self, leaving: LeavingOut) -> "Source":
        """The source with the size of its frames as stored, and without damaged episodes, if they may be left out."""
        kept: list[Episode] = []
        for episode in self.episodes:
            before = len(leaving.lines)
            if leaving.allowed and not leaving.inspecting:
                with leaving.around(episode.name):
                    self.check(episode.index)
            if len(leaving.lines) == before:
                kept.append(episode)
        return replace(
            self,
            image_size=self._stored_size() or self.image_size,
            episodes=tuple(replace(episode, index=new) for new, episode in enumerate(kept)),
            places=tuple(self.places[episode.index] for episode in kept),
            left_out=tuple(leaving.lines),
        )

    def _stored_size(self) -> tuple[int, int] | None:
        """The size of frames of the first episode that can be opened; what is wrong with others is said on reading."""
        for episode in self.episodes[:_LOOKED_AT] if self.grid is None else ():
            with suppress(DataError):
                return self.frame_size(episode.index)
        return None

    @property
    def alike(self) -> dict[str, object]:
        """Properties that joined data sets must share, by their names in messages."""
        return {
            "content": "tokens" if self.grid else "latents" if self.latent_grid else "frames",
            "state names": self.layout.names,
            "frames per second": round(self.fps, 3),
            "picture size": self.image_size,
            "tokens": self.grid,
            "latents": self.latent_grid,
            "frames of a window": self.pattern,
            "window strides": self.stride,
            "tokenizers": self.tokenizer,
            "state kinds": self.layout.kinds,
        }

    def read_at(self, size: int | None) -> Reading:
        """How the data were read, or those that they were made from, where frames are scaled to `size` now."""
        own = self.reading.image_size
        return replace(self.reading, image_size=size or own if self.image_size else own or size)

    def origin(self, episode: int, start: int) -> Origin:
        """Where a window comes from."""
        return Origin(source=str(self.path), episode=episode, start=start)
