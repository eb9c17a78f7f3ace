"""Robot states (one row per video frame) become one vector per latent frame, in the two ways the report does it.

`StateEncoder` gives vectors to add to token embeddings, as in Genie; `StateModulation` the shifts, scales and gates of
adaLN-Zero for a diffusion transformer. Both take raw units and carry the statistics they standardise with.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from worldline.checks import Checked, refuse
from worldline.contract import FramePattern
from worldline.schema import StateKind, TokenGrid, UsageError

StateKinds = tuple[StateKind, ...]
ONEX_KINDS: StateKinds = (*("angle" for _ in range(21)), "binary", "binary", "velocity", "velocity")
REPORT_77 = FramePattern.report_77()
Pooling = Literal["all", "mean", "last"]
"""Keep all states that a latent owns (side by side), their mean, or the last one."""
CONVOLUTIONS = {"downsample": ((3, 2, 1), (3, 2, 1)), "full": ((5, 4, 2), (5, 3, 1))}
"""Kernel, stride and padding of a modulation's two convolutions: 21 -> 11 -> 6 states and 77 -> 20 -> 6."""


class Standardising(nn.Module):
    """Holds the statistics of states as buffers: a checkpoint carries them, and everything outside sees raw units."""

    mean: Tensor
    scale: Tensor

    def __init__(self, state_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(state_dim))
        self.register_buffer("scale", torch.ones(state_dim))

    def set_statistics(self, mean: Float[Tensor, " s"], std: Float[Tensor, " s"]) -> None:
        """Standardise as `(x - mean) / std` from now on; constant dimensions are only centred."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def first(self, states: Float[Tensor, "b t s"], rows: int) -> Float[Tensor, "b rows s"]:
        """The states of the first `rows` video frames. Raises `UsageError` for fewer, or of another dimension."""
        return first_rows(states, rows, len(self.mean))


def first_rows(states: Float[Tensor, "b t s"], rows: int, dim: int) -> Float[Tensor, "b rows s"]:
    """The first `rows` states. Raises `UsageError` for fewer, or of another dimension than `dim`."""
    given, expected = tuple(states.shape[1:]), (rows, dim)
    if given[0] < rows or given[1] != expected[1]:
        said = "this world reads {} states of {} dimensions, but {} of {} were given"
        raise UsageError(said.format(*expected, *given))
    return states[:, :rows]


class StateEncoder(Standardising):
    """Standardise, align to `num_latents` latent frames, MLP, 1-D convolution (kernel 3, padding 1), + positions.

    The convolution lets a latent see the states of the next one: that is how grid t is told where the robot goes before
    it predicts grid t+1 (report, section 3.1).
    """

    def __init__(
        self, grid: TokenGrid, *, num_latents: int, state_dim: int, hidden: int, width: int, pooling: Pooling
    ) -> None:
        super().__init__(state_dim)
        self.grid, self.num_frames = grid, grid.frames_of(num_latents)
        self.pooling: Pooling = pooling
        rows = grid.temporal_stride if pooling == "all" else 1
        self.mlp = nn.Sequential(nn.Linear(rows * state_dim, hidden), nn.SiLU(), nn.Linear(hidden, width))
        self.conv = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.position = nn.Parameter(torch.zeros(num_latents, width))

    def forward(self, states: Float[Tensor, "b t s"]) -> Float[Tensor, "b l d"]:
        """One vector per latent frame of the first `num_frames` rows. Raises `UsageError` for another shape."""
        x = (self.first(states, self.num_frames) - self.mean) / self.scale
        x = self.mlp(align(x, self.grid, self.pooling))
        return rearrange(self.conv(rearrange(x, "b l d -> b d l")), "b d l -> b l d") + self.position


def align(states: Float[Tensor, "b t s"], grid: TokenGrid, pooling: Pooling) -> Float[Tensor, "b l c"]:
    """Group states by the latent frame that owns them, frame 0 repeated; `c` is `stride * s` for "all", else `s`.

    The rule is our choice; the report does not say how its 64 states belong to 6 grids: within a block of
    `1 + k * stride` frames, latent 0 owns frame 0 and latent j owns frames `(j-1) * stride + 1 .. j * stride`, exactly
    those whose pixels it encodes.
    """
    each = owned(states, grid.block, grid.temporal_stride)
    if pooling == "all":
        return each.flatten(2)
    return each.mean(dim=2) if pooling == "mean" else each[:, :, -1]


def owned(states: Float[Tensor, "b t s"], block: int, stride: int) -> Float[Tensor, "b l r s"]:
    """The states of the frames of each latent frame, by `align`'s rule."""
    blocks = rearrange(states, "b (n f) s -> b n f s", f=block)
    first = blocks[:, :, :1].expand(-1, -1, stride - 1, -1)
    return rearrange(torch.cat([first, blocks], dim=2), "b n (l r) s -> b (n l) r s", r=stride)


