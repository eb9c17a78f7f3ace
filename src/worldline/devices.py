"""The device of a job."""

import torch

from worldline.schema import UsageError


def pick_device(name: str) -> torch.device:
    """The device a name means; `auto` takes CUDA where there is one. Raises `UsageError` where there is none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("CUDA was asked for, but PyTorch finds no CUDA device here; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}; give auto, cpu, cuda or cuda:N") from error
