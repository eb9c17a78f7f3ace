"""What a checkpoint says of itself: `ModelCard`, the content of a `model.json`, so that a path describes a model.

`Identity` holds the inputs that it was made with, one hash for each: compared wherever they are used again. A hash
depends on content, not on place or date. Unknown parts are not compared.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from worldline.contract import Contract, ModelConfig
from worldline.data.splits import Recordings
from worldline.files import read_json
from worldline.formats.states import StateStats
from worldline.rundir import from_json, to_json
from worldline.schema import UsageError

Part = Literal["data", "validation", "split", "pattern", "tokenizer", "backbone", "text", "statistics"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One hash for each part, None where there is no such part or it is not known."""

    data: str | None = None
    """States, lengths and footage of the training episodes."""
    validation: str | None = None
    """The same of the validation episodes."""
    split: str | None = None
    """Which episodes of their data sets those are."""
    pattern: str | None = None
    """Which frames make a clip, how far apart clips begin, and the size of pictures."""
    tokenizer: str | None = None
    """The tokenizer of tokens or latents (`worldline.families.tokenizers.fingerprint`)."""
    backbone: str | None = None
    """The pretrained weights under a world."""
    text: str | None = None
    """The encoded prompt."""
    statistics: str | None = None
    """Mean and standard deviation of the states, with which the model normalises."""

    def differing(self, found: "Identity", parts: Collection[Part] = PARTS) -> tuple[Part, ...]:
        """The parts that both know, and that are not the same."""
        known: list[Part] = [part for part in PARTS if part in parts and getattr(self, part) and getattr(found, part)]
        return tuple(part for part in known if getattr(self, part) != getattr(found, part))

    def to_json(self) -> dict[str, str]:
        """The parts that are known."""
        return {part: value for part, value in asdict(self).items() if value is not None}


def refuse_another(
    made: Identity,
    found: Identity,
    *,
    what: str,
    places: Mapping[Any, object],
    parts: Collection[Part] = PARTS,
    allowed: Collection[Part] = (),
) -> None:
    """Check that what is found is what something was made with, but for parts that are `allowed` to differ.

    Args:
        what: what was made, for the message (`the run in runs/world`).
        places: where parts were found, for the message.

    Raises:
        UsageError: a part is another one; names each, with both hashes.
    """
    refused: list[Part] = [part for part in made.differing(found, parts) if part not in allowed]
    if refused:
        at = {part: f"{places[part]} is" if places.get(part) else "found" for part in refused}
        named = (f"{part} ({getattr(made, part):.12}; {at[part]} {getattr(found, part):.12})" for part in refused)
        raise UsageError(
            f"{what} was made with another {'; another '.join(named)}. Give what it was made with, or allow the "
            f"difference on purpose: --allow-different {' '.join(refused)}"
        )


# --- the card ---


@dataclass(frozen=True, kw_only=True)
class Base:
    """The pretrained weights under adapters."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The description of a model in its folder."""

    config: ModelConfig
    contract: Contract | None = None
    """None where a model was not trained here (a published tokenizer)."""
    statistics: StateStats | None = None
    """Of the states it was trained on."""
    trained_on: Recordings | None = None
    identity: Identity = field(default_factory=Identity)
    """Its inputs."""
    base: Base | None = None
    step: int = 0
    path: Path | None = None
    """Place of weights that were too large to copy into a run (tokenizers)."""
    fingerprint: str | None = None
    """Identity of weights in a published layout (tokenizers)."""
    format: Literal[1] = 1

    @property
    def promise(self) -> Contract:
        """The contract of a model that must have one. Raises `UsageError` where it has none."""
        if self.contract is None:
            raise UsageError("this model does not say what data it was trained on; give its own run folder")
        return self.contract

    def to_json(self) -> dict[str, Any]:
        """As `model.json` stores it: without unknown parts."""
        content = to_json(ModelCard, self) | {"identity": self.identity.to_json()}
        return {name: value for name, value in content.items() if value not in (None, {})}


def describe_model(folder: Path) -> ModelCard:
    """Read `model.json` alone. Raises `DataError` where it is missing, damaged or of another format."""
    return from_json(ModelCard, read_json(path := folder / "model.json"), path)
