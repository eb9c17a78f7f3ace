"""Figures and pictures from held-out clips during training. Quick, and always on the same clips."""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor, nn

from worldline.data.clips import Clips
from worldline.families.prepared import Prepared
from worldline.forecasting.tokens import LOGITS
from worldline.metrics.image import psnr
from worldline.process.categorical import Sampling
from worldline.process.flow import FlowSampling
from worldline.schema import Batch, stack
from worldline.tokenizers.fsq_video import FSQVideoTokenizer
from worldline.tokenizers.tokenizer import Tokenizer
from worldline.tokenizers.wan_vae import WanVAETokenizer
from worldline.worlds.st_transformer import STTransformer
from worldline.worlds.wan import WanWorld

PREVIEW = FlowSampling(steps=5)
"""How forecasts are made during training: few steps, since they only have to show progress."""
PREVIEW_CLIPS = 8


@torch.no_grad()
def validate(
    model: nn.Module, made: Prepared, *, num_clips: int, device: torch.device, batch_size: int = 8
) -> dict[str, float]:
    """Mean loss and figures over evenly spread validation clips, as `val/...`. The model is in evaluation mode.

    A world over tokens also goes on from its own tokens: `val/autoregressive_loss` (see `autoregressive_loss`).
    A world over latents also forecasts a few clips: `val/psnr_db` is of the last frame, against the decoded true
    latents, since a source of latents has no other frames.
    """
    chosen = _spread(made.val, num_clips)
    totals: dict[str, float] = {}
    for part in np.array_split(chosen, max(1, len(chosen) // batch_size)):
        batch = made.ready(stack([made.val[int(i)] for i in part]).to(device))
        loss, figures = model.loss(batch, torch.Generator().manual_seed(0))  # pyright: ignore[reportCallIssue]
        if isinstance(model, STTransformer):
            figures["autoregressive_loss"] = autoregressive_loss(model, batch).item()
        for name, value in {"loss": loss.item(), **figures}.items():
            totals[name] = totals.get(name, 0.0) + value * len(part) / len(chosen)
    if isinstance(model, WanWorld):
        real, forecast = _preview(model, made, PREVIEW_CLIPS, device)
        totals["psnr_db"] = psnr(forecast[:, -1:], real[:, -1:]).mean().item()
    return {f"val/{name}": value for name, value in totals.items()}


@torch.no_grad()
def autoregressive_loss(world: STTransformer, batch: Batch) -> Tensor:
    """Cross-entropy in nats per token of the true future along the world's own greedy roll-out (report, figure 3b).

    The gap to the teacher-forced loss is what the world's own mistakes cost it. A few clips go through at a time.
    """
    assert batch.tokens is not None, "the teacher-forced loss has read them"
    config, costs = world.config, []
    rows = max(1, LOGITS // (4 * config.grid_height * config.grid_width * config.vocab_size))
    for tokens, states in zip(batch.tokens.split(rows), batch.states.split(rows), strict=True):
        context, future = tokens.tensor_split([config.context_grids], dim=1)
        for index, step in enumerate(world.forecast(context, states, sampling=Sampling())):
            for logits, truth in zip(step.logits, future[:, index], strict=True):
                costs.append(F.cross_entropy(logits.flatten(0, 1), truth.flatten()))
    return torch.stack(costs).mean()


@torch.no_grad()
def sample_strip(
    model: nn.Module, made: Prepared, *, device: torch.device, num_clips: int = 2
) -> UInt8[Tensor, "3 h w"] | None:
    """A picture for TensorBoard: real frames above what the model makes of them; None where nothing can be shown."""
    if isinstance(model, WanWorld):
        return strip(*_preview(model, made, num_clips, device))
    batch, tokenizer = stack([made.val[int(i)] for i in _spread(made.val, num_clips)]).to(device), made.tokenizer
    match model:
        case FSQVideoTokenizer() | WanVAETokenizer() if batch.frames is not None:
            return strip(batch.frames, model.decode(model.encode(batch.frames)))  # pyright: ignore[reportArgumentType]
        case STTransformer() if isinstance(tokenizer, Tokenizer) and batch.tokens is not None:
            return strip(tokenizer.decode(batch.tokens.cpu()), tokenizer.decode(_forecast(model, batch).cpu()))
        case _:
            return None


def _spread(clips: Clips, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, len(clips) - 1, min(wanted, len(clips))).round().astype(int))


def _preview(
    world: WanWorld, made: Prepared, num_clips: int, device: torch.device
) -> tuple[UInt8[Tensor, "b t 3 h w"], UInt8[Tensor, "b t 3 h w"]]:
    """Decoded true latents of a few clips, and the same with the horizon forecast from one draw of noise."""
    batch = made.ready(stack([made.val[int(i)] for i in _spread(made.val, num_clips)]).to(device))
    assert batch.latents is not None, "prepared for a world over latents"
    assert isinstance(made.tokenizer, WanVAETokenizer), "prepared for a world over latents"
    context, future = batch.latents[:, : world.context_latents], batch.latents[:, world.context_latents :]
    noise = torch.randn(future.shape, generator=torch.Generator().manual_seed(0)).to(device)
    forecast = world.forecast(context, batch.states, noise, sampling=PREVIEW)
    together = torch.cat([context, forecast], dim=1)
    return made.tokenizer.decode(batch.latents).cpu(), made.tokenizer.decode(together).cpu()


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
