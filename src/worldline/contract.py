"""The contract of a model, as its checkpoint stores it: the data it was trained on and must be given."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Union, runtime_checkable

from pydantic import Discriminator

from worldline.checks import Checked, Limit
from worldline.schema import LatentGrid, StateKind, TokenGrid

Conditioning = Literal["state", "action", "state+action"]
"""What `Clip.states` holds: the robot's measured state, its commanded action, or both side by side."""

MOST_FRAMES = 1_000_000
"""Of a window: nine hours."""


@dataclass(frozen=True, kw_only=True)
class FramePattern(Checked):
    """Which frames of a window are taken. States are kept for all of them."""

    window: Annotated[int, Limit(least=1, most=MOST_FRAMES)] = 34
    """Video frames that the window spans."""
    stride: Annotated[int, Limit(least=1, most=MOST_FRAMES)] = 1
    """Take every `stride`-th frame, beginning with the first."""
    repeat_last: Annotated[int, Limit(most=MOST_FRAMES)] = 0
    """Append the window's last frame this many times more."""

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


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data were read: kept with all that is made from them, so that a model is evaluated on data read alike."""

    image_size: int | None = None
    """Square size in px that frames were scaled to; None: as they were stored."""
    conditioning: Conditioning = "state"
    camera: str | None = None
    state_keys: tuple[str, ...] = ()
    """Columns of the states, if they were named."""


@dataclass(frozen=True, kw_only=True)
class Contract(Reading):
    """The data a model was trained on and must be given: rate, frames, states, and the grid of tokens or latents."""

    fps: float
    """Video frames per second of the data, before any subsampling."""
    state_names: tuple[str, ...]
    state_kinds: tuple[StateKind, ...]
    source_kind: str
    """Format of the data (`Source.kind`)."""
    pattern: FramePattern
    """Frames of a window: for a world of context and horizon together, for a tokenizer what it encodes at once."""
    grid: TokenGrid | LatentGrid | None = None
    """How tokens or latents lie over the frames; None where a model reads frames and makes neither."""

    @property
    def tokens(self) -> TokenGrid:
        """The grid of a model of tokens."""
        assert isinstance(self.grid, TokenGrid), "asked of a model of tokens only"
        return self.grid

    @property
    def latents(self) -> LatentGrid:
        """The grid of a model of latents."""
        assert isinstance(self.grid, LatentGrid), "asked of a model of latents only"
        return self.grid


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """The base of all model configurations; `kind` names the class, in files too.

    A file is read as whichever subclass has its `kind`: nothing else needs to know them all.
    """

    kind: str

    @property
    def draws_map(self) -> bool:
        """Whether the model is shown a map of where the robot is in the picture."""
        return False

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        if cls is not ModelConfig:
            return handler(source)
        kinds: Any = tuple(ModelConfig.__subclasses__())
        return handler.generate_schema(Annotated[Union[kinds], Discriminator("kind")])  # noqa: UP007 - made at run time


@runtime_checkable
class Configured(Protocol):
    """A model that knows its configuration."""

    @property
    def config(self) -> ModelConfig: ...


@runtime_checkable
class Conditional(Protocol):
    """The configuration of a world that is told the states, unless it is unconditional."""

    @property
    def unconditional(self) -> bool: ...
