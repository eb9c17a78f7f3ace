"""`Tokenizer`: video frames to a grid of tokens or of continuous latents, and back.

The one place where pixels become numbers. A tokenizer never sees a state. Outside of it video is uint8; the float
range [-1, 1] exists only in here.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8
from torch import Tensor, nn

from worldline.metrics.perceptual import NO_LPIPS, Lpips, load_lpips, lpips_file
from worldline.metrics.table import NotComputed
from worldline.schema import Batch, LatentGrid, TokenGrid, UsageError

PIECE = 2**21
"""Pixels of video that go through a network at once, unless one clip alone has more: 24 clips of 21 frames of 64x64, or
one of 512x512, for which Wan's VAE holds 5.7 GB."""
OWN, UNSEEN = 0.25, 0.125
"""Shares of the training clips whose decoder sees its own version of a frame, and nothing of it."""
Grid = TypeVar("Grid", bound=TokenGrid | LatentGrid, covariant=True)


@runtime_checkable
class Tokenizer(Protocol[Grid]):
    """A video autoencoder, causal in time: token grid or latent k depends on frames up to the last it covers."""

    spatial_stride: int
    """Pixels of a frame's side for each position of a grid's."""
    sees: bool
    """Whether its decoder sees a frame that was there: then `decode` takes it as a second argument. Of token grids it
    is the frame before them; latents begin with the context, and it is one of theirs."""

    def grid(self, height: int, width: int) -> Grid:
        """How tokens or latents lie over frames of this size. Raises `UsageError` for sizes off the spatial stride."""
        ...

    def encode(self, frames: UInt8[Tensor, "b t 3 h w"], /) -> Shaped[Tensor, "b l *one"]:
        """Tokens `b l gh gw`, or latents `b l c gh gw` of about zero mean and unit variance per channel.

        Raises `UsageError` for another number of frames than whole blocks, or than `LatentGrid.latents_of` takes.
        """
        ...

    def decode(self, encoded: Shaped[Tensor, "b l *one"], /) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of whole blocks of token grids, or of latents from the first of a clip on."""
        ...


@runtime_checkable
class Coded(Protocol):
    """A tokenizer whose tokens have codes, so that a mean of them can be decoded."""

    codebook: Float32[Tensor, "v d"]
    """Codes of all tokens."""

    def decode_codes(self, codes: Float32[Tensor, "b l gh gw d"], /) -> UInt8[Tensor, "b t 3 h w"]:
        """As `Tokenizer.decode`, of codes."""
        ...


def video_in(batch: Batch) -> Float32[Tensor, "b 3 t h w"]:
    """The video that a tokenizer trains on, in [-1, 1]. Raises `UsageError` if a batch has none."""
    if batch.frames is None:
        raise UsageError("a tokenizer trains on frames, but this source holds tokens only")
    return to_signed(batch.frames)


def to_signed(frames: UInt8[Tensor, "b t 3 h w"]) -> Float32[Tensor, "b 3 t h w"]:
    """uint8 pixels to [-1, 1], channels first, as video networks want them: `x * 2 / 255 - 1`."""
    return frames.transpose(1, 2).float() * (2 / 255) - 1


def to_pixels(video: Float32[Tensor, "b 3 t h w"]) -> UInt8[Tensor, "b t 3 h w"]:
    """[-1, 1] back to uint8, rounded to nearest after clamping; the inverse of `to_signed` on 0..255."""
    return (((video + 1) / 2).clamp(0, 1) * 255 + 0.5).byte().transpose(1, 2)


def reconstruction_loss(
    made: Float32[Tensor, "b 3 t h w"], real: Float32[Tensor, "b 3 t h w"], *, l1: float, lpips: float
) -> tuple[Tensor, float]:
    """Mean squared and weighted absolute error and LPIPS of video in [-1, 1], and its PSNR in dB.

    Raises:
        UsageError: LPIPS has a weight, but its own weights are not there, or frames are too small for it.
    """
    error = made - real
    mse = error.square().mean()
    loss, psnr = mse + l1 * error.abs().mean(), -10 * torch.log10(mse.detach() / 4).item()  # the data range is 2
    return (loss + lpips * _perceptual(made, real) if lpips else loss), psnr


def shown_in_training(
    real: Float32[Tensor, "b 3 h w"], own: Float32[Tensor, "b 3 h w"], generator: torch.Generator
) -> tuple[Float32[Tensor, "b 3 h w"], Bool[Tensor, " b"]]:
    """What a decoder that sees is shown of a `real` frame of each clip, and of which clips it is shown anything: a
    share sees its `own` version, as in a session that goes on from its own frames, and a share nothing."""
    drawn = torch.rand(len(real), generator=generator).to(real.device)
    return torch.where((drawn < OWN)[:, None, None, None], own.clamp(-1, 1), real), drawn < 1 - UNSEEN


def _perceptual(made: Float32[Tensor, "b 3 t h w"], real: Float32[Tensor, "b 3 t h w"]) -> Float32[Tensor, ""]:
    """LPIPS (AlexNet, with the published weights), mean over frames."""
    try:
        judge = _judge(made.device)
        return judge.loss(*(rearrange(video, "b c t h w -> (b t) c h w") for video in (made, real)))
    except NotComputed as error:
        raise UsageError(f"no loss with LPIPS (--model.lpips-weight): {error}") from error


@cache
def _judge(device: torch.device) -> Lpips:
    path = lpips_file("alex")
    if path is None:
        raise NotComputed(NO_LPIPS)
    return load_lpips(path, "alex", device)


def reconstructed(tokenizer: Any, frames: UInt8[Tensor, "b t 3 h w"]) -> UInt8[Tensor, "b t 3 h w"]:
    """Frames through a tokenizer and back; of any number, the last being repeated up to what it takes.

    Raises `UsageError` for frames of a size that it does not take.
    """
    grid, count = tokenizer.grid(*frames.shape[-2:]), frames.shape[1]
    missing = -count % grid.block if isinstance(grid, TokenGrid) else (1 - count) % grid.temporal_stride
    whole = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    return tokenizer.decode(tokenizer.encode(whole))[:, :count]


def divided(height: int, width: int, stride: int) -> dict[str, int]:
    """Height and width of a grid over frames of this size. Raises `UsageError` for sizes off the stride."""
    if height % stride or width % stride:
        raise UsageError(f"frames of {height}x{width} do not divide by the tokenizer's stride {stride}")
    return {"height": height // stride, "width": width // stride}


def by_pieces(x: Tensor, network: Callable[..., Tensor], *more: Tensor, pixels: int) -> Tensor:
    """Put clips through a network, as many at a time as `PIECE` allows; each is `pixels` of video."""
    at_once = max(1, PIECE // max(1, pixels))
    return torch.cat([network(*parts) for parts in zip(*(one.split(at_once) for one in (x, *more)), strict=True)])


class BlockTokenizer(nn.Module):
    """A discrete tokenizer: a configuration with a grid, and disjoint blocks of frames."""

    sees: bool = False
    """Whether its decoder sees the frame before a block. Then successive blocks are decoded one after the other."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.spatial_stride = config, config.spatial_stride
        self.vocab_size = self.grid(0, 0).vocab_size

    def grid(self, height: int, width: int) -> TokenGrid:
        return self.config.grid(height, width)

    def tokens_of(self, block: UInt8[Tensor, "b t 3 h w"]) -> Int64[Tensor, "b l gh gw"]:
        """Tokens of one block of each clip."""
        raise NotImplementedError

    def frames_of(
        self, block: Int64[Tensor, "b l gh gw"], before: UInt8[Tensor, "b 3 h w"] | None = None
    ) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of one block of each clip; a decoder that sees may be shown the frame before."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "b t 3 h w"]) -> Int64[Tensor, "b l gh gw"]:
        height, width = frames.shape[-2:]
        return self._by_blocks(frames, self.grid(height, width).block, "frames", self.tokens_of, height * width)

    @torch.no_grad()
    def decode(
        self, tokens: Int64[Tensor, "b l gh gw"], before: UInt8[Tensor, "b 3 h w"] | None = None
    ) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of whole blocks of token grids.

        Args:
            before: the frame before the first one, for a decoder that sees it (`sees`); None: nothing was seen.
        """
        return self.decoded(tokens, self.frames_of, before)

    def decoded(
        self, grids: Tensor, frames_of: Callable[..., Tensor], before: UInt8[Tensor, "b 3 h w"] | None
    ) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of whole blocks of what `frames_of` turns into those of one."""
        grid, area = self.grid(0, 0), math.prod(grids.shape[2:4]) * self.spatial_stride**2
        if not self.sees:
            return self._by_blocks(grids, grid.latents_per_block, "token grids", frames_of, area)
        _refuse_part_of(grids, grid.latents_per_block, "token grids")
        made: list[Tensor] = []
        for block in grids.split(grid.latents_per_block, dim=1):
            seen = () if before is None else (before,)
            made.append(by_pieces(block, frames_of, *seen, pixels=grid.block * area))
            before = made[-1][:, -1]
        return torch.cat(made, dim=1)

    def _by_blocks(self, x: Tensor, size: int, what: str, network: Callable[[Tensor], Tensor], area: int) -> Tensor:
        """Put the whole blocks along axis 1 through a network; `area` is the pixels of a frame."""
        _refuse_part_of(x, size, what)
        blocks = rearrange(x, "b (n s) ... -> (b n) s ...", s=size)
        made = by_pieces(blocks, network, pixels=self.grid(0, 0).block * area)
        return rearrange(made, "(b n) l ... -> b (n l) ...", b=x.shape[0])


def _refuse_part_of(x: Tensor, size: int, what: str) -> None:
    if x.shape[1] % size:
        raise UsageError(f"{x.shape[1]} {what} are not a whole number of blocks of {size}")
