"""`ModelCard`: the content of a `model.json`, read once. A path is enough to describe a model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from worldline.contract import Contract, ModelConfig
from worldline.data.splits import Recordings
from worldline.formats.states import StateStats
from worldline.identity import Identity
from worldline.rundir import from_json, model_json, to_json
from worldline.schema import UsageError


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
    return from_json(ModelCard, model_json(folder), folder / "model.json")
