"""adaLN-Zero: robot states modulate a diffusion transformer, once per latent frame.

States are turned into features, compressed in time by two strided convolutions to one code per latent frame, and
projected to the six shifts, scales and gates that every block adds to those of the timestep. The last projection
starts at zero, so a backbone with this attached begins as the backbone alone. Numbers and order of operations are those
of the winning team's public code (report, section 2). That code does not start at zero; here we follow the report's
text. This file uses no backbone and no latents.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from worldline.checks import refuse, whole
from worldline.nn.states import Standardising
from worldline.schema import UsageError

Kind = Literal["angle", "velocity", "binary", "other"]
ONEX_KINDS = cast(tuple[Kind, ...], ("angle",) * 21 + ("binary",) * 2 + ("velocity",) * 2)
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

    def over(self, kinds: tuple[Kind, ...], taken: tuple[int, ...], window: int) -> "StateModulationConfig":
        """The whole configuration, for states of the data."""
        return StateModulationConfig(kinds=kinds, taken=taken, window=window, **vars(self))


@dataclass(frozen=True, kw_only=True)
class StateModulationConfig(StateOptions):
    """What the state is and how wide its encoder; the defaults are the 1X robot's and the report's."""

    kinds: tuple[Kind, ...] = ONEX_KINDS
    """Kind of every state dimension (the data contract's `state_kinds`): angles and velocities also enter as sine and
    cosine, closures and everything else as they are."""
    taken: tuple[int, ...] = (*range(0, 77, 4), 76)
    """Frames of a window whose pictures are taken; `downsample` takes the same rows of the states."""
    window: int = 77
    """State rows of a window, one per video frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "window")
        whole(self, "taken", least=0, most=self.window - 1)

    @property
    def waves(self) -> tuple[int, ...]:
        """Dimensions that also enter as sine and cosine."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind in ("angle", "velocity"))

    @property
    def plain(self) -> tuple[int, ...]:
        """Dimensions that enter as they are."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind not in ("angle", "velocity"))

    @property
    def num_features(self) -> int:
        """71 for the 1X robot."""
        return 3 * len(self.waves) + len(self.plain)

    @property
    def num_codes(self) -> int:
        """Latent frames the convolutions arrive at."""
        length = len(self.taken) if self.mode == "downsample" else self.window
        for kernel, stride, padding in CONVOLUTIONS[self.mode]:
            length = (length + 2 * padding - kernel) // stride + 1
        return length


class StateModulation(Standardising):
    """States to features to modulation. Only plain features are standardised."""

    def __init__(self, config: StateModulationConfig, width: int) -> None:
        super().__init__(len(config.kinds))
        self.config = config
        hidden = config.hidden
        self.features = nn.Sequential(nn.Linear(config.num_features, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.compression = nn.Sequential()
        for sizes in CONVOLUTIONS[config.mode]:
            self.compression.extend([nn.Conv1d(hidden, hidden, *sizes), nn.SiLU()])
            self.compression.append(nn.GroupNorm(config.norm_groups, hidden))
        self.embedding = nn.Sequential(nn.Linear(hidden, width), nn.SiLU(), nn.Linear(width, width))
        self.projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.null = nn.Parameter(torch.randn(hidden) * 0.02) if config.null else None
        last = self.projection[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def codes(self, states: Float[Tensor, "b t s"]) -> Float[Tensor, "b l r"]:
        """One code per latent frame. Not causal: every code has seen every state (GroupNorm pools over time).

        Raises:
            UsageError: another number of rows or dimensions than the configuration's.
        """
        rows, dims = states.shape[1:]
        if (rows, dims) != (self.config.window, len(self.config.kinds)):
            raise UsageError(
                f"this world reads {self.config.window} states of {len(self.config.kinds)} dimensions, "
                f"but {rows} of {dims} were given"
            )
        if self.config.mode == "downsample":
            states = states[:, list(self.config.taken)]
        x = self.features(self._features(states))
        return rearrange(self.compression(rearrange(x, "b t r -> b r t")), "b r l -> b l r")

    def forward(
        self, states: Float[Tensor, "b t s"], dropped: Bool[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b l six d"]:
        """Six modulation vectors per latent frame: shift, scale and gate of attention, then of the MLP.

        Args:
            dropped: clips whose codes are replaced by the null code.

        Raises:
            UsageError: states of another shape, or `dropped` without a null code.
        """
        codes = self.codes(states)
        if dropped is not None:
            if self.null is None:
                raise UsageError(
                    "this world has no null state: guidance other than 1 needs a world trained with one "
                    "(--model.states.null True --model.drop-states 0.1)"
                )
            codes = torch.where(dropped[:, None, None], self.null, codes)
        return rearrange(self.projection(self.embedding(codes)), "b l (six d) -> b l six d", six=6)

    def _features(self, states: Tensor) -> Tensor:
        waves, plain = list(self.config.waves), list(self.config.plain)
        x = states[..., waves]
        values = (states - self.mean) / self.scale if self.config.normalise else states
        return torch.cat([values[..., waves], x.sin(), x.cos(), values[..., plain]], dim=-1)
