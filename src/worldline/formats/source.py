"""`Source`: where clips come from.

One protocol; every file format of the house implements it and nothing else.
"""

from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from worldline.schema import Clip, Episode, StateLayout, TokenGrid

Conditioning = Literal["state", "action", "state+action"]
"""What `Clip.states` holds: the robot's measured state, its commanded action, or both side by side."""


@runtime_checkable
class Source(Protocol):
    """Episodes and their lengths, and any window of one.

    Opening is cheap: nothing is decoded before `read`.
    """

    @property
    def kind(self) -> str:
        """`1x-tokens`, `1x-test`, `1x-raw`, `lerobot-v2.0`, `lerobot-v2.1`, `lerobot-v3.0`, `latents`."""
        ...

    @property
    def path(self) -> Path: ...

    @property
    def fps(self) -> float: ...

    @property
    def layout(self) -> StateLayout:
        """Names and kinds of the dimensions of `Clip.states`."""
        ...

    @property
    def episodes(self) -> tuple[Episode, ...]: ...

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of stored frames in pixels; None where the source holds none."""
        ...

    @property
    def grid(self) -> TokenGrid | None:
        """How tokens lie over frames; None where the source holds none."""
        ...

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the source lists and does not give, one line each: absent or damaged (only with `allow_missing`), of no
        frame, or listed twice."""
        ...

    def read(self, episode: int, start: int, stop: int) -> Clip:
        """Frames `start .. stop-1` of an episode.

        Token sources need both ends on the block grid of their file.

        Raises:
            DataError: the bytes are missing, damaged or of another shape than the metadata say.
            IndexError: the window leaves the episode.
            UsageError: a window of tokens that is off the block grid.
        """
        ...

    def read_states(self, episode: int, start: int, stop: int) -> Float32[np.ndarray, "t s"]:
        """States of frames `start .. stop-1` alone, a copy, checked to be finite.

        Never touches video or tokens.

        Raises:
            DataError: as `read`, and for a value that is not a finite number.
            IndexError: the window leaves the episode.
        """
        ...


@runtime_checkable
class Filmed(Source, Protocol):
    """A source that knows which file shows an episode."""

    def footage(self, episode: int) -> tuple[Path, int]:
        """The video or token file that shows an episode, and the episode's first frame in it."""
        ...
