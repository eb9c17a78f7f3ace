"""Forecasts as video files: the real clip and its predicted futures side by side."""

from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from worldline.data.video import encode


def write_comparison(
    path: Path,
    real: UInt8[Tensor, "t 3 h w"],
    futures: UInt8[Tensor, "k f 3 h w"],
    *,
    context: int,
    fps: float,
    scale: int = 4,
) -> None:
    """Write real | future 1 | ... | future k as one H.264 video, enlarged `scale` times, atomically.

    The context is shown in every panel, darkened in the predicted ones so that the eye sees where prediction begins.
    """
    shown = real[: context + futures.shape[1]].numpy()
    panels = [shown]
    for future in futures.numpy():
        panels.append(np.concatenate([shown[:context] // 2, future]))
    row = rearrange(np.stack(panels), "k t c h w -> t h (k w) c")
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path, np.ascontiguousarray(row.repeat(scale, axis=1).repeat(scale, axis=2)), fps=fps)
