"""Discrete video tokenizers: causal convolutions around finite scalar quantisation. Ours, and NVIDIA's Cosmos DV8x8x8.

By default ours has the same grid and code structure: 17 frames become 1 + 16/8 latent frames of `h/8 x w/8` tokens.
The first frame is repeated to fill its latent, so latent 0 depends on frame 0 alone and latent k on frames
`0 .. 8k`. Fully convolutional in space: one set of weights for any frame size.
"""

import math
import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor, nn

from worldline.checks import MOST, Limit, Natural, refuse
from worldline.contract import ModelConfig
from worldline.files import reading
from worldline.nn.fsq import FSQ
from worldline.nn.video import CausalBlock, merge, unmerge
from worldline.nn.weights import MayLack
from worldline.schema import Batch, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import (
    BlockTokenizer,
    divided,
    reconstruction_loss,
    shown_in_training,
    to_pixels,
    to_signed,
    video_in,
)

HUB_ID = "nvidia/Cosmos-0.1-Tokenizer-DV8x8x8"
SATURATION = 1.5
"""tanh(1.5) is 0.91: outputs up to here reach every level but the outermost few, and still have a gradient."""


@dataclass(frozen=True, kw_only=True)
class FSQVideoConfig(ModelConfig):
    """Shape of the tokenizer. The stride in time and space is the product of the patch and the merges."""

    kind: Literal["fsq-video"] = "fsq-video"
    levels: tuple[Annotated[int, Limit(least=2, most=MOST)], ...] = (8, 8, 8, 5, 5, 5)
    """FSQ levels; their product is the vocabulary. (8, 8, 8, 5, 5, 5) is Cosmos' 64,000."""
    patch: tuple[int, int] = (8, 4)
    """Frames and pixels folded into channels before the first block."""
    merges: tuple[tuple[int, int], ...] = ((1, 2),)
    """(time, space) factor between one stage and the next, finest first."""
    widths: tuple[int, ...] = (96, 192)
    """Channels of each stage, finest first; one more than `merges`."""
    blocks: tuple[int, ...] = (2, 3)
    """Residual blocks of each stage, in encoder and decoder."""
    kernel: int = 7
    """Side of the decoder's depthwise convolutions, in positions of their stage."""
    encoder_kernels: tuple[int, ...] = (3, 1)
    """The same for each stage of the encoder. With small ones, a token depends only on the surroundings of its patch.
    With 7 throughout, a moving arm changes the tokens of the still wall beside it, which no world can predict: on the
    twin 19 % of future tokens equalled their predecessor, with (3, 1) 26 % of a larger vocabulary."""
    past: Natural = 0
    """Latent frames a block looks back. With 0 every latent is encoded alone, and a still patch keeps its tokens; with
    more, later latents refine earlier ones: a better reconstruction, but tokens that are hard to predict."""
    decoder_past: Natural | None = None
    """The same for the decoder alone, where it differs: it changes no token, and what stands still comes out better."""
    decoder_widths: tuple[int, ...] = ()
    """Channels of the decoder's stages, finest first; empty: those of the encoder."""
    decoder_blocks: tuple[int, ...] = ()
    """Residual blocks of the decoder's stages; empty: as many as the encoder has."""
    decoder_sees: bool = False
    """Show the decoder the frame before a block, of which tokens keep less than is seen: what stays as it was is taken
    from there. It trains on pairs of blocks, and still decodes a block of which nothing was seen before."""
    hysteresis: float = 0.0
    """Levels beyond the nearest that a latent may move before its token changes; 0 takes the nearest token.
    Against camera noise, which moves the latent of a still patch to and fro between two tokens. Every block of
    `block_frames` frames starts again: its tokens depend on it alone (`FSQ.with_hysteresis`; docs/compression.md)."""
    mlp_ratio: int = 2
    block_frames: int = 17
    """Frames tokenized at once; 1 + a multiple of the temporal stride."""
    keep_tokens: bool = False
    """Train the decoder alone: tokens stay those of the weights that training begins with, and its worlds valid."""
    l1_weight: float = 0.1
    """Weight of the absolute error beside the squared error in the loss."""
    lpips_weight: float = 0.0
    """Weight of LPIPS in the loss, with AlexNet and the published weights: pictures look sharper, and PSNR falls."""
    saturation_weight: float = 0.01
    """Weight of the penalty on encoder outputs beyond +-`SATURATION`, where tanh is flat and levels fall out of use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or math.prod(self.levels) > MOST:
            refuse(self, "levels", f"one number or more, with a product of at most {MOST}")
        for name, sides in {"kernel": (self.kernel,), "encoder_kernels": self.encoder_kernels}.items():
            if any(side % 2 == 0 for side in sides):
                refuse(self, name, "odd, so that a kernel has a middle")
        for name in ("widths", "blocks", "encoder_kernels", "decoder_widths", "decoder_blocks"):
            given = getattr(self, name)
            if len(given) != len(self.merges) + 1 and (given or not name.startswith("decoder_")):
                refuse(self, name, f"{len(self.merges) + 1} numbers, one for each stage: one more than merges")
        if self.decoder_sees and self.block_frames == 1:
            refuse(self, "decoder_sees", "false where every frame is a block: worlds that are driven decode it alone")
        if (self.block_frames - 1) % self.temporal_stride:
            refuse(self, "block_frames", f"1 + a multiple of the temporal stride {self.temporal_stride}")

    @property
    def temporal_stride(self) -> int:
        return self.patch[0] * math.prod(t for t, _ in self.merges)

    @property
    def spatial_stride(self) -> int:
        return self.patch[1] * math.prod(s for _, s in self.merges)

    @property
    def clip_frames(self) -> int:
        """Frames of a training clip: a block, and for a decoder that sees also the one before."""
        return self.block_frames * (2 if self.decoder_sees else 1)

    def grid(self, height: int, width: int) -> TokenGrid:
        return TokenGrid(
            **divided(height, width, self.spatial_stride),
            vocab_size=math.prod(self.levels),
            block=self.block_frames,
            temporal_stride=self.temporal_stride,
        )

    def build(self) -> "FSQVideoTokenizer":
        return FSQVideoTokenizer(self)


class FSQVideoTokenizer(BlockTokenizer):
    """Encoder, quantiser, decoder. Its tokens have codes, so that a mean of them can be decoded (`decode_codes`).

    A decoder that is configured apart from the encoder (`decoder_...`) begins anew where first weights are those of a
    tokenizer with another one; that of the frame before a block (`decoder_sees`) begins by changing nothing, and
    is left out where this one sees nothing.
    """

    def __init__(self, config: FSQVideoConfig) -> None:
        super().__init__(config)
        self.quantiser = FSQ(config.levels)
        self.encoder = nn.Sequential(*_encoder_layers(config))
        self.decoder = nn.Sequential(*_decoder_layers(config))
        self.seen = Seen(config) if config.decoder_sees else None
        self.sees = config.decoder_sees
        apart = config.decoder_past is not None or config.decoder_widths or config.decoder_blocks
        self.may_lack = MayLack(new=("seen.",), reshaped=("decoder.", "seen.") if apart else ("seen.",))

    def latents_of(self, video: Float32[Tensor, "b 3 t h w"]) -> Float[Tensor, "b l gh gw d"]:
        """Features before quantisation, unbounded, of one block of video in [-1, 1] (`t` = 1 + k * temporal stride)."""
        first = video[:, :, :1].expand(-1, -1, self.config.temporal_stride - 1, -1, -1)
        return self.encoder(rearrange(torch.cat([first, video], dim=2), "b c t h w -> b t h w c")).float()

    def codes_of(self, latents: Float[Tensor, "b l gh gw d"]) -> Float[Tensor, "b l gh gw d"]:
        """Quantised codes in [-1, 1] of successive latents."""
        return self.quantiser.with_hysteresis(latents, self.config.hysteresis)

    def video_of(
        self,
        codes: Float[Tensor, "b l gh gw d"],
        before: Float32[Tensor, "b 3 h w"] | None = None,
        shown: Bool[Tensor, " b"] | None = None,
    ) -> Float32[Tensor, "b 3 t h w"]:
        """Video of one block of codes, unclamped. The copies that filled latent 0 are dropped again.

        Args:
            before: the frame before the block in [-1, 1], for a decoder that sees it.
            shown: of which clips it is seen; None: of all.
        """
        if self.seen is None or before is None:
            video = self.decoder(codes)
        else:
            video = self.seen(self.decoder, codes, rearrange(before, "b c h w -> b h w c"), shown)
        return rearrange(video[:, self.config.temporal_stride - 1 :].float(), "b t h w c -> b c t h w")

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction error of the last block in [-1, 1], and the penalty on saturation. Needs `batch.frames`.

        Raises `UsageError` for clips of a block alone where the decoder sees the one before.
        """
        whole = video_in(batch)
        past, video = whole.tensor_split([whole.shape[2] - self.config.block_frames], dim=2)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.keep_tokens):
            latents = self.latents_of(video)
            codes = self.codes_of(latents)
        weights = {"l1": self.config.l1_weight, "lpips": self.config.lpips_weight}
        made = self.video_of(codes, *(self._seen_before(past, generator) if self.seen else ()))
        loss, psnr = reconstruction_loss(made, video, **weights)
        used = self.quantiser.indices(codes.detach()).unique().numel()
        saturation = (latents.abs() - SATURATION).relu().square().mean()
        return loss + self.config.saturation_weight * saturation, {"psnr_db": psnr, "tokens_used": float(used)}

    @torch.no_grad()
    def _seen_before(self, past: Float32[Tensor, "b 3 t h w"], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The frame before the last block, and of which clips it is shown (`shown_in_training`)."""
        if past.shape[2] < (block := self.config.block_frames):
            made = f"clips of {self.config.clip_frames} frames, not {block + past.shape[2]}"
            raise UsageError(f"a decoder that sees trains on {made}")
        before = past[:, :, -1]
        if not self.training:
            return before, torch.ones(len(past), dtype=torch.bool, device=past.device)
        own = self.video_of(self.codes_of(self.latents_of(past[:, :, -block:])))[:, :, -1]
        return shown_in_training(before, own, generator)

    def tokens_of(self, block: UInt8[Tensor, "b t 3 h w"]) -> Int64[Tensor, "b l gh gw"]:
        return self.quantiser.indices(self.codes_of(self.latents_of(to_signed(block))))

    def frames_of(
        self, block: Int64[Tensor, "b l gh gw"], before: UInt8[Tensor, "b 3 h w"] | None = None
    ) -> UInt8[Tensor, "b t 3 h w"]:
        return self._frames(self.quantiser.codes(block), before)

    def _frames(self, codes: Tensor, before: UInt8[Tensor, "b 3 h w"] | None = None) -> UInt8[Tensor, "b t 3 h w"]:
        seen = None if before is None else to_signed(before[:, None])[:, :, 0]
        return to_pixels(self.video_of(codes, seen))

    @property
    def codebook(self) -> Float32[Tensor, "v d"]:
        """Codes in [-1, 1] of all tokens."""
        return self.quantiser.codebook

    @torch.no_grad()
    def decode_codes(
        self, codes: Float32[Tensor, "b l gh gw d"], before: UInt8[Tensor, "b 3 h w"] | None = None
    ) -> UInt8[Tensor, "b t 3 h w"]:
        """As `decode`, of codes. Raises `UsageError` if `l` is not a whole number of blocks."""
        return self.decoded(codes, self._frames, before)


def _encoder_layers(config: FSQVideoConfig) -> Iterator[nn.Module]:
    channels, strides = (3, *config.widths), (config.patch, *config.merges)
    for stage, width in enumerate(config.widths):
        yield merge(channels[stage], width, strides[stage])
        for _ in range(config.blocks[stage]):
            yield CausalBlock(width, config.encoder_kernels[stage], config.past, config.mlp_ratio)
    yield nn.LayerNorm(config.widths[-1])
    yield nn.Linear(config.widths[-1], len(config.levels))


def _decoder_layers(config: FSQVideoConfig) -> Iterator[nn.Module]:
    widths, blocks = config.decoder_widths or config.widths, config.decoder_blocks or config.blocks
    past = config.past if config.decoder_past is None else config.decoder_past
    channels, strides = (3, *widths), (config.patch, *config.merges)
    yield nn.Linear(len(config.levels), widths[-1])
    for stage, width in reversed([*enumerate(widths)]):
        for _ in range(blocks[stage]):
            yield CausalBlock(width, config.kernel, past, config.mlp_ratio)
        if not stage:
            yield nn.LayerNorm(width)
        yield unmerge(width, channels[stage], strides[stage])


class Seen(nn.Module):
    """The frame before a block, for its decoder: features for every stage, and a share of it in every pixel made.

    Both begin at zero, so that a decoder which now sees begins as it was.
    """

    def __init__(self, config: FSQVideoConfig) -> None:
        super().__init__()
        widths = config.decoder_widths or config.widths
        strides = accumulate((config.patch[1], *(space for _, space in config.merges)), operator.mul)
        self.features = nn.ModuleList(merge(3, width, (1, side)) for width, side in zip(widths, strides, strict=True))
        self.share = unmerge(widths[0], 1, config.patch)
        for layer in (*self.features, self.share):
            nn.init.zeros_(layer.get_parameter("linear.weight"))
            nn.init.zeros_(layer.get_parameter("linear.bias"))

    def forward(
        self,
        decoder: nn.Sequential,
        codes: Float[Tensor, "b l gh gw d"],
        before: Float[Tensor, "b h w 3"],
        shown: Bool[Tensor, " b"] | None,
    ) -> Float[Tensor, "b t h w 3"]:
        """What the decoder makes of codes with the frame `before` in view, of which clips `shown` says."""
        weight = 1.0 if shown is None else shown.float()[:, None, None, None, None]
        features = [weight * layer(before[:, None]) for layer in self.features]
        *inner, last = decoder
        x = codes
        for layer in inner:
            x = layer(x)
            if not isinstance(layer, CausalBlock | nn.LayerNorm):  # a stage begins
                x = x + features.pop()
        made = last(x)
        return made + weight * self.share(x) * (before[:, None] - made)


# --- Cosmos: its weights are the user's to bring ---


@dataclass(frozen=True, kw_only=True)
class CosmosConfig(ModelConfig):
    """Where its TorchScript pair lies and in which precision it runs."""

    folder: Path
    kind: Literal["cosmos-dv8x8x8"] = "cosmos-dv8x8x8"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The published files hold bfloat16 weights and take bfloat16 input."""

    spatial_stride: ClassVar[int] = 8

    def grid(self, height: int, width: int) -> TokenGrid:
        return TokenGrid(**divided(height, width, self.spatial_stride), vocab_size=64_000)

    def build(self) -> "CosmosTokenizer":
        return CosmosTokenizer(self)


class CosmosTokenizer(BlockTokenizer):
    """A `Tokenizer` over the published files. Not trainable. Raises `DataError` for files that are missing or other.

    `encoder.jit` maps video `b 3 t h w` in [-1, 1] to (indices `b l h/8 w/8`, codes), `decoder.jit` indices to video.
    Long videos go through in disjoint blocks of 17 frames, as the 1X data set was made.
    """

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = (_load(config.folder / name) for name in ("encoder.jit", "decoder.jit"))
        self.dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32

    def tokens_of(self, block: Tensor) -> Tensor:
        return self.encoder(to_signed(block).to(self.dtype))[0].long()

    def frames_of(self, block: Tensor, before: Tensor | None = None) -> Tensor:
        return to_pixels(self.decoder(block.int()).float())


def _load(path: Path) -> Any:
    fix = f"Download encoder.jit and decoder.jit of {HUB_ID} into {path.parent}."
    with reading(path, RuntimeError, expected=f"a TorchScript file of {HUB_ID}", fix=fix), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NVIDIA publishes no other form of these weights
        return torch.jit.load(path, map_location="cpu").eval()
