"""The weights a model is saved by, and loading them with an error that says what differs."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from worldline.schema import DataError


def changing_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without frozen parameters (a pretrained base with its own files): what a checkpoint contains."""
    frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_changing(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the tensors of `changing_state`, all of them and no others. Raises `RuntimeError` that says what differs."""
    expected = changing_state(model).keys()
    missing, other = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
    if missing or other:
        raise RuntimeError(f"missing: {missing[:3]} of {len(missing)}, unexpected: {other[:3]} of {len(other)}")
    model.load_state_dict(weights, strict=False)


def load_weights(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Load the weights of a checkpoint strictly. Raises `DataError` naming the first keys or shape that differ."""
    try:
        load_changing(model, weights)
    except RuntimeError as error:
        found, fix = " ".join(str(error).split())[:300], "Copy model.json and model.safetensors from the same run."
        file = folder / "model.safetensors"
        raise DataError(file, expected="the weights model.json describes", found=found, fix=fix) from error
