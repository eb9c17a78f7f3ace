"""Small VAEs and worlds over latents, and runs of them, for tests of the sampling track."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from builders import GRID_200, TWO_JOINTS, randomise, small_tokenizer, small_world

from worldline.contract import FramePattern
from worldline.data.clips import DataConfig
from worldline.families.card import ModelCard
from worldline.families.config import TrainConfig
from worldline.forecasting.latents import LatentForecaster
from worldline.forecasting.tokens import TokenForecaster
from worldline.nn.optimizer import OptimizerConfig
from worldline.nn.states import StateOptions
from worldline.process.flow import FlowSampling
from worldline.rundir import write_model
from worldline.tokenizers.wan_vae import WanVAEConfig, WanVAESizes, WanVAETokenizer
from worldline.worlds.wan import WanConfig
from worldline.worlds.wan_weights import BackboneConfig

SMALL_VAE = WanVAEConfig(
    sizes=WanVAESizes(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=(1, 1, 1),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        latents_mean=(),
        latents_std=(),
    )
)
"""21 frames of 16x16 -> 6 latents of 4x2x2."""
SMALL_BACKBONE = BackboneConfig(
    patch_size=(1, 1, 1),
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=8,
    freq_dim=16,
    ffn_dim=48,
    num_layers=1,
)
SMALL_WAN = WanConfig(
    backbone=SMALL_BACKBONE,
    lora=None,
    states=StateOptions(hidden=16, null=True, normalise=True),
    drop_states=0.2,
    text_length=1,
)
PATTERN = FramePattern.report_77()


def small_vae(path: Path, seed: int = 0) -> tuple[Path, WanVAETokenizer]:
    """Write a VAE with random weights as a model folder."""
    torch.manual_seed(seed)
    vae = SMALL_VAE.build().eval()
    path.mkdir(parents=True)
    write_model(path, ModelCard(config=vae.config).to_json(), vae.state_dict())
    return path, vae


def world_run(train: Path, val: Path, vae: Path, **changes: Any) -> TrainConfig:
    """A short training run of a small world over latents."""
    return replace(
        TrainConfig(
            model=SMALL_WAN,
            data=DataConfig(path=train, val_path=val, image_size=16, pattern=PATTERN, window_stride=8),
            tokenizer=vae,
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2, clip_norm=1.0, ema_decay=0.8),
            batch_size=4,
            steps=4,
            device="cpu",
            log_every=1,
            evaluate_every=2,
            checkpoint_every=2,
            validation_clips=2,
        ),
        **changes,
    )


# --- forecasters of both families, with random weights ---


def of_tokens(seed: int = 0, **options: Any) -> TokenForecaster:
    tokenizer = small_tokenizer()
    world: Any = small_world(seed=seed, grid=GRID_200)
    return TokenForecaster(world=world, grid=tokenizer.grid(16, 16), tokenizer=tokenizer, **options)


def of_latents(seed: int = 0, **options: Any) -> LatentForecaster:
    """Two steps of the sampler and four samples, if nothing else is asked for."""
    torch.manual_seed(0)
    vae, wan = SMALL_VAE.build().eval(), SMALL_WAN.build(TWO_JOINTS.kinds, PATTERN).eval()
    randomise(wan, seed=seed)
    how: Any = {"sampling": FlowSampling(steps=2), "num_samples": 4} | options
    return LatentForecaster(world=wan, grid=vae.grid(16, 16), tokenizer=vae, pattern=PATTERN, **how)
