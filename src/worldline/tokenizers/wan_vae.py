"""Wan2.2's causal video VAE: frames to continuous latents and back, over diffusers' `AutoencoderKLWan`.

Latent 0 is frame 0 and latent k covers frames `4k-3 .. 4k`. What leaves `encode` is the posterior mean, normalised to
about zero mean and unit variance per channel, so that a world sees the same scale from every VAE. The default is the
704.7 M parameter VAE of Wan2.2 TI2V-5B, whose files are read in both published layouts; smaller ones train by their own
`loss`. Needs the extra `wan` to build one.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor, nn

from worldline.checks import Checked, Limit, Positive, refuse
from worldline.contract import ModelConfig
from worldline.files import read_json
from worldline.nn.video import CausalBlock, merge, unmerge
from worldline.nn.weights import (
    HUB_ID,
    ORIGINAL_HUB_ID,
    STEM,
    MayLack,
    check_tensors,
    full_config,
    mapped_tensors,
    renamed,
    upstream,
    weight_files,
)
from worldline.rundir import from_json
from worldline.schema import Batch, DataError, LatentGrid, UsageError
from worldline.tokenizers.tokenizer import (
    by_pieces,
    divided,
    reconstruction_loss,
    shown_in_training,
    to_pixels,
    to_signed,
    video_in,
)

_MODULE = "diffusers.models.autoencoders.autoencoder_kl_wan"
_STRIDE = 4
"""Frames per latent. diffusers cuts video into chunks of four, whatever the configuration says."""

# fmt: off
WAN22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
"""Mean of each latent channel of the published Wan2.2 VAE."""
WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
"""Standard deviation of each latent channel of the published Wan2.2 VAE."""
# fmt: on


@dataclass(frozen=True, kw_only=True)
class WanVAESizes(Checked):
    """Sizes of diffusers' `AutoencoderKLWan`, nearly under its names; the defaults are Wan2.2's."""

    presets: ClassVar[dict[str, "WanVAESizes"]]
    """Names for `--model.sizes`. A checkpoint keeps the sizes themselves."""
    base_dim: int = 160
    """Channels of the encoder's first stage; stage i has `dim_mult[i]` times as many."""
    decoder_base_dim: int = 256
    z_dim: int = 48
    """Latent channels."""
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    """Residual blocks of each encoder stage; decoder stages have one more."""
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    """Which steps between stages halve time beside space; one fewer than `dim_mult`. Two must."""
    dropout: Annotated[float, Limit(below=1)] = 0.0
    is_residual: bool = True
    """Wan2.2's shortcuts around whole stages; Wan2.1 has none."""
    patch_size: int = 2
    """Pixels folded into channels before the first convolution."""
    latents_mean: tuple[Annotated[float, Limit(least=-math.inf)], ...] = WAN22_MEAN
    """Per channel; empty where they are still to be measured, which then count as 0."""
    latents_std: tuple[Positive, ...] = WAN22_STD
    """Per channel; empty where they are still to be measured, which then count as 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.temporal_downsample) != len(self.dim_mult) - 1 or sum(self.temporal_downsample) != 2:
            why = f"diffusers' VAE works in chunks of {_STRIDE} frames"
            refuse(self, "temporal_downsample", f"one entry fewer than dim_mult has, two of them true: {why}")
        for name in ("latents_mean", "latents_std"):
            if getattr(self, name) and len(getattr(self, name)) != self.z_dim:
                refuse(self, name, f"{self.z_dim} numbers, one for each channel, or empty to be measured")

    @property
    def spatial_stride(self) -> int:
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)

    @property
    def derived(self) -> dict[str, Any]:
        """Entries of diffusers' configuration that follow from the others, or have no effect there."""
        pixels = 3 * self.patch_size**2
        strides = {"scale_factor_temporal": _STRIDE, "scale_factor_spatial": self.spatial_stride}
        return {"in_channels": pixels, "out_channels": pixels, "attn_scales": [], **strides}


