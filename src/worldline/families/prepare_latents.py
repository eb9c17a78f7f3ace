"""Preparing the sampling track: the VAE, and the state-conditioned world over its latents."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from worldline.contract import FramePattern
from worldline.data.clips import Clips, DataConfig, all_clips, open_clips, open_split
from worldline.devices import pick_device
from worldline.encoding.latents import encode
from worldline.families.card import Base, ModelCard
from worldline.families.config import TrainConfig
from worldline.families.prepared import (
    Prepared,
    Progress,
    contract,
    frame_size,
    initialise,
    keep_tokenizer,
    picture_size,
)
from worldline.formats.encoded import LatentSource
from worldline.formats.open import contract_of
from worldline.formats.source import Source
from worldline.formats.states import compute_stats
from worldline.ranks import Ranks
from worldline.schema import Batch, LatentGrid, UsageError, stack
from worldline.tokenizers.load import fingerprint, load_vae
from worldline.tokenizers.wan_vae import WanVAEConfig, WanVAETokenizer
from worldline.worlds.wan import WanConfig
from worldline.worlds.wan_text import load_text
from worldline.worlds.wan_weights import load_backbone

MEASURED_CLIPS = 512
"""Training clips behind the mean and deviation of a new VAE's latents."""
COPIED = 100_000_000
"""Parameters up to which a VAE is copied into the run folder; of a larger one the run says where it lies."""


def prepare_vae(config: TrainConfig, model_config: WanVAEConfig, ranks: Ranks, progress: Progress) -> Prepared:
    """Clips of frames as `data.pattern` says, and a VAE with fresh weights."""
    torch.manual_seed(config.seed)  # the first weights are a function of the seed
    model = model_config.build()
    grid = model.grid(*frame_size(config.data))
    grid.latents_of(len(config.data.pattern.frames))
    train = open_clips(
        config.data, "train", ranks=ranks, progress=lambda *at: progress("decoding training frames", *at)
    )
    val = open_clips(config.data, "val", ranks=ranks, progress=lambda *at: progress("decoding validation frames", *at))
    initialise(model, config.init_from)
    return Prepared(
        model=model,
        train=train,
        val=val,
        card=ModelCard(config=model_config, contract=contract(train.source, config.data, grid, config.data.pattern)),
        tokenizer=None,
        left_out=train.source.left_out,
        finish=lambda: model.measure_statistics(_some(train, config)),
    )