@dataclass(frozen=True, kw_only=True)
class StateOptions(Checked):
    """All of a modulation that is chosen; the defaults are the report's."""

    mode: Literal["downsample", "full"] = "downsample"
    """Encode the states of the taken frames, or all of them (`full`)."""
    hidden: int = 256
    norm_groups: int = 8
    null: bool = False
    """Learn a code that stands for `no states`, for classifier-free guidance."""
    normalise: bool = False
    """Standardise the plain features with the training data's statistics; sines and cosines stay of raw values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.norm_groups:
            refuse(self, "norm_groups", f"a divisor of hidden, {self.hidden}")

    def num_codes(self, pattern: FramePattern) -> int:
        """Latent frames the convolutions arrive at."""
        length = len(pattern.frames) if self.mode == "downsample" else pattern.window
        for kernel, stride, padding in CONVOLUTIONS[self.mode]:
            length = (length + 2 * padding - kernel) // stride + 1
        return length


class StateModulation(Standardising):
    """States of a window to features, to one code per latent frame by two strided convolutions, to modulation.

    Angles and velocities also enter as sine and cosine. `downsample` takes the rows of the pattern's frames. The last
    projection starts at zero (as the report says, unlike public code), so that a backbone with this attached begins as
    the backbone alone. All else is as in the winning team's public code (report, section 2).

    For other ways to enter than the report's, each latent frame gets `rows` vectors in place of the six.
    """

    def __init__(
        self,
        options: StateOptions,
        width: int,
        *,
        kinds: StateKinds = ONEX_KINDS,
        pattern: FramePattern = REPORT_77,
        rows: int = 6,
        zero: bool = True,
    ) -> None:
        super().__init__(len(kinds))
        self.options, self.pattern, self.rows, hidden = options, pattern, rows, options.hidden
        self.waves = [i for i, kind in enumerate(kinds) if kind in ("angle", "velocity")]
        self.plain = [i for i in range(len(kinds)) if i not in self.waves]
        num_features = 3 * len(self.waves) + len(self.plain)  # 71 for the 1X robot
        self.features = nn.Sequential(nn.Linear(num_features, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.compression = nn.Sequential()
        for sizes in CONVOLUTIONS[options.mode]:
            layers = nn.Conv1d(hidden, hidden, *sizes), nn.SiLU(), nn.GroupNorm(options.norm_groups, hidden)
            self.compression.extend(layers)
        self.embedding = nn.Sequential(nn.Linear(hidden, width), nn.SiLU(), nn.Linear(width, width))
        self.projection = nn.Sequential(nn.SiLU(), nn.Linear(width, rows * width))
        self.null = nn.Parameter(torch.randn(hidden) * 0.02) if options.null else None
        for parameter in self.projection.parameters() if zero else ():
            nn.init.zeros_(parameter)

    def forward(
        self, states: Float[Tensor, "b t s"], dropped: Bool[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b l rows d"]:
        """Shift, scale and gate of attention, then of the MLP, for each latent frame; or other rows.

        `dropped` clips get the null code. Raises `UsageError` where there is none, and for states of another shape.
        """
        states = self.first(states, self.pattern.window)
        if self.options.mode == "downsample":
            states = states[:, list(self.pattern.frames)]
        x = rearrange(self.features(self._features(states)), "b t r -> b r t")
        codes = rearrange(self.compression(x), "b r l -> b l r")  # each has seen every state (GroupNorm)
        if dropped is not None:
            if self.null is None:
                how = "train with --model.states.null True --model.drop-states 0.1"
                raise UsageError(f"this world has no null state, which guidance other than 1 needs; {how}")
            codes = torch.where(dropped[:, None, None], self.null, codes)
        return rearrange(self.projection(self.embedding(codes)), "b l (rows d) -> b l rows d", rows=self.rows)

    def _features(self, states: Tensor) -> Tensor:
        x = states[..., self.waves]
        values = (states - self.mean) / self.scale if self.options.normalise else states
        return torch.cat([values[..., self.waves], x.sin(), x.cos(), values[..., self.plain]], dim=-1)
