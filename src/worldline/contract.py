"""What a model promises and must be given, as its checkpoint keeps it. Knows no file format and no model."""

from dataclasses import dataclass

from worldline.checks import whole

MOST_FRAMES = 1_000_000
"""Of a window: nine hours."""


@dataclass(frozen=True, kw_only=True)
class FramePattern:
    """Which frames of a window are taken. States are kept for all of them."""

    window: int = 34
    """Video frames that the window spans."""
    stride: int = 1
    """Take every `stride`-th frame, beginning with the first."""
    repeat_last: int = 0
    """Append the window's last frame this many times more."""

    def __post_init__(self) -> None:
        whole(self, "window", "stride", most=MOST_FRAMES)
        whole(self, "repeat_last", least=0, most=MOST_FRAMES)

    @staticmethod
    def consecutive(window: int) -> "FramePattern":
        """All frames of a window, for example 17 + 17."""
        return FramePattern(window=window)

    @staticmethod
    def report_77() -> "FramePattern":
        """77 frames -> 21: 0, 4, ..., 72, 76 and 76 again, as the winning team took them for a causal VAE."""
        return FramePattern(window=77, stride=4, repeat_last=1)

    @property
    def frames(self) -> tuple[int, ...]:
        """Positions taken, within the window."""
        return (*range(0, self.window, self.stride), *(self.window - 1,) * self.repeat_last)

    @property
    def is_consecutive(self) -> bool:
        return self.stride == 1 and self.repeat_last == 0