def _some(clips: Clips, config: TrainConfig) -> Iterator[Batch]:
    step, at_once = max(1, len(clips) // MEASURED_CLIPS), -(-config.batch_size // config.accumulate)
    for begin in range(0, len(clips), step * at_once):
        numbers = range(begin, min(begin + step * at_once, len(clips)), step)
        yield stack([clips[i] for i in numbers]).to(pick_device(config.device))


def prepare_latent_world(config: TrainConfig, model_config: WanConfig, ranks: Ranks, progress: Progress) -> Prepared:
    """Latents of both splits, made now, made before or made batch by batch, and a world that fits them.

    Raises:
        UsageError: no VAE or no pretrained backbone where one is needed, or latents of another VAE.
        DataError: their files are damaged.
    """
    if config.tokenizer is None:
        raise UsageError("a world over latents needs the VAE that makes them (--tokenizer RUN or Wan2.2's folder)")
    pattern, (source, chosen) = config.data.pattern, open_split(config.data, "train")
    base = _base(config, model_config)
    vae, identity = load_vae(config.tokenizer), fingerprint(config.tokenizer)
    _check_channels(model_config, vae.sizes.z_dim)
    grid = _grid(source, config.data, vae)
    model_config = _fitted(model_config, source, grid, pattern)  # what cannot be is refused before anything is encoded
    train, val = _as_latents(config, source, chosen, vae, identity, ranks, progress)
    torch.manual_seed(config.seed)  # the first weights are a function of the seed
    backbone = load_backbone(base, model_config.backbone, dtype=_dtype(model_config)) if base else None
    model = model_config.build(backbone)
    if config.text is not None:
        model.set_text(load_text(config.text))
    statistics = compute_stats(train.source, episodes=sorted(set(train.windows.episode.tolist())))
    if model.states is not None and model_config.states.normalise:
        model.states.set_statistics(torch.tensor(statistics.mean), torch.tensor(statistics.std))
    initialise(model, config.init_from)
    place = config.tokenizer
    vae = vae.to(pick_device(config.device)).requires_grad_(False)
    return Prepared(
        model=model,
        train=train,
        val=val,
        card=ModelCard(
            config=model_config,
            contract=contract(source, config.data, grid, pattern),
            statistics=statistics,
            base=Base(path=base) if base else None,
        ),
        tokenizer=vae,
        left_out=source.left_out,
        ready=lambda batch: batch if batch.latents is not None else _encoded(batch, vae),
        keep=lambda run: keep_tokenizer(run, place, vae, weights=_size(vae) <= COPIED),
    )


def _encoded(batch: Batch, vae: WanVAETokenizer) -> Batch:
    assert batch.frames is not None, "a source holds frames or latents"
    return replace(batch, latents=vae.encode(batch.frames))


def _grid(source: Source, data: DataConfig, vae: WanVAETokenizer) -> LatentGrid:
    return source.latent_grid if isinstance(source, LatentSource) else vae.grid(*picture_size(data, source))


def _as_latents(
    config: TrainConfig,
    source: Source,
    chosen: Sequence[int],
    vae: WanVAETokenizer,
    identity: str,
    ranks: Ranks,
    progress: Progress,
) -> tuple[Clips, Clips]:
    """Clips of both splits: of latents that are there, of frames where nothing is cached, else of cached latents."""
    data = config.data
    data.augment.keep_sides()
    if isinstance(source, LatentSource):
        data = _checked(data, source)
    if isinstance(source, LatentSource) or data.cache is None:
        return open_clips(data, "train"), open_clips(data, "val")
    if data.augment.changes:
        raise UsageError(
            "latents in a cache are encoded once, so nothing would be augmented; train straight from video "
            "(--data.cache None) or augment nothing"
        )
    cache, device = data.cache, ranks.device(config.device)

    def clips(source: Source, episodes: Sequence[int]) -> Clips:
        made = encode(
            source,
            vae.to(device),
            cache,
            fingerprint=identity,
            episodes=episodes,
            pattern=data.pattern,
            window_stride=data.window_stride,
            contract=contract_of(source, data, data.path, data.image_size),
            size=data.image_size,
            device=device,
            ranks=ranks,
            in_cache=True,
            progress=lambda *at: progress(f"encoding into {cache}", *at),
        )
        return all_clips(made.open(), window=data.pattern.window, stride=data.window_stride)

    return clips(source, chosen), clips(*open_split(data, "val"))


def _checked(data: DataConfig, train: LatentSource) -> DataConfig:
    """The data configuration over latents that are there; both splits must hold them, of the pattern that is wanted."""
    for source in (train, open_split(data, "val")[0]):
        assert isinstance(source, LatentSource), "both splits hold the same"
        if source.pattern != data.pattern:
            raise UsageError(f"{source.path} was encoded with {source.pattern}, but the run asks for {data.pattern}")
        if source.latent_grid != train.latent_grid:
            raise UsageError(f"{source.path} holds {source.latent_grid}, but {train.path} {train.latent_grid}")
    return replace(data, pattern=FramePattern.consecutive(train.pattern.window))


def _check_channels(model: WanConfig, channels: int) -> None:
    if model.backbone.in_channels != channels:
        raise UsageError(
            f"the backbone reads {model.backbone.in_channels} channels, but the VAE's latents have {channels} "
            "(--model.backbone)"
        )


def _fitted(model: WanConfig, source: Source, grid: LatentGrid, pattern: FramePattern) -> WanConfig:
    """The configuration with what the data decide: state kinds, windows; channels must fit already."""
    _check_channels(model, grid.channels)
    _, patch_h, patch_w = model.backbone.patch_size
    if grid.height % patch_h or grid.width % patch_w:
        raise UsageError(f"latents of {grid.height}x{grid.width} do not divide into patches of {patch_h}x{patch_w}")
    expected, found = model.context_latents + model.horizon_latents, grid.latents_of(len(pattern.frames))
    if expected != found:
        raise UsageError(f"the pattern's {len(pattern.frames)} frames make {found} latents, the world reads {expected}")
    states = replace(model.states, kinds=source.layout.kinds, taken=pattern.frames, window=pattern.window)
    fitted = replace(model, states=states)
    fitted.check_codes()
    return fitted


def _dtype(model: WanConfig) -> torch.dtype:
    """A frozen backbone is kept in bfloat16; what is trained is fp32."""
    return torch.float32 if model.lora is None else torch.bfloat16


def _base(config: TrainConfig, model: WanConfig) -> Path | None:
    """Where the pretrained backbone lies; None where the whole backbone is trained from nothing.

    Without adapters the backbone is only where training begins: all of it is trained, and checkpoints hold all of it.
    """
    if config.weights is None and model.lora is None:
        return None
    if config.weights is None:
        raise UsageError(
            "adapters need a pretrained backbone: give Wan2.2 TI2V-5B's folder (--weights DIR), from the hub "
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers (transformer/) or Wan-AI/Wan2.2-TI2V-5B (diffusion_pytorch_model-*); "
            "nothing is downloaded for you. To train a backbone from nothing: --model.lora None and no --weights"
        )
    if config.text is None:
        raise UsageError(
            "a pretrained backbone expects the empty prompt's encoding, not zeros: compute it once with "
            "`worldline text WEIGHTS --out text.safetensors`, then give it (--text text.safetensors)"
        )
    return config.weights.resolve()


def _size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
