"""The sampling track: Wan's continuous video VAE, and the state-conditioned Wan over its latents."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.checks import changed
from worldline.contract import Contract, FramePattern
from worldline.data.clips import Clips, open_clips, open_split
from worldline.encoding.encode import encode
from worldline.families.card import Base, Identity, ModelCard, Part, refuse_another
from worldline.families.config import SampleOptions, TrainConfig
from worldline.families.family import Prepared, TokenizerKind, WorldKind, contract_with, register
from worldline.families.tokenizers import cached_clips, keep_tokenizer, load_tokenizer, tokenizer_config
from worldline.forecasting.latents import LatentForecaster
from worldline.formats.source import Source
from worldline.process.flow import FlowSampling
from worldline.ranks import Ranks
from worldline.schema import Batch, LatentGrid, UsageError
from worldline.tokenizers.wan_vae import (
    HUB_ID,
    ORIGINAL_NAME,
    WanVAEConfig,
    WanVAESizes,
    WanVAETokenizer,
    load_tensors,
    read_config,
    vae_files,
)
from worldline.worlds.wan import WanConfig, WanWorld
from worldline.worlds.wan_text import load_text
from worldline.worlds.wan_weights import fingerprint_backbone, load_backbone

MEASURED_CLIPS = 512
"""Training clips for the mean and standard deviation of a new VAE's latents."""
PREVIEW = FlowSampling(steps=5)
"""How forecasts are made during training: few steps, since they only have to show progress."""


