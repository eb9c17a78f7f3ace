"""The weights a model is saved by, and loading them with an error that says what differs."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from worldline.schema import DataError


def changing_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without frozen parameters (a pretrained base with its own files): what a checkpoint contains."""
    frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def refuse_others(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise `DataError` where the tensors of a file have other names or shapes than is expected."""
    theirs, ours = ({(name, tuple(value.shape)) for name, value in group.items()} for group in (weights, expected))
    if differ := sorted({name for name, _ in theirs ^ ours}):
        found = f"{len(differ)} missing, surplus or of another shape: {', '.join(differ[:3])}"
        fix = "Take model.json and weights of one run, and the version of worldline that wrote them."
        raise DataError(path, expected="the weights of the model", found=found, fix=fix)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Load the weights of a checkpoint strictly. Raises `DataError` naming the first that differ."""
    refuse_others(weights, changing_state(model), folder / "model.safetensors")
    model.load_state_dict(weights, strict=False)
