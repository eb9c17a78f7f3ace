"""Figures and pictures from held-out clips during training. Quick, and always on the same clips."""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor, nn

from worldline.data.clips import Clips
from worldline.process.categorical import Sampling
from worldline.schema import Batch, stack
from worldline.tokenizers.fsq_video import FSQVideoTokenizer
from worldline.tokenizers.load import AnyTokenizer
from worldline.worlds.st_transformer import STTransformer


@torch.no_grad()
def validate(
    model: nn.Module, clips: Clips, *, num_clips: int, device: torch.device, batch_size: int = 8
) -> dict[str, float]:
    """Mean loss and figures over evenly spread validation clips, as `val/...`. The model is in evaluation mode."""
    chosen = np.unique(np.linspace(0, len(clips) - 1, min(num_clips, len(clips))).round().astype(int))
    totals: dict[str, float] = {}
    for part in np.array_split(chosen, max(1, len(chosen) // batch_size)):
        batch = stack([clips[int(i)] for i in part]).to(device)
        loss, figures = model.loss(batch, torch.Generator().manual_seed(0))  # pyright: ignore[reportCallIssue]
        for name, value in {"loss": loss.item(), **figures}.items():
            totals[name] = totals.get(name, 0.0) + value * len(part) / len(chosen)
    return {f"val/{name}": value for name, value in totals.items()}


@torch.no_grad()
def sample_strip(
    model: nn.Module,
    clips: Clips,
    tokenizer: AnyTokenizer | None,
    *,
    device: torch.device,
    num_clips: int = 2,
) -> UInt8[Tensor, "3 h w"] | None:
    """A picture for TensorBoard: real frames above what the model makes of them; None where nothing can be shown."""
    chosen = np.linspace(0, len(clips) - 1, num_clips).round().astype(int)
    batch = stack([clips[int(i)] for i in chosen]).to(device)
    match model:
        case FSQVideoTokenizer() if batch.frames is not None:
            return strip(batch.frames, model.decode(model.encode(batch.frames)))
        case STTransformer() if tokenizer is not None and batch.tokens is not None:
            return strip(tokenizer.decode(batch.tokens.cpu()), tokenizer.decode(_forecast(model, batch).cpu()))
        case _:
            return None


def _forecast(world: STTransformer, batch: Batch) -> Tensor:
    assert batch.tokens is not None
    context = batch.tokens[:, : world.context_grids]
    grids = [step.tokens for step in world.forecast(context, batch.states, sampling=Sampling())]
    return torch.cat([context, torch.stack(grids, dim=1)], dim=1)


def strip(
    real: UInt8[Tensor, "b t 3 h w"], made: UInt8[Tensor, "b t 3 h w"], columns: int = 6
) -> UInt8[Tensor, "3 y x"]:
    """Lay a few frames of each clip side by side, real above made."""
    times = torch.linspace(0, real.shape[1] - 1, columns).round().long()
    pairs = torch.stack([real[:, times].cpu(), made[:, times].cpu()], dim=1)
    return rearrange(pairs, "b two t c h w -> c (b two h) (t w)")
