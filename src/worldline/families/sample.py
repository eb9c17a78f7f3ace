"""How to sample from the world of a run: one set of options, of which each family reads its part."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from worldline.checks import Checked, Limit
from worldline.forecasting.tokens import DecodeMode
from worldline.identity import Part
from worldline.process.categorical import Sampling
from worldline.process.flow import FlowSampling


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Checked):
    """How futures are drawn.

    Raises:
        UsageError: a value that makes no sense for any world.
    """

    num_samples: int = 1
    """Independent futures per clip; from worlds over tokens, more than one need a temperature above 0."""
    temperature: float = 0.0
    """Worlds over tokens: 0 is greedy decoding, the report's choice."""
    top_k: int | None = None
    top_p: Annotated[float, Limit(above=0, most=1)] | None = None
    decode_mode: DecodeMode = "tokens"
    """Worlds over tokens: decode the chosen tokens, or the mean code of their distribution."""
    blend_last_frame: bool = False
    """Worlds over tokens: where a patch keeps its token, show the last context frame instead of the decoded token."""
    steps: int = 20
    """Worlds over latents: evaluations of the velocity; the report uses 20 and 100."""
    guidance: float = 1.0
    """Worlds over latents: classifier-free guidance on the states; values other than 1 need a trained null state."""
    sampler: Literal["euler", "unipc"] = "euler"
    average_repeats: bool = False
    """Worlds over latents: average the frames that show the same instant (frames 19 and 20 of the report's 21)."""
    rows: int | None = None
    """Samples generated at once, over all clips; if not given, as many as fit into a few GB of memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.tokens  # its values must go together

    @property
    def tokens(self) -> Sampling:
        """How worlds over tokens choose."""
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    @property
    def flow(self) -> FlowSampling:
        """How worlds over latents turn noise into data."""
        return FlowSampling(sampler=self.sampler, steps=self.steps, guidance=self.guidance)

    def sampling(self) -> dict[str, Any]:
        """These options alone, by name."""
        return {field.name: getattr(self, field.name) for field in fields(SampleOptions)}

    def given(self) -> list[str]:
        """Names of those that are not as by default."""
        return [field.name for field in fields(SampleOptions) if getattr(self, field.name) != field.default]

    def settings(self, names: Sequence[str]) -> dict[str, str | int | float | bool]:
        """Those of the names that are set, for the record."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class LoadOptions(SampleOptions):
    """Which checkpoint of a run is loaded, and from where."""

    checkpoint: str = "latest"
    """Which checkpoint of a run folder: `latest`, `best` (see `--keep-best` of training) or a step."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, if not in the run folder; it must be the one the world was trained with."""
    weights: Path | None = None
    """Folder of the pretrained backbone, if it has moved since training (worlds with adapters)."""
    allow_different: tuple[Part, ...] = ()
    """Parts that may differ on purpose from those the world was trained with: `tokenizer`."""
    device: str = "auto"
    """`auto` takes CUDA where there is one; under torchrun each process its own."""
