"""adaLN-Zero: robot states modulate a diffusion transformer, once per latent frame.

States are turned into features, compressed in time by two strided convolutions to one code per latent frame, and
projected to the six shifts, scales and gates that every block adds to those of the timestep. The last projection starts
at zero (as the report says, unlike public code), so a backbone with this attached begins as the backbone alone. All
else is as in the winning team's public code (report, section 2).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from worldline.checks import refuse, whole
from worldline.contract import FramePattern
from worldline.nn.states import Standardising
from worldline.schema import StateKind, UsageError

StateKinds = tuple[StateKind, ...]
ONEX_KINDS: StateKinds = (*("angle" for _ in range(21)), "binary", "binary", "velocity", "velocity")
REPORT_77 = FramePattern.report_77()
TimeMode = Literal["downsample", "full"]
CONVOLUTIONS: dict[TimeMode, tuple[tuple[int, int, int], ...]] = {
    "downsample": ((3, 2, 1), (3, 2, 1)),
    "full": ((5, 4, 2), (5, 3, 1)),
}
"""Kernel, stride and padding of the two convolutions: 21 -> 11 -> 6 states and 77 -> 20 -> 6."""


@dataclass(frozen=True, kw_only=True)
class StateOptions:
    """All of a modulation that is chosen; the defaults are the report's."""

    mode: TimeMode = "downsample"
    """Encode the states of the taken frames, or all of them (`full`)."""
    hidden: int = 256
    norm_groups: int = 8
    null: bool = False
    """Learn a code that stands for `no states`, for classifier-free guidance."""
    normalise: bool = False
    """Standardise the plain features with the training data's statistics; sines and cosines stay of raw values."""

    def __post_init__(self) -> None:
        whole(self, "hidden", "norm_groups")
        if self.hidden % self.norm_groups:
            refuse(self, "norm_groups", f"a divisor of hidden, {self.hidden}")

    def num_codes(self, pattern: FramePattern) -> int:
        """Latent frames the convolutions arrive at."""
        length = len(pattern.frames) if self.mode == "downsample" else pattern.window
        for kernel, stride, padding in CONVOLUTIONS[self.mode]:
            length = (length + 2 * padding - kernel) // stride + 1
        return length


class StateModulation(Standardising):
    """States of a window to codes to modulation of tokens of `width`.

    Angles and velocities also enter as sine and cosine. `downsample` takes the rows of the pattern's frames.
    """

    def __init__(
        self, options: StateOptions, width: int, *, kinds: StateKinds = ONEX_KINDS, pattern: FramePattern = REPORT_77
    ) -> None:
        super().__init__(len(kinds))
        self.options, self.pattern, hidden = options, pattern, options.hidden
        self.waves = [i for i, kind in enumerate(kinds) if kind in ("angle", "velocity")]
        self.plain = [i for i in range(len(kinds)) if i not in self.waves]
        num_features = 3 * len(self.waves) + len(self.plain)  # 71 for the 1X robot
        self.features = nn.Sequential(nn.Linear(num_features, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.compression = nn.Sequential()
        for sizes in CONVOLUTIONS[options.mode]:
            self.compression.extend([nn.Conv1d(hidden, hidden, *sizes), nn.SiLU()])
            self.compression.append(nn.GroupNorm(options.norm_groups, hidden))
        self.embedding = nn.Sequential(nn.Linear(hidden, width), nn.SiLU(), nn.Linear(width, width))
        self.projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.null = nn.Parameter(torch.randn(hidden) * 0.02) if options.null else None
        for parameter in self.projection.parameters():
            nn.init.zeros_(parameter)

    def codes(self, states: Float[Tensor, "b t s"]) -> Float[Tensor, "b l r"]:
        """One code per latent frame, which has seen every state (GroupNorm). Raises `UsageError` for another shape."""
        given, expected = tuple(states.shape[1:]), (self.pattern.window, len(self.mean))
        if given != expected:
            said = "this world reads {} states of {} dimensions, but {} of {} were given"
            raise UsageError(said.format(*expected, *given))
        if self.options.mode == "downsample":
            states = states[:, list(self.pattern.frames)]
        x = self.features(self._features(states))
        return rearrange(self.compression(rearrange(x, "b t r -> b r t")), "b r l -> b l r")

    def forward(
        self, states: Float[Tensor, "b t s"], dropped: Bool[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b l six d"]:
        """Shift, scale and gate of attention, then of the MLP, for each latent frame.

        `dropped` clips get the null code. Raises `UsageError` where there is none, and for states of another shape.
        """
        codes = self.codes(states)
        if dropped is not None:
            if self.null is None:
                how = "train with --model.states.null True --model.drop-states 0.1"
                raise UsageError(f"this world has no null state, which guidance other than 1 needs; {how}")
            codes = torch.where(dropped[:, None, None], self.null, codes)
        return rearrange(self.projection(self.embedding(codes)), "b l (six d) -> b l six d", six=6)

    def _features(self, states: Tensor) -> Tensor:
        x = states[..., self.waves]
        values = (states - self.mean) / self.scale if self.options.normalise else states
        return torch.cat([values[..., self.waves], x.sin(), x.cos(), values[..., self.plain]], dim=-1)
