"""Figures and pictures from held-out clips during training. Quick, and always on the same clips."""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor, nn

from worldline.data.clips import Clips
from worldline.families.family import Prepared
from worldline.metrics.image import psnr
from worldline.schema import Batch, stack


@torch.no_grad()
def validate(
    model: nn.Module, made: Prepared, *, num_clips: int, device: torch.device, batch_size: int = 8
) -> dict[str, float]:
    """Mean loss and figures over evenly spread validation clips, as `val/...`. The model is in evaluation mode.

    The model's kind adds further figures (`Kind.figures`); for some kinds, `val/psnr_db` of the last frame of a few
    forecasts.
    """
    chosen = _evenly(made.val, num_clips)
    totals: dict[str, float] = {}
    for part in np.array_split(chosen, max(1, len(chosen) // batch_size)):
        batch = _batch(made, part, device)
        loss, figures = model.loss(batch, torch.Generator().manual_seed(0))  # pyright: ignore[reportCallIssue]
        measured = {name: value.item() for name, value in made.kind.figures(model, batch).items()}
        for name, value in {"loss": loss.item(), **figures, **measured}.items():
            totals[name] = totals.get(name, 0.0) + value * len(part) / len(chosen)
    if made.kind.psnr_clips and (shown := _shown(made, made.kind.psnr_clips, device)):
        totals["psnr_db"] = psnr(shown[1][:, -1:], shown[0][:, -1:]).mean().item()
    return {f"val/{name}": value for name, value in totals.items()}


@torch.no_grad()
def sample_strip(made: Prepared, *, device: torch.device, num_clips: int = 2) -> UInt8[Tensor, "3 h w"] | None:
    """An image for TensorBoard: real frames above the model's; None if nothing can be shown."""
    shown = _shown(made, num_clips, device)
    if shown is None:
        return None
    times = torch.linspace(0, shown[0].shape[1] - 1, 6).round().long()
    pairs = torch.stack([frames[:, times].cpu() for frames in shown], dim=1)
    return rearrange(pairs, "b two t c h w -> c (b two h) (t w)")


def _shown(made: Prepared, num_clips: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Real frames and the model's, if it can show some."""
    return made.kind.shown(made, _batch(made, _evenly(made.val, num_clips), device))


def _batch(made: Prepared, numbers: np.ndarray, device: torch.device) -> Batch:
    return made.ready(stack([made.val[int(i)] for i in numbers]).to(device))


def _evenly(clips: Clips, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, len(clips) - 1, min(wanted, len(clips))).round().astype(int))