WanVAESizes.presets = {
    "wan2.2-ti2v-5b": WanVAESizes(),
    "tiny": WanVAESizes(
        base_dim=16,
        decoder_base_dim=16,
        z_dim=12,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        latents_mean=(),
        latents_std=(),
    ),
}


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig(ModelConfig):
    """The VAE and its loss."""

    kind: Literal["wan-vae"] = "wan-vae"
    sizes: WanVAESizes = field(default_factory=WanVAESizes)
    """Sizes of the network; a preset by its name."""
    l1_weight: float = 0.1
    """Weight of the absolute error beside the squared error in the loss."""
    lpips_weight: float = 0.0
    """Weight of LPIPS in the loss, with AlexNet and the published weights: pictures look sharper, and PSNR falls."""
    kl_weight: float = 1e-5
    """Weight of the divergence from the standard normal, in nats per latent value."""
    keep_latents: bool = False
    """Train the decoder alone: latents and their statistics stay those of the weights that training begins with, and
    its worlds valid."""
    decoder_sees: bool = False
    """Show a frame that was seen (in a forecast the last of the context) to a small network after the decoder: what
    stays as it was is taken from there, of which latents keep less. Without such a frame it changes nothing."""

    def grid(self, height: int, width: int) -> LatentGrid:
        return LatentGrid(**divided(height, width, self.sizes.spatial_stride), channels=self.sizes.z_dim)

    def build(self) -> "WanVAETokenizer":
        return WanVAETokenizer(self)