class VAEKind(TokenizerKind):
    """Wan's VAE, trained here or published."""

    config = WanVAEConfig
    download = (
        f"the folder of {HUB_ID} (vae/config.json and vae/diffusion_pytorch_model.safetensors), or {ORIGINAL_NAME}"
    )

    def pattern(self, config: TrainConfig, model: WanVAEConfig, grid: LatentGrid) -> FramePattern:
        grid.latents_of(len(config.data.pattern.frames))
        return config.data.pattern

    def kept(self, model: WanVAEConfig) -> str | None:
        return "--model.keep-latents" if model.keep_latents else None

    def finish(self, model: WanVAETokenizer, made: Prepared, config: TrainConfig) -> None:
        if model.config.keep_latents:
            return
        device, at_once = next(model.parameters()).device, -(-config.batch_size // config.accumulate)
        numbers = range(0, len(made.train), max(1, len(made.train) // MEASURED_CLIPS))
        model.measure_statistics(batch.to(device) for batch in made.train.batches(numbers, at_once))

    def unmeasured(self, model: WanVAETokenizer) -> str | None:
        as_built = not model.latents_mean.any() and bool((model.latents_std == 1).all())
        return "mean and deviation of its latents" if as_built else None

    def published(self, path: Path) -> tuple[WanVAEConfig, list[Path]] | None:
        return (read_config(files), files) if (files := vae_files(path)) else None

    def load_published(self, model: WanVAEConfig, files: list[Path]) -> WanVAETokenizer:
        with torch.device("meta"):  # the weights are in memory once, not twice
            tokenizer = model.build()
        tokenizer.vae.load_state_dict(load_tensors(files, tokenizer.vae.state_dict()), strict=True, assign=True)
        return tokenizer


class LatentWorldKind(WorldKind):
    """Wan over latents: from disk, from a cache, or encoded batch by batch."""

    config = WanConfig
    over = "latents"
    python_only = (
        *("data.pattern", "model.context_latents", "model.horizon_latents", "model.text_rows", "model.text_length"),
        *("model.flow.num_train_steps", "model.flow.shift"),
        *("model.states.mode", "model.states.hidden", "model.states.norm_groups", "model.skeleton"),
    )
    reads = ("tokenizer", "weights", "text")
    options = ("steps", "guidance", "sampler", "mean_draws", "average_repeats")
    psnr_clips = 8

    def idle(self, config: TrainConfig, model: WanConfig) -> dict[str, str]:
        found = {}
        if model.unconditional:
            states = ("states.", "drop_states", "conditioning", "skeleton")
            found |= {f"model.{name}": "the world is unconditional" for name in states}
        elif model.conditioning == "map":
            found["model.states.normalise"] = "no states enter as numbers (--model.conditioning)"
        if model.lora is None:
            found["model.block_bias"] = "without adapters the whole backbone is trained, its tables too"
        return found

    def normalises(self, model: WanConfig) -> bool | None:
        return None if model.unconditional or model.conditioning == "map" else model.states.normalise

    def backbone_fingerprint(self, path: Path) -> str:
        return fingerprint_backbone(path)

    def build(self, model: WanConfig, contract: Contract, backbone: Any = None) -> WanWorld:
        """A frozen backbone is bfloat16, except what diffusers keeps in fp32."""
        if backbone is None and model.lora is not None:
            backbone = model.backbone.build(torch.bfloat16)
        how = {"names": contract.state_names, "grid": contract.latents}
        return model.build(contract.state_kinds, contract.pattern, backbone=backbone, **how)

    def rebuild(self, card: ModelCard, folder: Path, *, weights: Path | None, allowed: Collection[Part]) -> WanWorld:
        model: Any = card.config
        if model.lora is None:
            return super().rebuild(card, folder, weights=weights, allowed=allowed)
        place = weights or (card.base.path if card.base else Path())
        if not place.exists():
            raise UsageError(
                f"the backbone under the adapters in {folder} was at {place} when they were trained, and is not there "
                "now; give its new place (--weights DIR)"
            )
        found = Identity(backbone=self.backbone_fingerprint(place))
        refuse_another(card.identity, found, what=f"the world in {folder}", places={"backbone": place}, allowed=allowed)
        return self.build(model, card.promise, load_backbone(place, model.backbone))

    def pattern(self, config: TrainConfig, model: WanConfig, grid: LatentGrid) -> FramePattern:
        """Raises `UsageError` where the backbone's channels, its patches or its length do not fit the latents."""
        reads, pattern = model.backbone.in_channels, config.data.pattern
        if reads != grid.channels:
            raise UsageError(
                f"the world reads {reads} channels, but the VAE makes {grid.channels}; give the VAE that makes them "
                "(--tokenizer RUN) or another --model.backbone"
            )
        _, patch_h, patch_w = model.backbone.patch_size
        if grid.height % patch_h or grid.width % patch_w:
            raise UsageError(f"latents of {grid.height}x{grid.width} do not divide into patches of {patch_h}x{patch_w}")
        model.check_length(pattern, grid.latents_of(len(pattern.frames)))
        return pattern

    # --- training ---

    def prepare(self, config: TrainConfig, model: WanConfig, ranks: Ranks) -> Prepared:
        """Raises `UsageError` for no VAE or no pretrained backbone where one is needed, or latents of another VAE."""
        if config.tokenizer is None:
            raise UsageError("a world over latents needs the VAE that makes them (--tokenizer RUN or Wan2.2's folder)")
        text = None if config.text is None else load_text(config.text)
        model = model if text is None else replace(model, text_rows=len(text))
        source, _ = open_split(config.data, "train")
        base, vae = _base(config, model), load_tokenizer(config.tokenizer, "latents")
        grid = source.latent_grid or vae.grid(*source.video_size(config.data.image_size))
        pattern = self.pattern(config, model, grid)  # what cannot be is refused before anything is encoded
        contract = contract_with(source, config.data, grid, pattern)
        clips = _as_latents(config, source, vae, ranks)
        torch.manual_seed(config.seed)  # the first weights are a function of the seed
        dtype = torch.float32 if model.lora is None else torch.bfloat16  # what is trained is fp32
        backbone = load_backbone(base, model.backbone, dtype=dtype) if base else None
        world = self.build(model, contract, backbone)
        if text is not None:
            world.set_text(text)
        place, vae = config.tokenizer, vae.to(ranks.device(config.device)).requires_grad_(False)
        return self.prepared(
            replace(config, model=model),
            world,
            clips,
            contract,
            base=Base(path=base) if base else None,
            tokenizer=vae,
            ready=lambda batch: batch if batch.frames is None else replace(batch, latents=vae.encode(batch.frames)),
            keep=lambda run: keep_tokenizer(run, place, vae),
        )

    def roll_out(self, world: WanWorld, batch: Batch) -> Tensor:
        assert batch.latents is not None, "a batch of latents"
        context, future = batch.latents[:, : world.context_latents], batch.latents[:, world.context_latents :]
        sampling = replace(PREVIEW, shift=world.config.flow.shift)
        if future.is_meta:  # a plan counts bytes, and every further step takes those of the second
            return world.forecast(context, batch.states, torch.empty_like(future), sampling=replace(sampling, steps=2))
        noise = torch.randn(future.shape, generator=torch.Generator().manual_seed(0)).to(future.device)
        return world.forecast(context, batch.states, noise, sampling=sampling)

    # --- forecasts ---

    def check_options(self, card: ModelCard, options: SampleOptions) -> None:
        super().check_options(card, options)
        model: Any = card.config
        if options.guidance != 1 and model.unconditional:
            raise UsageError("this world ignores the states: --guidance would change nothing")
        if options.guidance != 1 and model.drop_states == 0:
            raise UsageError(
                f"--guidance {options.guidance:g} compares states with none, which this world has not learned; train "
                "one with a null code (--model.states.null True --model.drop-states 0.1)"
            )
        if options.mean_draws and {"num_samples", "steps", "sampler"} & {*changed(SampleOptions, options)}:
            raise UsageError("--mean-draws makes one forecast, from pure noise; leave out other options of sampling")
        if options.average_repeats and not card.promise.pattern.repeat_last:
            raise UsageError("this world shows no instant twice: --average-repeats would change nothing")

    def refuse_unfit(self, source: Source, card: ModelCard, *, tokenizer: bool, shown: bool) -> None:
        pattern = card.promise.pattern
        if source.latent_grid is None and source.image_size is None:
            raise UsageError(f"{source.path} holds no frames for a forecast to begin with; give data that do (--data)")
        if source.latent_grid is not None and source.pattern != pattern:
            raise UsageError(
                f"{source.path} holds latents of {source.pattern}, but this world was trained on {pattern}"
            )

    def forecaster(
        self, world: WanWorld, card: ModelCard, tokenizer: Any, options: SampleOptions, device: torch.device
    ) -> LatentForecaster:
        if tokenizer is None:
            raise UsageError("this world forecasts latents; give the VAE it was trained on (--tokenizer DIR)")
        made = LatentForecaster(
            tokenizer=tokenizer,
            world=world.to(device),
            grid=card.promise.latents,
            pattern=card.promise.pattern,
            sampling=FlowSampling(
                sampler=options.sampler, steps=options.steps, guidance=options.guidance, shift=world.config.flow.shift
            ),
            num_samples=options.num_samples,
            average_repeats=options.average_repeats,
            rows=options.rows,
            device=device,
        )
        return made.conditional_mean(options.mean_draws) if options.mean_draws else made

    # --- for planning ---

    def clips_followed(self, model: WanConfig, contract: Contract) -> tuple[int, ...]:
        """Whole clips learn a shortcut, rounded up (`flow.draw_shortcuts`): one more of every so many."""
        every = round(1 / model.flow.shortcut) if model.flow.shortcut > 0 else 1
        return (1, every, 2 * every) if every > 1 else (1, 2)

    def encoder(self, config: TrainConfig, model: WanConfig) -> WanVAEConfig:
        """Of the VAE named by the run if it is there, else Wan2.2's, or the preset with as many channels."""
        place = config.tokenizer or config.weights
        if place is not None and place.exists():
            found: Any = tokenizer_config(place)
            return found
        channels = model.backbone.in_channels
        fits = (sizes for sizes in WanVAESizes.presets.values() if sizes.z_dim == channels)
        return WanVAEConfig(sizes=next(fits, WanVAESizes()))


def _as_latents(config: TrainConfig, source: Source, vae: Any, ranks: Ranks) -> tuple[Clips, Clips]:
    """Clips of both splits: of latents on disk, of frames if there is no cache, else of cached latents."""
    data = config.data
    data.augment.keep_sides()
    if source.pattern not in (None, data.pattern):
        raise UsageError(f"{source.path} was encoded with {source.pattern}, but the run asks for {data.pattern}")
    if source.latent_grid is not None or data.cache is None:
        return open_clips(data, "train"), open_clips(data, "val")
    if data.augment.changes:
        raise UsageError(
            "latents in a cache are encoded once, so nothing would be augmented; train straight from video "
            "(--data.cache None) or augment nothing"
        )
    how = {"window": data.pattern.window, "pattern": data.pattern, "window_stride": data.window_stride}
    return cached_clips(encode, config, vae, ranks, **how)


def _base(config: TrainConfig, model: WanConfig) -> Path | None:
    """Where the pretrained backbone lies; None where the whole backbone is trained from nothing.

    Without adapters, training only starts from the backbone: all of it is trained, and checkpoints contain all of it.
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


for kind in (VAEKind(), LatentWorldKind()):
    register(kind)
