"""Figures and pictures from held-out clips during training. Quick, and always on the same clips."""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor, nn

from worldline.families.family import Prepared
from worldline.metrics.image import psnr
from worldline.schema import Batch, stack


@torch.no_grad()
def validate(
    model: nn.Module, made: Prepared, *, num_clips: int, device: torch.device, batch_size: int = 8
) -> dict[str, float]:
    """Mean loss and figures over evenly spread validation clips, as `val/...`. The model is in evaluation mode."""
    chosen, totals = _evenly(made, num_clips), dict[str, float]()
    for part in np.array_split(chosen, max(1, len(chosen) // batch_size)):
        batch = _batch(made, part, device)
        loss, figures = model.loss(batch, torch.Generator().manual_seed(0))  # pyright: ignore[reportCallIssue]
        measured = {name: value.item() for name, value in made.kind.figures(model, batch).items()}
        for name, value in {"loss": loss.item(), **figures, **measured}.items():
            totals[name] = totals.get(name, 0.0) + value * len(part) / len(chosen)
    scored = made.kind.psnr_clips
    if scored and (shown := made.kind.shown(made, _batch(made, _evenly(made, scored), device))):
        totals["psnr_db"] = psnr(shown[1][:, -1:], shown[0][:, -1:]).mean().item()
    return {f"val/{name}": value for name, value in totals.items()}


@torch.no_grad()
def sample_strip(made: Prepared, *, device: torch.device) -> UInt8[Tensor, "3 h w"] | None:
    """An image of two clips for TensorBoard: real frames above the model's; None if nothing can be shown."""
    if (shown := made.kind.shown(made, _batch(made, _evenly(made, 2), device))) is None:
        return None
    times = torch.linspace(0, shown[0].shape[1] - 1, 6).round().long()
    pairs = torch.stack([frames[:, times].cpu() for frames in shown], dim=1)
    return rearrange(pairs, "b two t c h w -> c (b two h) (t w)")


def _batch(made: Prepared, numbers: np.ndarray, device: torch.device) -> Batch:
    return made.ready(stack([made.val[int(i)] for i in numbers]).to(device))


def _evenly(made: Prepared, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, len(made.val) - 1, min(wanted, len(made.val))).round().astype(int))
