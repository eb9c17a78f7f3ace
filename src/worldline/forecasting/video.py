"""Forecasts as video files: the real clip, if there is one, and its predicted futures side by side."""

from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from worldline.formats.video import encode


def write_comparison(
    path: Path,
    seen: UInt8[Tensor, "c 3 h w"],
    futures: UInt8[Tensor, "k f 3 h w"],
    *,
    real: UInt8[Tensor, "f 3 h w"] | None,
    fps: float,
) -> None:
    """Write real | future 1 | ... | future k as one H.264 video, small frames enlarged, atomically.

    The context is shown in every panel, darkened in the predicted ones so that the eye sees where prediction begins.

    Args:
        seen: frames of the context.
        real: what came after it; None where nobody knows.
    """
    dark = seen.numpy() // 2
    panels = [np.concatenate([dark, future]) for future in futures.numpy()]
    if real is not None:
        panels.insert(0, np.concatenate([seen.numpy(), real.numpy()]))
    row = rearrange(np.stack(panels), "k t c h w -> t h (k w) c")
    scale = _scale(*seen.shape[-2:])
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path, np.ascontiguousarray(row.repeat(scale, axis=1).repeat(scale, axis=2)), fps=fps)


def _scale(height: int, width: int) -> int:
    """How often every pixel is repeated: enough to look at, and an even size, which H.264 needs."""
    if height <= 128:
        return 4
    return 2 if height <= 256 or height % 2 or width % 2 else 1
