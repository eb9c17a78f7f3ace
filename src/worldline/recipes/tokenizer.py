"""Recipes for tokenizers: functions that return a complete run. Each docstring gives cost and expected result."""

from dataclasses import replace
from pathlib import Path

from worldline import builtin
from worldline.contract import FramePattern
from worldline.data.augment import AugmentConfig
from worldline.data.clips import DataConfig
from worldline.families.config import TrainConfig
from worldline.nn.optimizer import OptimizerConfig
from worldline.tokenizers.fsq_video import FSQVideoConfig
from worldline.tokenizers.wan_vae import WanVAEConfig, WanVAESizes

TWIN_MINI = DataConfig(path=builtin.TWIN_MINI_TRAIN, val_path=builtin.TWIN_MINI_VAL, image_size=64, cache=Path("cache"))
"""The built-in data. Decoded frames and tokens are kept in the working directory."""


def tokenizer_tiny() -> TrainConfig:
    """Our FSQ video tokenizer, 1.1 M parameters, vocabulary 4,096, 64x64, on the twin. Runs on two CPU cores.

    Every latent frame is encoded alone (`past=0`): a still patch keeps its tokens, and a world can predict them. About
    20 minutes on one core. Expected (docs/results.md): a held-out reconstruction of 28.0 dB, for the built-in: 1,000
    more steps at a lower rate, and 400 episodes.
    """
    return TrainConfig(
        model=FSQVideoConfig(levels=(8, 8, 8, 8), widths=(64, 192), blocks=(1, 3), past=0),
        data=replace(TWIN_MINI, window_stride=3, augment=AugmentConfig.presets["usual"]),
        optimizer=OptimizerConfig(
            lr=2e-3, warmup_steps=100, schedule="cosine", weight_decay=0.01, clip_norm=1.0, ema_decay=0.998
        ),
        batch_size=4,
        steps=5000,
    )


def vae_tiny() -> TrainConfig:
    """Wan's causal video VAE with a stride of 8 and 12 channels at 64x64, on the twin. Runs on two CPU cores.

    About 40 minutes on one core. Expected (docs/results.md): a held-out reconstruction of 28.2 dB over 9 frames, for
    the built-in: trained on 400 episodes.
    """
    return TrainConfig(
        model=WanVAEConfig(sizes=WanVAESizes.presets["tiny"]),
        data=replace(TWIN_MINI, pattern=FramePattern(window=33, stride=4), window_stride=3),
        optimizer=OptimizerConfig(
            lr=2e-3, warmup_steps=100, schedule="cosine", weight_decay=0.0, clip_norm=1.0, ema_decay=0.998
        ),
        batch_size=4,
        steps=2600,
        validation_clips=32,
    )
