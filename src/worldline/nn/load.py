"""Load weights into a module with an error that says what differs."""

from pathlib import Path

from torch import Tensor, nn

from worldline.schema import DataError


def load_weights(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Load weights strictly. Raises `DataError` naming the first key or shape that differs."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise DataError(
            folder / "model.safetensors",
            expected="the weights model.json describes",
            found=" ".join(str(error).split())[:300],
            fix="Copy model.json and model.safetensors from the same run.",
        ) from error
