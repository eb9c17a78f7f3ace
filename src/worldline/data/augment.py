"""Random crops, flips and colours for training, the same for all frames of a clip, decided by one seed.

Tokenizers take all of it, worlds everything but flips: a flipped image no longer shows the states beside it.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from worldline.checks import Checked, Limit, Share, refuse
from worldline.schema import UsageError

Scale = Annotated[float, Limit(above=0, most=1)]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Checked):
    """Limits of augmentation; by default nothing changes."""

    presets: ClassVar[dict[str, "AugmentConfig"]]
    crop_scale: tuple[Scale, Scale] = (1.0, 1.0)
    """Side of the random square crop, as a fraction of the shorter image side."""
    flip: Share = 0.0
    """Probability of a horizontal flip."""
    brightness: Share = 0.0
    """Gain on all channels, drawn from 1 - x .. 1 + x."""
    contrast: Share = 0.0
    """Gain around the clip's mean grey."""
    saturation: Share = 0.0
    """Gain around each pixel's grey."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_scale[0] > self.crop_scale[1]:
            refuse(self, "crop_scale", "the smaller number first")

    @property
    def changes(self) -> bool:
        """Whether anything is changed at all."""
        return self != AugmentConfig()

    def keep_sides(self) -> None:
        """Check that augmentation may be used beside states. Raises `UsageError` where it flips."""
        if self.flip:
            raise UsageError("a flipped image no longer shows the states beside it; give --data.augment unflipped")


AugmentConfig.presets = {
    "none": AugmentConfig(),
    "usual": AugmentConfig(crop_scale=(0.8, 1.0), flip=0.5, brightness=0.1, contrast=0.1, saturation=0.1),
    "wide": AugmentConfig(crop_scale=(0.6, 1.0), flip=0.5, brightness=0.1, contrast=0.1, saturation=0.1),
    "unflipped": AugmentConfig(crop_scale=(0.7, 1.0), brightness=0.1, contrast=0.1, saturation=0.1),
}
"""`usual` for tokenizers, `wide` where they crop from larger cached frames, `unflipped` for worlds."""


def augment_frames(
    frames: UInt8[Tensor, "t 3 h w"],
    config: AugmentConfig,
    *,
    size: int,
    seed: int,
    first: UInt8[Tensor, "3 h w"] | None = None,
) -> UInt8[Tensor, "t 3 size size"]:
    """Crop, scale to `size`, flip and recolour: a pure function of its arguments.

    Args:
        first: the clip's first frame, whose grey contrast turns around, where `frames` are a later piece of the clip.
    """
    rng = np.random.default_rng(seed)
    height, width = frames.shape[-2:]
    side = max(1, round(min(height, width) * rng.uniform(*config.crop_scale)))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    flip = rng.random() < config.flip
    limits = (config.brightness, config.contrast, config.saturation)
    brightness, contrast, saturation = (rng.uniform(1 - limit, 1 + limit) for limit in limits)

    def placed(frames: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 size size"]:
        cropped = frames[..., top : top + side, left : left + side]
        if side != size:
            cropped = functional.interpolate(cropped, size=(size, size), mode="bilinear", antialias=True)
        return cropped.flip(-1) if flip else cropped

    made, grey = placed(frames), torch.tensor([0.299, 0.587, 0.114])
    mean = float((made[0] if first is None else placed(first[None])[0]).float().mean(dim=(1, 2)) @ grey)
    # One affine map of RGB holds all three gains, so pixels are touched once.
    matrix = brightness * contrast * (saturation * torch.eye(3) + (1 - saturation) * grey.expand(3, 3))
    offset = torch.full((1, 1), brightness * (1 - contrast) * mean)
    mixed = torch.addmm(offset, matrix, rearrange(made, "t c h w -> c (t h w)").float())
    mixed = mixed.add_(0.5).clamp_(0, 255).to(torch.uint8)
    return rearrange(mixed, "c (t h w) -> t c h w", t=len(made), h=size).contiguous()