class WanVAETokenizer(nn.Module):
    """A `Tokenizer` of latents over an untouched `AutoencoderKLWan`; also trainable by its own `loss`.

    `latents_mean` and `latents_std` are buffers, saved with the weights: a VAE trained here measures them at the end.
    Raises `UsageError` for a configuration that cannot be, or where the extra `wan` is not installed.
    """

    vae: Any
    """diffusers' `AutoencoderKLWan`. To run it in another precision, cast it alone and not the statistics."""
    latents_mean: Tensor
    latents_std: Tensor
    sees: bool
    may_lack = MayLack(new=("retouch.",), reshaped=("retouch.",))

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.config, self.sizes, self.spatial_stride = config, config.sizes, config.sizes.spatial_stride
        self.vae = _autoencoder(self.sizes)
        self.retouch = Retouch(patch=max(1, self.spatial_stride // 2)) if config.decoder_sees else None
        self.sees = config.decoder_sees
        # On the CPU even where weights are built on the meta device: no file brings these.
        zeros, ones = (0.0,) * self.sizes.z_dim, (1.0,) * self.sizes.z_dim
        self.register_buffer("latents_mean", torch.tensor(self.sizes.latents_mean or zeros, device="cpu"))
        self.register_buffer("latents_std", torch.tensor(self.sizes.latents_std or ones, device="cpu"))

    def grid(self, height: int, width: int) -> LatentGrid:
        return self.config.grid(height, width)

    def latents_of(self, video: Float32[Tensor, "b 3 t h w"]) -> Float32[Tensor, "b l c gh gw"]:
        """Posterior mean of video in [-1, 1], normalised. Raises `UsageError` for another length or size (`grid`)."""
        raw = rearrange(self._posterior(video).mode().float(), "b c l h w -> b l c h w")
        return (raw - self.latents_mean[:, None, None]) / self.latents_std[:, None, None]

    def video_of(self, latents: Float32[Tensor, "b l c gh gw"]) -> Float32[Tensor, "b 3 t h w"]:
        """Video in [-1, 1] of normalised latents. Differentiable, but for values the clamp cuts off."""
        raw = latents * self.latents_std[:, None, None] + self.latents_mean[:, None, None]
        return self.vae.decode(rearrange(raw, "b l c h w -> b c l h w").to(self.vae.dtype)).sample.float()

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "b t 3 h w"]) -> Float32[Tensor, "b l c gh gw"]:
        _, count, _, height, width = frames.shape
        return by_pieces(frames, lambda clips: self.latents_of(to_signed(clips)), pixels=count * height * width)

    @torch.no_grad()
    def decode(
        self, latents: Float32[Tensor, "b l c gh gw"], seen: UInt8[Tensor, "b 3 h w"] | None = None
    ) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of latents from the first of a clip on.

        Args:
            seen: a frame of the clip as it was, for a decoder that sees it (`sees`); None: nothing was seen.
        """
        (_, length, _, height, width), area = latents.shape, self.spatial_stride**2
        pixels = (1 + _STRIDE * (length - 1)) * height * width * area
        return by_pieces(latents, self._frames, *(() if seen is None else (seen,)), pixels=pixels)

    def _frames(self, latents: Tensor, seen: UInt8[Tensor, "b 3 h w"] | None = None) -> UInt8[Tensor, "b t 3 h w"]:
        video = self.video_of(latents)
        if self.retouch is not None and seen is not None:
            video = self.retouch(video, to_signed(seen[:, None])[:, :, 0])
        return to_pixels(video)

    @torch.no_grad()
    def measure_statistics(self, batches: Iterable[Batch]) -> None:
        """Set mean and deviation of the latents to those of the posterior means over all of `batches`.

        Per channel over clips, time and space (deviation of the population), summed in float64. Raises `UsageError`
        where there are no batches, or they hold no frames.
        """
        count, total, squares = 0, *torch.zeros(2, self.sizes.z_dim, dtype=torch.float64)
        trains = self.training
        self.eval()  # no dropout
        for batch in batches:
            values = self._posterior(video_in(batch)).mode().cpu().double().transpose(0, 1).flatten(1)
            count += values.shape[1]
            total, squares = total + values.sum(dim=1), squares + values.square().sum(dim=1)
        self.train(trains)
        if not count:
            raise UsageError("the latents' mean and deviation are measured on clips, but there are none")
        mean = total / count
        self.latents_mean.copy_(mean)
        self.latents_std.copy_((squares / count - mean.square()).clamp(min=1e-12).sqrt())  # a dead channel stays finite

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction error and divergence from N(0, 1); in training of drawn latents, else of their mean."""
        video = video_in(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.keep_latents):
            posterior = self._posterior(video)
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean) if self.training else torch.zeros_like(mean)
        sampled = mean + noise * (0.5 * log_variance).exp()
        made = self._reconstruct(sampled)
        if self.retouch is not None:
            made = self.retouch(made, *self._seen_of(video, made, generator))
        weights = {"l1": self.config.l1_weight, "lpips": self.config.lpips_weight}
        loss, psnr = reconstruction_loss(made, video, **weights)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return loss + self.config.kl_weight * divergence, {"psnr_db": psnr, "kl": divergence.item()}

    @torch.no_grad()
    def _seen_of(
        self, video: Float32[Tensor, "b 3 t h w"], made: Float32[Tensor, "b 3 t h w"], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A frame of each clip, and of which clips it is shown: the first of all; in training any, since how far
        ahead a world forecasts is not known here (`shown_in_training`)."""
        clips, _, count = video.shape[:3]
        if not self.training:
            return video[:, :, 0], torch.ones(clips, dtype=torch.bool, device=video.device)
        each, at = torch.arange(clips), torch.randint(count, (clips,), generator=generator)
        return shown_in_training(video[each, :, at], made[each, :, at], generator)

    def _posterior(self, video: Float32[Tensor, "b 3 t h w"]) -> Any:
        """The normal distribution of the raw latents, `b c l gh gw`."""
        self.grid(*video.shape[-2:]).latents_of(video.shape[2])  # refuses what does not fit
        return self.vae.encode(video.to(self.vae.dtype)).latent_dist

    def _reconstruct(self, raw: Float32[Tensor, "b c l gh gw"]) -> Float32[Tensor, "b 3 t h w"]:
        """What diffusers decodes, but latents 1.. in one pass and not clamped, so that every error has a gradient."""
        decoder, x, p = self.vae.decoder, self.vae.post_quant_conv(raw), self.sizes.patch_size
        cache = [None] * sum(isinstance(part, nn.Conv3d) for part in decoder.modules())  # one for each, causal in time
        parts = [decoder(x[:, :, :1], feat_cache=cache, feat_idx=[0], first_chunk=True)]
        if x.shape[2] > 1:
            parts.append(decoder(x[:, :, 1:], feat_cache=cache, feat_idx=[0]))
        return rearrange(torch.cat(parts, dim=2), "b (c r q) t h w -> b c t (h q) (w r)", q=p, r=p).float()


class Retouch(nn.Module):
    """A video beside a frame that was seen: of every pixel, a share of that frame and a change. Begins by changing
    nothing. It comes after the decoder, which is diffusers' own, so it fits any VAE."""

    def __init__(self, *, patch: int, width: int = 96, blocks: int = 4, kernel: int = 7) -> None:
        super().__init__()
        self.fold = merge(9, width, (1, patch))
        self.blocks = nn.Sequential(*(CausalBlock(width, kernel, past=1, mlp_ratio=2) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.unfold = unmerge(width, 4, (1, patch))
        nn.init.zeros_(self.unfold.get_parameter("linear.weight"))
        nn.init.zeros_(self.unfold.get_parameter("linear.bias"))

    def forward(
        self,
        video: Float32[Tensor, "b 3 t h w"],
        seen: Float32[Tensor, "b 3 h w"],
        shown: Bool[Tensor, " b"] | None = None,
    ) -> Float32[Tensor, "b 3 t h w"]:
        """Video in [-1, 1] with what stays of a frame that was `seen`, in the clips that `shown` says; None: in all."""
        beside = seen[:, :, None] - video
        x = torch.cat([video, seen[:, :, None].expand_as(video), beside], dim=1)
        x = self.unfold(self.norm(self.blocks(self.fold(rearrange(x, "b c t h w -> b t h w c")))))
        share, change = rearrange(x.float(), "b t h w c -> b c t h w").split([1, 3], dim=1)
        retouched = share * beside + change
        return video + (retouched if shown is None else shown.float()[:, None, None, None, None] * retouched)


def _autoencoder(sizes: WanVAESizes) -> nn.Module:
    options: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(sizes).items()}
    options |= sizes.derived
    options["temperal_downsample"] = options.pop("temporal_downsample")
    try:
        model = upstream(_MODULE).AutoencoderKLWan(**options)
    except (ValueError, AssertionError) as error:  # widths that its shortcuts cannot average
        raise UsageError(f"diffusers cannot build this VAE; is_residual needs matching dim_mult: {error}") from error

    # Convolutions channels last: with few channels a fifth faster on a CPU, forward and backward.
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in model.parameters():
        if weight.ndim in layouts:
            weight.data = weight.data.contiguous(memory_format=layouts[weight.ndim])
    return model


# --- published files ---

ORIGINAL_NAME = "Wan2.2_VAE.pth"
_CLASS = "AutoencoderKLWan"
_FIX = f"Give the VAE of {HUB_ID} (folder vae) or {ORIGINAL_NAME} of {ORIGINAL_HUB_ID}, complete."
_BLOCKS = (
    (r"\.(down|up)samples\.(\d+)\.\1samples\.\d+\.(resample|time_conv)\b", r".\1_blocks.\2.\1sampler.\3"),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"(_blocks\..*)\.residual\.0\.", r"\1.norm1."),
    (r"(_blocks\..*)\.residual\.2\.", r"\1.conv1."),
    (r"(_blocks\..*)\.residual\.3\.", r"\1.norm2."),
    (r"(_blocks\..*)\.residual\.6\.", r"\1.conv2."),
    (r"(_blocks\..*)\.shortcut\.", r"\1.conv_shortcut."),
)
"""Names in Wan2.2's blocks, and diffusers' own: its converter knows the blocks of Wan2.1 only."""


def vae_files(path: Path) -> list[Path]:
    """Weight files, if any, of a diffusers folder, its `vae/`, `Wan2.2_VAE.pth` (or safetensors) or its folder."""
    if path.is_file():
        return [path] if path.suffix in (".pth", ".safetensors") else []
    if found := weight_files(path / "vae"):
        return found
    # The original transformer's shards are named alike, and lie beside the original VAE.
    if (found := weight_files(path)) and read_json(path / "config.json").get("_class_name") == _CLASS:
        return found
    return [path / ORIGINAL_NAME] if (path / ORIGINAL_NAME).is_file() else []


def read_config(files: list[Path]) -> WanVAEConfig:
    """The configuration beside the weights (Wan2.2's for a single file). Raises `DataError` for another model's."""
    place = files[0].parent / "config.json"
    if not files[0].name.startswith(STEM):
        return WanVAEConfig()
    content = read_json(place)
    if content.get("_class_name") != _CLASS:
        raise DataError(place, expected=f"an {_CLASS}", found=repr(content.get("_class_name")), fix=_FIX)
    # `clip_output` was written by a conversion script; diffusers clips always.
    unread = ("clip_output", *WanVAESizes().derived)
    fields = {k: v for k, v in full_config(content, upstream(_MODULE).AutoencoderKLWan).items() if k not in unread}
    fields["temporal_downsample"] = fields.pop("temperal_downsample")
    fields["decoder_base_dim"] = fields["decoder_base_dim"] or fields["base_dim"]
    fields["patch_size"] = fields["patch_size"] or 1
    sizes: WanVAESizes = from_json(WanVAESizes, fields, place)
    for name, value in sizes.derived.items():
        if content.get(name, value) != value:
            raise DataError(place, expected=f"{name} = {value}", found=f"{content[name]}", fix=_FIX)
    return WanVAEConfig(sizes=sizes)


def load_tensors(files: list[Path], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The expected tensors, in float32. Raises `DataError` for a damaged file, or the first tensor that differs."""
    tensors = {diffusers_name(key): value for key, value in mapped_tensors(files).items()}
    check_tensors(tensors, expected, files[0].parent, fix=_FIX)
    if halved := sorted({str(value.dtype) for value in tensors.values()} - {"torch.float32"}):
        said = f"weights are stored as {', '.join(halved)}: they, and so the latents, are not quite those of float32"
        warnings.warn(f"{files[0]}: {said}", stacklevel=2)
    return {name: value.float() for name, value in tensors.items()}


def diffusers_name(key: str) -> str:
    """The name diffusers gives a tensor of the original file; its own names stay as they are."""
    convert = upstream("diffusers.loaders.single_file_utils").convert_wan_vae_to_diffusers
    return next(iter(convert({renamed(key, _BLOCKS): None})))
