"""NVIDIA's Cosmos DV8x8x8 tokenizer, loaded from its TorchScript pair. Weights are the user's to bring.

`encoder.jit` maps video `b 3 t h w` in [-1, 1] to (indices `b l h/8 w/8`, codes); `decoder.jit` maps indices to
video. Both run in bfloat16. Long videos go through in disjoint blocks of 17 frames, as the 1X data set was made.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from worldline.contract import ModelConfig
from worldline.files import reading
from worldline.schema import TokenGrid
from worldline.tokenizers.tokenizer import BlockTokenizer, divided, to_pixels, to_signed

HUB_ID = "nvidia/Cosmos-0.1-Tokenizer-DV8x8x8"
LEVELS = (8, 8, 8, 5, 5, 5)


@dataclass(frozen=True, kw_only=True)
class CosmosConfig(ModelConfig):
    """Where the TorchScript pair lies and in which precision it runs."""

    folder: Path
    kind: Literal["cosmos-dv8x8x8"] = "cosmos-dv8x8x8"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The published files hold bfloat16 weights and take bfloat16 input."""

    spatial_stride: ClassVar[int] = 8

    def grid(self, height: int, width: int) -> TokenGrid:
        """How tokens lie over frames of this size. Raises `UsageError` for sizes off the spatial stride."""
        return TokenGrid(**divided(height, width, self.spatial_stride), vocab_size=math.prod(LEVELS))

    def build(self) -> "CosmosTokenizer":
        return CosmosTokenizer(self)


class CosmosTokenizer(BlockTokenizer):
    """A `Tokenizer` over the published files. Not trainable. Raises `DataError` for files that are missing or other."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = (_load(config.folder / name) for name in ("encoder.jit", "decoder.jit"))
        self.dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32

    def tokens_of(self, block: Tensor) -> Tensor:
        return self.encoder(to_signed(block).to(self.dtype))[0].long()

    def frames_of(self, block: Tensor) -> Tensor:
        return to_pixels(self.decoder(block.int()).float())


def _load(path: Path) -> Any:
    fix = f"Download encoder.jit and decoder.jit of {HUB_ID} into {path.parent}."
    with reading(path, RuntimeError, expected=f"a TorchScript file of {HUB_ID}", fix=fix), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NVIDIA publishes no other form of these weights
        return torch.jit.load(path, map_location="cpu").eval()
